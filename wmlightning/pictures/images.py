"""Pictures as numpy arrays: rows of frames with names beside them, error maps, PNG and GIF bytes.

Everything here is a pure function on uint8 arrays (H, W, 3); `book.py` decides where pictures go.
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
ERROR_NOTE = "error: white is 0, black is half the range or more"
"""What the colours of `error_map` mean, to be written beside them."""


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
    """Draws the absolute error, averaged over channels: white is 0, then orange, red, and black from `full` on.

    Args:
        truth: images.
        guess: images of the same shape.
        full: share of the range at which the error is black.
    """
    error = np.abs(truth.astype(np.float32) - guess.astype(np.float32)).mean(-1) / (255 * full)
    stops = np.array([[255, 255, 255], [250, 170, 90], [190, 30, 40], [20, 0, 10]], np.float32)
    channels = [np.interp(error, [0, 0.25, 0.6, 1], stops[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def enlarge(images: UInt8[np.ndarray, "*lead height width 3"], scale: int) -> UInt8[np.ndarray, "*lead tall wide 3"]:
    """Repeats every pixel `scale` times both ways, so that the pixels a network sees can be seen."""
    return images.repeat(scale, -3).repeat(scale, -2)


def scale_for(height: int, wanted: int = 112) -> int:
    """Returns the whole number of times a frame is enlarged to be about `wanted` pixels high: 2 at 64, 14 at 8."""
    return max(1, round(wanted / height))


@cache
def font(size: int = 13) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Returns Pillow's own font, so that no font file is needed."""
    return ImageFont.load_default(size)


def text_width(text: str, size: int = 13) -> int:
    """Returns the width of one line of text in pixels, rounded up."""
    return int(np.ceil(font(size).getlength(text)))


def table(
    rows: Mapping[str, Frames | Sequence[Picture]],
    columns: Sequence[str] = (),
    title: str = "",
    note: str = "",
    scale: int | None = None,
    divide_at: int | None = None,
    column_label: str = "",
) -> Picture:
    """Draws rows of frames on white, each row named at its left and each column above.

        title                          note, in grey, after the title
        column_label     0      2   |   4      6        columns
               truth    [ ]    [ ]  |  [ ]    [ ]
          prediction    [ ]    [ ]  |  [ ]    [ ]

    Args:
        rows: name -> frames (N, H, W, 3); a name may hold line breaks. All frames have one size.
        columns: a caption for each column; fewer leave the rest bare.
        title: one line above.
        note: one line beside the title that says how to read the picture.
        scale: times each frame is enlarged; None chooses what makes small frames easy to see.
        divide_at: draws an accented rule before this column (where a dream begins).
        column_label: what the captions of the columns are, with their unit; written at the left of them.
    """
    height, width = next(iter(rows.values()))[0].shape[:2]
    scale = scale or scale_for(height)
    height, width = height * scale, width * scale
    count = max(len(frames) for frames in rows.values())
    names = max(text_width(line) for name in rows for line in name.split("\n"))
    left = max(names, text_width(column_label, 12)) + 2 * PAD
    top = (24 if title or note else PAD) + (18 if columns else 0)
    rule = 0 if divide_at is None else 3 * GAP

    def x_of(column: int) -> int:
        return left + column * (width + GAP) + (rule if divide_at is not None and column >= divide_at else 0)

    heading = text_width(title, 14) + text_width(note, 12) + 4 * PAD
    canvas = Image.new("RGB", (max(x_of(count) + PAD, heading), top + len(rows) * (height + GAP) + PAD), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((PAD, 4), title, INK, font(14))
    draw.text((PAD + (text_width(title, 14) + 2 * PAD if title else 0), 5), note, FAINT, font(12))
    if columns:
        draw.text((left - PAD, top - 17), column_label, FAINT, font(12), anchor="ra")
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


def reconstruction_table(
    truth: Frames, reconstruction: Frames, title: str, columns: Sequence[str] = (), column_label: str = ""
) -> Picture:
    """Draws images, their reconstructions and the errors, one column an image.

    Args:
        truth: images (N, H, W, 3).
        reconstruction: the same images as a model decodes them.
        title: says which images they are.
        columns: a caption for each image; empty for none.
        column_label: what the captions are.
    """
    rows = {"truth": truth, "reconstruction": reconstruction, "error": error_map(truth, reconstruction)}
    return table(rows, columns, title, ERROR_NOTE, column_label=column_label)


def stack(pictures: Sequence[Picture], gap: int = 0) -> Picture:
    """Puts pictures one under the other, on white, as wide as the widest."""
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
    """Enlarges a frame and writes one line of text on a white bar below it, in smaller letters where it is long."""
    frame = enlarge(frame, scale or scale_for(frame.shape[0], 256))
    bar = Image.new("RGB", (frame.shape[1], 22), "white")
    size = next((size for size in (13, 12, 11, 10) if text_width(text, size) <= frame.shape[1] - PAD), 9)
    ImageDraw.Draw(bar).text((PAD // 2, 4), text, INK, font(size))
    return np.concatenate([frame, np.asarray(bar)])


def encode_png(picture: Picture) -> bytes:
    """Returns the picture as a PNG file."""
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
    """Returns the frames as an endless animated GIF file, a few times smaller than Pillow alone makes it.

    One palette serves all frames, without dithering, and a pixel that would hardly change keeps its colour: a decoder's
    faint flicker is most of the bytes. Equal neighbours are stored once and shown longer.

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
    """Returns at most `wanted` whole numbers from 0 to count - 1, evenly spread, both ends included."""
    return [int(k) for k in np.unique(np.linspace(0, count - 1, min(count, wanted)).round())]


def code_kl(mean: Tensor, logvar: Tensor) -> Tensor:
    """Returns KL(N(mean, exp(logvar)) || N(0, 1)) of every dimension, in nats; the shape of `mean`."""
    mean, logvar = mean.float(), logvar.float()
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def split_embeds(embeds: Tensor) -> tuple[Tensor, Tensor]:
    """Splits V's embeds (..., 2 * Nz) into mean and logvar, each (..., Nz)."""
    mean, logvar = torch.chunk(embeds, 2, -1)
    return mean, logvar
