"""Checkpoints that rebuild their stage: reading one, older formats, loading, resuming and warm starts.

    reading        `read_checkpoint`, `migrate_checkpoint`
    loading        `load` builds the stage in a file, `resolve_stage` takes a stage or a path
    warm start     `warm_start` copies weights of an earlier stage into a new one
    resuming       `check_resumable` compares a stage with its checkpoint, `repair_loop_counters` corrects the epochs

When and how files are written is in `wmlightning.callbacks.checkpoints`.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from wmlightning.recipes import FORMAT, build_recipe, migrate, recipe_of
from wmlightning.stages.requirements import expected_at

StageType = TypeVar("StageType", bound=LightningModule)

BATCHES_PER_EPOCH = "batches_per_epoch"
"""Key of a checkpoint under which a stage saves how many batches an epoch had."""
_RENAMED_WEIGHTS = {"CMAESController": {"games.": "fitness."}}
"""Class of a stage -> prefix of a weight's name in format 1 -> that prefix today."""
_RENAMED_PROGRESS = {"view": "visible"}
"""Field of a callback's `CollectionProgress` in format 1 -> that field today."""
_LAYOUT_SETTINGS = ("groups", "classes", "learn_model")
"""Settings that change what weights, or an optimizer's groups, mean, but no shape of any weight."""
_OPTIMIZER_SETTINGS = ("learning_rate", "epsilon", "max_norm", "decay")
"""Endings of the settings that an optimizer restores from a checkpoint; see `Stage.warn_of_kept_settings`."""


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Reads a checkpoint of this package and gives it today's names.

    Args:
        path: the file.
        map_location: device for the weights, as in `torch.load`.

    Returns:
        Its contents, with at least `recipe` and `state_dict`.

    Raises:
        ValueError: if the file is missing, cannot be read, or another program or a later version wrote it.
    """
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
    return migrate_checkpoint(checkpoint, path)


def migrate_checkpoint(checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> dict[str, Any]:
    """Gives a checkpoint of any earlier format today's names, in place; see `wmlightning.recipes`.

    Args:
        checkpoint: its contents; those without a recipe are not this package's and stay as they are.
        path: names the file in the error.

    Returns:
        The same dictionary.

    Raises:
        ValueError: if a later version of this package wrote it.
    """
    form = checkpoint.get("format", 1)
    if form > FORMAT:
        raise ValueError(f"{path} has format {form} but this version reads formats up to {FORMAT}: update wmlightning")
    if form == FORMAT or "recipe" not in checkpoint:
        return checkpoint
    checkpoint["recipe"] = migrate(checkpoint["recipe"])
    stage_class = checkpoint["recipe"]["class_path"].rpartition(".")[2]
    weights = checkpoint["state_dict"]
    for old, new in _RENAMED_WEIGHTS.get(stage_class, {}).items():
        for name in [name for name in weights if name.startswith(old)]:
            weights[new + name.removeprefix(old)] = weights.pop(name)
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and "ledger" in state:
            progress = state.pop("ledger")
            state["progress"] = {_RENAMED_PROGRESS.get(name, name): value for name, value in progress.items()}
    checkpoint["format"] = FORMAT
    return checkpoint


def load(path: str | Path, map_location: Any = "cpu") -> Any:
    """Rebuilds the stage in a checkpoint from the file alone, in evaluation mode.

    During a preflight it returns the untrained stage that is registered for a checkpoint not yet written.

    Args:
        path: a checkpoint that the Lightning Trainer wrote for a stage of this package.
        map_location: device for the weights, as in `torch.load`.

    Returns:
        The stage. Only the file knows its class: `VAE.load_from_checkpoint` and the like return a typed one.

    Raises:
        ValueError: if the file is missing or is no checkpoint of this package, in one line that says what to do.
    """
    stage = expected_at(path)
    if isinstance(stage, LightningModule):
        return stage
    checkpoint = read_checkpoint(path, map_location)
    stage = build_recipe(checkpoint["recipe"])
    mismatch = first_mismatch(stage, checkpoint["state_dict"], "in it")
    if mismatch:
        raise ValueError(
            f"{path} does not fit this version's {type(stage).__name__}: {mismatch}; use the version of "
            "wmlightning that wrote it, or train the stage again"
        )
    stage.load_state_dict(checkpoint["state_dict"])
    return stage.eval()


def resolve_stage(part: Any, stage_class: type[StageType]) -> StageType:
    """Returns a stage as it is, or, given the path of a checkpoint, the stage in it.

    Args:
        part: the stage, or the path.
        stage_class: the class that the stage must have.

    Raises:
        ValueError: if it has another class, or the checkpoint cannot be read.
    """
    is_path = isinstance(part, str | Path)
    stage = load(part) if is_path else part
    if not isinstance(stage, stage_class):
        subject = f"{part} holds" if is_path else "what is given is"
        raise ValueError(
            f"{subject} a {type(stage).__name__}, but a {stage_class.__name__} is needed: give the checkpoint of one"
        )
    return stage


def warm_start(stage: LightningModule, start: str | Path, parts: Sequence[str]) -> None:
    """Copies the weights of some parts of an earlier stage into a new one.

    The new stage's recipe drops `start`, because its own checkpoint will hold the weights.

    Args:
        stage: the new stage.
        start: checkpoint of an earlier stage of the same class.
        parts: names of the modules to copy.

    Raises:
        ValueError: if the file is missing, holds a stage of another class, or weights of another shape.
    """
    earlier = load(start)
    if type(earlier) is not type(stage):
        needed = type(stage).__name__
        raise ValueError(f"start {start} holds a {type(earlier).__name__}: give the checkpoint of an earlier {needed}")
    for part in parts:
        new = getattr(stage, part)
        weights = getattr(earlier, part).state_dict()
        mismatch = first_mismatch(new, weights, f"in start {start}")
        if mismatch:
            raise ValueError(f"{part}.{mismatch}: give both the same parts and sizes, or leave start out")
        new.load_state_dict(weights)
    stage.__dict__["_arguments"]["start"] = None


def check_resumable(stage: LightningModule, path: str | Path) -> None:
    """Checks that training of a stage can resume from a checkpoint, and warns of settings that change.

    Raises:
        ValueError: if the checkpoint cannot be read, or holds another stage, other sizes or other parts.
    """
    checkpoint = read_checkpoint(path)
    recipe = recipe_of(stage)
    saved_recipe = checkpoint["recipe"]
    stage_class = _class_name(recipe)
    saved_class = _class_name(saved_recipe)
    if stage_class != saved_class:
        raise ValueError(
            f"{path} holds a {saved_class} but the model here is a {stage_class}: give a checkpoint of this stage"
        )
    mismatch = first_mismatch(stage, checkpoint["state_dict"], f"in {path}")
    if mismatch:
        raise ValueError(f"{mismatch}: give the model the sizes of that checkpoint, or start anew")
    changed = []
    for setting, value, saved in recipe_differences(recipe, saved_recipe):
        name = setting.rpartition(".")[2]
        if isinstance(value, dict) or isinstance(saved, dict) or name in _LAYOUT_SETTINGS:
            raise ValueError(
                f"{setting} is {_class_name(saved)} in {path} but {_class_name(value)} here: give the model the parts "
                "of that checkpoint, or start anew"
            )
        if not name.endswith(_OPTIMIZER_SETTINGS):
            changed.append(f"{setting} {saved} is now {value}")
    if changed:
        rank_zero_warn(
            f"{path} was trained with other settings, and training resumes with those given: {', '.join(changed)}"
        )


def recipe_differences(recipe: Any, other: Any, setting: str = "model") -> Iterator[tuple[str, Any, Any]]:
    """Yields where two recipes differ: the dotted name of the setting, and its value in each.

    Parts of different classes are one difference, whose values are the parts' whole recipes.
    """
    if not (isinstance(recipe, dict) and isinstance(other, dict)):
        if recipe != other:
            yield setting, recipe, other
    elif recipe.get("class_path") != other.get("class_path"):
        yield setting, recipe, other
    elif "class_path" in recipe:
        yield from recipe_differences(recipe["init_args"], other["init_args"], setting)
    else:
        for key in sorted(recipe.keys() & other.keys()):
            yield from recipe_differences(recipe[key], other[key], f"{setting}.{key}")


def _class_name(value: Any) -> Any:
    """The last name of a part's class, given its recipe; any other value as it is."""
    return value.get("class_path", str(value)).rpartition(".")[2] if isinstance(value, dict) else value


