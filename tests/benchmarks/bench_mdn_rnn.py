"""How fast M trains on 100 windows of 500 given codes, against a fused LSTM with one mixture for all dimensions.

    python tests/benchmarks/bench_mdn_rnn.py

The reference: torch.nn.LSTM(35, 256), one linear head with 5 weights and 5 x 32 means and log stds, Adam as it comes;
its mixture is shared by all dimensions, a smaller head and a smaller likelihood than ours with a mixture for each. Both
sides in float32 with the same allocator. The limit is 0.9 times the reference's transitions/s. The second row has
episodes that end inside windows, where ours must forget. Not a test: nothing here passes or fails.
"""

import math
from collections.abc import Callable

import fresh_turns
import torch
from torch import nn

from datamodules.episode import Batch
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

BATCH, TIME, LATENT, ACTION, HIDDEN, MIXTURES = 100, 500, 32, 3, 256, 5
Turn = tuple[float, Callable[[], object]]


class Plain(nn.Module):
    """An LSTM and a mixture that all dimensions share, as one would write them down."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(LATENT + ACTION, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, MIXTURES * (2 * LATENT + 1))

    def loss(self, z: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        out = self.head(self.lstm(torch.cat([z[:, :-1], action[:, 1:]], -1))[0])
        logits, mean, log_std = out.split([MIXTURES, MIXTURES * LATENT, MIXTURES * LATENT], -1)
        mean, log_std = (part.unflatten(-1, (MIXTURES, LATENT)) for part in (mean, log_std))
        normal = -0.5 * ((z[:, 1:, None] - mean) / log_std.exp()) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
        return -torch.logsumexp(torch.log_softmax(logits, -1) + normal.sum(-1), -1).mean()


def train(loss: Callable[[], torch.Tensor], parameters: list, optimizer: torch.optim.Optimizer) -> Turn:
    """One update of a batch, its gradient clipped by value."""

    def update() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_value_(parameters, 1.0)
        optimizer.step()

    return BATCH * (TIME - 1), update


def ours(resets: int = 0) -> Turn:
    """M's own loss and optimizer, z drawn anew; `resets` more rows of the batch begin an episode."""
    model = MDNRNN(VAE(), MDNLSTM(LATENT, ACTION, HIDDEN, MIXTURES))
    is_first = torch.zeros(BATCH, TIME, dtype=torch.bool)
    is_first[:, 0] = True
    is_first[torch.randint(0, BATCH, (resets,)), torch.randint(1, TIME, (resets,))] = True
    codes = {name: torch.randn(BATCH, TIME, LATENT).half() for name in ("mean", "logvar")}
    flat = torch.zeros(BATCH, TIME)
    batch = Batch(codes, torch.randn(BATCH, TIME, ACTION), flat, flat, is_first, flat.bool())
    trained = [p for p in model.parameters() if p.requires_grad]
    return train(lambda: model.learn(batch)["loss"], trained, model.configure_optimizers())


def reference() -> Turn:
    """The plain loop, z given."""
    plain, z, action = Plain(), torch.randn(BATCH, TIME, LATENT), torch.randn(BATCH, TIME, ACTION)
    parameters = list(plain.parameters())
    return train(lambda: plain.loss(z, action), parameters, torch.optim.Adam(parameters, lr=1e-3))


if __name__ == "__main__":
    fresh_turns.main(
        __doc__,
        {
            "transitions": {"ours": ours, "reference": reference},
            "with 100 resets": {"ours": lambda: ours(100), "reference": reference},
        },
    )
