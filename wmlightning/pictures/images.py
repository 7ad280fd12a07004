"""Pictures as numpy arrays: rows of frames with names beside them, error maps, PNG and GIF bytes.

Everything here is a pure function on uint8 arrays (H, W, 3); where pictures go is decided in `pictures.py`.
"""

import io
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

# Sizes without names: one function takes and gives pictures of several sizes.
Picture = UInt8[np.ndarray, "_ _ 3"]
Frames = UInt8[np.ndarray, "_ _ _ 3"]

INK, FAINT, ACCENT = (30, 30, 30), (120, 120, 120), (213, 94, 0)
PAD, GAP = 8, 2


def to_frames(images: Tensor | np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Turns images in [0, 1], or uint8 ones, into uint8 RGB on the CPU, whatever the leading axes.

    Shapes: (..., H, W, C) with C = 1 or 3, to (..., H, W, 3).
    """
    if isinstance(images, Tensor):
        images = images.detach()
        images = (images.float() if images.is_floating_point() else images).cpu().numpy()
    if images.dtype != np.uint8:
        images = (np.nan_to_num(images).clip(0, 1) * 255).round().astype(np.uint8)
    return images if images.shape[-1] == 3 else np.repeat(images[..., :1], 3, -1)


def error_map(
    truth: UInt8[np.ndarray, "*lead height width 3"],
    guess: UInt8[np.ndarray, "*lead height width 3"],
    full: float = 0.5,
) -> UInt8[np.ndarray, "*lead height width 3"]:
    """Absolute error, averaged over colours: white is none, through orange and red to black at `full` of the range."""
    error = np.abs(truth.astype(np.float32) - guess.astype(np.float32)).mean(-1) / (255 * full)
    stops = np.array([[255, 255, 255], [250, 170, 90], [190, 30, 40], [20, 0, 10]], np.float32)
    channels = [np.interp(error, [0, 0.25, 0.6, 1], stops[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def enlarge(images: UInt8[np.ndarray, "*lead height width 3"], scale: int) -> UInt8[np.ndarray, "*lead tall wide 3"]:
    """Repeats every pixel `scale` times both ways, so that one sees the pixels a network sees."""
    return images.repeat(scale, -3).repeat(scale, -2)


def scale_for(height: int, wanted: int = 112) -> int:
    """The whole number of times a frame is enlarged to be about `wanted` pixels high: 2 at 64, 14 at 8."""
    return max(1, round(wanted / height))


@cache
def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that no font file is needed."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int = 13) -> int:
    """Width of one line of text in pixels, rounded up."""
    return int(np.ceil(font(size).getlength(text)))


def table(
    rows: Mapping[str, Frames | Sequence[Picture]],
    columns: Sequence[str] = (),
    title: str = "",
    note: str = "",
    scale: int | None = None,
    divide_at: int | None = None,
) -> Picture:
    """Draws rows of frames on white, each row named at its left and each column above.

        title                          note, in grey, after the title
                   0      2   |   4      6        columns
        truth     [ ]    [ ]  |  [ ]    [ ]
        dream     [ ]    [ ]  |  [ ]    [ ]

    Args:
        rows: name -> frames (N, H, W, 3); a name may hold line breaks. All frames have one size.
        columns: a caption for each column; fewer leave the rest bare.
        title: one line above.
        note: one line beside the title that says how to read the picture.
        scale: times each frame is enlarged; None chooses what makes small frames easy to see.
        divide_at: draws an accented rule before this column (where a dream begins).
    """
    height, width = next(iter(rows.values()))[0].shape[:2]
    scale = scale or scale_for(height)
    height, width = height * scale, width * scale
    count = max(len(frames) for frames in rows.values())
    left = max(text_width(line) for name in rows for line in name.split("\n")) + 2 * PAD
    top = (24 if title or note else PAD) + (18 if columns else 0)
    rule = 0 if divide_at is None else 3 * GAP

    def x_of(column: int) -> int:
        return left + column * (width + GAP) + (rule if divide_at is not None and column >= divide_at else 0)

    heading = text_width(title, 14) + text_width(note, 12) + 4 * PAD
    canvas = Image.new("RGB", (max(x_of(count) + PAD, heading), top + len(rows) * (height + GAP) + PAD), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((PAD, 4), title, INK, font(14))
    draw.text((PAD + (text_width(title, 14) + 2 * PAD if title else 0), 5), note, FAINT, font(12))
    for column, caption in enumerate(columns):
        draw.text((x_of(column) + width / 2, top - 17), caption, FAINT, font(12), anchor="ma")
    for row, (name, frames) in enumerate(rows.items()):
        y = top + row * (height + GAP)
        draw.multiline_text((left - PAD, y + height / 2), name, INK, font(13), anchor="rm", align="right")
        for column, frame in enumerate(frames):
            canvas.paste(Image.fromarray(enlarge(frame, scale)), (x_of(column), y))
    if divide_at is not None:
        x = x_of(divide_at) - GAP - rule // 2
        draw.line([(x, top - (16 if columns else 0)), (x, top + len(rows) * (height + GAP) - GAP)], ACCENT, 2)
    return np.asarray(canvas)


def stack(pictures: Sequence[Picture], gap: int = 0) -> Picture:
    """Pictures one under the other, on white, as wide as the widest."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [
        np.pad(
            picture,
            ((0, gap if k < len(pictures) - 1 else 0), (0, width - picture.shape[1]), (0, 0)),
            constant_values=255,
        )
        for k, picture in enumerate(pictures)
    ]
    return np.concatenate(padded)


