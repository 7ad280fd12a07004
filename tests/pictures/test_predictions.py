"""Predictions of a world model and its planner are drawn as they are, and drawing leaves no trace."""

import numpy as np
import pytest
import torch
from PIL import Image
from square_support import events_in, squares, trainer

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.episode import Batch, Episode
from datamodules.samplers import UniformWindows
from datamodules.store import EpisodeStore
from wmlightning.distributions.latents import GaussianLatent, MeanLatent
from wmlightning.dynamics import RNN, RSSM, SSM, State
from wmlightning.environments.factory import EnvFactory
from wmlightning.pictures.book import undisturbed
from wmlightning.pictures.open_loop import OpenLoop, open_loop, open_loop_frames, open_loop_strips
from wmlightning.pictures.plans import LogPlans, PlannedEpisode, play_with_plans, predicted_return_chart
from wmlightning.pictures.predictions import LogPredictions, image_quality, kl_per_dimension, prediction_curves
from wmlightning.planners.cem import CEM
from wmlightning.stages.planet import PlaNet
from wmlightning.stages.vae import VAE
from wmlightning.stages.world_model import WorldModel

ROWS = 14
SIZES = {"action_size": 2, "embed_size": 64, "hidden_size": 8}
KINDS = {
    "RNN": lambda: RNN(GaussianLatent(4), deter_size=6, **SIZES),
    "SSM": lambda: SSM(GaussianLatent(4), **SIZES),
    "RSSM": lambda: RSSM(GaussianLatent(4), deter_size=6, **SIZES),
}


def tiny_model(kind="RSSM"):
    torch.manual_seed(0)
    return WorldModel(KINDS[kind](), depth=2, reward_layers=1, reward_units=8)


