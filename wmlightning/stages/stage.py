"""`Stage`, the hooks that every stage shares: noise, checks of its data, checkpoints."""

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
from wmlightning.stages.checkpoints import BATCHES_PER_EPOCH, load, migrate_checkpoint, repair_loop_counters
from wmlightning.stages.requirements import MAX_ROWS, NUM_EPISODES, check_held_out, check_windows, expected_at


class Stage(Recorded, lightning.LightningModule):
    """A LightningModule that learns one part of an agent (abstract).

    A stage's `learn` is pure and returns named values; only `training_step` of the outermost stage logs. Learning noise
    is a function of (seed, rank, batches trained), so a resumed run draws what an uninterrupted one would have drawn
    and no generator state is saved. The checkpoint holds a recipe (see `wmlightning.recipes`) beside the weights.

    Args:
        seed: seed of the learning noise; the command line passes `seed_everything` on. A stage inside another one
            learns with the outer stage's noise.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    # ------------------------------------------------------------------------------------------------- learning noise

    @property
    def batches_trained(self) -> int:
        """Batches processed since training began, resumes included: the index of all learning noise."""
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return progress.total.processed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Re-seeds torch from (seed, rank, batches trained)."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, self.batches_trained))

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Re-seeds torch from (seed, rank, batch), so that every validation draws the same noise."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, batch_idx, 1))

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Re-seeds torch from (seed, rank, batch), so that every test draws the same noise."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, batch_idx, 2))

    # --------------------------------------------------------------------------------------------------------- checks

    def on_fit_start(self) -> None:
        """Checks the data before the first batch."""
        self.check_data(getattr(self.trainer, "datamodule", None))

    def check_parts(self) -> None:
        """Checks that the parts of this stage fit one another; subclasses raise ValueError where they do not."""

    def check_data(self, data: Any) -> None:
        """Checks that this stage can learn from the episodes of a datamodule.

        It reads the first episode, or during a preflight what is registered for the folder.

        Args:
            data: a datamodule; None, and one without a store of this package, pass.

        Raises:
            ValueError: if it cannot, in one line that says what to do.
        """
        store = getattr(data, "store", None)
        if store is None:
            return
        check_windows(expected_at(Path(store.path) / MAX_ROWS), data, f"episodes in {store.path}")
        check_held_out(expected_at(Path(store.path) / NUM_EPISODES), data, f"the number of episodes in {store.path}")
        spec = expected_at(store.path) or (store.spec if len(store) else None)
        if spec is not None:
            self.check_spec(spec, f"the episodes in {store.path}")

    def check_spec(self, spec: Spec, what: str) -> None:
        """Checks that this stage can read such observations and actions; by default it can read all.

        Args:
            spec: of a store or of an environment.
            what: the store or environment, named in the error.

        Raises:
            ValueError: if it cannot, in one line that says what to do.
        """

    def on_train_start(self) -> None:
        """Corrects a counter of Lightning's, and warns of an optimizer's settings that the checkpoint overrides."""
        epoch_loop: Any = self.trainer.fit_loop.epoch_loop
        if not epoch_loop.batch_progress.current.processed:
            # Nothing of this epoch has been trained, so there is nothing to restart; see `repair_loop_counters`.
            epoch_loop.restarting = False
        self.warn_of_kept_settings()

    def warn_of_kept_settings(self) -> None:
        """Warns where a resumed optimizer keeps another learning rate than this stage's."""
        learning_rate = getattr(self, "learning_rate", None)
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        kept = {group.get("initial_lr", group["lr"]) for group in groups if "lr" in group} if learning_rate else set()
        if kept - {learning_rate}:
            rank_zero_warn(
                f"learning_rate is {learning_rate} but the checkpoint's optimizer keeps "
                f"{', '.join(map(str, kept))}: start afresh without --ckpt_path to change it"
            )

    # ------------------------------------------------------------------------------------------ for training and tests

    def mean_over_ranks(self, number: Tensor) -> Tensor:
        """The mean of a tensor over the processes, without a gradient; of one process the tensor itself."""
        if self.trainer.world_size == 1:
            return number
        reduced = self.trainer.strategy.reduce(number.detach().clone(), reduce_op="mean")
        return torch.as_tensor(reduced, device=number.device)

    def training_batches(self, limit: int) -> Iterator[Any]:
        """Yields the first batches of the datamodule's training data, on the device, to fit a test's baselines to.

        Args:
            limit: how many batches, at most.

        Raises:
            ValueError: if the Trainer has no datamodule.
        """
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            raise ValueError("a test compares with the training data: pass the Trainer a datamodule, not a dataloader")
        for batch in itertools.islice(data.train_dataloader(), limit):
            yield batch.to(self.device)

    # ---------------------------------------------------------------------------------------------------- checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Saves the recipe that `load` builds from, and how many batches an epoch has."""
        checkpoint["recipe"] = recipe_of(self)
        checkpoint["format"] = FORMAT
        # A stage can be saved without having been trained.
        batches = math.inf if self._trainer is None else self.trainer.num_training_batches
        if math.isfinite(batches):
            checkpoint[BATCHES_PER_EPOCH] = int(batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Gives a checkpoint of any earlier version today's names, and corrects its counters."""
        migrate_checkpoint(checkpoint)
        repair_loop_counters(checkpoint)

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
