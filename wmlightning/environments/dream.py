"""Dreams: a world model in place of the environment, behind gymnasium's interfaces or in one batch with controllers.

    start      state = observe_step(nothing, no action, embed of a stored first frame)       MDN-RNN: z ~ V, h = c = 0
    step       action at state  ->  state' = imagine_step(state, action, temperature)  ->  reward(state'), over(state')

A policy acts at a state that the recurrent memory has not consumed yet, exactly as in the real environment, and the
reward is that of the state it arrives at.
"""

import math
from contextlib import suppress
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from datamodules.episode import Episode
from datamodules.files import DamagedEpisode
from datamodules.store import EpisodeStore
from wmlightning.dynamics.state import State
from wmlightning.recipes import Recorded
from wmlightning.seeds import derive_seed

ENCODED_AT_ONCE = 100
"""First frames in one pass of the encoder."""


class DreamRules(Recorded):
    """The rules of a dream: where it begins, how uncertain it is, its rewards and when it ends.

    It holds no model: the same rules serve any `LatentModel`.

    Its dynamics must have `initial`, `observe_step`, `imagine_step(state, action, temperature, noise)`, and
    `observe_noise` and `imagine_noise`, which draw what those two take from a generator.

    Args:
        starts: folder of episodes, or of codes, whose first frames dreams begin at.
        temperature: uncertainty of the dream, above 0. 1 is what the model has learned; above it a controller finds the
            model's mistakes harder to exploit (the paper's Doom: 1.15).
        max_steps: steps after which a dream is cut off.
        reward: the reward of a step: "head", the reward head's prediction at the next state; "alive", 1 for a step that
            does not end the dream and 0 for one that does; or a number in place of that 1, such as the action repeat
            where the environment pays 1 for each of its own steps.
        done: the dream terminates where the predicted probability of going on is below 1/2, or below the number given;
            it is never sampled. False: the dream goes on to max_steps.
        num_starts: maximal number of first frames, spread evenly over the folder (the paper: 1,000).

    Raises:
        ValueError: if a number is out of its range.

    Source: Ha and Schmidhuber 2018, section 4 and appendix; their released code (doomrnn/doomrnn.py), where the
    temperature is 1.25 and the step that ends a dream pays 1 as well.
    """

    def __init__(
        self,
        starts: str | None = None,
        temperature: float = 1.0,
        max_steps: int = 1000,
        reward: Literal["head", "alive"] | float | int = "head",
        done: bool | float = False,
        num_starts: int = 1000,
    ) -> None:
        if not 0 < temperature < math.inf:
            raise ValueError(f"the dream's temperature is {temperature} but must be above 0: 1 is what M has learned")
        for name, count in (("max_steps", max_steps), ("num_starts", num_starts)):
            if count < 1:
                raise ValueError(f"the dream's {name} is {count} but must be at least 1")
        if reward not in ("head", "alive") and (isinstance(reward, str) or not math.isfinite(reward)):
            raise ValueError(f"the dream's reward is {reward!r} but is head, alive, or a finite number")
        self.threshold = 0.5 if done is True else float(done)
        if not 0 <= self.threshold < 1:
            raise ValueError(f"the dream's done is {done} but wants true, false, or a probability below 1")
        self.starts, self.temperature, self.max_steps = starts, temperature, max_steps
        self.num_starts = num_starts
        self.pay = None if reward == "head" else 1.0 if reward == "alive" else float(reward)
        """Reward of a step that does not end the dream; None where the reward head predicts it."""

    def check(self, model: Any) -> None:
        """Checks that the model has the heads that these rules need.

        Raises:
            ValueError: in one line that says what to do, if it lacks one.
        """
        features = model.dynamics.initial(1).features
        if self.pay is None:
            try:
                model.reward(features)
            except ValueError:
                raise ValueError(
                    "the dream pays what the model's reward head predicts, but the model has none: train M with "
                    "reward_head=true, or give the dream reward=alive"
                ) from None
        # Only a model without the head is certain to go on at every state.
        anywhere = 3 * torch.randn(64, features.shape[1], generator=torch.Generator().manual_seed(0)).to(features)
        if self.threshold and bool((model.cont(anywhere).mean == 1).all()):
            raise ValueError(
                "the dream ends where the model's done head predicts it, but the model has none: train M with "
                "done_head=true, or give the dream done=false"
            )

    @torch.inference_mode()
    def first_embeds(self, model: Any) -> Float[Tensor, "starts embed"]:
        """Returns the encoder's embeds of the stored first frames, on the model's device.

        Raises:
            ValueError: if there are none, or another encoder wrote the codes.
        """
        if self.starts is None:
            raise ValueError("dreams begin at stored first frames, but the dream's starts name no folder of episodes")
        store, device = EpisodeStore(self.starts), _device(model)
        _ = store.spec  # raises where there is nothing to read
        rows = []
        for position in np.unique(np.linspace(0, len(store) - 1, self.num_starts).round().astype(int)):
            with suppress(DamagedEpisode):  # the store has warned
                rows.append(store.read(int(position), 0, 1))
        if not rows:
            raise ValueError(
                f"of the episodes in {self.starts} none can be read: collect new ones for the dream's starts"
            )
        if "mean" in rows[0].observation:
            return self._codes(model, rows).to(device)
        images = torch.from_numpy(np.concatenate([row.observation["image"] for row in rows]))
        return torch.cat([model.encode(part.to(device)).float() for part in images.split(ENCODED_AT_ONCE)])

    def _codes(self, model: Any, rows: list[Episode]) -> Tensor:
        vae = getattr(model, "vae", None)
        if vae is None:
            raise ValueError(
                f"{self.starts} holds codes but this model reads images: give the dream a folder of images"
            )
        writers = {row.metadata.get("vae") for row in rows} - {None, vae.fingerprint()}
        if writers:
            raise ValueError(
                f"the codes in {self.starts} were written by V {writers.pop()}, but this model's V is "
                f"{vae.fingerprint()}: let the dream start from codes that this V wrote"
            )
        pair = [np.concatenate([row.observation[name] for row in rows]) for name in ("mean", "logvar")]
        if pair[0].shape[1] != vae.latent_size:
            raise ValueError(
                f"the codes in {self.starts} have {pair[0].shape[1]} numbers but this model's V writes "
                f"{vae.latent_size}: let the dream start from codes that this V wrote"
            )
        return torch.from_numpy(np.concatenate(pair, 1)).float()

    def begin(self, model: Any, embeds: Float[Tensor, "rows embed"], noise: Any) -> State:
        """The first states of dreams that begin at these frames; noise from `observe_noise`."""
        n, dynamics = len(embeds), model.dynamics
        before = dynamics.initial(n)
        nothing = before.deter.new_zeros(n, dynamics.action_size)
        first = torch.ones(n, dtype=torch.bool, device=nothing.device)
        return _without_params(dynamics.observe_step(before, nothing, embeds, first, noise)[0])

    def step(
        self, model: Any, state: State, action: Float[Tensor, "rows action"], noise: Any
    ) -> tuple[State, Float[Tensor, "rows"], Bool[Tensor, "rows"]]:
        """One step of n dreams; noise from `imagine_noise`.

        Returns:
            The states arrived at, the rewards for arriving there, and which dreams are over.
        """
        state = _without_params(model.dynamics.imagine_step(state, action, self.temperature, noise))
        if self.threshold:
            over = model.cont(state.features).mean < self.threshold
        else:
            over = torch.zeros(len(action), dtype=torch.bool, device=action.device)
        reward = model.reward(state.features).mean.float() if self.pay is None else self.pay * (~over).float()
        return state, reward, over


