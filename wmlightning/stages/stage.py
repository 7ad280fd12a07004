"""What every stage shares: noise that resumes exactly, checkpoints that rebuild themselves, clipping, and loading."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.episode import Spec
from wmlightning.recipes import FORMAT, Recorded, recipe_of
from wmlightning.seeds import derive_seed
from wmlightning.stages.checkpoints import PER_EPOCH, load, migrate_checkpoint, settle_progress
from wmlightning.stages.requirements import EPISODES, ROWS, check_held_out, check_windows, promised


class Stage(Recorded, lightning.LightningModule):
    """A LightningModule that learns one part of an agent (abstract).

    A stage's `learn` is pure and returns named values; only `training_step` of the outermost stage logs. Learning noise
    is a function of (seed, rank, batches trained), so a resumed run draws what an uninterrupted one would have drawn
    and no generator state is saved. The checkpoint holds a recipe (see `wmlightning.recipes`) beside the weights.

    Args:
        seed: names the stream of learning noise; the command line passes `seed_everything` on. Inside another stage the
            outer one's holds.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    @property
    def batches_trained(self) -> int:
        """Batches processed since training began, resumes included: the number that all learning noise is named by."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return progress.total.processed

    def on_fit_start(self) -> None:
        """Refuses data that this stage cannot learn from."""
        self.check_data(getattr(self.trainer, "datamodule", None))

    def check_parts(self) -> None:
        """Raises ValueError, in one line that says what to do, if parts of this stage do not fit one another."""

    def check_data(self, data: Any) -> None:
        """Makes sure that this stage can learn from these data, as far as the first episode, or a promise, tells.

        Args:
            data: a datamodule, of ours if it is to be looked at; None is taken.

        Raises:
            ValueError: if it cannot, in one line that says what to do.
        """
        store = getattr(data, "store", None)
        if store is None:
            return
        check_windows(promised(Path(store.path) / ROWS), data, f"episodes in {store.path}")
        check_held_out(promised(Path(store.path) / EPISODES), data, f"the number of episodes in {store.path}")
        spec = promised(store.path) or (store.spec if len(store) else None)
        if spec is not None:
            self.check_spec(spec, f"the episodes in {store.path}")

    def check_spec(self, spec: Spec, what: str) -> None:
        """Makes sure that this stage can read such observations and actions; by default it can read all.

        Args:
            spec: of a store or of an environment.
            what: names it in the error.

        Raises:
            ValueError: if it cannot, in one line that says what to do.
        """

    def on_train_start(self) -> None:
        """Says so where a resumed optimizer's settings, which win, are not the ones asked for."""
        epoch_loop: Any = self.trainer.fit_loop.epoch_loop
        if not epoch_loop.batch_progress.current.processed:
            # An epoch that begins has nothing to be restarted from; see `settle_progress`.
            epoch_loop.restarting = False
        self.warn_of_kept_settings()

    def warn_of_kept_settings(self) -> None:
        """Warns where the optimizer's learning rate is not the one asked for."""
        wanted = getattr(self, "learning_rate", None)
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        kept = {group.get("initial_lr", group["lr"]) for group in groups if "lr" in group} if wanted else set()
        if kept - {wanted}:
            rank_zero_warn(
                f"learning_rate is {wanted} but the checkpoint's optimizer goes on with {', '.join(map(str, kept))}: "
                "start afresh without --ckpt_path to change it"
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Re-seeds torch from (seed, rank, batches trained)."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, self.batches_trained))

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Re-seeds torch from (seed, rank, batch), so that every validation draws the same noise."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, batch_idx, 1))

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Re-seeds torch from (seed, rank, batch), so that every test draws the same noise."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, batch_idx, 2))

    def over_ranks(self, number: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without a gradient; itself where there is one process."""
        if self.trainer.world_size == 1:
            return number
        reduced = self.trainer.strategy.reduce(number.detach().clone(), reduce_op="mean")
        return torch.as_tensor(reduced, device=number.device)

    def training_batches(self, most: int) -> Iterator[Any]:
        """Up to `most` batches of the datamodule's training data, on the device, for what a test compares with.

        Raises:
            ValueError: if the Trainer has no datamodule.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError("a test compares with the training data: pass the Trainer a datamodule, not a dataloader")
        for batch in itertools.islice(data.train_dataloader(), most):
            yield batch.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the recipe that `load` builds from, and how long an epoch is."""
        checkpoint["recipe"], checkpoint["format"] = recipe_of(self), FORMAT
        # A stage can be saved without having been trained.
        batches = math.inf if self._trainer is None else self.trainer.num_training_batches
        if math.isfinite(batches):
            checkpoint[PER_EPOCH] = int(batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets training go on where it was, whatever version wrote the checkpoint; see `settle_progress`."""
        migrate_checkpoint(checkpoint)
        settle_progress(checkpoint)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = "cpu", **kwargs: Any):
        """Rebuilds this stage from a checkpoint file alone.

        Raises:
            TypeError: if the file holds a stage of another class.
        """
        stage = load(checkpoint_path, map_location)
        if not isinstance(stage, cls):
            raise TypeError(
                f"{checkpoint_path} holds a {type(stage).__name__}, not a {cls.__name__}: call "
                f"{type(stage).__name__}.load_from_checkpoint or wmlightning.load"
            )
        return stage
