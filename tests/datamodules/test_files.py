"""Writing a file whole or not at all."""

import errno

import pytest
import torch

from datamodules.files import write_atomically
from wmlightning.callbacks.checkpoints import AtomicCheckpointIO


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "file"
    write_atomically(path, lambda file: file.write(b"old"))

    def fails(file):
        file.write(b"half of the ne")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        write_atomically(path, fails)
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_a_full_disk_is_named_with_its_folder_also_by_a_checkpoint(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=f"disk under {tmp_path} is full .*, last.ckpt was not written: free some space"):
        AtomicCheckpointIO().save_checkpoint({"weight": torch.ones(3)}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())
