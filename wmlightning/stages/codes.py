"""Whose codes are they? A store of codes says of every episode which V wrote it."""

from collections.abc import Iterator
from contextlib import suppress

from datamodules.files import DamagedEpisode, EpisodeName
from datamodules.store import EpisodeStore


def foreign_codes(store: EpisodeStore, fingerprint: str) -> Iterator[tuple[EpisodeName, str]]:
    """The episodes of a store that another V wrote, each with that V's fingerprint.

    Episodes of images were written by no V and are not among them, nor are damaged files, which nobody reads.

    Args:
        store: of codes, or of images.
        fingerprint: of the V that the codes should come from, see `VAE.fingerprint`.
    """
    for name in store.listing:
        writer = None
        with suppress(DamagedEpisode):
            writer = store.contents(name).metadata.get("vae")
        if writer not in (None, fingerprint):
            yield name, str(writer)


def check_codes(store: EpisodeStore, fingerprint: str) -> None:
    """Refuses codes that another V wrote: nothing else would tell, but decoded dreams would be nonsense.

    Raises:
        ValueError: naming the first such episode and both V.
    """
    for name, writer in foreign_codes(store, fingerprint):
        raise ValueError(
            f"the codes in {store.path}/{name} were written by V {writer}, but this model's V is {fingerprint}: write "
            "codes with this V, or give the model the V that wrote them"
        )
