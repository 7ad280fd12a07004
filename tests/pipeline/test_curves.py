"""Every curve of a run is whole, as TensorBoard's own fast loader reads it."""

from pathlib import Path

import pytest
from tensorboard.context import RequestContext
from tensorboard.data.server_ingester import SubprocessServerDataIngester, get_server_binary
from tensorboard.util import grpc_util

from wmlightning.__main__ import main

STORE = {"episodes": 6, "environment.id": "wmlightning/DummyPixels-v0", "environment.time_limit": 12}
FIT = {"trainer.enable_progress_bar": "false", "trainer.callbacks": "[]", "trainer.log_every_n_steps": 1}
SMALL = {
    "data.batch_size": 2,
    "data.updates_per_epoch": 2,
    "data.validation_fraction": 0.34,
    "data.validation_batches": 1,
}


def words(**settings):
    return [f"--{name}={value}" for name, value in settings.items()]


def scalars(folder):
    """tag -> [(step, value)] as the server of TensorBoard's default loader gives them."""
    ingester = SubprocessServerDataIngester(
        server_binary=get_server_binary(),
        logdir=str(folder),
        reload_interval=0,
        channel_creds_type=grpc_util.ChannelCredsType.LOCAL,
        samples_per_plugin={"scalars": 0},
    )
    ingester.start()
    found = ingester.data_provider.read_scalars(
        RequestContext(), experiment_id="", plugin_name="scalars", downsample=9999
    )
    return {
        tag: [(point.step, point.value) for point in points] for tags in found.values() for tag, points in tags.items()
    }


@pytest.fixture
def episodes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    policy = words(**{"policy": "HeldActionsPolicy", "policy.action_size": 2})
    assert main(["collect", *words(path="episodes", **STORE), *policy]) == 0
    return Path("episodes")


def fit_v(*more, steps):
    files = ["-c", "world_models/vae.yaml"]
    settings = FIT | SMALL | {"data.path": "episodes", "trainer.default_root_dir": "run", "trainer.max_steps": steps}
    assert main(["fit", *files, *words(**settings), *more]) == 0


def test_a_test_and_a_validation_leave_the_training_curves_whole(episodes):
    fit_v(steps=6)
    trained = scalars("run/tensorboard")
    last = "--ckpt_path=run/checkpoints/last.ckpt"
    settings = words(**(FIT | SMALL | {"data.path": "episodes", "trainer.default_root_dir": "run"}))
    for command in ("test", "validate"):
        assert main([command, "-c", "world_models/vae.yaml", *settings, last]) == 0
    found = scalars("run/tensorboard")
    for tag, points in trained.items():
        assert found[tag][: len(points)] == points, f"{tag} has lost points"
    assert len(trained["vae/loss"]) == 6
    assert [step for step, _ in found["vae/test_psnr"]] == [6], "a test stands where the weights were trained to"
    assert found["vae/val_psnr"][-1][0] == 6


def test_a_resumed_run_has_one_curve(episodes):
    fit_v(steps=6)
    fit_v("--ckpt_path=run/checkpoints/last.ckpt", steps=10)
    steps = [step for step, _ in scalars("run/tensorboard")["vae/loss"]]
    assert steps == sorted(set(steps))
    assert len(steps) == 10


def test_a_fit_with_nothing_to_do_says_so(episodes, capsys):
    fit_v(steps=2)
    capsys.readouterr()
    fit_v("--ckpt_path=run/checkpoints/last.ckpt", steps=2)
    line = "nothing was trained: the checkpoint has 2 updates already, and the limits are max_steps 2"
    assert line in capsys.readouterr().out
