"""The convolutions that World Models, PlaNet and Dreamer share: 64x64 images to 1,024 numbers and back."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from wmlightning.networks.activations import IN_PLACE, Activation
from wmlightning.recipes import Recorded


def initialize(module: nn.Module) -> None:
    """Draws weights as TensorFlow does, Glorot uniform with zero biases, which the papers' code relies on.

    PyTorch's own default, Kaiming uniform with random biases, starts training elsewhere.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ConvEncoder(Recorded, nn.Module):
    """Four convolutions, kernel 4 and stride 2 without padding: 64 -> 31 -> 14 -> 6 -> 2 pixels a side.

    A nonlinearity follows each. The last one looks at four patches only and is computed as a matrix product, which is
    up to three times faster on a CPU, forward and backward.

    Args:
        channels: channels of the image.
        depth: channels after the first layer; they double at every further one (32: 32, 64, 128, 256).
        activation: "relu", or "elu" (Dreamer V2, whose depth is 48).

    Source: Ha and Schmidhuber 2018, appendix; the same layers serve PlaNet and Dreamer.
    """

    def __init__(self, channels: int = 3, depth: int = 32, activation: Activation = "relu") -> None:
        super().__init__()
        self._activate = IN_PLACE[activation]
        widths = [channels, depth, 2 * depth, 4 * depth, 8 * depth]
        self.layers = nn.ModuleList(nn.Conv2d(before, after, 4, stride=2) for before, after in pairwise(widths))
        self.size = 4 * widths[-1]
        initialize(self)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, image: Float[Tensor, "rows channels height width"]) -> Float[Tensor, "rows size"]:
        """Pixels (N, C, 64, 64) to numbers (N, 32 * depth), flattened in the order row, column, channel.

        Raises:
            ValueError: for images that are not 64x64 or have another number of channels.
        """
        expected = (self.layers[0].in_channels, 64, 64)
        if image.shape[1:] != expected:
            raise ValueError(
                f"images are (channels, height, width) = {tuple(image.shape[1:])} but the encoder reads {expected}: "
                "let the environment resize to 64 pixels, or set `channels`"
            )
        *first, last = self.layers
        hidden = image
        for layer in first:
            hidden = self._activate(layer(hidden))
        return self._activate(_by_patches(last, hidden)).view(-1, self.size)  # type: ignore[arg-type]


class ConvDecoder(Recorded, nn.Module):
    """A dense layer and four transposed convolutions, stride 2: 1 -> 5 -> 13 -> 30 -> 64 pixels a side.

    A nonlinearity between the convolutions, nothing after the dense layer and nothing after the last. Two layers are
    computed in a faster way, with the same weights and, up to rounding, the same numbers: the first sees a map of one
    pixel and is a matrix product, which can be joined with the dense layer's; the last has few output channels and runs
    as one convolution for each of the four positions of a pixel under its stride.

    Args:
        input_size: width of the features.
        channels: channels of the image.
        depth: channels before the last layer (32: 1024, 128, 64, 32, then `channels`).
        activation: "relu", or "elu" (Dreamer V2).

    Source: Ha and Schmidhuber 2018, appendix; the same layers serve PlaNet and Dreamer.
    """

    def __init__(self, input_size: int, channels: int = 3, depth: int = 32, activation: Activation = "relu") -> None:
        super().__init__()
        self._activate = IN_PLACE[activation]
        self.dense = nn.Linear(input_size, 32 * depth)
        self.first = nn.ConvTranspose2d(32 * depth, 4 * depth, 5, stride=2)
        self.second = nn.ConvTranspose2d(4 * depth, 2 * depth, 5, stride=2)
        self.third = nn.ConvTranspose2d(2 * depth, depth, 6, stride=2)
        self.last = nn.ConvTranspose2d(depth, channels, 6, stride=2)
        initialize(self)

    def forward(self, features: Float[Tensor, "rows size"]) -> Float[Tensor, "rows channels 64 64"]:
        """Features (N, F) to pixels before any squashing, (N, C, 64, 64) in channels-last memory."""
        return self.draw(self.maps(features))

    def draw(self, maps: Float[Tensor, "rows wide 5 5"]) -> Float[Tensor, "rows channels 64 64"]:
        """The layers after `maps`, which look at each image alone: many images can be drawn some at a time."""
        hidden = self.second(maps)
        # Channels-last from here on: the layout of the pixels it is compared with.
        hidden = self.third(self._activate(hidden.contiguous(memory_format=torch.channels_last)))
        return _by_subpixels(self.last, self._activate(hidden))

    def maps(self, features: Float[Tensor, "rows size"]) -> Float[Tensor, "rows wide 5 5"]:
        """The dense layer and the first transposed convolution, with no nonlinearity between them and one after."""
        weight = self.first.weight.flatten(1)
        if len(features) > features.shape[1]:
            # More rows than features: multiplying the two matrices first is less work.
            both = torch.cat([self.dense.weight.T, self.dense.bias[None]]) @ weight
            hidden = torch.addmm(both[-1], features, both[:-1])
        else:
            hidden = self.dense(features) @ weight
        assert self.first.bias is not None
        return self._activate(hidden.unflatten(1, self.first.weight.shape[1:]) + self.first.bias[:, None, None])


def _by_patches(layer: nn.Conv2d, hidden: Tensor) -> Tensor:
    """A convolution without padding as one matrix product over its patches: (rows * height * width, channels) out.

    Not a view with rows apart: overwriting a view would cost a copy of its gradient.
    """
    size = layer.kernel_size[0]
    stride = layer.stride[0]
    patches = hidden.permute(0, 2, 3, 1).unfold(1, size, stride).unfold(2, size, stride)
    weight = layer.weight.permute(0, 2, 3, 1).flatten(1)
    return functional.linear(patches.permute(0, 1, 2, 4, 5, 3).reshape(-1, weight.shape[1]), weight, layer.bias)


def _by_subpixels(layer: nn.ConvTranspose2d, hidden: Tensor) -> Tensor:
    """A transposed convolution of stride 2 and even kernel as one ordinary convolution and a pixel shuffle.

    output row       2i     2i+1   2i+2   2i+3
    kernel rows      0 2 4  1 3 5  0 2 4  1 3 5       of inputs i, i-1, i-2: a kernel of 3, flipped
    """
    half = layer.kernel_size[0] // 2
    weight = layer.weight.unflatten(3, (half, 2)).unflatten(2, (half, 2))  # in, out, half, 2, half, 2
    weight = weight.flip(2, 4).permute(1, 3, 5, 0, 2, 4).flatten(0, 2)  # (out, 2, 2), in, half, half
    bias = None if layer.bias is None else layer.bias.repeat_interleave(4)
    weight = weight.contiguous(memory_format=torch.channels_last)
    return functional.pixel_shuffle(functional.conv2d(hidden, weight, bias, padding=half - 1), 2)
