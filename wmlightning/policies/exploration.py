"""Exploration policies without a learned model, which collect the first episodes.

White noise does not move a car, as gas and steering average out within a second. All of these policies are therefore
correlated in time. The noise of a row is a function of its seed and its own step, by a counter-based generator, so that
actions do not depend on the number of environments and no generator has to be saved.
"""

import abc
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from wmlightning.interfaces import Carry
from wmlightning.recipes import Recorded
from wmlightning.validation import at_least


def row_generator(seed: int, step: int) -> np.random.Generator:
    """Returns the random generator of one row at one step."""
    return np.random.Generator(np.random.Philox(key=[seed, step]))


class RowGenerators(Sequence[np.random.Generator]):
    """The generators of all rows at their present step, each made at its first use, as making one takes 20 us."""

    def __init__(self, seeds: list[int], steps: list[int]) -> None:
        self.seeds, self.steps = seeds, steps
        self.made: dict[int, np.random.Generator] = {}

    def __len__(self) -> int:
        """Returns the number of rows."""
        return len(self.seeds)

    def __getitem__(self, row: int) -> np.random.Generator:  # type: ignore[override]
        """Returns the generator of a row, the same one at every call."""
        if row not in self.made:
            self.made[row] = row_generator(self.seeds[row], self.steps[row])
        return self.made[row]


class ExplorationPolicy(Recorded, abc.ABC):
    """A policy without a learned model, whose carry holds each row's seed and step (abstract).

    Args:
        action_size: length of the action vector; must be the environment's.
        discrete: give one-hot vectors instead of numbers in [-1, 1].
    """

    blind = False
    """Whether actions depend neither on observations nor on other rows. A rollout may then choose actions ahead of
    time, and calls the policy with one row and an empty observation."""

    def __init__(self, action_size: int, discrete: bool = False) -> None:
        if action_size < 1:
            raise ValueError(f"action_size is {action_size}: give the length of the environment's action vector")
        self.action_size, self.discrete = action_size, discrete

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows before their first step; without seeds, row i has seed i."""
        seeds = list(range(n)) if seeds is None else seeds
        return {"seed": torch.tensor(seeds, dtype=torch.int64), "step": torch.zeros(n, dtype=torch.int64)}

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Acts once in every row."""
        generators = RowGenerators(carry["seed"].tolist(), carry["step"].tolist())
        action, kept = self.act(observation, is_first, carry, generators)
        if self.discrete:
            action = np.eye(self.action_size)[action.argmax(1)]
        return action.astype(np.float32), {"seed": carry["seed"], "step": carry["step"] + 1} | kept

    @abc.abstractmethod
    def act(
        self,
        observation: dict[str, np.ndarray],
        is_first: np.ndarray,
        carry: Carry,
        generators: Sequence[np.random.Generator],
    ) -> tuple[np.ndarray, Carry]:
        """Returns numbers (n, action_size), of which discrete actions take the largest, and further carry entries."""