def first_mismatch(module: nn.Module, weights: Mapping[str, Tensor], where: str) -> str:
    """Describes the first weight that a module lacks, misses or has in another shape.

    Args:
        module: the module.
        weights: a state dictionary that it should be able to load.
        where: where the weights come from, for the description.

    Returns:
        A sentence, or an empty string if all fit. Buffers, which are counted or collected in training, may have any
        shape.
    """
    own = module.state_dict()
    parameters = {name for name, _ in module.named_parameters()}
    for name in sorted(own.keys() | weights.keys()):
        saved = list(weights[name].shape) if name in weights else "absent"
        here = list(own[name].shape) if name in own else "absent"
        if saved != here and (name in parameters or "absent" in (saved, here)):
            return f"{name} is {saved} {where} but {here} here"
    return ""


def environment_steps(checkpoint: dict[str, Any]) -> int | None:
    """Returns the environment steps collected before a checkpoint was written; None where nothing is collected."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and "env_steps" in state.get("progress", {}):
            return int(state["progress"]["env_steps"])
    return None


def logged_until(checkpoint: dict[str, Any]) -> int:
    """Returns where on the x axis of a run's curves a checkpoint was written: environment steps, or updates."""
    for name in ("dream_steps", "env_steps"):
        if name in checkpoint["state_dict"]:
            return int(checkpoint["state_dict"][name])
    steps = environment_steps(checkpoint)
    return int(checkpoint.get("global_step", 0)) if steps is None else steps


def repair_loop_counters(checkpoint: dict[str, Any]) -> None:
    """Rewrites the loop counters of a checkpoint as they would be had it been saved by a run that went on undisturbed.

    Lightning 2.6 infers from its counters in which hook a checkpoint was written. It infers wrongly where a resumed run
    was saved before its first batch, or where a run that stopped within an epoch resumes with a limit of another kind:
    epochs are counted twice, or a batch is trained again. So epochs are counted from batches here, and between two
    epochs every earlier batch is complete and none has begun.

    Args:
        checkpoint: as given to `on_load_checkpoint`, changed in place; one without a Trainer's loops stays as it is.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    batches_per_epoch = checkpoint.get(BATCHES_PER_EPOCH)
    if not loops or not batches_per_epoch:
        return
    batches = loops["epoch_loop.batch_progress"]
    trained = batches["total"]["processed"]
    into_epoch = batches["current"]["processed"] % batches_per_epoch
    epochs, rest = divmod(trained - into_epoch, batches_per_epoch)
    if rest:
        # Epochs had another length before, so their number cannot be computed: Lightning's counters stay.
        return
    begun = epochs + (into_epoch > 0)
    for progress in loops["epoch_progress"].values():
        progress.update(ready=begun, started=begun, processed=epochs, completed=epochs)
    if not into_epoch:
        for key, count in (("total", trained), ("current", 0)):
            batches[key].update(ready=count, started=count, processed=count, completed=count)
        batches["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
