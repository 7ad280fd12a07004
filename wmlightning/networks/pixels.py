"""Pixels: from stored bytes to network inputs and back."""

from typing import Any

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from wmlightning.validation import wrong_pixels


def normalize(
    image: Shaped[Tensor, "*batch height width channels"], shift: float = 0.0
) -> Float[Tensor, "rows channels height width"]:
    """Turns stored pixels into the input of a convolution: image / 255 + shift, leading axes flattened.

    One pass over the bytes, and nothing is transposed: the result is a channels-first view of channels-last memory,
    the layout in which convolutions run fastest on CPUs with wide registers and on tensor cores.

    Args:
        image: uint8, shape (..., H, W, C).
        shift: 0 for World Models, whose pixels are in [0, 1]; -0.5 for networks that want them centred at zero.

    Returns:
        float32, shape (N, C, H, W), N the product of the leading axes.

    Raises:
        ValueError: if images are not a uint8 tensor. (Floats in 0..1 would be divided by 255 and look black.)
    """
    _check(image)
    # uint8 until here: four times less to copy to the GPU.
    rows = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2)
    return torch.add(torch.full((), shift, device=image.device), rows, alpha=1 / 255)


def quantize(
    image: Shaped[Tensor, "*batch height width channels"],
    noise: Float[Tensor, "*batch height width channels"] | None = None,
) -> Float[Tensor, "rows channels height width"]:
    """Turns stored pixels into PlaNet's: 32 levels, with noise that fills the gaps between them.

        x = floor(image / 8) / 32 + noise / 32 - 1/2,        in [-1/2, 1/2)

    The noise is redrawn every time, in training and while acting, and the result is both the encoder's input and
    the decoder's target. Leading axes are flattened; the result is in channels-last memory, as of `normalize`.

    Args:
        image: uint8, shape (..., H, W, C).
        noise: uniform in [0, 1), of the image's shape; None draws it from torch's generator.

    Returns:
        float32, shape (N, C, H, W), N the product of the leading axes.

    Raises:
        ValueError: as `normalize`.

    Source: Hafner et al. 2019 (PlaNet); tools/preprocess.py of their code.
    """
    _check(image)
    shape = (-1, *image.shape[-3:])
    if noise is None:
        noise = torch.rand(image.shape, device=image.device)
    levels = torch.add(torch.full((), -0.5, device=image.device), image.reshape(shape) >> 3, alpha=1 / 32)
    # A little less than 1/32: the largest noise on the highest level must not be rounded up to 1/2.
    return levels.add_(noise.reshape(shape), alpha=(1 - 2**-19) / 32).permute(0, 3, 1, 2)


def to_uint8(image: Float[Tensor, "*shape"]) -> UInt8[Tensor, "*shape"]:
    """Turns pixels in [0, 1] into the nearest of 256 levels, any shape; others are clamped."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _check(image: Any) -> None:
    """Raises ValueError unless images are a uint8 tensor (..., H, W, C); their values are not read."""
    if not isinstance(image, Tensor):
        raise ValueError(f"images are a {type(image).__name__} but must be a tensor: convert them by torch.as_tensor")
    if image.dtype != torch.uint8:
        raise wrong_pixels(image)
    if image.ndim < 3:
        raise ValueError(
            f"images have shape {tuple(image.shape)} but must be (..., height, width, channels): add what is missing, "
            "image[..., None] for a grey one"
        )
