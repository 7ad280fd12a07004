"""Checks of numbers, observations and pixels; each error says what was got, what is valid and what to do."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np


def at_least(least: float | int, **numbers: float | int) -> None:
    """Checks `least <= number < infinity` for every number given by name.

    Raises:
        ValueError: for the first number that is out of range, by its name.
    """
    for name, value in numbers.items():
        if not least <= value < math.inf:
            cure = "raise it" if value < least else "give a finite number"
            raise ValueError(f"{name} is {value} but must be at least {least}: {cure}")


def below(bound: float | int, **numbers: float | int) -> None:
    """Checks `number < bound` for every number given by name.

    Raises:
        ValueError: for the first number that is not below, by its name.
    """
    for name, value in numbers.items():
        if not value < bound:
            raise ValueError(f"{name} is {value} but must be below {bound}: lower it")


def above(bound: float | int, **numbers: float | int) -> None:
    """Checks `bound < number < infinity` for every number given by name.

    Raises:
        ValueError: for the first number that is out of range, by its name.
    """
    for name, value in numbers.items():
        if not bound < value < math.inf:
            raise ValueError(f"{name} is {value} but must be above {bound}, and finite: correct it")


def wrong_pixels(image: Any) -> ValueError:
    """Returns the error for images that are not uint8, as numpy arrays or as tensors."""
    found = str(getattr(image, "dtype", type(image).__name__)).removeprefix("torch.")
    return ValueError(
        f"images are {found} but uint8 0..255 is wanted: give the pixels as they were rendered, and floats in 0..1 as "
        "(255 * image).round() converted to uint8"
    )


def check_observation(observation: Any, is_first: Any, carry: Mapping[str, Any]) -> np.ndarray:
    """Checks the arguments of a policy and returns the images.

    Args:
        observation: `{"image": uint8 (n, H, W, C)}`; other keys are not looked at.
        is_first: one flag for each of the n environments.
        carry: the policy's memory, whose tensors have one row for each environment.

    Returns:
        `observation["image"]`, unchanged.

    Raises:
        ValueError: in one line, if one of the three is of another kind or has another number of rows.
    """
    if not isinstance(observation, Mapping):
        raise ValueError(
            f"the observation is a {type(observation).__name__} but must be a dict: give {{'image': images}}"
        )
    if "image" not in observation:
        found = ", ".join(map(str, observation)) or "nothing"
        raise ValueError(
            f"the observation holds {found} but must hold image: give {{'image': images}}, uint8 (n, H, W, C)"
        )
    image = observation["image"]
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"images are a {type(image).__name__} but must be a numpy array: convert them (a tensor by .cpu().numpy())"
        )
    if image.dtype != np.uint8:
        raise wrong_pixels(image)
    if image.ndim != 4:
        raise ValueError(
            f"images have shape {image.shape} but must be (environments, height, width, channels): give one image "
            "for each environment, image[None] for a single one"
        )
    rows = np.shape(is_first)
    if rows != image.shape[:1]:
        raise ValueError(
            f"is_first has shape {rows} but there are {len(image)} images: give one flag for each image, as an array"
        )
    kept = len(carry["seed"])
    if kept != len(image):
        raise ValueError(
            f"the carry has {kept} rows but there are {len(image)} images: begin with policy.initial({len(image)}), "
            "and pass on the carry that the last call returned"
        )
    return image
