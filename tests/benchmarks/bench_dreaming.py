"""How fast 64 candidates dream 16 episodes each, 1,024 dreams at once, against a bare loop of the same arithmetic.

    python tests/benchmarks/bench_dreaming.py [--threads 2] [--rows cuda-256]

Ours is `DreamFitness.play`, which a generation of C inside M is: starts drawn, noise shared as told, dreams that are
over left out, sums kept. The reference is the loop one would write for exactly these sizes: `torch.nn.LSTMCell`, one
linear head for the mixture, softmax, cumsum and gather, one batched product for the controllers, in inference mode. The
done head is there and never says that a dream is over, so that both dream every step. LSTM 256 with z 32 is the paper's
CarRacing model, LSTM 512 with z 64 and restart flag its Doom model. The limit is 0.9 times the reference's steps/s.
`shared`: every candidate meets the same noise, drawn once; `independent`: noise for every dream. `bf16`: both sides
under autocast. Not a test: nothing here passes or fails.
"""

import contextlib
import math
from collections.abc import Callable

import fresh_turns
import torch
from torch import Tensor, nn

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.dream import DreamRules
from wmlightning.environments.factory import EnvFactory
from wmlightning.networks.controller import Controller
from wmlightning.stages.fitness import DreamFitness
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

POPULATION, EPISODES, STEPS, MIXTURES, TEMPERATURE = 64, 16, 50, 5, 1.15
DREAMERS = POPULATION * EPISODES
SIZES = {256: (32, 3, "zh", False), 512: (64, 1, "zch", True)}
"""LSTM -> numbers in z and in an action, what C sees, and whether the restart flag is an input."""
Turn = tuple[float, Callable[[], object]]


class Bare(nn.Module):
    """The same arithmetic, written down for these sizes alone."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.latent, self.action, self.features, self.restart = SIZES[hidden]
        self.cell = nn.LSTMCell(self.latent + self.action + self.restart, hidden)
        self.mixture = nn.Linear(hidden, self.latent * 3 * MIXTURES)
        self.done = nn.Linear(hidden, 1)
        self.done.bias.data.fill_(-9.0)

    @torch.inference_mode()
    def dream(self, theta: Tensor, z: Tensor, shared: bool) -> Tensor:
        """Mean return of every candidate; theta (P, features, actions), z (P * E, Z)."""
        hidden = cell = z.new_zeros(DREAMERS, self.cell.hidden_size)
        restart = z.new_ones(DREAMERS, int(self.restart))
        alive, returns = z.new_ones(DREAMERS), z.new_zeros(DREAMERS)
        rows = EPISODES if shared else DREAMERS
        for _ in range(STEPS):
            seen = torch.cat([z, hidden, cell] if self.features == "zch" else [z, hidden], 1)
            action = torch.tanh(torch.bmm(seen.view(POPULATION, EPISODES, -1), theta)).view(DREAMERS, -1)
            hidden, cell = self.cell(torch.cat([z, action, restart], 1), (hidden, cell))
            restart = torch.zeros_like(restart)
            logits, mean, log_std = self.mixture(hidden).float().view(DREAMERS, self.latent, -1).chunk(3, -1)
            uniform = torch.rand(rows, self.latent, 1, device=z.device).repeat(DREAMERS // rows, 1, 1)
            normal = torch.randn(rows, self.latent, device=z.device).repeat(DREAMERS // rows, 1)
            below = (logits / TEMPERATURE).softmax(-1).cumsum(-1)[..., :-1]
            chosen = (uniform >= below).sum(-1, keepdim=True)
            mean, log_std = mean.gather(-1, chosen).squeeze(-1), log_std.gather(-1, chosen).squeeze(-1)
            z = mean + log_std.exp() * math.sqrt(TEMPERATURE) * normal
            alive = alive * (self.done(hidden)[:, 0] <= 0)
            returns = returns + alive
        return returns.view(POPULATION, EPISODES).mean(1)


def timed(run: Callable[[], object], device: str, half: bool) -> Turn:
    """Dreamt steps in one call, and the call."""

    def once() -> None:
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            run()
        if device == "cuda":
            torch.cuda.synchronize()

    return DREAMERS * STEPS, once


def ours(hidden: int, shared: bool = True, half: bool = False, device: str = "cpu") -> Turn:
    """A generation of C in M's dream."""
    latent, action, features, restart = SIZES[hidden]
    model = MDNRNN(VAE(latent), MDNLSTM(latent, action, hidden, MIXTURES, restart), done_head=True)
    model.heads.layers["done"].bias.data.fill_(-9.0)  # pyright: ignore[reportCallIssue]
    controller = Controller(features, latent, hidden, action, bias=False)
    dream = DreamRules(temperature=TEMPERATURE, max_steps=STEPS, reward="alive", done=True)
    environment = EnvFactory("wmlightning/DummyPixels-v0")
    fitness = DreamFitness(dream, model.requires_grad_(False).to(device).eval(), controller, environment)
    fitness.starts = torch.randn(100, 2 * latent, device=device)
    candidates = 0.1 * torch.randn(POPULATION, controller.size, dtype=torch.float64)
    seeds = [episode + (0 if shared else EPISODES * row) for row in range(POPULATION) for episode in range(EPISODES)]
    return timed(lambda: fitness.play(candidates, seeds), device, half)


def reference(hidden: int, shared: bool = True, half: bool = False, device: str = "cpu") -> Turn:
    """The bare loop."""
    bare = Bare(hidden).requires_grad_(False).to(device)
    seen = bare.latent + hidden * (2 if bare.features == "zch" else 1)
    theta = 0.1 * torch.randn(POPULATION, seen, bare.action, device=device)
    z = torch.randn(DREAMERS, bare.latent, device=device)
    return timed(lambda: bare.dream(theta, z, shared), device, half)


def row(*arguments: int | bool | str) -> dict[str, Callable[[], Turn]]:
    """Both contenders with the same arguments."""
    return {"ours": lambda: ours(*arguments), "reference": lambda: reference(*arguments)}  # type: ignore[arg-type]


if __name__ == "__main__":
    table = {
        "LSTM 256, shared": row(256),
        "LSTM 512, shared": row(512),
        "LSTM 256, independent": row(256, False),
        "LSTM 512, independent": row(512, False),
        "LSTM 256, bf16": row(256, True, True),
        "LSTM 512, bf16": row(512, True, True),
    }
    if torch.cuda.is_available():
        table |= {f"LSTM {hidden}, cuda": row(hidden, True, False, "cuda") for hidden in SIZES}
        table |= {f"LSTM {hidden}, cuda bf16": row(hidden, True, True, "cuda") for hidden in SIZES}
    fresh_turns.main(__doc__, table)
