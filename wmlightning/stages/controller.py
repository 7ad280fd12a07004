"""C of World Models: evolves a small controller in the real environment, on the features of a frozen V and M."""

import warnings
from collections.abc import Iterable
from typing import Any, Literal, cast

import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from datamodules.datamodule import Loader
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.networks.controller import Controller
from wmlightning.optimizers.cmaes import CMAES
from wmlightning.policies.latent import LatentPolicy
from wmlightning.seeds import derive_seed
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.stage import Stage, loaded


class CMAESController(Stage):
    """Searches the parameters of a controller with CMA-ES; one training step is one generation.

        fitness of a candidate theta  =  mean over episodes of return  -  weight_decay * mean(theta^2)      (maximised)

    All candidates act in one batched pass: V and M once for all live environments. Several processes share out the
    episodes of a generation and tell the search the same numbers, so that they find what one process finds. A
    generation is a function of (seed, generation); one that is interrupted is played again from its start.

    The distribution's mean is the module's `controller`. Every `evaluate_every` generations the mean plays episodes of
    its own, always the same ones, and the best mean so far is kept beside it. CMA-ES explores by its population and
    adds no noise to actions, so `policy(explore=True)` is the present mean and `policy(explore=False)` the best mean
    that was evaluated, or the present one where none has been.

    Logged per generation, against environment steps: `controller/fitness_best`, `fitness_mean`, `return_mean`, `sigma`,
    `generation`, `env_steps` (training only), and where the mean was evaluated `evaluated_return`.

    Args:
        model: V and M, or the path of M's checkpoint. Frozen; its weights travel in C's checkpoint.
        environment: where to act.
        features: what the controller sees: "z", "zh" or "zch".
        hidden_size: units of the controller's hidden layer; 0 for none.
        bias: whether the controller's layers have biases.
        population: candidates per generation.
        episodes: episodes a candidate plays per generation.
        sigma: first standard deviation of the parameters, which start at zero.
        weight_decay: punishes large parameters; the authors' code has its sign the other way round.
        seeds: environment seeds of a generation: "shared" gives every candidate the same ones, "antithetic" gives
            candidates i and i + population / 2 the same ones (as the authors do), "independent" never repeats one.
        generations_per_epoch: generations in an epoch.
        evaluate_every: generations between evaluations of the mean; 0 for none.
        evaluation_episodes: episodes in such an evaluation (the paper: 1,024).
        num_envs: environments side by side in each process; results do not depend on it beyond rounding.
        num_workers: worker processes for them, in each process; 0 keeps them in this one.
        seed: names candidates, environments and noise.

    Raises:
        ValueError: if the environment's actions are not those M knows, or seeds are antithetic and the population odd.

    Source: Ha and Schmidhuber 2018, section 2.4 and appendix; their released code (carracing/train.py), which also
    rounds candidates to four decimals before it evaluates them.
    """

    theta_best: Tensor
    return_best: Tensor
    env_steps: Tensor

    def __init__(
        self,
        model: MDNRNN | str,
        environment: EnvFactory,
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
        self.automatic_optimization = False
        self.model: MDNRNN = loaded(model)
        # The recipe must not depend on a path: the checkpoint alone rebuilds V and M too.
        self.__dict__["_arguments"]["model"] = self.model
        self.model.requires_grad_(False).eval()
        memory = self.model.dynamics
        sizes = memory.latent_size, memory.hidden_size, memory.action_size
        self.controller = Controller(features, *sizes, hidden_size, bias)
        self.environment, self.num_envs, self.num_workers = environment, num_envs, num_workers
        self.population, self.episodes, self.sigma, self.weight_decay = population, episodes, sigma, weight_decay
        self.seeds, self.generations_per_epoch = seeds, generations_per_epoch
        self.evaluate_every, self.evaluation_episodes = evaluate_every, evaluation_episodes
        self.register_buffer("theta_best", self.controller.theta.detach().clone())
        self.register_buffer("return_best", torch.tensor(float("-inf"), dtype=torch.float64))
        self.register_buffer("env_steps", torch.zeros((), dtype=torch.int64))
        self._envs: Any = None

    def train(self, mode: bool = True) -> "CMAESController":
        """Sets the mode of everything but V and M, which stay in evaluation mode."""
        super().train(mode)
        self.model.eval()
        return self

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

    def training_step(self, batch: int, batch_idx: int) -> None:
        """Plays, ranks and tells one generation; evaluates the mean when it is due."""
        optimizer: Any = self.optimizers()
        search = cast(CMAES, optimizer.optimizer)
        generation, candidates = search.generation + 1, search.ask()
        evaluated = None
        try:
            returns, env_steps = self._play_generation(candidates, search.generation)
            fitness = returns - self.weight_decay * candidates.square().mean(1)
            if self.evaluate_every and generation % self.evaluate_every == 0:
                evaluated = self._evaluate(search.mean_after(-fitness))
        except BaseException:
            self._close()
            raise
        # Only from here on does anything change, so that an interrupted generation leaves no trace.
        self.env_steps += env_steps
        # Lightning strips a closure of its arguments, and counts the step.
        optimizer.step(lambda: -fitness)
        quantities = {
            "fitness_best": fitness.max(),
            "fitness_mean": fitness.mean(),
            "return_mean": returns.mean(),
            "sigma": search.sigma,
            "generation": float(generation),
            "env_steps": self.env_steps.double(),
        }
        named = {f"controller/{name}": value for name, value in quantities.items()}
        self.log_dict(named, on_step=True, on_epoch=False)
        self.log("step", self.env_steps.double(), on_step=True, on_epoch=False)
        if evaluated is not None:
            self._note_evaluation(evaluated)

    def on_fit_start(self) -> None:
        """Silences two warnings of Lightning that are false alarms here."""
        # V and M rest in evaluation mode on purpose; a checkpoint after the step is the one that continues exactly.
        warnings.filterwarnings("ignore", message=r".*module\(s\) in eval mode at the start of training")
        warnings.filterwarnings("ignore", message="Using ModelCheckpoint with manual optimization")

    def on_fit_end(self) -> None:
        """Closes the environments."""
        self._close()

    def teardown(self, stage: str) -> None:
        """Closes the environments."""
        self._close()

    def generation_seeds(self, generation: int) -> list[int]:
        """Environment seeds of a generation, candidate by candidate; always even, evaluation's are odd."""
        period = {"shared": 1, "antithetic": self.population // 2, "independent": self.population}[self.seeds]
        groups = [candidate % period for candidate in range(self.population)]
        return [derive_seed(self.seed, generation, group, k) & ~1 for group in groups for k in range(self.episodes)]

    def evaluation_seeds(self) -> list[int]:
        """Environment seeds of an evaluation: all different, and never met in training."""
        first = derive_seed(self.seed) | 1
        return [(first + 2 * k) % 2**32 for k in range(self.evaluation_episodes)]

    def _play_generation(self, candidates: Tensor, generation: int) -> tuple[Tensor, int]:
        owners = [candidate for candidate in range(self.population) for _ in range(self.episodes)]
        returns, env_steps = self._play(candidates, owners, self.generation_seeds(generation))
        return returns.view(self.population, self.episodes).mean(1), int(env_steps.sum())

    def _evaluate(self, theta: Tensor) -> float:
        seeds = self.evaluation_seeds()
        return float(self._play(theta[None], [0] * len(seeds), seeds)[0].mean())

    def _note_evaluation(self, mean_return: float) -> None:
        if mean_return > self.return_best:
            self.return_best.fill_(mean_return)
            self.theta_best.copy_(self.controller.theta.detach())
        # For callbacks. In the log Lightning would repeat it until the end of the epoch, so that goes by another way.
        self.log("controller/evaluated_return", mean_return, logger=False, on_step=True, on_epoch=False)
        for logger in self.loggers:
            logger.log_metrics({"controller/evaluated_return": mean_return}, step=int(self.env_steps))

    def _play(self, candidates: Tensor, owners: list[int], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """Plays every (owner, seed), this process its share; returns and environment steps of all, float64 (jobs,)."""
        if self._envs is None:
            self._envs = self.environment.vector(self.num_envs, self.num_workers)
        policy = self._policy_of(candidates)
        share = range(self.global_rank, len(seeds), self.trainer.world_size)
        results = rollout(
            self._envs,
            policy,
            [seeds[job] for job in share],
            begin=lambda jobs: policy.begin(
                [owners[share[j]] for j in jobs], [derive_seed(seeds[share[j]], 1) for j in jobs]
            ),
            should_stop=lambda: self.trainer.received_sigterm,
        )
        if len(results) < len(share):
            # As Lightning does between batches: the last finished generation is saved, this one will be played again.
            raise SIGTERMException
        scores = torch.zeros(2, len(seeds), dtype=torch.float64)
        for job, result in zip(share, results, strict=True):
            scores[0, job], scores[1, job] = result.total_reward, result.env_steps
        if self.trainer.world_size > 1:
            # Every number is added to zeros only, so that no rounding depends on the number of processes.
            scores = cast(Tensor, self.trainer.strategy.reduce(scores.to(self.device), reduce_op="sum")).cpu()
        return scores[0], scores[1]

    def _policy_of(self, candidates: Tensor) -> LatentPolicy:
        spec, known = self.environment.spec, self.model.dynamics.action_size
        if spec.action_size != known:
            raise ValueError(
                f"the environment's actions have {spec.action_size} numbers but M was trained on {known}: give C the "
                "environment that M's episodes came from"
            )
        theta = candidates.to(self.controller.theta)
        return LatentPolicy(self.model, self.controller, theta, spec.discrete)

    def _close(self) -> None:
        envs, self._envs = self._envs, None
        if envs is not None:
            envs.close()
