"""How an online agent comes by its data: `Collect`."""

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


class Collect(BetweenEpochs):
    """Plays the agent between epochs and stores its episodes, as many as the run owes.

    Before the first update the store is filled by a random policy; then, between epochs, the agent plays, exploring,
    until nothing is owed (see `callbacks.schedule`). Of several processes each plays its share, and all learn from what
    all have played. Episode k of process r is a function of (seed, r, k) and of the weights it was played with.

    A resumed run goes on exactly: episodes that the checkpoint does not know are moved to `superseded-<time>/` in the
    store before anything is read, and played again. A process that is asked to stop (SIGTERM) while it collects drops
    the whole collection in the same way. Under a cap the oldest episodes are not learned from any more; their files
    are deleted when none of the run's checkpoints needs them.

    Logged against environment steps, as is everything that the stage logs: `collect/return` (mean of the new
    episodes), `collect/env_steps`, `collect/episodes`, `collect/decisions` (of the run so far), `collect/overshoot`
    (what was played and not owed, in the unit that is owed), `collect/replay_age` (mean age in batches of the
    decisions learned from), `collect/steps_per_second` (environment) and `collect/updates_per_second` (learning).

    Where episodes are so long that the policy would stand still (27,000 decisions in Atari), `max_segment` has them
    played in parts, which are stored and learned from at once; between parts the agent learns and the game waits. Then
    all is counted in decisions, `collect/return` is the mean of the games that have ended, and a run that is resumed
    begins its open games anew: what was stored of them stays, cut short there, as by a time limit. So such a run is
    continued soundly, but not exactly.

    Args:
        prefill_episodes: episodes before the first update; 5 where neither it nor prefill_decisions is given.
        prefill_decisions: decisions before the first update.
        episodes_per_epoch: episodes for every `data.updates_per_epoch` updates; 1 where neither is given.
        decisions_per_update: decisions for every update; may be a fraction.
        prefill_policy: who plays before the first update; null for uniformly random actions.
        policy: who plays afterwards; null for the agent itself.
        environment: where, if not in the agent's own: the same task with rules for training only (Dreamer V1's lost
            lives on Atari).
        max_segment: most decisions played at a stretch; null for whole episodes.
        num_envs: environments side by side in each process, which the agent sees as one batch.
        num_workers: processes they are spread over; 0 keeps them in this one.

    Raises:
        ValueError: if both of a pair are given, the stage does not act, the store belongs to another run, parts are
            to be played of episodes that are owed whole, or the environment looks unlike the agent's.
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
        self.environment, self.max_segment = environment, max_segment
        if max_segment is not None and (
            max_segment < 1 or {self.schedule.prefill_unit, self.schedule.unit} != {"decisions"}
        ):
            raise ValueError(
                f"max_segment is {max_segment}, which wants at least 1, and all that is owed in decisions: set "
                "prefill_decisions and decisions_per_update"
            )
        self.prefill_policy, self.policy = prefill_policy, policy
        self.progress, self.resumed = CollectionProgress(), False
        self._most_spared = 0
        self._shown: dict[str, float] = {}
        self._learning_since: tuple[float, int] | None = None
        self._measured: dict[str, float] = {}

    @property
    def steps_played(self) -> int:
        """Environment steps made by all processes: the x axis of every curve."""
        return self.progress.env_steps

    def state_dict(self) -> dict[str, Any]:
        """What has been played."""
        return {"progress": self.progress.state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from what had been played."""
        self.progress, self.resumed = CollectionProgress(**state_dict["progress"]), True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuses a stage that does not act, or that has nothing to keep episodes in."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit" and not hasattr(getattr(trainer, "datamodule", None), "store"):
            raise ValueError("Collect wants a datamodule with a store of episodes: give data an EpisodeDataModule")
        own = getattr(pl_module, "environment", None)
        if self.environment is not None and own is not None and self.environment.spec != own.spec:
            raise ValueError(
                f"Collect is to play in {self.environment.id}, {self.environment.spec}, but the agent plays "
                f"{own.id}, {own.spec}: give both the same pictures and actions"
            )
        if stage == "fit" and self.schedule.prefill_unit == "episodes":
            data: Any = getattr(trainer, "datamodule", None)
            check_held_out(self.schedule.prefill, data, "prefill_episodes", trainer.world_size)
        place = self.environment or own
        for name, policy in (("prefill_policy", self.prefill_policy), ("policy", self.policy)):
            if place is not None:
                place.check_policy(policy, f"Collect's {name}")

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Sets aside what the run does not know, before anybody reads."""
        store: EpisodeStore = trainer.datamodule.store
        store.refresh()
        unknown = [name for name in store.listing if not self.progress.counts(name)]
        if not self.resumed and not self.progress.episodes:
            self._check_own(store, unknown, pl_module)
        trainer.strategy.barrier("store checked")
        if trainer.is_global_zero and (folder := set_aside(store.path, unknown)):
            rank_zero_warn(f"{len(unknown)} episodes that were played after the checkpoint are now in {folder}")
        trainer.strategy.barrier("unknown episodes set aside")
        store.refresh()
        known = self.progress.in_view(store.listing)
        found = [len(known), sum(name.rows - 1 for name in known)]
        if found != self.progress.view:
            raise ValueError(
                f"the checkpoint learned from {self.progress.view[0]} episodes with {self.progress.view[1]} decisions "
                f"but {store.path} has {found[0]} of them with {found[1]}: give data.path the folder of that run"
            )
        # Nobody plays on what was open then.
        self.progress.open = []
        pl_module.environment.check_recorded(store)

    def _check_own(self, store: EpisodeStore, names: list[EpisodeName], agent: Any) -> None:
        """A run that begins may find what it was killed over in its own prefill, and nothing else."""
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
        """Pays what is owed, unless training goes on in the middle of an epoch."""
        if self.resumed:
            self._shown = {"episodes": float(self.progress.episodes), "env_steps": float(self.steps_played)}
        wait_for_measurements(trainer, ["collect/return"])
        super().on_train_start(trainer, pl_module)
        self._learning_since = time.monotonic(), trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Pays what is owed, if the epoch is whole."""
        super().on_train_epoch_end(trainer, pl_module)
        pass_over_unmeasured(trainer, ["collect/return"])

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leaves the last collection among the results of the fit."""
        publish(trainer, self._measured)

    def turn(self, trainer: Any, agent: Any) -> None:
        """Pays what is owed."""
        updates, per_epoch = trainer.global_step, trainer.datamodule.updates_per_epoch
        unit, debt = self.schedule.debt(self.progress, updates, per_epoch)
        if debt > 0:
            prefill = not self.progress.prefilled
            metrics = self._collect(trainer, agent, unit, debt, prefill)
            if prefill:
                self.progress.prefilled = [updates, self.progress.episodes, self.progress.decisions]
            self._take_stock(trainer)
            metrics["collect/overshoot"] = float(-self.schedule.debt(self.progress, updates, per_epoch)[1])
            metrics["collect/replay_age"] = self._replay_age(trainer)
            self._log(trainer, metrics)
        self._learning_since = time.monotonic(), updates

    def envs(self, agent: Any) -> PixelVectorEnv:
        """The environments, made when first asked for."""
        if self._envs is not None:
            return self._envs
        environment, rank = self.environment or agent.environment, agent.global_rank
        if self.max_segment is None:
            envs = environment.vector(self.num_envs, self.num_workers)
        else:
            seed_of, sizes = partial(online_episode_seed, agent.seed, rank), (self.num_envs, self.num_workers)
            envs = environment.parted(*sizes, self.max_segment, seed_of, self.progress.first(rank))
        self._envs = envs
        return envs

    def _collect(self, trainer: Any, agent: Any, unit: str, debt: int, prefill: bool) -> dict[str, float]:
        rank, world = trainer.global_rank, trainer.world_size
        mine = share(debt, rank, world, self.progress.episodes % world)
        began, first, envs = time.monotonic(), self.progress.first(rank), self.envs(agent)
        before, results, stopped = envs.env_steps_made, [], False
        if mine:
            results, stopped = self._play(trainer, agent, unit, mine, prefill)
        decisions, played = sum(result.decisions for result in results), games_of(envs, results, first)
        counts = [decisions, envs.env_steps_made - before, time.monotonic() - began]
        rows = self.exchange(trainer, stopped, [*counts, *played])
        decided, stepped, lasted, begun, ended, returns, *paused = (list(column) for column in zip(*rows, strict=True))
        still_open = [
            [number, int(index), int(parts)]
            for indices, finished_parts in zip(paused[::2], paused[1::2], strict=True)
            for number, (index, parts) in enumerate(zip(indices, finished_parts, strict=True))
            if index >= 0
        ]
        self.progress.add([int(count) for count in begun], int(sum(decided)), int(sum(stepped)), still_open)
        metrics = {
            "collect/env_steps": float(self.progress.env_steps),
            "collect/episodes": float(self.progress.episodes),
            "collect/decisions": float(self.progress.decisions),
            "collect/steps_per_second": sum(stepped) / max(lasted),
        }
        if sum(ended):
            metrics["collect/return"] = sum(returns) / sum(ended)
        if self._learning_since is not None and trainer.global_step > self._learning_since[1]:
            since, updates = self._learning_since
            metrics["collect/updates_per_second"] = (trainer.global_step - updates) / (began - since)
        return metrics

    def _play(self, trainer: Any, agent: Any, unit: str, mine: int, prefill: bool) -> tuple[list[EpisodeResult], bool]:
        rank, data, envs = trainer.global_rank, trainer.datamodule, self.envs(agent)
        # Deleting is for `_take_stock`, which knows what the checkpoints need.
        store = EpisodeStore(data.path, compression=data.store.compression)
        first, birth = self.progress.first(rank), batches_trained(trainer)
        player, writer = self._player(agent, prefill), EpisodeWriter(store, rank, birth)
        if isinstance(envs, PartedVectorEnv):
            player, writer = PartsPolicy(player, envs), PartsWriter(envs, store, rank, birth)
        shown = {"desc": "collect", "unit": unit[:-1], "leave": False, "delay": 2, "disable": rank > 0}
        with progress_bar(total=mine, **shown) as bar:

            def progress(finished: int, _: int, decisions: int) -> None:
                bar.update(min(mine, finished if unit == "episodes" else decisions) - bar.n)

            results, stopped = self.play(
                trainer,
                agent,
                player,
                # An episode, or a part of one, has at least one decision.
                EpisodeSeeds(agent.seed, rank, first, mine),
                indices=range(first, first + mine),
                writer=writer,
                progress=progress,
                may_begin=(lambda decisions: decisions < mine) if unit == "decisions" else None,
            )
        if isinstance(player, PartsPolicy):
            # Who plays before the first update has nothing to tell the agent.
            player.leave(forget=prefill)
        return results, stopped

    def _player(self, agent: Any, prefill: bool) -> Any:
        if prefill:
            spec = agent.environment.spec
            return self.prefill_policy or HeldActionsPolicy(spec.action_size, 1, spec.discrete)
        return self.policy or agent.policy(explore=True)

    def _take_stock(self, trainer: Any) -> None:
        """Lists what is now learned from, and deletes what nobody needs any more."""
        store: EpisodeStore = trainer.datamodule.store
        store.refresh()
        view = store.in_view()
        self.progress.view = [len(view), sum(name.rows - 1 for name in view)]
        if trainer.is_global_zero and len(view) < len(store):
            needed: set[EpisodeName] = set()
            for progress in self._saved_progress(trainer):
                needed.update(progress.in_view(store.listing))
            spared = store.prune(needed)
            if len(spared) > self._most_spared:
                self._most_spared = len(spared)
                size = sum(Path(store.path, str(name)).stat().st_size for name in spared)
                rank_zero_warn(
                    f"{store.path} keeps {len(spared)} episodes ({megabytes(size)}) beyond its cap, because "
                    "checkpoints of this run need them: keep fewer checkpoints to free the space"
                )
        trainer.strategy.barrier("store pruned")
        store.refresh()

    def _saved_progress(self, trainer: Any) -> list[CollectionProgress]:
        """What had been played when each of the run's checkpoints was written."""
        folders = {Path(trainer.default_root_dir) / "checkpoints"}
        folders |= {Path(c.dirpath) for c in trainer.checkpoint_callbacks if getattr(c, "dirpath", None)}
        saved = []
        for path in (path for folder in folders for path in folder.glob("*.ckpt")):
            # One that cannot be read cannot be resumed.
            with suppress(Exception):
                checkpoint = migrate_checkpoint(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
                saved.append(CollectionProgress(**checkpoint["callbacks"][self.state_key]["progress"]))
        return saved

    def _replay_age(self, trainer: Any) -> float:
        now, view = batches_trained(trainer), trainer.datamodule.store.in_view()
        decisions = sum(name.rows - 1 for name in view)
        return sum((now - name.birth) * (name.rows - 1) for name in view) / decisions

    def _log(self, trainer: Any, metrics: dict[str, float]) -> None:
        for logger in trainer.loggers:
            logger.log_metrics(metrics, self.steps_played)
        self._measured = metrics
        publish(trainer, metrics)
        words = {"return": "return", "steps_per_second": "env_steps/s", "updates_per_second": "updates/s"}
        named = {words[name]: metrics[f"collect/{name}"] for name in words if f"collect/{name}" in metrics}
        self._shown = {"episodes": float(self.progress.episodes), "env_steps": float(self.steps_played), **named}

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Puts environment steps on the x axis, and the last collection on the progress bar."""
        withdraw(trainer, ["collect/return"])
        pl_module.log("step", self._axis(), on_step=True, on_epoch=False)
        if self._shown:
            pl_module.log_dict(self._shown, prog_bar=True, logger=False, on_step=True, on_epoch=False)
            self._shown = {}

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Puts environment steps on the x axis."""
        if trainer.training or trainer.state.fn == "fit":
            pl_module.log("step", self._axis(), on_step=False, on_epoch=True, reduce_fx="max", sync_dist=True)

    def _axis(self) -> torch.Tensor:
        return torch.tensor(float(self.steps_played), dtype=torch.float64)
