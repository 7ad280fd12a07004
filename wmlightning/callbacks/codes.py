"""`CodeWriter`: writes V's codes of every frame once, so that training M runs no convolutions."""

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
from wmlightning.stages.requirements import (
    MAX_ROWS,
    NUM_EPISODES,
    check_expected,
    codes_of_other_vaes,
    expect,
    expected_at,
)
from wmlightning.stages.vae import VAE


class CodeWriter(BasePredictionWriter):
    """Writes V's mean and logvar of every episode in `trainer.predict` to a store of codes.

    An episode of codes has the index, actions, rewards and flags of its episode of images, observations `mean` and
    `logvar` in float16 (steps + 1, latent_size), and in its metadata, as `vae`, the fingerprint of the V that wrote it.
    Episodes that already have codes are skipped: an interrupted run continues where it stopped, and after more episodes
    were collected only these are encoded.

    Args:
        path: folder of the codes; made if missing.
        stale: what to do with codes of another V in that folder: "refuse" to write, or "replace" them. The latter
            deletes all of them before it writes the first new one, so that the folder never mixes codes of two V.

    Raises:
        ValueError: at the start, if the folder has codes of another V or episodes of images, or the stage is not V.

    Source: Ha and Schmidhuber 2018, appendix, who store mean and logvar and draw z anew for every batch.
    """

    def __init__(self, path: str, stale: Literal["refuse", "replace"] = "refuse") -> None:
        super().__init__("batch")
        self.path = os.fspath(path)
        self.stale = stale
        self._fingerprint = ""
        self._store: EpisodeStore | None = None
        self._present: set[tuple[int, int, int]] = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Checks the codes that the folder already has, and deletes stale ones if asked to."""
        # The warning is for writers that name predictions by their index in the loader; codes have the episode's index.
        warnings.filterwarnings("ignore", "Couldn't infer the batch indices")
        _check_is_vae(pl_module)
        assert isinstance(pl_module, VAE)
        self._fingerprint = pl_module.fingerprint()
        self._store = EpisodeStore(self.path)
        if self.stale == "refuse" or trainer.is_global_zero:
            for name, writer in codes_of_other_vaes(self._store, self._fingerprint):
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
            # The datamodule need not read the images of these.
            data.predicted = self._present

    def preflight(self, vae: Any, images: str) -> None:
        """Checks that the stage is V, and registers its codes of images that exist or are registered.

        Args:
            vae: the stage that will predict.
            images: folder of the episodes of images.

        Raises:
            ValueError: if it is not V, or there will be no images.
        """
        _check_is_vae(vae)
        check_expected(images)
        store = EpisodeStore(images)
        spec = expected_at(images) or (store.spec if len(store) else None)
        if spec is not None:
            code = ((vae.latent_size,), "float16")
            expect(self.path, replace(spec, observation={"mean": code, "logvar": code}))
            for quantity in (MAX_ROWS, NUM_EPISODES):
                expect(Path(self.path) / quantity, expected_at(Path(images) / quantity))

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
        """Writes the codes of one episode."""
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
    """Whether the first undamaged episode of a store is one of images."""
    for name in store.listing:
        with suppress(DamagedEpisode):
            return "mean" not in store.contents(name).spec.observation
    return False


def _check_is_vae(stage: Any) -> None:
    if not isinstance(stage, VAE):
        raise ValueError(f"CodeWriter writes what V predicts, not a {type(stage).__name__}: predict with a VAE")
