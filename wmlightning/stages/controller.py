"""C of World Models: evolves a small controller, in the real environment or in its dream, on a frozen V and M."""

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
from wmlightning.stages.checkpoints import loaded, warm_start
from wmlightning.stages.fitness import DreamFitness, RealFitness
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.measurements import pass_over_unmeasured, publish, wait_for_measurements, withdraw
from wmlightning.stages.requirements import check_there
from wmlightning.stages.stage import Stage
from wmlightning.validation import at_least


class CMAESController(Stage):
    """Searches the parameters of a controller with CMA-ES; one training step is one generation.

        fitness of a candidate theta  =  mean over episodes of return  -  weight_decay * mean(theta^2)      (maximised)

    Without a `dream`, candidates play in the real environment, with V and M once for all live environments. With one
    they play inside M, population x episodes as one batch, and nothing real is seen; `evaluate` then measures how the
    controller does in the real environment. Several processes share out a generation and tell the search the same
    numbers, so that they find what one process finds. A generation is a function of (seed, generation); one that is
    interrupted is played again from its start.

    The distribution's mean is the module's `controller`. Every `evaluate_every` generations the mean plays episodes of
    its own, where the generations are played and always the same ones, and the best mean so far is kept beside it.
    CMA-ES explores by its population and adds no noise to actions, so `policy(explore=True)` is the present mean and
    `policy(explore=False)` the best mean that was evaluated, or the present one where none has been.

    Logged per generation, against environment steps: `controller/fitness_best`, `fitness_mean`, `return_mean`, `sigma`,
    `generation`, `env_steps` (real ones in training), and where the mean was evaluated `evaluated_return`. In a dream,
    `dream_steps` too, against which all is logged, and `dream_return`, the last evaluation, as a result of the fit.

    Args:
        model: V and M, or the path of M's checkpoint. Frozen; its weights travel in C's checkpoint.
        environment: the real environment: where `evaluate` plays, and what actions are like.
        dream: evolve inside M, in such dreams; null for the real environment.
        start: checkpoint of an earlier controller, whose mean the search begins at; null begins at zero. V, M and sigma
            are this run's own.
        features: what the controller sees: "z", "zh" or "zch".
        hidden_size: units of the controller's hidden layer; 0 for none.
        bias: whether the controller's layers have biases.
        population: candidates per generation.
        episodes: episodes a candidate plays per generation.
        sigma: first standard deviation of the parameters.
        weight_decay: punishes large parameters; the authors' code has its sign the other way round.
        seeds: seeds of a generation's episodes: "shared" gives every candidate the same ones, "antithetic" gives
            candidates i and i + population / 2 the same ones (as the authors do), "independent" never repeats one. The
            same seed is the same track, or the same first frame and noise.
        generations_per_epoch: generations in an epoch.
        evaluate_every: generations between evaluations of the mean; 0 for none.
        evaluation_episodes: episodes in such an evaluation (the paper: 1,024).
        num_envs: real environments side by side in each process, where generations are played in them; results do not
            depend on it beyond rounding.
        num_workers: worker processes for them, in each process; 0 keeps them in this one.
        seed: names candidates, environments and noise.

    Raises:
        ValueError: if a number is out of its range, the environment's actions are not those M knows, seeds are
            antithetic and the population odd, M lacks a head that the dream needs, or `start` holds another kind of
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
        self.model: MDNRNN = loaded(model, MDNRNN)
        # The recipe must not depend on a path: the checkpoint alone rebuilds V and M too.
        self.__dict__["_arguments"]["model"] = self.model
        self.model.requires_grad_(False).eval()
        memory = self.model.dynamics
        sizes = memory.latent_size, memory.hidden_size, memory.action_size
        self.controller = Controller(features, *sizes, hidden_size, bias)
        if start is not None:
            warm_start(self, start, ("controller",))
        self.environment, self.dream = environment, dream
        self.population, self.episodes, self.sigma, self.weight_decay = population, episodes, sigma, weight_decay
        self.seeds, self.generations_per_epoch = seeds, generations_per_epoch
        self.evaluate_every, self.evaluation_episodes = evaluate_every, evaluation_episodes
        self.register_buffer("theta_best", self.controller.theta.detach().clone())
        self.register_buffer("return_best", torch.tensor(float("-inf"), dtype=torch.float64))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self.fitness: RealFitness | DreamFitness
        self._evaluated: dict[str, float] = {}
        if dream is None:
            self.fitness = RealFitness(environment, num_envs, num_workers, self._policy_of)
        else:
            self.fitness = DreamFitness(dream, self.model, self.controller, environment)
            self.register_buffer("dream_steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("dream_return", torch.tensor(float("nan"), dtype=torch.float64))

    def train(self, mode: bool = True) -> "CMAESController":
        """Sets the mode of everything but V and M, which stay in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

    @property
    def steps_played(self) -> Tensor:
        """Steps in training so far, real or dreamt: what curves have on their x axis."""
        return getattr(self, self.fitness.counter)

    def policy(self, explore: bool = False) -> LatentPolicy:
        """The present mean, or, without exploring, the best mean that was evaluated."""
        evaluated = bool(torch.isfinite(self.return_best))
        theta = self.theta_best if evaluated and not explore else self.controller.theta
        return self._policy_of(theta.detach().clone()[None])

    def configure_optimizers(self) -> CMAES:
        """The search, an optimizer whose one step is one generation."""
        return CMAES(self.controller.parameters(), self.sigma, self.population, self.seed)

    def train_dataloader(self) -> Loader:
        """Numbers of generations; there is no data to load."""

        def plan() -> tuple[Any, Iterable[int]]:
            # As in EpisodeDataModule: after a checkpoint of an epoch's end, nothing is left of that epoch.
            progress = self.trainer.fit_loop.epoch_loop.batch_progress
            limit = min(self.generations_per_epoch, int(self.trainer.num_training_batches))
            return int, range(max(0, limit - progress.current.ready))

        return Loader(plan, self.generations_per_epoch)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Withdraws the last evaluation, which another mean had."""
        super().on_train_batch_start(batch, batch_idx)
        withdraw(self.trainer, ["controller/evaluated_return"])

    def on_train_epoch_end(self) -> None:
        """Lets a ModelCheckpoint that monitors the evaluation pass over an epoch that ends without one."""
        pass_over_unmeasured(self.trainer, ["controller/evaluated_return"])

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Plays, ranks and tells one generation; evaluates the mean when it is due."""
        optimizer: Any = self.optimizers()
        search = cast(CMAES, optimizer.optimizer)
        generation, candidates = search.generation + 1, search.ask()
        evaluated = None
        try:
            episodes, steps = self.fitness.play(candidates, self.generation_seeds(search.generation), self.trainer)
            returns = episodes.mean(1)
            fitness = returns - self.weight_decay * candidates.square().mean(1)
            if self.evaluate_every and generation % self.evaluate_every == 0:
                evaluated = self._evaluate(search.mean_after(-fitness))
        except BaseException:
            self.fitness.close()
            raise
        # Only from here on does anything change, so that an interrupted generation leaves no trace.
        self.steps_played.add_(steps.sum())
        # Lightning strips a closure of its arguments, and counts the step.
        optimizer.step(lambda: -fitness)
        quantities = {
            "fitness_best": fitness.max(),
            "fitness_mean": fitness.mean(),
            "return_mean": returns.mean(),
            "sigma": search.sigma,
            "generation": float(generation),
            "env_steps": self.env_steps.double(),
            self.fitness.counter: self.steps_played.double(),
        }
        named = {f"controller/{name}": value for name, value in quantities.items()}
        self.log_dict(named, on_step=True, on_epoch=False)
        self.log("step", self.steps_played.double(), on_step=True, on_epoch=False)
        if evaluated is not None:
            self._note_evaluation(evaluated)

    def on_fit_start(self) -> None:
        """Makes ready to play, and silences two warnings of Lightning that are false alarms here."""
        # V and M rest in evaluation mode on purpose; a checkpoint after the step is the one that continues exactly.
        warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")
        self.check_parts()
        self.fitness.prepare()
        wait_for_measurements(self.trainer, ["controller/evaluated_return"])

    def on_fit_end(self) -> None:
        """Closes the environments; what the mean last came to in the dream is a result of the fit."""
        self.fitness.close()
        publish(self.trainer, self._evaluated)
        if self.dream is not None and bool(self.dream_return.isfinite()):
            # Not by `self.log`: a resumed fit may have nothing left to play.
            self.trainer.callback_metrics["controller/dream_return"] = self.dream_return.clone()

    def teardown(self, stage: str) -> None:
        """Closes the environments."""
        self.fitness.close()

    def generation_seeds(self, generation: int) -> list[int]:
        """Environment seeds of a generation, candidate by candidate; always even, evaluation's are odd."""
        period = {"shared": 1, "antithetic": self.population // 2, "independent": self.population}[self.seeds]
        groups = [candidate % period for candidate in range(self.population)]
        return [derive_seed(self.seed, generation, group, k) & ~1 for group in groups for k in range(self.episodes)]

    def evaluation_seeds(self) -> list[int]:
        """Environment seeds of an evaluation: all different, and never met in training."""
        # The number itself may be that of the first episode collected.
        first = (derive_seed(self.seed) | 1) + 2
        return [(first + 2 * k) % 2**32 for k in range(self.evaluation_episodes)]

    def dreamt_returns(self, seeds: list[int], explore: bool = False) -> np.ndarray:
        """What `policy(explore)` comes to in the dream: one return for each seed, in this process.

        Raises:
            ValueError: if the controller has no dream, or was never trained in it.
        """
        if not isinstance(self.fitness, DreamFitness):
            raise ValueError("this controller was trained in the real environment: it has no dream to play in")
        return self.fitness.play(self.policy(explore).candidates, seeds)[0][0].numpy()

    def _evaluate(self, theta: Tensor) -> float:
        return float(self.fitness.play(theta[None], self.evaluation_seeds(), self.trainer)[0].mean())

    def _note_evaluation(self, mean_return: float) -> None:
        if mean_return > self.return_best:
            self.return_best.fill_(mean_return)
            self.theta_best.copy_(self.controller.theta.detach())
        if self.dream is not None:
            self.dream_return.fill_(mean_return)
        self._evaluated = {"controller/evaluated_return": mean_return}
        # Not by `self.log`: Lightning would repeat it until the end of the epoch.
        publish(self.trainer, self._evaluated)
        for logger in self.loggers:
            logger.log_metrics(self._evaluated, step=int(self.steps_played))

    def check_parts(self) -> None:
        """The environment must suit C, and dreams have somewhere to begin."""
        if self.dream is not None and self.dream.starts is not None:
            check_there(self.dream.starts)
        self.check_environment(self.environment)

    def check_environment(self, environment: EnvFactory) -> None:
        """Refuses an environment whose actions are not those that M was trained on; ValueError."""
        size, known = environment.spec.action_size, self.model.dynamics.action_size
        if size != known:
            raise ValueError(
                f"the environment's actions have {size} numbers but M was trained on {known}: give C the environment "
                "that M's episodes came from"
            )

    def _policy_of(self, candidates: Tensor) -> LatentPolicy:
        self.check_parts()
        theta = candidates.to(self.controller.theta)
        return LatentPolicy(self.model, self.controller, theta, self.environment.spec.discrete)