def captioned(frame: Picture, text: str, scale: int | None = None) -> Picture:
    """A frame, enlarged, with one line of text on a white bar below it; text that is too long is cut off."""
    frame = enlarge(frame, scale or scale_for(frame.shape[0], 256))
    bar = Image.new("RGB", (frame.shape[1], 22), "white")
    ImageDraw.Draw(bar).text((PAD // 2, 4), text, INK, font(13))
    return np.concatenate([frame, np.asarray(bar)])


def encode_png(picture: Picture) -> bytes:
    """The picture as a PNG file."""
    buffer = io.BytesIO()
    # `optimize` would take 20 times as long for 5% fewer bytes.
    Image.fromarray(picture).save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


def encode_gif(
    frames: Sequence[Picture] | Frames,
    fps: float | int = 15,
    colors: int = 128,
    still: int = 8,
    wanted_bytes: int = 900_000,
) -> bytes:
    """The frames as an endless animated GIF file, a few times smaller than Pillow alone makes it.

    One palette serves all frames, without dithering, and a pixel that would change by a hair keeps its colour: a
    decoder's faint flicker is most of the bytes. Equal neighbours are stored once and shown longer.

    Args:
        frames: pictures of one size.
        fps: frames a second; the format counts hundredths of a second, so 15 becomes 14.3.
        colors: size of the palette, 2 to 256.
        still: largest change of a colour channel, of 255, that is not shown.
        wanted_bytes: where the file is larger, it is made again with `still` doubled, twice at most.
    """
    for hidden in (still, 2 * still, 4 * still):
        encoded = _encode_gif(frames, fps, colors, hidden)
        if len(encoded) <= wanted_bytes:
            break
    return encoded


def _encode_gif(frames: Sequence[Picture] | Frames, fps: float | int, colors: int, still: int) -> bytes:
    kept = [frames[0]]
    for frame in frames[1:]:
        change = np.abs(frame.astype(np.int16) - kept[-1]).max(-1, keepdims=True)
        kept.append(np.where(change <= still, kept[-1], frame))
    sample = np.concatenate([kept[k] for k in evenly(len(kept), 12)])
    # An octree keeps rare colours; median cut would paint a small red car in the colour of the road.
    palette = Image.fromarray(sample).quantize(colors, Image.Quantize.FASTOCTREE)
    images = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in kept]
    buffer = io.BytesIO()
    duration = 10 * max(2, round(100 / fps))
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=duration, loop=0)
    return buffer.getvalue()


def evenly(count: int, wanted: int) -> list[int]:
    """At most `wanted` whole numbers from 0 to count - 1, evenly spread, both ends included."""
    return [int(k) for k in np.unique(np.linspace(0, count - 1, min(count, wanted)).round())]


def code_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of every dimension, in nats; the shape of `mean`."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def split_embeds(embeds: Tensor) -> tuple[Tensor, Tensor]:
    """V's embeds (..., 2 * Nz) as mean and logvar, each (..., Nz)."""
    mean, logvar = torch.chunk(embeds, 2, -1)
    return mean, logvar
