"""The dream: its order of steps on paper, its temperature, its end, its beginnings, and gymnasium's faces."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from torch.testing import assert_close

from datamodules.episode import Episode
from datamodules.store import EpisodeStore
from wmlightning.dynamics import MDNLSTM, State
from wmlightning.environments.dream import DreamEnv, DreamRules, DreamVectorEnv, begin_anywhere
from wmlightning.recipes import build_recipe, recipe_of
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE


class Line:
    """A world on paper: one number x; an action a moves it to x + a + temperature * noise, h counts steps.

    Features are [x, h]; the reward for arriving is x; the chance to go on is 1 at x = 0 and 0 at x = 1.
    """

    action_size = 1

    def __init__(self):
        self.dynamics = self

    def initial(self, n):
        return State(torch.zeros(n, 1), torch.zeros(n, 1), torch.zeros(n, 2))

    def observe_noise(self, rows, generator):
        return torch.randn(rows, 1, generator=generator)

    def imagine_noise(self, rows, generator):
        return (torch.randn(rows, 1, generator=generator),)

    def observe_step(self, state, action, embed, is_first, noise):
        assert is_first.all()
        assert (action == 0).all()
        return State(torch.zeros_like(embed), embed + noise, torch.ones(len(embed), 3)), None

    def imagine_step(self, state, action, temperature, noise):
        return State(state.deter + 1, state.stoch + action + temperature * noise[0], torch.zeros(len(action), 5))

    def reward(self, features):
        return SimpleNamespace(mean=features[:, 0])

    def cont(self, features):
        return SimpleNamespace(mean=1 - features[:, 0])

    def decode(self, features):
        return features[:, :1, None, None].expand(-1, 4, 4, 1)


def tiny(**heads):
    torch.manual_seed(0)
    return MDNRNN(VAE(4, depth=2), MDNLSTM(4, 2, 8, 2), **heads).eval()


def env_of(**settings):
    return DreamEnv(Line(), DreamRules(**settings), starts=torch.zeros(1, 1))


def quiet(env):
    """The same dream without noise."""
    rows = getattr(env, "rows", env)
    zeros = torch.zeros(rows.num_envs, 1)
    rows.model.observe_noise, rows.model.imagine_noise = lambda *_: zeros, lambda *_: (zeros,)
    return env


def test_a_dream_on_paper():  # x: 0 -> 0.25 -> 0.375 -> 0.625, over where 1 - x < 1/2
    env = quiet(env_of(done=True))
    observation, _ = env.reset(seed=0)
    assert observation.tolist() == [0.0, 0.0]
    steps = [env.step(np.array([a], np.float32)) for a in (0.25, 0.125, 0.25)]
    assert [step[0].tolist() for step in steps] == [[0.25, 1.0], [0.375, 2.0], [0.625, 3.0]]
    assert [step[1] for step in steps] == [0.25, 0.375, 0.625]
    assert [step[2] for step in steps] == [False, False, True]
    assert not any(step[3] for step in steps)


def test_alive_pays_one_for_every_step_survived_and_the_cap_cuts_the_dream():
    env = quiet(env_of(done=True, reward="alive", max_steps=3))
    env.reset()
    still, ending = np.zeros(1, np.float32), np.ones(1, np.float32)
    assert [env.step(still)[1:4] for _ in range(3)] == [(1.0, False, False), (1.0, False, False), (1.0, False, True)]
    env.reset()
    assert env.step(ending)[1:4] == (0.0, True, False)
    env = quiet(env_of(reward=4))
    env.reset()
    assert env.step(still)[1] == 4.0


@pytest.mark.parametrize(("done", "over"), [(False, False), (True, False), (0.8, True)])
def test_a_dream_is_over_below_the_threshold(done, over):  # x = 0.25, the chance to go on 3/4
    env = quiet(env_of(done=done))
    env.reset()
    assert env.step(np.array([0.25], np.float32))[2] == over


def test_temperature_reaches_the_model():
    steps = []
    for temperature in (0.5, 2.0):
        env = env_of(temperature=temperature)
        first, _ = env.reset(seed=1)
        steps.append(env.step(np.zeros(1, np.float32))[0][0] - first[0])
    assert steps[1] == pytest.approx(4 * steps[0])


def test_in_an_mdn_rnns_dream_the_first_action_is_taken_at_a_sampled_code_and_an_empty_memory():
    model, dream = tiny(reward_head=True), DreamRules()
    mean, logvar = torch.randn(3, 4), torch.randn(3, 4)
    noise = torch.randn(3, 4)
    state = dream.begin(model, torch.cat([mean, logvar], 1), noise)
    assert_close(state.stoch, mean + (logvar / 2).exp() * noise)
    assert (state.deter == 0).all()
    action, drawn = torch.rand(3, 2), model.dynamics.imagine_noise(3, torch.Generator())
    after, reward, over = dream.step(model, state, action, drawn)
    expected = model.dynamics.imagine_step(state, action, 1.0, drawn)
    assert_close(after.features, expected.features)
    assert_close(reward, model.reward(expected.features).mean)
    assert not over.any()


@pytest.mark.filterwarnings("ignore:.*observation space m.*imum value is", "ignore:.*not having a spec")
@pytest.mark.parametrize("discrete", [False, True])
def test_gymnasiums_own_checker_finds_nothing_to_say(discrete):
    env = DreamEnv(tiny(reward_head=True), DreamRules(max_steps=5), torch.randn(7, 8), discrete)
    check_env(env, skip_close_check=True)
    env.reset(seed=0)
    assert env.render().shape == (64, 64, 3)
    assert env.render().dtype == np.uint8


def test_a_seed_names_the_whole_dream():
    env = DreamVectorEnv(tiny(reward_head=True), DreamRules(max_steps=5), 3, torch.randn(7, 8))
    actions = np.random.default_rng(0).uniform(-1, 1, (4, 3, 2)).astype(np.float32)
    runs = [[env.reset(seed=seed)[0]] + [env.step(action)[0] for action in actions] for seed in (5, 5, 6)]
    assert all(np.array_equal(one, two) for one, two in zip(runs[0], runs[1], strict=True))
    assert not np.array_equal(runs[0][0], runs[2][0])
    assert not np.array_equal(env.reset()[0], env.reset()[0])


def test_rows_that_have_ended_rest_until_they_are_reset():
    env = quiet(DreamVectorEnv(Line(), DreamRules(done=True, max_steps=3), 2, torch.zeros(1, 1)))
    env.reset(seed=0)
    push = np.array([[1.0], [0.25]], np.float32)
    _, _, terminated, _, _ = env.step(push)
    assert terminated.tolist() == [True, False]
    observation, reward, terminated, truncated, _ = env.step(push)
    assert (observation[0].tolist(), reward[0], terminated[0], truncated[0]) == ([1.0, 1.0], 0.0, False, False)
    observation, _ = env.reset(options={"reset_mask": np.array([True, False])})
    assert observation.tolist() == [[0.0, 0.0], [0.5, 2.0]]
    _, _, _, truncated, _ = env.step(np.zeros((2, 1), np.float32))
    assert truncated.tolist() == [False, True]
    assert len(env.render()) == 2


def test_options_without_a_mask_reset_every_row():
    env = quiet(DreamVectorEnv(Line(), DreamRules(), 2, torch.zeros(1, 1)))
    env.reset(seed=0)
    env.step(np.ones((2, 1), np.float32))
    assert env.reset(options={"foo": 1})[0].tolist() == [[0.0, 0.0], [0.0, 0.0]]
    alone = quiet(env_of())
    assert alone.reset(options={"foo": 1})[0].tolist() == [0.0, 0.0]


def test_a_dream_that_has_not_begun_is_not_stepped():
    with pytest.raises(ResetNeeded, match="call reset first"):
        env_of().step(np.zeros(1, np.float32))
    with pytest.raises(ResetNeeded, match="call reset first"):
        DreamVectorEnv(Line(), DreamRules(), 2, torch.zeros(1, 1)).step(np.zeros((2, 1), np.float32))


def store_of(path, observations, **metadata):
    store = EpisodeStore(path)
    for observation in observations:
        rows = len(next(iter(observation.values())))
        flags = np.arange(rows) == 0
        blank = np.zeros((rows, 2), np.float32)
        store.append(Episode(observation, blank, blank[:, 0].copy(), flags, np.zeros(rows, bool), metadata))
    return str(path)


def codes_of(count, width=4):
    first = [np.full((3, width), number, np.float16) for number in range(count)]
    return [{"mean": codes, "logvar": -codes} for codes in first]


def test_dreams_begin_at_first_rows_spread_over_the_store(tmp_path):
    model = tiny()
    starts = store_of(tmp_path, codes_of(9), vae=model.vae.fingerprint())
    embeds = DreamRules(starts, num_starts=3).first_embeds(model)
    assert embeds[:, 0].tolist() == [0.0, 4.0, 8.0]
    assert_close(embeds[:, 4:], -embeds[:, :4])
    assert len(DreamRules(starts).first_embeds(model)) == 9


def test_first_images_are_encoded(tmp_path):
    model = tiny()
    images = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), np.uint8)
    embeds = DreamRules(store_of(tmp_path, [{"image": pair} for pair in images])).first_embeds(model)
    with torch.no_grad():
        assert_close(embeds, model.encode(torch.from_numpy(images[:, 0])))


def test_first_frames_are_drawn_evenly():
    dynamics = Line()
    starts = torch.arange(4.0)[:, None] * 100
    begun = begin_anywhere(dynamics, DreamRules(), starts, 4000, torch.Generator().manual_seed(0))
    counts = (begun.stoch[:, 0] / 100).round().clamp(min=0).long().bincount()
    assert_close(counts.float(), torch.full((4,), 1000.0), rtol=0.1, atol=0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0 but must be above 0"),
        ({"temperature": float("nan")}, "must be above 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"done": 1.5}, "done is 1.5"),
        ({"reward": math.nan}, "reward is nan"),
        ({"reward": math.inf}, "reward is inf"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DreamRules(**settings)


@pytest.mark.parametrize(
    ("dream", "heads", "message"),
    [
        (DreamRules(), {}, "reward_head=true, or give the dream reward=alive"),
        (DreamRules(reward="alive", done=True), {}, "done_head=true, or give the dream done=false"),
    ],
)
def test_a_dream_is_refused_that_the_model_cannot_dream(dream, heads, message):
    with pytest.raises(ValueError, match=message):
        DreamEnv(tiny(**heads), dream, torch.zeros(1, 8))
    dream.check(tiny(reward_head=True, done_head=True))


def test_a_dream_that_cannot_begin_says_why(tmp_path):
    model, other = tiny(), store_of(tmp_path / "other", codes_of(2), vae="another")
    narrow = store_of(tmp_path / "narrow", codes_of(2, width=3))
    for starts, message in (
        (None, "starts name no folder"),
        (str(tmp_path / "nothing"), "holds no episodes: collect some first"),
        (other, "written by V another, but this model's V is"),
        (narrow, "have 3 numbers but this model's V writes 4"),
    ):
        with pytest.raises(ValueError, match=message):
            DreamRules(starts).first_embeds(model)


def test_a_dream_is_rebuilt_from_its_recipe():
    dream = build_recipe(recipe_of(DreamRules("somewhere", 1.15, 2100, "alive", True)))
    assert (dream.temperature, dream.max_steps, dream.pay, dream.threshold) == (1.15, 2100, 1.0, 0.5)


def test_another_librarys_agent_learns_in_it():
    """Stable-Baselines3's A2C finds out that moving right is what pays."""
    stable = pytest.importorskip("stable_baselines3")
    env = env_of(max_steps=5, temperature=0.01)
    agent = stable.A2C("MlpPolicy", env, seed=0, device="cpu", n_steps=20)
    agent.learn(1500)
    first, _ = env.reset(seed=0)
    assert agent.predict(first, deterministic=True)[0][0] > 0.5


def test_an_agent_is_dreamt_in_as_its_world_model_is():
    agent, starts = SimpleNamespace(world_model=Line()), torch.zeros(1, 1)
    env = DreamEnv(agent, DreamRules(), starts)
    assert env.rows.model is agent.world_model
