"""How fast PlaNet's world model trains at batch 50 x 50 and the paper's sizes, against the same written plainly.

    python tests/benchmarks/bench_planet.py [--allocator kept] [--rows "frames, training"]

The plain one: the sizes of Hafner et al. 2019 in torch.nn.Conv2d, ConvTranspose2d and GRUCell, one step at a time with
both heads inside the loop, in float32, Adam as it comes. The limit is 1.5 times its frames/s, under both allocators.
`bf16` is ours under torch's mixed precision against ours in float32. `GFLOP, training` is how much of what this machine
multiplies matrices with is reached: the work of a frame by hand (forward, and twice as much backward) over the time,
beside a product of two 2,048 x 2,048 matrices. Not a test: nothing here passes or fails.
"""

from collections.abc import Callable

import fresh_turns
import torch
from torch import nn
from torch.nn import functional

from datamodules.episode import Batch
from wmlightning.distributions import GaussianLatent
from wmlightning.dynamics import RSSM
from wmlightning.stages.world_model import WorldModel

ROWS, TIME, ACTIONS = 50, 50, 6
SIZE = 2048
Turn = tuple[float, Callable[[], object]]


def work_of_a_frame() -> float:
    """GFLOP of one frame forth and back, by the layers: two for each multiplication with a weight, three passes."""
    encoder = sum(o * o * 16 * i * c for o, i, c in ((31, 3, 32), (14, 32, 64), (6, 64, 128), (2, 128, 256)))
    decoder = 230 * 1024 + sum(
        i * i * k * k * c * d for i, k, c, d in ((1, 5, 1024, 128), (5, 5, 128, 64), (13, 6, 64, 32), (30, 6, 32, 3))
    )
    dense = sum(p.numel() for p in RSSM(GaussianLatent(30), ACTIONS).parameters()) + 250_201
    return 3 * 2 * (encoder + decoder + dense) / 1e9


class Plain(nn.Module):
    """The layers of PlaNet as one would write them down."""

    def __init__(self) -> None:
        super().__init__()
        encoder, decoder = [], []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
            encoder += [nn.Conv2d(before, after, 4, 2), nn.ReLU()]
        for before, after, kernel in ((1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6)):
            decoder += [nn.ConvTranspose2d(before, after, kernel, 2), nn.ReLU()]
        self.encoder, self.decoder = nn.Sequential(*encoder, nn.Flatten()), nn.Sequential(*decoder[:-1])
        self.dense, self.inputs, self.cell = nn.Linear(230, 1024), nn.Linear(30 + ACTIONS, 200), nn.GRUCell(200, 200)
        self.prior = nn.Sequential(nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 60))
        self.posterior = nn.Sequential(nn.Linear(1224, 200), nn.ReLU(), nn.Linear(200, 60))
        self.reward = nn.Sequential(
            nn.Linear(230, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU()
        )
        self.last = nn.Linear(300, 1)

    def loss(self, image: torch.Tensor, action: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        x = torch.floor(image.float() / 8) / 32 + torch.rand(image.shape) / 32 - 0.5
        embeds = self.encoder(x.flatten(0, 1)).unflatten(0, image.shape[:2])
        h, z = torch.zeros(len(image), 200), torch.zeros(len(image), 30)
        features, kls = [], []
        for t in range(image.shape[1]):
            h = self.cell(torch.relu(self.inputs(torch.cat([z, action[:, t]], -1))), h)
            prior, posterior = (
                self.gaussian(self.prior(h)),
                self.gaussian(self.posterior(torch.cat([h, embeds[:, t]], -1))),
            )
            z = posterior.rsample()
            features.append(torch.cat([z, h], -1))
            kls.append(torch.distributions.kl_divergence(posterior, prior).sum(-1))
        features = torch.stack(features, 1)
        mean = self.decoder(self.dense(features.flatten(0, 1))[:, :, None, None])
        off = self.last(self.reward(features))[..., 0] - reward
        picture = 0.5 * ((x.flatten(0, 1) - mean) ** 2).sum((1, 2, 3)).mean()
        return picture + 10 * 0.5 * (off**2).mean() + torch.stack(kls).clamp(min=3).mean()

    @staticmethod
    def gaussian(params: torch.Tensor) -> torch.distributions.Normal:
        mean, raw = params.chunk(2, -1)
        return torch.distributions.Normal(mean, functional.softplus(raw) + 0.1)


def train(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer, work: float = ROWS * TIME) -> Turn:
    """One update of a batch."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def update() -> None:
        optimizer.zero_grad()
        loss().backward()
        nn.utils.clip_grad_norm_(weights, 1000.0)
        optimizer.step()

    return work, update


def train_ours(bf16: bool = False, work: float = ROWS * TIME) -> Turn:
    """The world model's own loss and optimizer."""
    model, flags = WorldModel(RSSM(GaussianLatent(30), ACTIONS)), torch.zeros(ROWS, TIME)
    image = torch.randint(0, 256, (ROWS, TIME, 64, 64, 3), dtype=torch.uint8)
    action = torch.rand(ROWS, TIME, ACTIONS)
    batch = Batch({"image": image}, action, flags, 1 - flags, flags.bool(), flags.bool())

    def loss() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return model.learn(batch).loss

    return train(loss, model.configure_optimizers(), work)


def train_plain() -> Turn:
    """The plain loop."""
    plain, reward = Plain(), torch.zeros(ROWS, TIME)
    image = torch.randint(0, 256, (ROWS, TIME, 3, 64, 64), dtype=torch.uint8)
    action = torch.rand(ROWS, TIME, ACTIONS)
    return train(lambda: plain.loss(image, action, reward), torch.optim.Adam(plain.parameters(), lr=1e-3, eps=1e-4))


def multiply() -> Turn:
    """A product of two matrices."""
    one, two, out = torch.rand(SIZE, SIZE), torch.rand(SIZE, SIZE), torch.empty(SIZE, SIZE)
    return 2 * SIZE**3 / 1e9, lambda: torch.mm(one, two, out=out)


if __name__ == "__main__":
    fresh_turns.main(
        __doc__,
        {
            "frames, training": {"ours": train_ours, "reference": train_plain},
            "frames, training bf16": {"ours": lambda: train_ours(True), "reference": train_ours},
            "GFLOP, training": {
                "ours": lambda: train_ours(work=ROWS * TIME * work_of_a_frame()),
                "reference": multiply,
            },
        },
    )
