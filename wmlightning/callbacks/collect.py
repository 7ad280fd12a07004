"""`Collect`: an online agent collects its own episodes between epochs."""

import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.files import DamagedEpisode, EpisodeName, megabytes
from datamodules.retention import set_aside
from datamodules.store import EpisodeStore
from datamodules.writer import EpisodeWriter
from wmlightning.callbacks.between_epochs import BetweenEpochs, EpisodeSeeds, batches_trained, online_episode_seed
from wmlightning.callbacks.schedule import CollectionProgress, Schedule, share
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.parts import PartedVectorEnv, PartsPolicy, PartsWriter, games_of
from wmlightning.environments.rollout import EpisodeResult
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.policies.exploration import ExplorationPolicy, HeldActionsPolicy
from wmlightning.runtime import progress_bar
from wmlightning.stages.checkpoints import migrate_checkpoint
from wmlightning.stages.measurements import pass_over_unmeasured, publish, wait_for_measurements, withdraw
from wmlightning.stages.requirements import check_held_out

MEASURED = ("collect/return",)
"""What a collection measures of the agent."""


class Collect(BetweenEpochs):
    """Lets the agent play between epochs, and stores as many episodes as the schedule says are due.

    Before the first update a random policy fills the store, the prefill. Then, between epochs, the agent plays with
    exploration until nothing more is due (see `callbacks.schedule`). Each of several processes plays its share, and all
    of them train on the episodes of all. Episode k of process r is a function of (seed, r, k) and of the weights with
    which it was played.

    A resumed run continues exactly: episodes that are not in the checkpoint's progress are moved to
    `superseded-<time>/` in the store before any is read, and are played again. A process that is asked to stop
    (SIGTERM) during a collection drops the collection in the same way. Under the store's cap training reads the newest
    episodes only; the files of older ones are deleted when no checkpoint of the run needs them.

    Logged against environment steps, as is everything that the stage logs: `collect/return` (mean of the new
    episodes), `collect/env_steps`, `collect/episodes`, `collect/decisions` (of the run so far), `collect/overshoot`
    (what was played beyond what was due, in the unit of the schedule), `collect/replay_age` (mean age in batches of the
    decisions in the replay), `collect/steps_per_second` (environment) and `collect/updates_per_second` (learning).

    An episode of Atari may have 27,000 decisions, during which the policy could not learn. With `max_segment` such
    episodes are played in parts, which are stored and trained on at once; between two parts the agent learns and the
    episode is paused. Then everything is counted in decisions, and `collect/return` is the mean of the episodes that
    have ended. A resumed run starts new episodes in place of the paused ones, whose stored parts end there as if by a
    time limit; so it continues soundly, but not exactly.

    Args:
        prefill_episodes: episodes before the first update; 5 if neither it nor prefill_decisions is given.
        prefill_decisions: decisions before the first update.
        episodes_per_epoch: episodes for every `data.updates_per_epoch` updates; 1 if neither it nor
            decisions_per_update is given.
        decisions_per_update: decisions for every update; may be a fraction.
        prefill_policy: the policy before the first update; null for uniformly random actions.
        policy: the policy afterwards; null for the agent's own.
        environment: where to collect, if not in the agent's environment: the same task with rules for training only
            (as Dreamer V1's lost lives on Atari).
        max_segment: decisions in a part of an episode; null plays whole episodes.
        num_envs: environments in each process, stepped as one batch.
        num_workers: worker processes for them, in each process; 0 steps them in the process itself.

    Raises:
        ValueError: if both of a pair are given, the stage is no agent, the store belongs to another run, max_segment is
            given but the schedule counts episodes, or the environment has other images or actions than the agent's.
    """

    def __init__(
        self,
        prefill_episodes: int | None = None,
        prefill_decisions: int | None = None,
        episodes_per_epoch: int | None = None,
        decisions_per_update: float | int | None = None,
        prefill_policy: ExplorationPolicy | None = None,
        policy: ExplorationPolicy | None = None,
        environment: EnvFactory | None = None,
        max_segment: int | None = None,
        num_envs: int = 1,
        num_workers: int = 0,
    ) -> None:
        super().__init__(num_envs, num_workers)
        self.schedule = Schedule(prefill_episodes, prefill_decisions, episodes_per_epoch, decisions_per_update)
        units = {self.schedule.prefill_unit, self.schedule.unit}
        if max_segment is not None and (max_segment < 1 or units != {"decisions"}):
            raise ValueError(
                f"max_segment is {max_segment}, which must be at least 1 and needs a schedule in decisions: set "
                "prefill_decisions and decisions_per_update"
            )
        self.prefill_policy = prefill_policy
        self.policy = policy
        self.environment = environment
        self.max_segment = max_segment
        self.progress = CollectionProgress()
        self.resumed = False
        self._most_kept_beyond_cap = 0
        # Metrics of the last collection, kept until a batch shows them on the progress bar.
        self._bar_metrics: dict[str, float] = {}
        # Time and update at the end of the last collection, which `updates_per_second` is measured from.
        self._learning_since: tuple[float, int] | None = None
        self._measured: dict[str, float] = {}

    @property
    def steps_played(self) -> int:
        """Environment steps that all processes have made: the x axis of every curve."""
        return self.progress.env_steps

    def state_dict(self) -> dict[str, Any]:
        """Saves what has been collected."""
        return {"progress": self.progress.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what had been collected."""
        self.progress = CollectionProgress(**state_dict["progress"])
        self.resumed = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks that the stage is an agent, and that datamodule, environments and policies fit it."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not hasattr(getattr(trainer, "datamodule", None), "store"):
            raise ValueError("Collect wants a datamodule with a store of episodes: give data an EpisodeDataModule")
        agent_environment = getattr(pl_module, "environment", None)
        if (
            self.environment is not None
            and agent_environment is not None
            and self.environment.spec != agent_environment.spec
        ):
            raise ValueError(
                f"Collect's environment is {self.environment.id}, {self.environment.spec}, but the agent's is "
                f"{agent_environment.id}, {agent_environment.spec}: give both the same pictures and actions"
            )
        if stage == "fit" and self.schedule.prefill_unit == "episodes":
            data: Any = getattr(trainer, "datamodule", None)
            check_held_out(self.schedule.prefill, data, "prefill_episodes", trainer.world_size)
        environment = self.environment or agent_environment
        if environment is not None:
            environment.check_policy(self.prefill_policy, "Collect's prefill_policy")
            environment.check_policy(self.policy, "Collect's policy")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Moves episodes that are not in the progress out of the store, before training reads it."""
        store: EpisodeStore = trainer.datamodule.store
        store.refresh()
        unknown = [name for name in store.listing if not self.progress.includes(name)]
        if not self.resumed and not self.progress.episodes:
            self._check_own_prefill(store, unknown, pl_module)
        trainer.strategy.barrier("store checked")
        if trainer.is_global_zero and (folder := set_aside(store.path, unknown)):
            rank_zero_warn(f"{len(unknown)} episodes that were played after the checkpoint are now in {folder}")
        trainer.strategy.barrier("unknown episodes set aside")
        store.refresh()
        visible = self.progress.visible_among(store.listing)
        found = [len(visible), _decisions_in(visible)]
        if found != self.progress.visible:
            episodes, decisions = self.progress.visible
            raise ValueError(
                f"the checkpoint learned from {episodes} episodes with {decisions} decisions but {store.path} has "
                f"{found[0]} of them with {found[1]}: give data.path the folder of that run"
            )
        # New episodes take the place of those that were paused when the checkpoint was saved.
        self.progress.open = []
        pl_module.environment.check_recorded(store)

    def _check_own_prefill(self, store: EpisodeStore, names: list[EpisodeName], agent: Any) -> None:
        """Checks that the episodes in a new run's store are from its own prefill, in which it was killed before."""
        for name in names:
            metadata = {}
            with suppress(DamagedEpisode):
                metadata = store.contents(name).metadata
            seed = online_episode_seed(agent.seed, name.rank, name.index)
            if name.birth or metadata.get("seed") != seed or metadata.get("environment") != agent.environment.id:
                raise ValueError(
                    f"{store.path} holds episodes of another run ({len(names)}, {name} among them): continue that run "
                    "with --ckpt_path, or give data.path a folder of its own"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects what is due, unless training resumes within an epoch."""
        if self.resumed:
            self._bar_metrics = {"episodes": float(self.progress.episodes), "env_steps": float(self.steps_played)}
        wait_for_measurements(trainer, MEASURED)
        super().on_train_start(trainer, pl_module)
        self._learning_since = time.monotonic(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collects what is due, if the epoch is complete."""
        super().on_train_epoch_end(trainer, pl_module)
        pass_over_unmeasured(trainer, MEASURED)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the metrics of the last collection to the results of the fit."""
        publish(trainer, self._measured)

    def play_between_epochs(self, trainer: Any, agent: Any) -> None:
        """Collects what is due."""
        updates = trainer.global_step
        updates_per_epoch = trainer.datamodule.updates_per_epoch
        unit, due = self.schedule.due(self.progress, updates, updates_per_epoch)
        if due > 0:
            prefill = not self.progress.prefilled
            metrics = self._collect(trainer, agent, unit, due, prefill)
            if prefill:
                self.progress.prefilled = [updates, self.progress.episodes, self.progress.decisions]
            self._refresh_and_prune(trainer)
            _, still_due = self.schedule.due(self.progress, updates, updates_per_epoch)
            metrics["collect/overshoot"] = float(-still_due)
            metrics["collect/replay_age"] = self._replay_age(trainer)
            self._log(trainer, metrics)
        self._learning_since = time.monotonic(), updates

    def envs(self, agent: Any) -> PixelVectorEnv:
        """Returns the environments, which it makes at the first call; with `max_segment` they play in parts."""
        if self._envs is not None:
            return self._envs
        environment = self.environment or agent.environment
        rank = agent.global_rank
        if self.max_segment is None:
            envs = environment.vector(self.num_envs, self.num_workers)
        else:
            seed_of = partial(online_episode_seed, agent.seed, rank)
            next_index = self.progress.next_index(rank)
            envs = environment.parted(self.num_envs, self.num_workers, self.max_segment, seed_of, next_index)
        self._envs = envs
        return envs

    def _collect(self, trainer: Any, agent: Any, unit: str, due: int, prefill: bool) -> dict[str, float]:
        """Collects what is due with all processes, adds it to the progress, and returns metrics of it."""
        rank = trainer.global_rank
        world = trainer.world_size
        own_share = share(due, rank, world, self.progress.episodes % world)
        started = time.monotonic()
        next_index = self.progress.next_index(rank)
        envs = self.envs(agent)
        env_steps_before = envs.env_steps_made
        results: list[EpisodeResult] = []
        stopped = False
        if own_share:
            results, stopped = self._play_share(trainer, agent, unit, own_share, prefill)
        own_numbers = [
            sum(result.decisions for result in results),
            envs.env_steps_made - env_steps_before,
            time.monotonic() - started,
            *games_of(envs, results, next_index),
        ]
        rows = self.gather(trainer, stopped, own_numbers)
        # Each is a list with one number for each process.
        columns = [list(column) for column in zip(*rows, strict=True)]
        decisions, env_steps, seconds, begun, ended, returns, *paused = columns
        still_open = [
            [episode_rank, int(index), int(parts)]
            for indices, finished_parts in zip(paused[::2], paused[1::2], strict=True)
            for episode_rank, (index, parts) in enumerate(zip(indices, finished_parts, strict=True))
            if index >= 0
        ]
        self.progress.add([int(count) for count in begun], int(sum(decisions)), int(sum(env_steps)), still_open)
        metrics = {
            "collect/env_steps": float(self.progress.env_steps),
            "collect/episodes": float(self.progress.episodes),
            "collect/decisions": float(self.progress.decisions),
            "collect/steps_per_second": sum(env_steps) / max(seconds),
        }
        if sum(ended):
            metrics["collect/return"] = sum(returns) / sum(ended)
        if self._learning_since is not None and trainer.global_step > self._learning_since[1]:
            since, updates = self._learning_since
            metrics["collect/updates_per_second"] = (trainer.global_step - updates) / (started - since)
        return metrics

    def _play_share(
        self, trainer: Any, agent: Any, unit: str, own_share: int, prefill: bool
    ) -> tuple[list[EpisodeResult], bool]:
        """Plays and stores this process's share; returns as `play` does."""
        rank = trainer.global_rank
        data = trainer.datamodule
        envs = self.envs(agent)
        # Without the cap, so that only `_refresh_and_prune` deletes episodes, and none that a checkpoint needs.
        store = EpisodeStore(data.path, compression=data.store.compression)
        next_index = self.progress.next_index(rank)
        birth = batches_trained(trainer)
        policy = self._acting_policy(agent, prefill)
        writer = EpisodeWriter(store, rank, birth)
        if isinstance(envs, PartedVectorEnv):
            policy = PartsPolicy(policy, envs)
            writer = PartsWriter(envs, store, rank, birth)
        bar_options = {"desc": "collect", "unit": unit[:-1], "leave": False, "delay": 2, "disable": rank > 0}
        with progress_bar(total=own_share, **bar_options) as bar:

            def progress(finished: int, _: int, decisions: int) -> None:
                bar.update(min(own_share, finished if unit == "episodes" else decisions) - bar.n)

            results, stopped = self.play(
                trainer,
                agent,
                policy,
                # Enough also for a share in decisions: an episode, or a part of one, has at least one.
                EpisodeSeeds(agent.seed, rank, next_index, own_share),
                indices=range(next_index, next_index + own_share),
                writer=writer,
                progress=progress,
                may_begin=(lambda decisions: decisions < own_share) if unit == "decisions" else None,
            )
        if isinstance(policy, PartsPolicy):
            # The agent cannot continue from the carry of another policy, which the prefill's is.
            policy.leave(forget=prefill)
        return results, stopped

    def _acting_policy(self, agent: Any, prefill: bool) -> Any:
        if prefill:
            spec = agent.environment.spec
            return self.prefill_policy or HeldActionsPolicy(spec.action_size, 1, spec.discrete)
        return self.policy or agent.policy(explore=True)

    def _refresh_and_prune(self, trainer: Any) -> None:
        """Lets training read the new episodes, and deletes those that neither training nor a checkpoint needs."""
        store: EpisodeStore = trainer.datamodule.store
        store.refresh()
        visible = store.in_view()
        self.progress.visible = [len(visible), _decisions_in(visible)]
        if trainer.is_global_zero and len(visible) < len(store):
            needed: set[EpisodeName] = set()
            for progress in self._saved_progress(trainer):
                needed.update(progress.visible_among(store.listing))
            kept = store.prune(needed)
            if len(kept) > self._most_kept_beyond_cap:
                self._most_kept_beyond_cap = len(kept)
                size = sum(Path(store.path, str(name)).stat().st_size for name in kept)
                rank_zero_warn(
                    f"{store.path} keeps {len(kept)} episodes ({megabytes(size)}) beyond its cap, because "
                    "checkpoints of this run need them: keep fewer checkpoints to free the space"
                )
        trainer.strategy.barrier("store pruned")
        store.refresh()

    def _saved_progress(self, trainer: Any) -> list[CollectionProgress]:
        """Returns the progress in each of the run's checkpoints."""
        folders = {Path(trainer.default_root_dir) / "checkpoints"}
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "dirpath", None):
                folders.add(Path(callback.dirpath))
        saved = []
        for path in (path for folder in folders for path in folder.glob("*.ckpt")):
            # A run cannot resume from a file that cannot be read, so it needs no episodes.
            with suppress(Exception):
                checkpoint = migrate_checkpoint(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
                saved.append(CollectionProgress(**checkpoint["callbacks"][self.state_key]["progress"]))
        return saved

    def _replay_age(self, trainer: Any) -> float:
        """Returns the mean age in batches of the decisions that training reads."""
        now = batches_trained(trainer)
        visible = trainer.datamodule.store.in_view()
        return sum((now - name.birth) * (name.rows - 1) for name in visible) / _decisions_in(visible)

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, self.steps_played)
        self._measured = metrics
        publish(trainer, metrics)
        self._bar_metrics = {"episodes": float(self.progress.episodes), "env_steps": float(self.steps_played)}
        labels = {"return": "return", "steps_per_second": "env_steps/s", "updates_per_second": "updates/s"}
        for name, label in labels.items():
            if f"collect/{name}" in metrics:
                self._bar_metrics[label] = metrics[f"collect/{name}"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Logs environment steps as the x axis, and shows the last collection on the progress bar."""
        withdraw(trainer, MEASURED)
        pl_module.log("step", self._x_axis(), on_step=True, on_epoch=False)
        if self._bar_metrics:
            pl_module.log_dict(self._bar_metrics, prog_bar=True, logger=False, on_step=True, on_epoch=False)
            self._bar_metrics = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Logs environment steps as the x axis."""
        if trainer.training or trainer.state.fn == "fit":
            pl_module.log("step", self._x_axis(), on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)

    def _x_axis(self) -> torch.Tensor:
        return torch.tensor(float(self.steps_played), dtype=torch.float64)


def _decisions_in(names: list[EpisodeName]) -> int:
    return sum(name.rows - 1 for name in names)
