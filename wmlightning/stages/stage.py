"""What every stage shares: noise that resumes exactly, checkpoints that rebuild themselves, clipping, and loading."""

from pathlib import Path
from typing import Any, Self

import lightning
import torch

from wmlightning.recipes import Recorded, build_recipe, recipe_of
from wmlightning.seeds import derive_seed


class Stage(Recorded, lightning.LightningModule):
    """A LightningModule that learns one part of an agent (abstract).

    A stage's `learn` is pure and returns named values; only `training_step` of the outermost stage logs. Learning noise
    is a function of (seed, rank, batches trained), so a resumed run draws what an uninterrupted one would have drawn and
    no generator state is saved. The checkpoint holds a recipe (see `wmlightning.recipes`) beside the weights.

    Args:
        seed: names the stream of learning noise; the command line passes `seed_everything` on.
    """

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed

    @property
    def batches_trained(self) -> int:
        """b of DESIGN's counters: batches processed since training began, resumes included."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Re-seeds torch from (seed, rank, batches trained)."""
        torch.manual_seed(derive_seed(self.seed, self.global_rank, self.batches_trained))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Writes the recipe that `load` builds from."""
        checkpoint["recipe"] = recipe_of(self)

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path, map_location: Any = "cpu", **kwargs: Any) -> Self:
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


def load(path: str | Path, map_location: Any = "cpu") -> Stage:
    """Rebuilds whatever stage a checkpoint holds, from the file alone, in evaluation mode.

    Args:
        path: a checkpoint written by the Lightning Trainer for one of our stages.
        map_location: device for the weights, as in `torch.load`.

    Raises:
        ValueError: if the file is missing or is no checkpoint of ours, in one line that says what to do.
    """
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint at {path}: train the stage first, or correct the path") from None
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): is it complete?") from error
    if not isinstance(checkpoint, dict) or "recipe" not in checkpoint:
        raise ValueError(f"{path} has no recipe, so wmlightning did not write it: train the stage with wmlightning")
    stage = build_recipe(checkpoint["recipe"])
    stage.load_state_dict(checkpoint["state_dict"])
    return stage.eval()


def loaded(part: Any) -> Any:
    """The part itself, or, given the path of a checkpoint, the stage in it."""
    return load(part) if isinstance(part, str | Path) else part