class SmoothNoisePolicy(ExplorationPolicy):
    """A random walk that reverts to its mean (Ornstein-Uhlenbeck), clipped to [-1, 1].

        x[0] ~ N(0, 1),   x[t+1] = r x[t] + sqrt(1 - r^2) e,   r = exp(-1 / timescale),   action = mean + scale * x

    Every x[t] is N(0, 1), so that the walk is stationary from its first step. Discrete actions are the largest of
    action_size such walks, which holds a choice for about a timescale.

    Args:
        action_size: length of the action vector.
        timescale: decisions after which the autocorrelation is 1/e, above 0.
        scale: standard deviation of the action before clipping.
        mean: mean of the action, one number per dimension; None for zeros.
        discrete: give one-hot vectors.
    """

    blind = True

    def __init__(
        self,
        action_size: int,
        timescale: float = 10.0,
        scale: float = 0.5,
        mean: list[float] | None = None,
        discrete: bool = False,
    ) -> None:
        super().__init__(action_size, discrete)
        at_least(0, scale=scale)
        if timescale <= 0:
            raise ValueError(f"timescale is {timescale} decisions but must be above 0: 10 is a good start")
        if mean is not None and len(mean) != action_size:
            raise ValueError(f"mean has {len(mean)} numbers but action_size is {action_size}: give one per dimension")
        self.correlation = math.exp(-1 / timescale)
        self.scale = scale
        self.mean = np.zeros(action_size) if mean is None else np.array(mean, np.float64)

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows; their walks begin at the first step."""
        return super().initial(n, seeds) | {"walk": torch.zeros(n, self.action_size, dtype=torch.float64)}

    def act(
        self,
        observation: dict[str, np.ndarray],
        is_first: np.ndarray,
        carry: Carry,
        generators: Sequence[np.random.Generator],
    ) -> tuple[np.ndarray, Carry]:
        """Takes one step of every walk."""
        noise = np.stack([generator.standard_normal(self.action_size) for generator in generators])
        continued = self.correlation * carry["walk"].numpy() + math.sqrt(1 - self.correlation**2) * noise
        walk = np.where(is_first[:, None], noise, continued)
        return np.clip(self.mean + self.scale * walk, -1, 1), {"walk": torch.from_numpy(walk)}


class HeldActionsPolicy(ExplorationPolicy):
    """Draws an action uniformly and repeats it for 1 to max_hold decisions, then draws the next.

    Args:
        action_size: length of the action vector.
        max_hold: most decisions with the same action; each number from 1 to it is equally likely.
        discrete: draw one-hot vectors instead of numbers in [-1, 1].

    Source: Ha and Schmidhuber 2018, the random policy of their Doom run (doomrnn/extract.py: held for 1 to 10 frames).
    """

    blind = True

    def __init__(self, action_size: int, max_hold: int = 10, discrete: bool = False) -> None:
        super().__init__(action_size, discrete)
        if max_hold < 1:
            raise ValueError(f"max_hold is {max_hold} decisions but must be at least 1")
        self.max_hold = max_hold

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows that draw at their first step."""
        held = torch.zeros(n, self.action_size, dtype=torch.float64)
        return super().initial(n, seeds) | {"held": held, "left": torch.zeros(n, dtype=torch.int64)}

    def act(
        self,
        observation: dict[str, np.ndarray],
        is_first: np.ndarray,
        carry: Carry,
        generators: Sequence[np.random.Generator],
    ) -> tuple[np.ndarray, Carry]:
        """Repeats or draws each row's action."""
        held = carry["held"].numpy().copy()
        left = carry["left"].numpy().copy()
        for row in np.flatnonzero(is_first | (left == 0)).tolist():
            left[row] = generators[row].integers(1, self.max_hold + 1)
            # The largest of as many uniform numbers is a uniform choice, so that one rule serves both kinds of action.
            held[row] = generators[row].uniform(-1, 1, self.action_size)
        return held, {"held": torch.from_numpy(held), "left": torch.from_numpy(left - 1)}


class ConstantPolicy(ExplorationPolicy):
    """Always takes the same action; on CarRacing zeros are half gas, straight on.

    Args:
        action: the action, numbers in [-1, 1] or one-hot.
    """

    blind = True

    def __init__(self, action: list[float]) -> None:
        super().__init__(len(action))
        self.action = np.array(action, np.float32)

    def act(
        self,
        observation: dict[str, np.ndarray],
        is_first: np.ndarray,
        carry: Carry,
        generators: Sequence[np.random.Generator],
    ) -> tuple[np.ndarray, Carry]:
        """Returns the action in every row."""
        return np.tile(self.action, (len(is_first), 1)), {}


