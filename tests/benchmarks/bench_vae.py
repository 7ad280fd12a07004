"""How fast V trains and encodes at batch 100, against the same network written plainly.

    python tests/benchmarks/bench_vae.py

The plain one: torch.nn.Conv2d and ConvTranspose2d in their default layout, pixels divided by 255, Adam as it comes.
Both sides in float32 with the same allocator. The limits are 1.3 times the plain loop's images/s for training and 1.1
times for encoding. Not a test: nothing here passes or fails.
"""

from collections.abc import Callable

import fresh_turns
import torch
from torch import nn

from datamodules.episode import Batch
from wmlightning.stages.vae import VAE

BATCH = 100
Turn = tuple[float, Callable[[], object]]


def pixels(*shape: int) -> torch.Tensor:
    """Random uint8 images."""
    return torch.randint(0, 256, shape, dtype=torch.uint8)


class Plain(nn.Module):
    """The layers of Ha and Schmidhuber 2018, appendix, as one would write them down."""

    def __init__(self) -> None:
        super().__init__()
        encoder, decoder = [], []
        for before, after in ((3, 32), (32, 64), (64, 128), (128, 256)):
            encoder += [nn.Conv2d(before, after, 4, 2), nn.ReLU()]
        for before, after, kernel in ((1024, 128, 5), (128, 64, 5), (64, 32, 6), (32, 3, 6)):
            decoder += [nn.ConvTranspose2d(before, after, kernel, 2), nn.ReLU()]
        self.encoder, self.decoder = nn.Sequential(*encoder, nn.Flatten()), nn.Sequential(*decoder[:-1], nn.Sigmoid())
        self.mean, self.logvar, self.dense = nn.Linear(1024, 32), nn.Linear(1024, 32), nn.Linear(32, 1024)

    def loss(self, image: torch.Tensor) -> torch.Tensor:
        x = image.float() / 255
        hidden = self.encoder(x)
        mean, logvar = self.mean(hidden), self.logvar(hidden)
        z = mean + torch.exp(logvar / 2) * torch.randn_like(mean)
        y = self.decoder(self.dense(z)[:, :, None, None])
        kl = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1)
        return ((x - y) ** 2).sum((1, 2, 3)).mean() + kl.clamp(min=16).mean()


def train(loss: Callable[[], torch.Tensor], optimizer: torch.optim.Optimizer) -> Turn:
    """One update of a batch."""

    def update() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return BATCH, update


def train_ours() -> Turn:
    """V's own loss and optimizer."""
    vae, flags = VAE(), torch.zeros(BATCH, 1)
    batch = Batch({"image": pixels(BATCH, 1, 64, 64, 3)}, flags[..., None], flags, flags, flags.bool(), flags.bool())
    return train(lambda: vae.learn(batch)["loss"], vae.configure_optimizers())


def train_plain() -> Turn:
    """The plain loop."""
    plain, image = Plain(), pixels(BATCH, 3, 64, 64)
    return train(lambda: plain.loss(image), torch.optim.Adam(plain.parameters(), lr=1e-4))


def encode_ours() -> Turn:
    """V's mean and logvar."""
    vae, image = VAE().eval(), pixels(BATCH, 64, 64, 3)
    return BATCH, torch.no_grad()(lambda: vae.encode(image))


def encode_plain() -> Turn:
    """The same in the plain network."""
    plain, image = Plain().eval(), pixels(BATCH, 3, 64, 64)

    def encode() -> None:
        hidden = plain.encoder(image.float() / 255)
        plain.mean(hidden), plain.logvar(hidden)

    return BATCH, torch.no_grad()(encode)


if __name__ == "__main__":
    fresh_turns.main(
        __doc__,
        {
            "images, training": {"ours": train_ours, "reference": train_plain},
            "images, encoding": {"ours": encode_ours, "reference": encode_plain},
        },
    )