def tiny_planet(kind="RSSM", **planner):
    environment = EnvFactory("wmlightning/DummyPixels-v0", time_limit=9)
    return PlaNet(
        tiny_model(kind), CEM(**({"horizon": 3, "candidates": 8, "elites": 2, "iterations": 4} | planner)), environment
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return squares(tmp_path_factory.mktemp("store"), ROWS)


def fit(folder, stage, store, callbacks=(), steps=2, held_out=0.4):
    data = EpisodeDataModule(str(store), WindowDataset(UniformWindows(6)), 2, 4, validation_fraction=held_out)
    trainer(folder, callbacks, steps).fit(stage, data)
    return events_in(folder)


PICTURES = {"reconstructions", "open_loop", "open_loop_moving", "prediction_quality", "rewards", "kl_per_dimension"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_world_model_alone_shows_its_predictions_in_files_and_tensorboard(tmp_path, store, kind):
    callback = LogPredictions(every=0, context=4, horizon=8, columns=3)
    events = fit(tmp_path, tiny_model(kind), store, [callback])
    assert set(events.Tags()["images"]) == {f"world_model/{name}" for name in PICTURES}
    assert Image.open(tmp_path / "pictures/open_loop_moving.gif").n_frames == 12
    assert (tmp_path / "pictures/open_loop-000002.png").exists()
    scalars = {f"world_model/open_loop_{key}_h{h}" for key in ("psnr", "ssim", "reward_error") for h in (1, 2, 5)}
    assert scalars <= set(events.Tags()["scalars"])
    assert "world_model/open_loop_psnr_h10" not in events.Tags()["scalars"], "only 8 steps were predicted"


def test_an_agents_plans_are_drawn(tmp_path, store):
    events = fit(tmp_path, tiny_planet(), store, [LogPlans(every=0), LogPredictions(every=0, horizon=4)], steps=1)
    assert {"planet/elite_returns", "planet/predicted_return", "planet/plan", "world_model/open_loop"} <= set(
        events.Tags()["images"]
    )
    predicted, realised, exploited = (
        events.Scalars(f"planet/{name}")[0].value for name in ("predicted", "realised", "exploited")
    )
    assert exploited == pytest.approx(predicted - realised, abs=1e-4)


def test_pictures_change_nothing_in_training(tmp_path, store):
    stages = []
    for number, callbacks in enumerate([[], [LogPredictions(every=1, context=4, horizon=4), LogPlans(every=1)]]):
        stages.append(tiny_planet(iterations=1))
        fit(tmp_path / str(number), stages[-1], store, callbacks, steps=3)
    assert (tmp_path / "1/pictures/plan.png").exists()
    for plain, drawn in zip(*(stage.parameters() for stage in stages), strict=True):
        assert torch.equal(plain, drawn)


def test_without_held_out_episodes_the_newest_trained_on_are_drawn(store):
    class Run:
        datamodule = EpisodeDataModule(str(store), WindowDataset(UniformWindows(6)), 2, 4, validation_fraction=0.0)

    name, batch = LogPredictions(context=4, horizon=100).newest(Run())
    assert name == "Replay window"
    assert batch.shape == (8, ROWS), "shorter episodes are predicted to their end"
    Run.datamodule = EpisodeDataModule(str(store), WindowDataset(UniformWindows(6)), 2, 4, validation_fraction=0.4)
    assert LogPredictions(context=4, horizon=6).newest(Run())[0] == "Held-out window"


def test_windows_come_from_the_newest_episodes(tmp_path):
    store = EpisodeStore(tmp_path)
    for number in range(20):
        image = np.full((8, 64, 64, 3), number, np.uint8)
        zeros = np.zeros(8, np.float32)
        episode = Episode({"image": image}, np.zeros((8, 2), np.float32), zeros, np.arange(8) == 0, zeros > 0)
        store.append(episode, birth=100 * (20 - number))

    class Run:
        datamodule = EpisodeDataModule(str(tmp_path), WindowDataset(UniformWindows(6)), 2, 4, validation_fraction=0.0)

    _, batch = LogPredictions(context=4, horizon=4).newest(Run())
    assert int(batch.observation["image"].max()) < 16, "birth decides, not the number"


@pytest.mark.parametrize(("context", "says"), [(100, "longer than 100 rows"), (5, "holds no episodes")])
def test_a_run_with_nothing_to_draw_warns_once(tmp_path, store, context, says):
    class Run:
        datamodule = EpisodeDataModule(
            str(store if context == 100 else tmp_path), WindowDataset(UniformWindows(6)), 2, 4, validation_fraction=0.4
        )

    callback = LogPredictions(context=context)
    with pytest.warns(UserWarning, match=says):
        assert callback.newest(Run()) is None
    assert callback.newest(Run()) is None


@pytest.mark.parametrize("name", ["windows", "context", "horizon", "columns"])
def test_nothing_to_draw_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0 but must be at least 1"):
        LogPredictions(**{name: 0})


def test_a_stage_without_a_planner_is_refused_with_the_name_of_one_that_has_one(tmp_path, store):
    with pytest.raises(ValueError, match="VAE has none: use it with PlaNet"):
        fit(tmp_path, VAE(latent_size=4, depth=4), store, [LogPlans()])


def windows(batch=2, rows=10):
    torch.manual_seed(0)
    zeros = torch.zeros(batch, rows)
    image = torch.randint(0, 256, (batch, rows, 64, 64, 3), dtype=torch.uint8)
    return Batch({"image": image}, torch.rand(batch, rows, 2), zeros, zeros + 1, zeros > 0, zeros > 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_prediction_takes_the_recorded_actions_and_sees_no_later_image(kind):
    model, batch = tiny_model(kind).eval(), windows()
    changed = batch.map(torch.clone)
    changed.observation["image"][:, 4:] = 0
    with undisturbed(model):
        loop = open_loop(model, batch, context=4, horizon=6)
    with undisturbed(model):
        blind = open_loop(model, changed, context=4, horizon=6)
    assert loop.dream.features.shape == (2, 6, model.dynamics.feature_size)
    assert torch.equal(loop.posterior.features[:, :4], blind.posterior.features[:, :4])
    assert torch.equal(loop.dream.features, blind.dream.features)
    other = batch.map(torch.clone)
    other.action[:, 4] = -other.action[:, 4]
    with undisturbed(model):
        assert not torch.equal(open_loop(model, other, 4, 6).dream.features[:, 0], loop.dream.features[:, 0])


def test_strips_and_films_of_a_model_without_images_show_its_predictions_alone():
    model, batch = tiny_model().eval(), windows()
    with undisturbed(model):
        loop = open_loop(model, batch, context=4, horizon=6)
        codes = OpenLoop(loop.embeds, loop.posterior, loop.dream, None, loop.prior)
        whole, part = (open_loop_strips(model, one, columns=3) for one in (loop, codes))
        assert part.shape[0] < whole.shape[0], "no truth, and so no error"
        film = open_loop_frames(model, codes, ("truth", "reconstruction", "prediction"))
    assert len(film) == 10
    assert len({frame.shape for frame in film}) == 1, "pictures of a film have one size, whatever their captions"


def test_image_quality_on_paper():
    truth = torch.zeros(1, 2, 16, 16, 3)
    guess = truth.clone()
    guess[:, 1] = 0.1
    psnr, ssim = image_quality(guess, truth)
    assert psnr.tolist() == pytest.approx([100.0, 20.0], abs=1e-3), "an error of 0.1 is 20 dB; none is capped at 100"
    c1 = 0.01**2
    assert ssim.tolist() == pytest.approx([1.0, c1 / (0.1**2 + c1)], abs=1e-3)


class Echo:
    """Decodes its one feature as a grey picture, and pays twice the feature."""

    def decode(self, features):
        return features[..., None, None].expand(*features.shape[:-1], 16, 16, 3)

    def reward(self, features):
        return torch.distributions.Normal(2 * features[..., 0], 1.0)


def test_prediction_curves_on_paper():
    def state(values):
        stoch = torch.tensor(values)[None, :, None]
        return State(stoch[..., :0], stoch, stoch[..., :0])

    truth = np.zeros((1, 4, 16, 16, 3), np.uint8)
    truth[0, 3] = 51
    loop = OpenLoop(torch.zeros(1, 4, 1), state([0.0, 0.0, 0.0, 0.2]), state([0.1, 0.2]), truth, state([0.0] * 4))
    curves = prediction_curves(Echo(), loop, torch.tensor([[0.0, 0.0, 0.5, 0.4]]))
    assert curves["psnr"].tolist() == pytest.approx([20.0, 100.0], abs=1e-2)
    assert curves["watching_psnr"].tolist() == pytest.approx([100.0, 100.0], abs=1e-2)
    assert curves["copy_psnr"].tolist() == pytest.approx([100.0, -20 * np.log10(0.2)], abs=1e-2)
    assert curves["reward_error"].tolist() == pytest.approx([0.3, 0.0], abs=1e-6)
    assert curves["watching_reward_error"].tolist() == pytest.approx([0.5, 0.0], abs=1e-6)


def test_the_kl_of_the_dimensions_adds_up_to_that_of_the_latent():
    latent, (posterior, prior) = GaussianLatent(5), torch.randn(2, 3, 4, 10)
    parts = kl_per_dimension(latent, posterior, prior)
    assert parts.shape == (5,)
    assert float(parts.sum()) == pytest.approx(float(latent.kl(posterior, prior).mean()), rel=1e-5)
    assert not kl_per_dimension(MeanLatent(latent), posterior, prior).any(), "no noise, no KL"


def test_predicted_and_realised_returns_are_of_the_same_decisions():
    episode = PlannedEpisode(
        plans=[torch.zeros(2, 1)] * 4, predicted=[5.0, 5.0, 5.0, 5.0], rewards=[1.0, 2.0, 3.0, 4.0]
    )
    assert episode.realised.tolist() == [3.0, 5.0, 7.0], "r1 + r2, r2 + r3, r3 + r4; the last plan was cut off"
    assert episode.gap.tolist() == [2.0, 0.0, -2.0]


@pytest.mark.parametrize("decisions", range(1, 9))
def test_an_episode_that_is_shorter_than_a_plan_has_no_realised_return(decisions):
    episode = PlannedEpisode([], [torch.zeros(9, 1)] * decisions, [], [5.0] * decisions, [], [1.0] * decisions)
    assert len(episode.realised) == len(episode.gap) == 0
    assert predicted_return_chart(episode).shape[1] == 760


@pytest.mark.parametrize(("decisions", "played"), [(100, 9), (4, 4)])
def test_recording_the_plans_of_an_episode_changes_nothing_about_it(decisions, played):
    agent = tiny_planet().eval()
    policy = agent.policy(explore=False)
    planner = policy.planner
    episode = play_with_plans(policy, agent.environment, seed=3, decisions=decisions)
    assert policy.planner is planner
    assert (len(episode.rewards), len(episode.images)) == (played, played + 1)
    assert len(episode.predicted) in (played, played + 1)
    assert episode.elites[0].shape == (4, 2)
    for iteration in episode.elites[0]:
        assert iteration[0] >= iteration[1], "best first"
    again = play_with_plans(agent.policy(explore=False), agent.environment, seed=3, decisions=decisions)
    assert again.rewards == episode.rewards
    assert again.predicted == episode.predicted