class RandomNetworkPolicy(ExplorationPolicy):
    """The paper's exploration: in every episode another random V, M and C, with small, heavy-tailed weights.

        stdev ~ U(0, max_stdev) per episode,   every weight and bias = stdev * Cauchy
        z = sample of V(image),   action = tanh(W [z, h] + b),   h, c = LSTM([z, action], h, c)

    Because weights are heavy-tailed, one or two of them dominate an episode, and the car keeps a direction instead of
    jittering. A row's weights are a function of its seed; the newest ones are cached, so that they are drawn once.

    Args:
        action_size: length of the action vector.
        latent_size: numbers in z.
        hidden_size: width of the LSTM.
        max_stdev: largest scale of the weights.
        discrete: give one-hot vectors.

    Source: Ha and Schmidhuber 2018; carracing/extract.py, model.py and vae/vae.py of their code. The LSTM's forget gate
    has 1 added, as TensorFlow's has.
    """

    def __init__(
        self,
        action_size: int,
        latent_size: int = 32,
        hidden_size: int = 256,
        max_stdev: float = 0.01,
        discrete: bool = False,
    ) -> None:
        super().__init__(action_size, discrete)
        self.latent_size, self.hidden_size, self.max_stdev = latent_size, hidden_size, max_stdev
        self._cached_weights: dict[int, list[Tensor]] = {}

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Returns the carry of n rows with a zero memory."""
        empty = torch.zeros(n, self.hidden_size)
        return super().initial(n, seeds) | {"hidden": empty, "cell": empty.clone()}

    def act(
        self,
        observation: dict[str, np.ndarray],
        is_first: np.ndarray,
        carry: Carry,
        generators: Sequence[np.random.Generator],
    ) -> tuple[np.ndarray, Carry]:
        """Runs each row through its own network."""
        n = len(is_first)
        actions, hidden, cell = np.zeros((n, self.action_size)), carry["hidden"].clone(), carry["cell"].clone()
        hidden[torch.from_numpy(is_first)] = 0
        cell[torch.from_numpy(is_first)] = 0
        images = torch.from_numpy(observation["image"]).permute(0, 3, 1, 2) / 255
        with torch.no_grad():
            for row, seed in enumerate(carry["seed"].tolist()):
                noise = torch.from_numpy(generators[row].standard_normal(self.latent_size)).float()
                row_state = images[row : row + 1], noise, hidden[row], cell[row]
                action, hidden[row], cell[row] = self._step(self._weights(seed, images.shape), *row_state)
                actions[row] = action.numpy()
        return actions, {"hidden": hidden, "cell": cell}

    def _step(
        self, weights: list[Tensor], image: Tensor, noise: Tensor, hidden: Tensor, cell: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        *convolutions, code_w, code_b, lstm_w, lstm_b, control_w, control_b = weights
        for kernel, bias in zip(convolutions[::2], convolutions[1::2], strict=True):
            image = functional.relu(functional.conv2d(image, kernel, bias, stride=2))
        mean, logvar = (code_w @ image.flatten() + code_b).chunk(2)
        # With heavy-tailed weights exp could overflow.
        z = mean + (logvar.clamp(-20, 20) / 2).exp() * noise
        action = torch.tanh(control_w @ torch.cat([z, hidden]) + control_b)
        gates = lstm_w @ torch.cat([z, action, hidden]) + lstm_b
        input_gate, candidate, forget_gate, output_gate = gates.chunk(4)
        cell = torch.sigmoid(forget_gate + 1) * cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
        return action, torch.sigmoid(output_gate) * torch.tanh(cell), cell

    def _weights(self, seed: int, shape: torch.Size) -> list[Tensor]:
        if seed not in self._cached_weights:
            while len(self._cached_weights) >= 2 * shape[0]:
                del self._cached_weights[next(iter(self._cached_weights))]
            self._cached_weights[seed] = self._draw(seed, shape)
        return self._cached_weights[seed]

    def _draw(self, seed: int, shape: torch.Size) -> list[Tensor]:
        channels, side = shape[1], shape[2]
        shapes: list[tuple[int, ...]] = []
        for width in (32, 64, 128, 256):
            shapes += [(width, channels, 4, 4), (width,)]
            channels, side = width, (side - 4) // 2 + 1
        if side < 1:
            raise ValueError(f"images are {shape[2]} pixels a side but RandomNetworkPolicy needs at least 46: use 64")
        lstm_input = self.latent_size + self.action_size + self.hidden_size
        shapes += [(2 * self.latent_size, channels * side * side), (2 * self.latent_size,)]
        shapes += [(4 * self.hidden_size, lstm_input), (4 * self.hidden_size,)]
        shapes += [(self.action_size, self.latent_size + self.hidden_size), (self.action_size,)]
        # No step number reaches this key.
        generator = row_generator(seed, 2**63)
        stdev = generator.uniform(0, self.max_stdev)
        return [torch.from_numpy(stdev * generator.standard_cauchy(shape)).float() for shape in shapes]
