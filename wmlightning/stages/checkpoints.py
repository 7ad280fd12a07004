"""Checkpoints that rebuild their stage: loading one, going on from one, and beginning with the weights of one."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from wmlightning.recipes import FORMAT, build_recipe, migrate, recipe_of
from wmlightning.stages.requirements import promised


def load(path: str | Path, map_location: Any = "cpu") -> Any:
    """Rebuilds whatever stage a checkpoint holds, from the file alone, in evaluation mode.

    Args:
        path: a checkpoint written by the Lightning Trainer for one of our stages.
        map_location: device for the weights, as in `torch.load`.

    Raises:
        ValueError: if the file is missing or is no checkpoint of ours, in one line that says what to do.
    """
    stage = promised(path)
    if isinstance(stage, LightningModule):
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
    return migrate_checkpoint(checkpoint, path)


_PREFIXES = {"CMAESController": {"games.": "fitness."}}
"""Beginnings of weights' names that were others in form 1, by stage."""


def migrate_checkpoint(checkpoint: dict[str, Any], path: str | Path = "the checkpoint") -> dict[str, Any]:
    """Gives a checkpoint of any earlier form today's names, in place; see `wmlightning.recipes`.

    Raises:
        ValueError: if a later version of this package wrote it.
    """
    form = checkpoint.get("format", 1)
    if form > FORMAT:
        raise ValueError(f"{path} has form {form} but this version reads forms up to {FORMAT}: update wmlightning")
    if form == FORMAT or "recipe" not in checkpoint:
        return checkpoint
    checkpoint["recipe"] = migrate(checkpoint["recipe"])
    stage = checkpoint["recipe"]["class_path"].rpartition(".")[2]
    for old, new in _PREFIXES.get(stage, {}).items():
        weights = checkpoint["state_dict"]
        for name in [name for name in weights if name.startswith(old)]:
            weights[new + name.removeprefix(old)] = weights.pop(name)
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and "ledger" in state:
            state["progress"] = state.pop("ledger")
    checkpoint["format"] = FORMAT
    return checkpoint


LAID_OUT_BY = ("groups", "classes", "learn_model")
"""Settings by which weights, or an optimizer's groups, are laid out without its showing in any weight's shape."""
OPTIMIZERS = ("learning_rate", "epsilon", "max_norm", "decay")
"""Endings of settings that an optimizer keeps; see `Stage.warn_of_kept_settings`."""


def check_continues(stage: LightningModule, path: str | Path) -> None:
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


def warm_start(stage: LightningModule, start: str | Path, parts: Sequence[str]) -> None:
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


def loaded(part: Any, wanted: type[LightningModule]) -> Any:
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


def environment_steps(checkpoint: dict[str, Any]) -> int | None:
    """Environment steps that had been collected when a checkpoint was written; None where nothing is collected."""
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict) and "env_steps" in state.get("progress", {}):
            return int(state["progress"]["env_steps"])
    return None


def logged_until(checkpoint: dict[str, Any]) -> int:
    """The place on the x axis of the curves at which a checkpoint was written: environment steps, or updates."""
    for name in ("dream_steps", "env_steps"):
        if name in checkpoint["state_dict"]:
            return int(checkpoint["state_dict"][name])
    steps = environment_steps(checkpoint)
    return int(checkpoint.get("global_step", 0)) if steps is None else steps


PER_EPOCH = "batches_per_epoch"
"""Where a checkpoint says how many batches an epoch had."""


def settle_progress(checkpoint: dict[str, Any]) -> None:
    """Writes the counters of a checkpoint's loops as if it had been saved in a plain place.

    Lightning 2.6 reads from its counters on which hook a checkpoint was written, and guesses wrong where one was
    written while a resumed run had not got going yet, or where a run that stopped in the middle of an epoch is given
    a longer limit of another kind: epochs are counted twice, or a batch is trained again. So the epochs are counted
    from the batches, and between two epochs all that came before is complete and nothing has begun.

    Args:
        checkpoint: as given to `on_load_checkpoint`, changed in place; one that is not a Trainer's is left alone.
    """
    loops, per_epoch = checkpoint.get("loops", {}).get("fit_loop"), checkpoint.get(PER_EPOCH)
    if not loops or not per_epoch:
        return
    batches = loops["epoch_loop.batch_progress"]
    trained = batches["total"]["processed"]
    into_epoch = batches["current"]["processed"] % per_epoch
    epochs, rest = divmod(trained - into_epoch, per_epoch)
    if rest:
        return  # epochs had another length once: the counters are all there is to go by
    begun = epochs + (into_epoch > 0)
    for progress in loops["epoch_progress"].values():
        progress.update(ready=begun, started=begun, processed=epochs, completed=epochs)
    if not into_epoch:
        for key, count in (("total", trained), ("current", 0)):
            batches[key].update(ready=count, started=count, processed=count, completed=count)
        batches["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = checkpoint["global_step"]
