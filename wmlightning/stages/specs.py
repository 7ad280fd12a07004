"""What a stage wants of the episodes it is given, refused in words before anything is learnt."""

from datamodules.episode import Spec


def check_images(spec: Spec, what: str, channels: int, setting: str) -> None:
    """Makes sure that there are images of 64x64 pixels with so many channels.

    Args:
        spec: of a store or of an environment.
        what: names it in the error, in the plural.
        channels: those that the encoder reads.
        setting: where they are set.

    Raises:
        ValueError: if there are not.
    """
    shape, kind = spec.observation.get("image", ((), ""))
    if tuple(shape) == (64, 64, channels) and kind == "uint8":
        return
    if not shape:
        cure = "give data.path a folder of episodes, not of codes"
    else:
        cure = f"set {setting} to {shape[-1]}" if tuple(shape)[:2] == (64, 64) else "record images of 64x64"
    found = f"{kind} images of {tuple(shape)}" if shape else f"{', '.join(spec.observation)} but no image"
    raise ValueError(f"{what} have {found} but uint8 (64, 64, {channels}) is read: {cure}")


def check_action_size(found: int, wanted: int, what: str) -> None:
    """Makes sure that actions have as many numbers as the dynamics take; raises ValueError in the same way."""
    if found != wanted:
        raise ValueError(
            f"{what}: actions have {found} numbers but the dynamics expect {wanted}: give dynamics action_size={found}"
        )
