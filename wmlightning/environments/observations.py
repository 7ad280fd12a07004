"""Finds the picture among an environment's observations, and brings any picture into one form, uint8 (H, W, C).

    uint8, or floats in [0, 1]     (H, W)   (H, W, 1 | 3)   (H, W, 4): alpha is dropped   (1 | 3, H, W): transposed

Everything else (stacked frames, other numbers, a few cells of codes) is no picture: `choose` says so in a notice, with
what is used instead and how to choose.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

SMALLEST_PICTURE = 32
"""A native observation with a side shorter than this is taken for something else than a picture (MiniGrid: 7x7 ids)."""
FORMS = "uint8, or floats in [0, 1], of shape (H, W), (H, W, 1), (H, W, 3), (H, W, 4), (1, H, W) or (3, H, W)"


@dataclass(frozen=True)
class Choice:
    """Where an environment's pictures come from.

    Args:
        key: an entry of the observation, "" for the observation itself, "render" for what the environment renders.
        look: gives the picture, uint8 (H, W) or (H, W, C), from the raw observation; None where it is rendered.
        notices: lines for the user, about what is left out.
        conventions: what has to be recorded with episodes; see `EnvFactory.conventions`.
    """

    key: str
    look: Callable[[Any], np.ndarray] | None
    notices: tuple[str, ...] = ()
    conventions: tuple[str, ...] = ()


def choose(id: str, space: spaces.Space, pixels: str | None, habit: str | None = None) -> Choice:
    """Chooses the picture among the observations.

    Args:
        id: names the environment in messages.
        space: of its observations.
        pixels: an entry's key (the number of an entry of a Tuple), or "render"; None takes the only picture there is,
            and rendering where there is none or are several.
        habit: the suite's choice where pixels is None.

    Raises:
        ValueError: if there is no such entry, or it is no picture.
    """
    entries = entries_of(space)
    named = [key for key in entries if key]
    wanted = habit if pixels is None else pixels
    if wanted is not None and wanted != "render":
        if wanted not in entries:
            raise ValueError(f"{id} has no observation {wanted!r}: set pixels to render or to one of {named}")
        if why := why_no_picture(entries[wanted], smallest=1):
            raise ValueError(f"{id}'s observation {wanted!r} {why}, but a picture is {FORMS}: set pixels to another")
    conventions: tuple[str, ...] = ()
    if wanted is None:
        plain = [key for key, entry in entries.items() if _is_plain_picture(entry)]
        pictures = plain or [key for key, entry in entries.items() if not why_no_picture(entry)]
        wanted = pictures[0] if len(pictures) == 1 else "render"
        if wanted != "render" and not plain:
            # Stores from before this rule hold what such an environment renders.
            conventions = ("native picture",)
    notices = _notices(id, entries, wanted) if pixels is None else ()
    if wanted == "render":
        return Choice(wanted, None, notices)
    return Choice(wanted, lambda observation: as_picture(_entry(observation, wanted), id), notices, conventions)


def as_picture(image: Any, id: str) -> np.ndarray:
    """Brings what an environment gave as a picture into the one form: uint8 (H, W), (H, W, 1) or (H, W, 3).

    Raises:
        ValueError: in one line, if it is no picture.
    """
    found = f"{id} gives a {type(image).__name__}"
    if isinstance(image, list | tuple):
        raise ValueError(
            f"{found} of {len(image)} as its picture, but one array is wanted: use render_mode rgb_array, not "
            "rgb_array_list, or set pixels to an observation"
        )
    if image is None:
        raise ValueError(
            f"{found} as its picture, but an array is wanted: fix its render, which must return one with render_mode "
            "rgb_array, or set pixels to an observation"
        )
    image = np.asarray(image)
    form = _form(image.shape)
    if form is None:
        raise ValueError(f"{id} gives a picture of shape {image.shape}, but it must be {FORMS}: fix the environment")
    if np.issubdtype(image.dtype, np.floating):
        low, high = image.min(), image.max()
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"{id} gives a picture of floats from {low:g} to {high:g}, but they must lie in [0, 1]: fix the "
                "environment, or give uint8"
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ValueError(f"{id} gives a picture of {image.dtype}, but it must be {FORMS}: fix the environment")
    if form == "CHW":
        return image.transpose(1, 2, 0)
    return image[..., :3] if form == "HWC" and image.shape[2] == 4 else image


def why_no_picture(space: spaces.Space, smallest: int = SMALLEST_PICTURE) -> str:
    """What keeps a space from being a picture, such as "is int64"; "" for a picture.

    Args:
        space: of the observation, or of one of its entries.
        smallest: pixels that its sides must have.
    """
    if not isinstance(space, spaces.Box):
        return f"is a {type(space).__name__}"
    form = _form(space.shape)
    if form is None:
        stacked = " (stacked frames?)" if len(space.shape) > 2 else ""
        return f"has shape {space.shape}{stacked}"
    if np.issubdtype(space.dtype, np.floating):
        low, high = space.low.min(), space.high.max()
        if low < 0 or high > 1:
            return f"holds floats from {low:g} to {high:g}"
    elif space.dtype != np.uint8:
        return f"is {space.dtype}"
    sides = space.shape[1:] if form == "CHW" else space.shape[:2]
    return f"has shape {space.shape}, below {smallest} pixels a side" if min(sides) < smallest else ""


def _form(shape: tuple[int, ...]) -> str | None:
    if len(shape) == 2:
        return "HW"
    if len(shape) != 3:
        return None
    # Channels last come first: most environments have them there.
    return "HWC" if shape[2] in (1, 3, 4) else "CHW" if shape[0] in (1, 3) else None


def _is_plain_picture(space: spaces.Space) -> bool:
    """Whether it is a picture that needs no conversion."""
    if why_no_picture(space) or not isinstance(space, spaces.Box) or space.dtype != np.uint8:
        return False
    shape: tuple[int, ...] = space.shape
    return len(shape) == 2 or shape[2] in (1, 3)


def entries_of(space: spaces.Space) -> dict[str, spaces.Space]:
    """The observations by their keys: of a Tuple by their numbers, and "" where there is one observation only."""
    if isinstance(space, spaces.Dict):
        return {str(key): entry for key, entry in space.items()}
    if isinstance(space, spaces.Tuple):
        return {str(number): entry for number, entry in enumerate(space.spaces)}
    return {"": space}


def _entry(observation: Any, key: str) -> Any:
    if key == "":
        return observation
    return observation[int(key)] if isinstance(observation, tuple | list) else observation[key]


def _notices(id: str, entries: dict[str, spaces.Space], chosen: str) -> tuple[str, ...]:
    """The one line that says what is used and what is left out; none where there is no doubt."""
    if chosen == "" and (entries[""].shape or ())[2:] == (4,):
        return (
            f"{id}: the fourth channel of the observation {entries[''].shape} is taken for alpha and dropped; if these "
            "are stacked frames, set pixels to render or give one frame",
        )
    # Beside vectors and tables of real numbers there is no choice to report: such environments are rendered.
    looks_like_one = any(
        len(e.shape or ()) > 2 or (e.dtype == np.uint8 and len(e.shape or ()) > 1) for e in entries.values()
    )
    if set(entries) == {chosen} or (chosen == "render" and not looks_like_one):
        return ()
    rest = {key: entry for key, entry in entries.items() if key != chosen}
    words = [f"{key or 'the observation'} ({_words(entry)})" for key, entry in rest.items()]
    used = "what it renders" if chosen == "render" else f"its observation {chosen!r}"
    named = [key for key, entry in entries.items() if key and not why_no_picture(entry, smallest=1)]
    cure = f"set pixels to {' or '.join([*named, 'render'])} to choose"
    return (f"{id}: pictures are {used}; not used: {', '.join(words)}; {cure}",)


def _words(space: spaces.Space) -> str:
    why = why_no_picture(space)
    if why and isinstance(space, spaces.Box) and len(space.shape) < 2:
        return f"{int(np.prod(space.shape))} numbers"
    return f"no picture: {why}" if why else f"picture of shape {space.shape}"
