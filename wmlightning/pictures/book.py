"""When pictures are drawn, from which frames, and where they go."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_warn
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] (generated)
from torch import nn

from datamodules.episode import Batch
from wmlightning.pictures.images import Frames, Picture, encode_gif, encode_png
from wmlightning.validation import at_least


class PictureBook:
    """Where pictures go: a folder, and TensorBoard where there is one.

    A picture named `vae/samples` at step 500 becomes the TensorBoard image of that name and the files
    `samples-000500.png` and `samples.png`, the second being the latest. Where the folder cannot be written to, training
    goes on without the pictures, and a warning says so.

    Args:
        folder: made when the first picture comes.
        loggers: Lightning loggers; all but TensorBoard's get scalars only.
        env_steps: environment steps so far, real or dreamt, where a stage acts: the x axis of its curves. None takes
            the step given with each picture.
    """

    def __init__(self, folder: str | Path, loggers: Iterable[Logger] = (), env_steps: int | None = None) -> None:
        self.folder, self.loggers, self.env_steps = Path(folder), list(loggers), env_steps

    @classmethod
    def of(cls, trainer: Trainer) -> "PictureBook":
        """Returns the book of a Lightning run: `<default_root_dir>/pictures`, and the run's loggers."""
        # A stage that acts by itself counts its steps; for one that learns from a replay, `Collect` counts them.
        counts = (getattr(part, "steps_played", None) for part in (trainer.lightning_module, *trainer.callbacks))  # type: ignore[attr-defined]
        env_steps = next((count for count in counts if count is not None), None)
        folder = Path(trainer.default_root_dir) / "pictures"
        return cls(folder, trainer.loggers, None if env_steps is None else int(env_steps))

    def add(self, name: str, picture: Picture, step: int) -> None:
        """Adds a still picture (PNG)."""
        self._add(name, encode_png(picture), "png", picture.shape[:2], step)

    def add_gif(self, name: str, frames: list[Picture] | Frames, step: int, fps: float | int = 15) -> None:
        """Adds an endless film of `fps` frames a second (GIF; TensorBoard plays it)."""
        self._add(name, encode_gif(frames, fps), "gif", frames[0].shape[:2], step)

    def add_scalars(self, values: Mapping[str, float | int], step: int) -> None:
        """Logs scalars that are computed only where pictures are drawn."""
        for logger in self.loggers:
            logger.log_metrics(dict(values), self._axis(step))

    def _axis(self, step: int) -> int:
        return step if self.env_steps is None else self.env_steps

    def _add(self, name: str, encoded: bytes, suffix: str, size: tuple[int, ...], step: int) -> None:
        for logger in self.loggers:
            if isinstance(logger, TensorBoardLogger):
                # Encoded bytes straight into the summary: `add_video` needs moviepy 1, and with 2 writes nothing.
                image = Summary.Image(height=size[0], width=size[1], colorspace=3, encoded_image_string=encoded)
                writer = logger.experiment._get_file_writer()
                writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), self._axis(step))
        stem = name.rsplit("/", 1)[-1]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{stem}-{step:06d}.{suffix}").write_bytes(encoded)
            # Replaced whole, so that a viewer never reads half a file.
            fresh = self.folder / f".{stem}.{suffix}"
            fresh.write_bytes(encoded)
            os.replace(fresh, self.folder / f"{stem}.{suffix}")
        except OSError as error:
            rank_zero_warn(
                f"{self.folder} takes no picture ({error}); training goes on: free space or make the folder writable"
            )


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Puts `module` in evaluation mode, without gradients and with fixed noise, and restores everything afterwards."""
    modes = [(part, part.training) for part in module.modules()]
    devices = {parameter.device for parameter in module.parameters() if parameter.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        torch.manual_seed(0)
        module.eval()
        try:
            yield
        finally:
            for part, mode in modes:
                part.training = mode


class LogPictures(Callback, ABC):
    """Draws pictures while a stage trains (abstract): on rank 0, every so many batches and when training ends.

    Drawing changes nothing: weights, modes and random streams are restored, so a run with pictures trains exactly like
    one without.

    Args:
        every: batches between two drawings; 0 draws only when training ends.
    """

    def __init__(self, every: int = 500) -> None:
        at_least(0, every=every)
        self.every = every
        self._drawn_at = -1
        self._looked = False
        self._held_out: Batch | None = None

    @abstractmethod
    def draw(self, trainer: Trainer, stage: Any, book: PictureBook, step: int) -> None:
        """Draws and adds to the book; called inside `undisturbed(stage)`."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Draws after every `every` batches."""
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress
        if self.every and progress.total.processed % self.every == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the finished stage."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Any, stage: LightningModule) -> None:
        step = trainer.global_step
        if not trainer.is_global_zero or trainer.fast_dev_run or step == self._drawn_at:
            return
        self._drawn_at = step
        with undisturbed(stage):
            self.draw(trainer, stage, PictureBook.of(trainer), step)

    def held_out(self, trainer: Trainer) -> Batch | None:
        """Returns the first batch of held-out data, on the CPU; always the same one, so that pictures can be compared.

        None, with one warning, where the run has no such data.
        """
        if not self._looked:
            self._looked, why = True, "the run has no held-out batches"
            try:
                data = getattr(trainer, "datamodule", None)
                loader = data.test_dataloader() if data is not None else trainer.val_dataloaders
                batch = next(iter(loader), None) if loader is not None else None
                self._held_out = batch.to("cpu") if isinstance(batch, Batch) else None
            except ValueError as error:
                why = str(error)
            if self._held_out is None:
                rank_zero_warn(f"{type(self).__name__} draws nothing: {why}")
        return self._held_out
