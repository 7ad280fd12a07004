"""Recipes, from which a checkpoint rebuilds its agent: every part records the arguments it was built with.

A recipe is plain JSON, `{"class_path": "wmlightning.stages.vae.VAE", "init_args": {...}}`, nested where parts are
injected into parts. So a checkpoint needs no pickled code, loads with `weights_only=True`, and is the same whether the
object was built by the command line or in Python.

Classes are renamed after recipes have been written. `FORMAT` is the number of the present format, and `migrate`
converts earlier formats to it: for checkpoints, for the attributes of stores, and for the `config.yaml` of runs.
"""

import importlib
import inspect
from pathlib import Path
from typing import Any

FORMAT = 2
"""The present format. Checkpoints of format 1 hold no number; it had the names on the left below."""
_MODULES = {
    "wmlightning.callbacks.behaviour": "wmlightning.pictures.imagination",
    "wmlightning.callbacks.dreams": "wmlightning.pictures.dreams",
    "wmlightning.callbacks.driving": "wmlightning.pictures.driving",
    "wmlightning.callbacks.lines": "wmlightning.callbacks.progress",
    "wmlightning.callbacks.plans": "wmlightning.pictures.plans",
    "wmlightning.callbacks.predictions": "wmlightning.pictures.predictions",
    "wmlightning.callbacks.reconstructions": "wmlightning.pictures.reconstructions",
    "wmlightning.checkpoints": "wmlightning.callbacks.checkpoints",
    "wmlightning.policies.behaviour": "wmlightning.policies.actor",
}
_CLASSES = {"Dream": "DreamRules", "Fading": "LinearDecay"}
"""Class name in format 1 -> class name today, with or without a module in front."""


def migrate(value: Any) -> Any:
    """Replaces the class paths of any earlier format in nested JSON or YAML; leaves present ones unchanged."""
    if isinstance(value, list):
        return [migrate(item) for item in value]
    if not isinstance(value, dict):
        return value
    value = {key: migrate(item) for key, item in value.items()}
    if isinstance(value.get("class_path"), str):
        module, dot, name = value["class_path"].rpartition(".")
        if not module or module.startswith("wmlightning."):
            value["class_path"] = _MODULES.get(module, module) + dot + _CLASSES.get(name, name)
    return value


class Recorded:
    """A part that can be rebuilt: it records its constructor's arguments (abstract).

    Inherit from it beside `nn.Module` or alone, first in the list of bases.
    """

    # No return annotation: pyright infers the class itself, and beartype refuses Self in a method.
    def __new__(cls, *args: Any, **kwargs: Any):
        self = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(list(bound.arguments.items())[1:])
        # nn.Module's own __setattr__ wants __init__ to have run.
        object.__setattr__(self, "_arguments", arguments)
        return self

    def __reduce__(self) -> Any:
        # copy and pickle call __new__ without arguments; go around our signature check.
        return _blank, (type(self),), self.__dict__


def _blank(cls: type) -> Any:
    return object.__new__(cls)


def recipe_of(value: Any) -> Any:
    """Turns a part, or an argument of one, into plain JSON.

    Raises:
        TypeError: for a value that is neither JSON nor a `Recorded` part; let its class inherit from `Recorded`.
    """
    if isinstance(value, Recorded):
        path = f"{type(value).__module__}.{type(value).__qualname__}"
        arguments = value.__dict__["_arguments"]
        return {"class_path": path, "init_args": {key: recipe_of(argument) for key, argument in arguments.items()}}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [recipe_of(item) for item in value]
    if isinstance(value, dict):
        return {str(key): recipe_of(item) for key, item in value.items()}
    raise TypeError(
        f"a {type(value).__name__} cannot be written into a checkpoint's recipe: pass plain values, or let "
        f"{type(value).__name__} inherit from wmlightning.recipes.Recorded"
    )


def build_recipe(recipe: Any) -> Any:
    """Rebuilds a part from its recipe, of any format.

    Raises:
        ValueError: if a class is gone, or is not a `Recorded` part (a recipe may call no other class).
    """
    return _build(migrate(recipe))


def _build(recipe: Any) -> Any:
    if isinstance(recipe, list):
        return [_build(item) for item in recipe]
    if not isinstance(recipe, dict):
        return recipe
    if set(recipe) != {"class_path", "init_args"}:
        return {key: _build(item) for key, item in recipe.items()}
    module, _, name = recipe["class_path"].rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"the checkpoint needs {recipe['class_path']}, which this installation lacks ({error}): install the "
            "version that wrote it, or put the module that defines it on the Python path"
        ) from error
    if not (isinstance(cls, type) and issubclass(cls, Recorded)):
        raise ValueError(f"the checkpoint names {recipe['class_path']}, which is not a Recorded part: it is damaged")
    arguments = {key: _build(item) for key, item in recipe["init_args"].items()}
    try:
        return cls(**arguments)
    except TypeError as error:
        raise ValueError(
            f"the checkpoint's {name} cannot be built ({error}): use the version of wmlightning that wrote it, or "
            "train the stage again"
        ) from error
