"""C of World Models: evolves a small controller on a frozen V and M, in the real environment or in M's dream."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor

from datamodules.datamodule import Loader
from wmlightning.environments.dream import DreamRules
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.controller import Controller
from wmlightning.optimizers.cmaes import CMAES
from wmlightning.policies.latent import LatentPolicy
from wmlightning.seeds import derive_seed
from wmlightning.stages.checkpoints import resolve_stage, warm_start
from wmlightning.stages.fitness import DreamFitness, RealFitness
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.measurements import pass_over_unmeasured, publish, wait_for_measurements, withdraw
from wmlightning.stages.requirements import check_expected
from wmlightning.stages.stage import Stage
from wmlightning.validation import at_least

MEASURED = ("controller/evaluated_return",)
"""What an evaluation of the mean measures."""


class CMAESController(Stage):
    """C: searches the parameters of a controller with CMA-ES; one training step is one generation.

        fitness of a candidate theta  =  mean over episodes of return  -  weight_decay * mean(theta^2)      (maximised)

    Without a `dream`, candidates play in the real environment, with one pass of V and M for all environments. With a
    `dream`, they play inside M, population x episodes as one batch, and see nothing real; the command `evaluate` then
    measures the controller in the real environment. Several processes divide the episodes of a generation and give the
    search the same numbers, so the result is that of one process. A generation is a function of (seed, generation); an
    interrupted one is played again from its start.

    The distribution's mean is the module's `controller`. Every `evaluate_every` generations the mean plays evaluation
    episodes, in the same environment or dream and with the same seeds each time, and the best mean so far is kept.
    CMA-ES explores by its population and adds no noise to actions, so `policy(explore=True)` is the present mean and
    `policy(explore=False)` the best evaluated mean, or the present one before the first evaluation.

    Logged per generation, against environment steps: `controller/fitness_best`, `fitness_mean`, `return_mean`, `sigma`,
    `generation`, `env_steps` (real ones in training), and at evaluations `evaluated_return`. In a dream the x axis is
    `dream_steps`, which is logged too, and `dream_return`, the last evaluation, is a result of the fit.

    Args:
        model: M with its V, or the path of M's checkpoint. Frozen; C's checkpoint contains its weights.
        environment: the real environment, in which `evaluate` plays, and whose actions C chooses.
        dream: rules of the dreams in which C evolves; null evolves it in the real environment.
        start: checkpoint of an earlier controller, whose mean the search starts from; null starts from zero. V, M and
            sigma are not taken from it.
        features: inputs of the controller: "z", "zh" or "zch".
        hidden_size: units of the controller's hidden layer; 0 for none.
        bias: whether the controller's layers have biases.
        population: candidates per generation.
        episodes: episodes a candidate plays per generation.
        sigma: initial standard deviation of the parameters.
        weight_decay: penalty on large parameters; the authors' code has the opposite sign.
        seeds: seeds of a generation's episodes: "shared" gives every candidate the same ones, "antithetic" gives
            candidates i and i + population / 2 the same ones (as the authors do), "independent" never repeats one.
            Episodes with the same seed have the same track, or the same first frame and noise.
        generations_per_epoch: generations in an epoch.
        evaluate_every: generations between evaluations of the mean; 0 for none.
        evaluation_episodes: episodes in such an evaluation (the paper: 1,024).
        num_envs: real environments in each process, stepped as one batch; not used in a dream. Results depend on it
            only by rounding.
        num_workers: worker processes for them, in each process; 0 steps them in the process itself.
        seed: seed of candidates, environments and noise.

    Raises:
        ValueError: if a number is out of range, the environment's actions have another size than M's, seeds are
            antithetic and the population odd, M lacks a head that the dream needs, or `start` does not hold such a
            controller.

    Source: Ha and Schmidhuber 2018, sections 2.4 and 4 and appendix; their released code (carracing/train.py), which
    also rounds candidates to four decimals before it evaluates them.
    """

    theta_best: Tensor
    return_best: Tensor
    env_steps: Tensor
    dream_steps: Tensor
    dream_return: Tensor

    def __init__(
        self,
        model: MDNRNN | str,
        environment: EnvFactory,
        dream: DreamRules | None = None,
        start: str | None = None,
        features: Literal["z", "zh", "zch"] = "zh",
        hidden_size: int = 0,
        bias: bool = True,
        population: int = 64,
        episodes: int = 16,
        sigma: float = 0.1,
        weight_decay: float = 0.01,
        seeds: Literal["shared", "antithetic", "independent"] = "shared",
        generations_per_epoch: int = 25,
        evaluate_every: int = 25,
        evaluation_episodes: int = 64,
        num_envs: int = 8,
        num_workers: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        if seeds == "antithetic" and population % 2:
            raise ValueError(f"population is {population} but antithetic seeds pair candidates: make it even")
        at_least(1, episodes=episodes, generations_per_epoch=generations_per_epoch)
        at_least(1, evaluation_episodes=evaluation_episodes, num_envs=num_envs)
        at_least(0, evaluate_every=evaluate_every, num_workers=num_workers)
        at_least(0, hidden_size=hidden_size, weight_decay=weight_decay)
        self.automatic_optimization = False
        self.model: MDNRNN = resolve_stage(model, MDNRNN)
        # The recipe holds M itself instead of a path, so that the checkpoint alone rebuilds V and M too.
        self.__dict__["_arguments"]["model"] = self.model
        self.model.requires_grad_(False).eval()
        dynamics = self.model.dynamics
        self.controller = Controller(
            features, dynamics.latent_size, dynamics.hidden_size, dynamics.action_size, hidden_size, bias
        )
        if start is not None:
            warm_start(self, start, ("controller",))
        self.environment = environment
        self.dream = dream
        self.population = population
        self.episodes = episodes
        self.sigma = sigma
        self.weight_decay = weight_decay
        self.seeds = seeds
        self.generations_per_epoch = generations_per_epoch
        self.evaluate_every = evaluate_every
        self.evaluation_episodes = evaluation_episodes
        self.register_buffer("theta_best", self.controller.theta.detach().clone())
        self.register_buffer("return_best", torch.tensor(float("-inf"), dtype=torch.float64))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self._evaluated: dict[str, float] = {}
        self.fitness: RealFitness | DreamFitness
        if dream is None:
            self.fitness = RealFitness(environment, num_envs, num_workers, self._policy_of)
        else:
            self.fitness = DreamFitness(dream, self.model, self.controller, environment)
            self.register_buffer("dream_steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("dream_return", torch.tensor(float("nan"), dtype=torch.float64))

    def train(self, mode: bool = True) -> "CMAESController":
        """Sets the mode of all parts except V and M, which stay in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def steps_played(self) -> Tensor:
        """Steps in training so far, real or dreamt: the x axis of this stage's curves."""
        return getattr(self, self.fitness.steps_buffer)

    def policy(self, explore: bool = False) -> LatentPolicy:
        """Returns the policy of the present mean, or, without exploring, of the best evaluated mean."""
        evaluated = bool(torch.isfinite(self.return_best))
        theta = self.theta_best if evaluated and not explore else self.controller.theta
        return self._policy_of(theta.detach().clone()[None])

    def configure_optimizers(self) -> CMAES:
        """Builds the search, an optimizer whose one step is one generation."""
        return CMAES(self.controller.parameters(), self.sigma, self.population, self.seed)

    def train_dataloader(self) -> Loader:
        """Returns a loader of indices in the epoch, one for each generation; there are no data."""

        def plan() -> tuple[Any, Iterable[int]]:
            # As in EpisodeDataModule: after a checkpoint of an epoch's end, no batch of that epoch is left.
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            limit = min(self.generations_per_epoch, int(self.trainer.num_training_batches))
            return int, range(max(0, limit - progress.current.ready))

        return Loader(plan, self.generations_per_epoch)

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Plays one generation, updates the search, and evaluates the mean when that is due."""
        optimizer: Any = self.optimizers()
        search = cast(CMAES, optimizer.optimizer)
        generation = search.generation + 1
        candidates = search.ask()
        evaluated_return = None
        try:
            seeds = self.generation_seeds(search.generation)
            episode_returns, steps = self.fitness.play(candidates, seeds, self.trainer)
            returns = episode_returns.mean(1)
            fitness = returns - self.weight_decay * candidates.square().mean(1)
            if self.evaluate_every and generation % self.evaluate_every == 0:
                evaluated_return = self._evaluate(search.mean_after(-fitness))
        except BaseException:
            self.fitness.close()
            raise
        # State changes only after this line, so that an interrupted generation changes nothing.
        self.steps_played.add_(steps.sum())
        # Lightning calls a closure without arguments, and counts the step.
        optimizer.step(lambda: -fitness)
        quantities = {
            "fitness_best": fitness.max(),
            "fitness_mean": fitness.mean(),
            "return_mean": returns.mean(),
            "sigma": search.sigma,
            "generation": float(generation),
            "env_steps": self.env_steps.double(),
            self.fitness.steps_buffer: self.steps_played.double(),
        }
        named = {f"controller/{name}": value for name, value in quantities.items()}
        self.log_dict(named, on_step=True, on_epoch=False)
        self.log("step", self.steps_played.double(), on_step=True, on_epoch=False)
        if evaluated_return is not None:
            self._record_evaluation(evaluated_return)

    def on_fit_start(self) -> None:
        """Prepares to play, and silences two warnings of Lightning that do not apply here."""
        # V and M stay in evaluation mode on purpose; and a checkpoint after the step is the one that resumes exactly.
        warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        self.check_parts()
        self.fitness.prepare()
        wait_for_measurements(self.trainer, MEASURED)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Removes the last evaluation, which is of an earlier mean, from the metrics."""
        super().on_train_batch_start(batch, batch_idx)
        withdraw(self.trainer, MEASURED)

    def on_train_epoch_end(self) -> None:
        """Lets a ModelCheckpoint that monitors the evaluation pass over an epoch that ends without one."""
        pass_over_unmeasured(self.trainer, MEASURED)

    def on_fit_end(self) -> None:
        """Closes the environments, and makes the last evaluation a result of the fit."""
        self.fitness.close()
        publish(self.trainer, self._evaluated)
        if self.dream is not None and bool(self.dream_return.isfinite()):
            # Without `self.log`: a resumed fit may have no generation left that could log it.
            self.trainer.callback_metrics["controller/dream_return"] = self.dream_return.clone()

    def teardown(self, stage: str) -> None:
        """Closes the environments."""
        self.fitness.close()

    def generation_seeds(self, generation: int) -> list[int]:
        """Environment seeds of a generation, candidate by candidate; all even, while those of evaluations are odd."""
        period = {"shared": 1, "antithetic": self.population // 2, "independent": self.population}[self.seeds]
        groups = [candidate % period for candidate in range(self.population)]
        return [derive_seed(self.seed, generation, group, k) & ~1 for group in groups for k in range(self.episodes)]

    def evaluation_seeds(self) -> list[int]:
        """Environment seeds of an evaluation: all different, and none of them used in training."""
        # Without the + 2, the first one could be the seed of the first collected episode.
        first = (derive_seed(self.seed) | 1) + 2
        return [(first + 2 * k) % 2**32 for k in range(self.evaluation_episodes)]

    def dreamt_returns(self, seeds: list[int], explore: bool = False) -> np.ndarray:
        """Plays `policy(explore)` in the dream, in this process, and returns the return for each seed.

        Raises:
            ValueError: if the controller has no dream, or was never trained in it.
        """
        if not isinstance(self.fitness, DreamFitness):
            raise ValueError("this controller was trained in the real environment: it has no dream to play in")
        return self.fitness.play(self.policy(explore).candidates, seeds)[0][0].numpy()

    def _evaluate(self, theta: Tensor) -> float:
        return float(self.fitness.play(theta[None], self.evaluation_seeds(), self.trainer)[0].mean())

    def _record_evaluation(self, mean_return: float) -> None:
        if mean_return > self.return_best:
            self.return_best.fill_(mean_return)
            self.theta_best.copy_(self.controller.theta.detach())
        if self.dream is not None:
            self.dream_return.fill_(mean_return)
        self._evaluated = {MEASURED[0]: mean_return}
        # Without `self.log`: Lightning would repeat the value until the epoch ends.
        publish(self.trainer, self._evaluated)
        for logger in self.loggers:
            logger.log_metrics(self._evaluated, step=int(self.steps_played))

    def check_parts(self) -> None:
        """Checks that the environment fits M, and that dreams will find their first frames."""
        if self.dream is not None and self.dream.starts is not None:
            check_expected(self.dream.starts)
        self.check_environment(self.environment)

    def check_environment(self, environment: EnvFactory) -> None:
        """Checks that an environment's actions are those that M was trained on.

        Raises:
            ValueError: if they have another size.
        """
        size = environment.spec.action_size
        model_size = self.model.dynamics.action_size
        if size != model_size:
            raise ValueError(
                f"the environment's actions have {size} numbers but M was trained on {model_size}: give C the "
                "environment that M's episodes came from"
            )

    def _policy_of(self, candidates: Tensor) -> LatentPolicy:
        self.check_parts()
        theta = candidates.to(self.controller.theta)
        return LatentPolicy(self.model, self.controller, theta, self.environment.spec.discrete)