class DreamVectorEnv(VectorEnv):
    """n dreams that step together, as one batch on the model's device.

    Observations are the model's features, [z, h, c] for an MDN-RNN, float32. Nothing resets by itself
    (`AutoresetMode.DISABLED`): a row that has ended rests, with reward 0 and no flag, until
    `reset(options={"reset_mask": ...})`. `terminated` comes from the done head, `truncated` from `max_steps`.

    One generator draws for all rows. So a seeded run can be repeated exactly, but what a row dreams also depends on
    when the others were reset.

    Args:
        model: a `LatentModel`.
        dream: the rules of the dream.
        num_envs: rows.
        starts: embeds of first frames, (S, E); None reads them from the dream's own folder.
        discrete: actions are whole numbers, and the model was trained on them one-hot; else they are in [-1, 1].
        render_mode: "rgb_array" lets `render` decode the states of the rows; None for no pictures.

    Raises:
        ValueError: if the model lacks a head that the dream needs.
        ResetNeeded: if it is stepped before any row was reset.
    """

    metadata = {  # noqa: RUF012 (gymnasium's own convention)
        "autoreset_mode": AutoresetMode.DISABLED,
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(
        self,
        model: Any,
        dream: DreamRules,
        num_envs: int,
        starts: Float[Tensor, "starts embed"] | None = None,
        discrete: bool = False,
        render_mode: str | None = "rgb_array",
    ) -> None:
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs} but must be at least 1")
        # Of an agent, its world model: `load` gives the whole agent.
        model = getattr(model, "world_model", model)
        dream.check(model)
        self.model, self.dream, self.num_envs, self.render_mode = model, dream, num_envs, render_mode
        self.starts = dream.first_embeds(model) if starts is None else starts.to(_device(model))
        if not len(self.starts):
            raise ValueError("there is no first frame to begin a dream at: give starts, or name a folder in the dream")
        self.state = _without_params(model.dynamics.initial(num_envs))
        self.action_size = model.dynamics.action_size
        infinite = np.full(self.state.features.shape[1], np.inf, np.float32)
        self.single_observation_space = spaces.Box(-infinite, infinite)
        self.single_action_space = (
            spaces.Discrete(self.action_size) if discrete else spaces.Box(-1, 1, (self.action_size,), np.float32)
        )
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.running, self.steps = np.zeros(num_envs, bool), np.zeros(num_envs, np.int64)
        self.generator = torch.Generator(self.starts.device)
        self.generator.seed()

    @torch.inference_mode()
    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begins new dreams in all rows, or in those of `options={"reset_mask": bool (n,)}`.

        Args:
            seed: seeds the generator that draws for all rows; of a list, all its numbers together do.
            options: "reset_mask"; other keys are ignored.
        """
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs)), bool)
        if seed is not None and seed != [None] * self.num_envs:
            numbers = [seed] if isinstance(seed, int) else [0 if number is None else number + 1 for number in seed]
            self.generator.manual_seed(derive_seed(*numbers))
        fresh = begin_anywhere(self.model, self.dream, self.starts, self.num_envs, self.generator)
        self.state = _chosen(torch.from_numpy(mask).to(self.starts.device), fresh, self.state)
        self.running[mask], self.steps[mask] = True, 0
        return self._look(), {}

    @torch.inference_mode()
    def step(  # type: ignore[override]
        self, actions: Any
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Steps every dream that goes on."""
        if not (self.running.any() or self.steps.any()):
            raise ResetNeeded("step was called but no dream has begun: call reset first")
        device, running = self.starts.device, self.running.copy()
        action = torch.as_tensor(np.asarray(actions), device=device)
        if isinstance(self.single_action_space, spaces.Discrete):
            action = functional.one_hot(action.long(), self.action_size)
        noise = self.model.dynamics.imagine_noise(self.num_envs, self.generator)
        state, reward, over = self.dream.step(self.model, self.state, action.to(self.starts), noise)
        self.state = _chosen(torch.from_numpy(running).to(device), state, self.state)
        self.steps += running
        terminated = over.cpu().numpy() & running
        truncated = (self.steps >= self.dream.max_steps) & running & ~terminated
        self.running &= ~(terminated | truncated)
        return self._look(), np.where(running, reward.double().cpu().numpy(), 0.0), terminated, truncated, {}

    @torch.inference_mode()
    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Decodes the state of every row: n pictures (H, W, 3), uint8."""
        if self.render_mode is None:
            return None
        pictures = (self.model.decode(self.state.features).float().clamp(0, 1) * 255).round().to(torch.uint8)
        return tuple(pictures.expand(*pictures.shape[:-1], 3).cpu().numpy())

    def _look(self) -> np.ndarray:
        return self.state.features.float().cpu().numpy().copy()


class DreamEnv(gym.Env):
    """One dream as a gymnasium environment: a `DreamVectorEnv` of one row, see there.

        env = DreamEnv(wmlightning.load("mdn_rnn.ckpt"), DreamRules("codes", reward="alive", done=True))
        stable_baselines3.PPO("MlpPolicy", env).learn(100_000)          # or any library for gymnasium's environments

    Args:
        model: a `LatentModel`, or an agent that has one, such as a Dreamer.
        dream: the rules of the dream.
        starts: embeds of first frames, (S, E); None reads them from the dream's own folder.
        discrete: actions are whole numbers, and the model was trained on them one-hot; else they are in [-1, 1].
        render_mode: "rgb_array" lets `render` decode the state; None for no pictures.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012 (gymnasium's own convention)

    def __init__(
        self,
        model: Any,
        dream: DreamRules,
        starts: Float[Tensor, "starts embed"] | None = None,
        discrete: bool = False,
        render_mode: str | None = "rgb_array",
    ) -> None:
        self.rows = DreamVectorEnv(model, dream, 1, starts, discrete, render_mode)
        self.observation_space, self.action_space = self.rows.single_observation_space, self.rows.single_action_space
        self.render_mode = render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        """Begins a dream; a function of the seed where one is given."""
        super().reset(seed=seed)
        return self.rows.reset(seed=seed)[0][0], {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        """One step of the dream."""
        observation, reward, terminated, truncated, _ = self.rows.step(np.asarray(action)[None])
        return observation[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Decodes the present state, uint8 (H, W, 3)."""
        pictures = self.rows.render()
        return None if pictures is None else pictures[0]


def begin_anywhere(
    model: Any, dream: DreamRules, starts: Float[Tensor, "starts embed"], rows: int, generator: torch.Generator
) -> State:
    """First states of dreams whose first frames the generator draws, with its noise."""
    chosen = torch.randint(len(starts), (rows,), generator=generator, device=starts.device)
    return dream.begin(model, starts[chosen], model.dynamics.observe_noise(rows, generator))


def _without_params(state: State) -> State:
    # Parameters are not needed after sampling, and posterior and prior states have different ones.
    return State(state.deter, state.stoch, state.params[:, :0])


def _chosen(mask: Tensor, one: State, other: State) -> State:
    pairs = ((getattr(one, name), getattr(other, name)) for name in ("deter", "stoch", "params"))
    return State(*(torch.where(mask[:, None], a, b) for a, b in pairs))


def _device(model: Any) -> torch.device:
    return model.dynamics.initial(1).deter.device
