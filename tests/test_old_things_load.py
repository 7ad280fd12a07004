"""What an older version wrote is read, means the same, and is gone on with: stages, episodes, runs cut in the middle.

`golden/2c5b022` holds it, written by the `freeze.py` there with the version of that commit. Numbers are to be the same
to the last bit on the kind of machine and with the version of torch that wrote them, and to rounding elsewhere.
"""

import gzip
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

import wmlightning
from datamodules import EpisodeStore
from wmlightning.__main__ import main

sys.path.insert(0, str(Path(__file__).parent / "golden"))

from old_things import acted, digests, episodes_in, filled, machine, said, summed_up, weighed

GOLDEN = Path(__file__).parent / "golden" / "2c5b022"


def read(name):
    with gzip.open(GOLDEN / name, "rt") as file:
        return json.load(file)


OLD = read("old_stages.json.gz")
RUNS = read("old_runs.json.gz")
EXACT = machine() == OLD["machine"]


def assert_same(found, wanted, rtol=1e-5, atol=1e-6):
    """Equal in all places: to rounding anywhere, bit for bit on the machine that wrote what is wanted."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, dict):
            assert_same(found[name], value, rtol, atol)
        elif name in ("digests", "observation"):
            assert not EXACT or found[name] == value, name
        else:
            one, other = (torch.tensor(numbers, dtype=torch.float64) for numbers in (found[name], value))
            assert one.shape == other.shape, name
            # What is near zero beside others may have come of their difference.
            near = atol + rtol * float(other.nan_to_num().abs().max())
            assert torch.allclose(one, other, rtol=rtol, atol=near, equal_nan=True), name
            assert not EXACT or one.view(torch.int64).equal(other.view(torch.int64)), name


def assert_same_weights(path, wanted):
    """As `assert_same`; where training rounds otherwise, Adam makes more of it."""
    assert_same(weighed(path), wanted, rtol=1e-3, atol=1e-4)


def old_checkpoint(path, old):
    """Writes a checkpoint as the old version had it; gives its weights."""
    weights = {}
    for name, (shape, dtype, value) in old["tensors"].items():
        kind = getattr(torch, dtype)
        weights[name] = filled(name, shape) if value is None else torch.tensor(value, dtype=kind).reshape(shape)
    progress = {"epoch": 0, "global_step": 0, "pytorch-lightning_version": OLD["lightning"]}
    torch.save({"recipe": old["recipe"], "state_dict": weights, **progress}, path)
    return weights


def unpacked(name, folder):
    """A copy of a frozen folder to work in, what is packed in it unpacked."""
    shutil.copytree(GOLDEN / name, folder, dirs_exist_ok=True)
    for packed in folder.rglob("*.gz"):
        packed.with_suffix("").write_bytes(gzip.decompress(packed.read_bytes()))
        packed.unlink()
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=OLD["stages"])
def old(request):
    return OLD["stages"][request.param]


# --------------------------------------------------------------------------------------------------------------- stages


def test_an_old_stage_has_all_its_weights_and_says_and_does_what_it_did(tmp_path, old):
    weights = old_checkpoint(tmp_path / "old.ckpt", old)
    stage = wmlightning.load(tmp_path / "old.ckpt")
    assert isinstance(stage, getattr(wmlightning, old["kind"]))
    assert digests(stage.state_dict().values()) == digests(weights.values())
    if old["actions"]:
        assert_same(acted(stage, old["given"].get("channels", 3)), old["actions"])
    assert_same(said(stage, old["kind"], old["given"]), old["said"])


def test_an_old_stage_is_written_anew_and_is_the_same(tmp_path, old):
    old_checkpoint(tmp_path / "old.ckpt", old)
    stage = getattr(wmlightning, old["kind"]).load_from_checkpoint(tmp_path / "old.ckpt")
    checkpoint = {"state_dict": stage.state_dict()}
    stage.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "new.ckpt")
    again = wmlightning.load(tmp_path / "new.ckpt")
    assert again.state_dict().keys() == stage.state_dict().keys()
    assert digests(again.state_dict().values()) == digests(stage.state_dict().values())
    if old["actions"]:
        channels = old["given"].get("channels", 3)
        assert acted(again, channels) == acted(stage, channels)


def test_codes_still_know_the_v_that_wrote_them(tmp_path):
    """By a digest of its weights and their names, which every old store of codes holds."""
    for old in OLD["stages"].values():
        if old["kind"] == "VAE":
            old_checkpoint(tmp_path / "v.ckpt", old)
            assert wmlightning.load(tmp_path / "v.ckpt").fingerprint() == old["fingerprint"]


# ------------------------------------------------------------------------------------------------------------- episodes


@pytest.fixture
def collections(tmp_path, monkeypatch):
    """The folder of the collections that were begun, as the working folder."""
    monkeypatch.chdir(unpacked("store", tmp_path))
    return tmp_path


@pytest.mark.parametrize("who", RUNS["store"])
def test_an_old_collection_is_read_and_gone_on_with_as_it_was_begun(collections, who):
    whole, before = RUNS["store"][who], EpisodeStore(who).names
    begun = episodes_in(who)
    assert 0 < len(begun) < len(whole)
    assert_same(begun, {name: whole[name] for name in before})
    content = {name: Path(who, name).read_bytes() for name in before}
    assert main(["collect", "-c", f"{who}.yaml"]) == 0
    assert_same(episodes_in(who), whole)
    assert content == {name: Path(who, name).read_bytes() for name in before}, "Finished episodes are left alone."


@pytest.mark.parametrize(
    ("who", "change"),
    [
        ("noise", "--policy.scale=0.5"),
        ("noise", "--environment.time_limit=5"),
        ("noise", '--policy={"class_path": "HeldActionsPolicy", "init_args": {"action_size": 2}}'),
        ("held", "--policy.max_hold=4"),
        ("agent", "--noise.scale=0.5"),
        ("agent", '--noise={"class_path": "HeldActionsPolicy", "init_args": {"action_size": 2}}'),
    ],
)
def test_an_old_collection_is_not_mixed_with_another(collections, who, change, capsys):
    assert main(["collect", "-c", f"{who}.yaml", change]) == 2
    assert "holds episodes with" in capsys.readouterr().err


def test_an_old_store_is_whole(collections, capsys):
    for who in RUNS["store"]:
        assert main(["data", "verify", who]) == 0


# --------------------------------------------------------------------------------------------------- an online run, cut


@pytest.mark.parametrize("config", ["fit.yaml", "run/config.yaml"])
def test_an_old_online_run_goes_on_to_the_weights_it_would_have_had(tmp_path, monkeypatch, config):
    """By the file that it was begun with, and by the one that it wrote, which names all classes in full."""
    monkeypatch.chdir(unpacked("online", tmp_path))
    last = "run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == RUNS["online"]["cut"]
    assert main(["fit", "-c", config, f"--ckpt_path={last}"]) == 0
    assert_same_weights(last, RUNS["online"]["weights"])
    found = episodes_in("run/episodes")
    assert_same(found, RUNS["online"]["episodes"], rtol=1e-3, atol=1e-2)
    assert not list(Path("run/episodes").glob("superseded-*")), "All that was stored is known to the checkpoint."


def test_what_was_played_evaluated_and_trained_before_the_cut_is_known_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(unpacked("online", tmp_path))
    last, steps = "run/checkpoints/last.ckpt", RUNS["online"]["cut"] + 1
    before = torch.load(last, weights_only=True)
    assert main(["fit", "-c", "fit.yaml", f"--ckpt_path={last}", f"--trainer.max_steps={steps}"]) == 0
    after = torch.load(last, weights_only=True)
    assert after["global_step"] == steps
    # Names that are others since are the only difference.
    wanted = {key: in_todays_words(state) for key, state in before["callbacks"].items()}
    assert {key: after["callbacks"][key] for key in wanted} == wanted


def in_todays_words(state):
    """The state of a callback, whose keys `ledger` and `view` have other names since."""
    names = {"ledger": "progress", "view": "visible"}
    if not isinstance(state, dict):
        return state
    return {names.get(key, key): in_todays_words(value) for key, value in state.items()}


def test_an_old_online_run_that_was_cut_acts_as_it_did(tmp_path):
    stage = wmlightning.load(unpacked("online", tmp_path) / "run/checkpoints/last.ckpt")
    assert_same(acted(stage), RUNS["online"]["actions"])


# ------------------------------------------------------------------------------------------ a pipeline's run, half done


def assert_ends_alike(run):
    for stage, weights in RUNS["run"]["weights"].items():
        assert_same_weights(run / stage / "checkpoints/last.ckpt", weights)
    # Of what was learned: where that rounds otherwise it only comes near.
    found, wanted = summed_up(run), RUNS["run"]["summary"]
    # The summary holds more since; the one number that was renamed by hand has its stage's own name.
    wanted["controller"]["generation"] = wanted["controller"].pop("generations", wanted["controller"].get("generation"))
    found = {name: {key: found[name][key] for key in section} for name, section in wanted.items()}
    for section in wanted:
        # Intervals are those of Student's exact quantile now; before, they were right to a thousandth.
        for name in [name for name in wanted[section] if name.endswith("ci95")]:
            assert found[section].pop(name) == pytest.approx(wanted[section].pop(name), rel=1e-3)
    assert_same(found, wanted, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("later", [False, True], ids=["in M", "in C"])
@pytest.mark.parametrize("pipeline", ["tiny.yaml", "run/config.yaml"])
def test_an_old_run_goes_on_where_it_was_stopped(tmp_path, monkeypatch, capsys, pipeline, later):
    """By the file that it was begun with, and by the one in its folder."""
    unpacked("run", tmp_path)
    if later:
        unpacked("run_later", tmp_path)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in Path("run").glob("*/result.json")}
    assert main(["run", pipeline, "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert all(f"{path.parent.name}: finished before" in said for path in before)
    assert "--ckpt_path=run/mdn_rnn" in said or later
    assert all(path.read_bytes() == content for path, content in before.items())
    assert_ends_alike(tmp_path / "run")


def test_an_old_run_is_not_gone_on_with_under_other_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(unpacked("run", tmp_path))
    assert main(["run", "tiny.yaml", "--out", "run", "--set", "mdn_rnn.model.reward_scale=0.5"]) == 2
    assert "was begun with other settings" in capsys.readouterr().err


@pytest.mark.parametrize("stage", RUNS["run"]["longer"])
def test_a_finished_stage_of_an_old_run_is_trained_for_longer(tmp_path, monkeypatch, stage):
    """With the settings in its folder, which name all classes in full."""
    unpacked("run", tmp_path)
    monkeypatch.chdir(unpacked("run_later", tmp_path))
    wanted, last = RUNS["run"]["longer"][stage], f"run/{stage}/checkpoints/last.ckpt"
    words = ["fit", "-c", f"run/{stage}/config.yaml", f"--ckpt_path={last}", f"--trainer.max_steps={wanted['updates']}"]
    assert main(words) == 0
    assert_same_weights(last, wanted["weights"])
