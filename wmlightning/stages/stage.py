"""What every stage shares: noise that resumes exactly, checkpoints that rebuild themselves, clipping, and loading."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from datamodules.episode import Spec
from wmlightning.recipes import Recorded, build_recipe, recipe_of
from wmlightning.rehearsal import EPISODES, ROWS, promised
from wmlightning.seeds import derive_seed
from wmlightning.stages.progress import PER_EPOCH, settle_progress
from wmlightning.stages.specs import check_held_out, check_windows


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
        self.say_kept_settings()

    def say_kept_settings(self) -> None:
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
        checkpoint["recipe"] = recipe_of(self)
        # A stage can be saved without having been trained.
        batches = math.inf if self._trainer is None else self.trainer.num_training_batches
        if math.isfinite(batches):
            checkpoint[PER_EPOCH] = int(batches)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lets training go on where it was; see `settle_progress`."""
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


def load(path: str | Path, map_location: Any = "cpu") -> Stage:
    """Rebuilds whatever stage a checkpoint holds, from the file alone, in evaluation mode.

    Args:
        path: a checkpoint written by the Lightning Trainer for one of our stages.
        map_location: device for the weights, as in `torch.load`.

    Raises:
        ValueError: if the file is missing or is no checkpoint of ours, in one line that says what to do.
    """
    stage = promised(path)
    if isinstance(stage, Stage):
        return stage
    checkpoint = read_checkpoint(path, map_location)
    stage = build_recipe(checkpoint["recipe"])
    wrong = misfit(stage, checkpoint["state_dict"])
    if wrong:
        raise ValueError(
            f"{path} does not fit this version's {type(stage).__name__}: {wrong.format('in it')}; use the version of "
            "wmlightning that wrote it, or train the stage again"
        )
    stage.load_state_dict(checkpoint["state_dict"])
    return stage.eval()


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """What a checkpoint of ours holds, `recipe` and `state_dict` among it; raises ValueError as `load` does."""
    try:
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"there is no checkpoint at {path}: train the stage first, or correct the path") from None
    except Exception as error:
        cure = "correct the path"
        if Path(path).suffix == ".ckpt":
            cure = "restore it from a copy, or delete it, and the stage begins anew"
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__}): {cure}") from error
    if not isinstance(checkpoint, dict) or not {"recipe", "state_dict"} <= checkpoint.keys():
        raise ValueError(
            f"{path} has no recipe or no weights, so wmlightning did not write it: train the stage with wmlightning"
        )
    return checkpoint


LAID_OUT_BY = ("groups", "classes", "learn_model")
"""Settings by which weights, or an optimizer's groups, are laid out without its showing in any weight's shape."""
OPTIMIZERS = ("learning_rate", "epsilon", "max_norm", "decay")
"""Endings of settings that an optimizer keeps; see `Stage.say_kept_settings`."""


def check_continues(stage: Stage, path: str | Path) -> None:
    """Refuses a checkpoint that the stage cannot go on from, and warns of settings that will change.

    Raises:
        ValueError: if it cannot be read, holds another stage or other sizes, or one with other parts.
    """
    checkpoint = read_checkpoint(path)
    mine, its = recipe_of(stage), checkpoint["recipe"]
    here, there = (recipe["class_path"].rpartition(".")[2] for recipe in (mine, its))
    if here != there:
        raise ValueError(f"{path} holds a {there} but the model here is a {here}: give a checkpoint of this stage")
    wrong = misfit(stage, checkpoint["state_dict"])
    if wrong:
        raise ValueError(f"{wrong.format(f'in {path}')}: give the model the sizes it was begun with, or start anew")
    changed = []
    for place, new, old in differences(mine, its):
        name = place.rpartition(".")[2]
        if isinstance(new, dict) or isinstance(old, dict) or name in LAID_OUT_BY:
            old, new = (
                part.get("class_path", str(part)).rpartition(".")[2] if isinstance(part, dict) else part
                for part in (old, new)
            )
            raise ValueError(
                f"{place} is {old} in {path} but {new} here: give the model the parts it was begun with, or start anew"
            )
        if not name.endswith(OPTIMIZERS):
            changed.append(f"{place} {old} is now {new}")
    if changed:
        rank_zero_warn(f"{path} was begun with other settings, and goes on with those given: {', '.join(changed)}")


def differences(here: Any, there: Any, place: str = "model") -> Iterator[tuple[str, Any, Any]]:
    """Where two recipes differ: the dotted place, and what stands there in each; parts of different classes whole."""
    if not (isinstance(here, dict) and isinstance(there, dict)):
        if here != there:
            yield place, here, there
    elif here.get("class_path") != there.get("class_path"):
        yield place, here, there
    elif "class_path" in here:
        yield from differences(here["init_args"], there["init_args"], place)
    else:
        for key in sorted(here.keys() & there.keys()):
            yield from differences(here[key], there[key], f"{place}.{key}")


def misfit(module: nn.Module, weights: Mapping[str, Tensor]) -> str:
    """The first of the weights that a module lacks or has in another shape, in words with {} for their place."""
    own, trained = module.state_dict(), {name for name, _ in module.named_parameters()}
    for name in sorted(own.keys() | weights.keys()):
        old, new = (list(part[name].shape) if name in part else "absent" for part in (weights, own))
        # What was counted or collected while training may have any shape.
        if old != new and (name in trained or "absent" in (old, new)):
            return f"{name} is {old} {{}} but {new} here"
    return ""


def warm_start(stage: Stage, start: str | Path, parts: Sequence[str]) -> None:
    """Gives parts of a new stage the weights they had in an earlier one.

    The stage's recipe forgets `start`: its checkpoint has the weights.

    Args:
        stage: where the weights go.
        start: checkpoint of a stage of the same class.
        parts: names of the modules to copy.

    Raises:
        ValueError: if the file is missing, holds another kind of stage, or weights of another shape.
    """
    earlier = load(start)
    if type(earlier) is not type(stage):
        wanted = type(stage).__name__
        raise ValueError(f"start {start} holds a {type(earlier).__name__}: give the checkpoint of an earlier {wanted}")
    for part in parts:
        new, old = getattr(stage, part), getattr(earlier, part).state_dict()
        wrong = misfit(new, old)
        if wrong:
            raise ValueError(
                f"{part}.{wrong.format(f'in start {start}')}: give both the same parts and sizes, or leave start out"
            )
        new.load_state_dict(old)
    stage.__dict__["_arguments"]["start"] = None


def loaded(part: Any, wanted: type[Stage]) -> Any:
    """The part itself, or, given the path of a checkpoint, the stage in it.

    Raises:
        ValueError: if the stage is not of the class that is wanted.
    """
    is_path = isinstance(part, str | Path)
    stage = load(part) if is_path else part
    if not isinstance(stage, wanted):
        got, name = f"{part} holds" if is_path else "what is given is", wanted.__name__
        raise ValueError(f"{got} a {type(stage).__name__}, but a {name} is wanted: give the checkpoint of one")
    return stage
