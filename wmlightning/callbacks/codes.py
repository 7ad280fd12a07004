"""V's codes of every frame, written once, so that M never waits for a convolution."""

import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WholeEpisode
from datamodules.episode import Episode
from datamodules.files import DamagedEpisode
from datamodules.store import EpisodeStore
from wmlightning.stages.requirements import EPISODES, ROWS, check_there, foreign_codes, promise, promised
from wmlightning.stages.vae import VAE


class CodeWriter(BasePredictionWriter):
    """Writes the mean and logvar of every episode that `trainer.predict` passes by into a store of codes.

    A code episode has the number, actions, rewards and flags of the episode it was made from, observations `mean` and
    `logvar` in float16 (steps + 1, latent_size), and in its metadata, as `vae`, the fingerprint of the V that made it.
    Episodes whose codes exist are skipped, so an interrupted run goes on where it stopped, and where episodes were
    added only those are encoded.

    Args:
        path: folder of the codes; made if missing.
        stale: what to do where another V has written there: "refuse" to go on, or "replace" its codes. They are all
            deleted before the first new one is written, so that no moment sees codes of two V.

    Raises:
        ValueError: at the start, if the folder holds codes of another V or episodes of images, or if it is not V that
            predicts.

    Source: Ha and Schmidhuber 2018, appendix, who store mean and logvar and draw z anew for every batch.
    """

    def __init__(self, path: str, stale: Literal["refuse", "replace"] = "refuse") -> None:
        super().__init__("batch")
        self.path, self.stale = os.fspath(path), stale
        self._fingerprint = ""
        self._store: EpisodeStore | None = None
        self._present: set[tuple[int, int, int]] = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Looks at what was written before."""
        # Of interest to writers that number their predictions by sample; ours come with the episode's own number.
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices")
        _check_writes(pl_module)
        assert isinstance(pl_module, VAE)
        self._fingerprint = pl_module.fingerprint()
        self._store = EpisodeStore(self.path)
        if self.stale == "refuse" or trainer.is_global_zero:
            for name, writer in foreign_codes(self._store, self._fingerprint):
                if self.stale == "refuse":
                    raise ValueError(
                        f"{self.path} holds codes of V {writer}, but this V is {self._fingerprint}: write to another "
                        "folder, delete that one, or set stale to replace"
                    )
                os.unlink(f"{self.path}/{name}")
        trainer.strategy.barrier()
        self._store = EpisodeStore(self.path)
        if _holds_images(self._store):
            raise ValueError(f"{self.path} holds episodes of images: write codes to a folder of their own")
        self._present = {name.place for name in self._store.listing}
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, EpisodeDataModule):
            data.predicted = self._present  # their images need not be read

    def rehearse(self, vae: Any, images: str) -> None:
        """Makes sure that it is V that predicts, and promises its codes of images that are there or promised."""
        _check_writes(vae)
        check_there(images)
        store = EpisodeStore(images)
        spec = promised(images) or (store.spec if len(store) else None)
        if spec is not None:
            shape = (vae.latent_size,), "float16"
            promise(self.path, replace(spec, observation={"mean": shape, "logvar": shape}))
            for what in (ROWS, EPISODES):
                promise(Path(self.path) / what, promised(Path(images) / what))

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: WholeEpisode,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Writes one episode."""
        if batch.place in self._present:
            return
        rows = batch.batch
        episode = Episode(
            {name: prediction[name].cpu().numpy().astype(np.float16) for name in ("mean", "logvar")},
            *(getattr(rows, name)[0].cpu().numpy() for name in ("action", "reward", "is_first", "is_terminal")),
            metadata=batch.metadata | {"vae": self._fingerprint},
        )
        assert self._store is not None
        self._store.append(episode, batch.index, batch.rank, batch.birth, batch.part)


def _holds_images(store: EpisodeStore) -> bool:
    for name in store.listing:
        with suppress(DamagedEpisode):
            return "mean" not in store.contents(name).spec.observation
    return False


def _check_writes(stage: Any) -> None:
    if not isinstance(stage, VAE):
        raise ValueError(f"CodeWriter writes what V predicts, not a {type(stage).__name__}: predict with a VAE")
