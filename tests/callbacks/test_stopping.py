"""Two processes that collect and learn end together when one of them is asked to, wherever either of them is."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import Callback

PATIENCE = 120


class SignIn(Callback):
    """Leaves the number of each process in a file named after its rank."""

    def on_train_start(self, trainer, pl_module):
        Path(trainer.default_root_dir, str(trainer.global_rank)).write_text(str(os.getpid()))


@pytest.mark.parametrize("signalled", [0, 1], ids=["the one that was started", "the one that it launched"])
def test_sigterm_to_either_process_ends_both_with_a_checkpoint(signalled, tmp_path):
    words = ["fit", "-c", "planet/quick.yaml", "-c", "planet/debug.yaml", "--trainer.max_steps=100000"]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp"]
    words += [f"--trainer.callbacks+={__name__}.SignIn"]
    words += [f"--trainer.default_root_dir={tmp_path}", f"--data.path={tmp_path}/episodes"]
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    printed = tmp_path / "printed.txt"
    with open(printed, "w") as output:
        first = subprocess.Popen(
            [sys.executable, "-m", "wmlightning", *words],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        end = time.monotonic() + PATIENCE
        while not all((tmp_path / rank).exists() for rank in "01"):
            assert first.poll() is None, printed.read_text()
            assert time.monotonic() < end, printed.read_text()
            time.sleep(0.1)
        time.sleep(2)  # into the middle of what they do
        numbers = [int((tmp_path / rank).read_text()) for rank in "01"]
        os.kill(numbers[signalled], signal.SIGTERM)
        assert first.wait(PATIENCE) == 130
        end = time.monotonic() + PATIENCE
        while alive(numbers[1]):
            assert time.monotonic() < end, printed.read_text()
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(first.pid, signal.SIGKILL)
    saved = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] > 0


def alive(number):
    """Whether there is a process of this number."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True
