"""V of World Models: a variational autoencoder that compresses one image to a code."""

import hashlib
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from torchmetrics import MeanMetric
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from datamodules.datasets import WholeEpisode
from datamodules.episode import Batch, Spec
from wmlightning.networks.conv import ConvDecoder, ConvEncoder
from wmlightning.networks.pixels import normalize
from wmlightning.stages.checkpoints import warm_start
from wmlightning.stages.requirements import check_images
from wmlightning.stages.stage import Stage
from wmlightning.validation import above, at_least

COLOUR_BATCHES = 10
"""Training batches over which the mean colour is taken."""
ENCODED_AT_ONCE = 100
"""Images in one pass of the encoder when it encodes whole episodes: more would only cost memory."""
BASELINE_BATCHES = 50
"""Training batches over which the mean image, a test's baseline, is taken."""


class VAE(Stage):
    """V: learns to encode single images to codes z, and to decode images from codes.

        q(z|x) = N(mean(x), exp(logvar(x)))         KL(x) = -1/2 sum over z of (1 + logvar - mean^2 - exp(logvar))
        loss = mean over images of   sum over pixels and channels (x - decode(z))^2
                                   + max(KL(x), kl_tolerance * latent_size)

    The floor applies to the KL of each image, before the mean over images: a KL below it has no gradient. There is no
    1/2 before the squared error, as in the authors' code. Weights are initialised as in TensorFlow, Glorot uniform with
    zero biases. Images are 64x64; a batch (B, T, ...) is B * T single images.

    Logged: `vae/loss`, `reconstruction`, `kl_nats` and `kl_floored` per batch; `val_loss`, `val_psnr`, `val_ssim` per
    validation; in a test `psnr` and `ssim` of reconstructions from the code's mean, and `baseline_psnr` and
    `baseline_ssim` of the training data's mean image. PSNR and SSIM are means over images, of pixels in [0, 1].

    Args:
        latent_size: numbers in a code (CarRacing 32, Doom 64).
        channels: channels of the image.
        depth: width of the convolutions; 32 in the paper.
        kl_tolerance: nats per dimension below which the KL is not minimised further.
        learning_rate: Adam's.
        start: checkpoint of an earlier V for a warm start; null initialises the weights anew.
        mean_colour: without a warm start, initialise the decoder to the mean colour of the training images instead of
            grey. Where nearly all pixels have one colour, the large first errors on the way to it leave every pixel in
            the sigmoid's tail and scale down Adam's later steps, and a small object on that colour is never drawn.
        seed: seed of the learning noise.

    Source: Ha and Schmidhuber 2018, appendix; their released code (carracing/vae/vae.py).
    """

    def __init__(
        self,
        latent_size: int = 32,
        channels: int = 3,
        depth: int = 32,
        kl_tolerance: float = 0.5,
        learning_rate: float = 1e-4,
        start: str | None = None,
        mean_colour: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        above(0, learning_rate=learning_rate)
        at_least(1, latent_size=latent_size, channels=channels, depth=depth)
        at_least(0, kl_tolerance=kl_tolerance)
        self.latent_size = latent_size
        self.channels = channels
        self.kl_tolerance = kl_tolerance
        self.learning_rate = learning_rate
        self.mean_colour = mean_colour and start is None
        self.encoder = ConvEncoder(channels, depth)
        self.code = nn.Linear(self.encoder.size, 2 * latent_size)
        self.decoder = ConvDecoder(latent_size, channels, depth)
        # Mean and logvar are two layers in the paper; each starts with its own Glorot bound.
        for half in self.code.weight.detach().chunk(2):
            nn.init.xavier_uniform_(half)
        nn.init.zeros_(self.code.bias)
        if start is not None:
            warm_start(self, start, ("encoder", "code", "decoder"))
        self.metrics: Any = nn.ModuleDict({"val_loss": MeanMetric()})
        for name in ("val", "", "baseline"):
            prefix = f"{name}_" if name else ""
            self.metrics[f"{prefix}psnr"] = PeakSignalNoiseRatio(1.0, dim=(1, 2, 3))
            self.metrics[f"{prefix}ssim"] = StructuralSimilarityIndexMeasure(data_range=1.0)
        self._mean_image: Tensor | None = None

    def encode(self, image: UInt8[Tensor, "*batch height width channels"]) -> Float[Tensor, "*batch embed"]:
        """Encodes images (..., H, W, C) to embeds [mean, logvar], (..., 2 * latent_size)."""
        return self.code(self.encoder(normalize(image))).reshape(*image.shape[:-3], 2 * self.latent_size)

    def decode(self, code: Float[Tensor, "*batch latent"]) -> Float[Tensor, "*batch height width channels"]:
        """Decodes codes (..., latent_size) to images in [0, 1], (..., H, W, C)."""
        image = torch.sigmoid(self.decoder(code.reshape(-1, self.latent_size))).permute(0, 2, 3, 1)
        return image.reshape(*code.shape[:-1], *image.shape[1:])

    def check_spec(self, spec: Spec, what: str) -> None:
        """Checks that there are images of 64x64 with this V's channels."""
        check_images(spec, what, self.channels, "channels")

    def learn(self, batch: Batch, noise: Float[Tensor, "images latent"] | None = None) -> dict[str, Tensor]:
        """Computes the loss and its parts, each a mean over the B * T images of the batch.

        Args:
            batch: images uint8 (B, T, 64, 64, C).
            noise: standard normal numbers for z, (B * T, latent_size); None draws them from torch's generator.

        Returns:
            `loss` = `reconstruction` + `kl_floored`, and the KL before its floor, `kl_nats`.
        """
        pixels = normalize(_images(batch))
        mean, logvar = self.code(self.encoder(pixels)).float().chunk(2, 1)
        noise = torch.randn_like(mean) if noise is None else noise
        decoded = torch.sigmoid(self.decoder(torch.addcmul(mean, torch.exp(0.5 * logvar), noise)))
        reconstruction = functional.mse_loss(decoded.float(), pixels, reduction="sum") / len(pixels)
        nats = -0.5 * (1 + logvar - mean.square() - logvar.exp()).sum(1)
        floored = nats.clamp(min=self.kl_tolerance * self.latent_size).mean()
        parts = {"loss": reconstruction + floored, "reconstruction": reconstruction}
        return parts | {"kl_nats": nats.mean(), "kl_floored": floored}

    def on_train_start(self) -> None:
        """Initialises the untrained decoder to the mean colour of the training images, if `mean_colour` is set."""
        super().on_train_start()
        if not self.mean_colour or self.batches_trained:
            return
        colours = [normalize(_images(batch)).mean((0, 2, 3)) for batch in self.training_batches(COLOUR_BATCHES)]
        colour = self.mean_over_ranks(torch.stack(colours).mean(0)).clamp(0.01, 0.99)
        bias = self.decoder.last.bias
        assert bias is not None
        bias.data.copy_(torch.logit(colour))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of one batch and logs its parts."""
        parts = self.learn(batch)
        named = {f"vae/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(named, on_step=True, on_epoch=False, sync_dist=True)
        return parts["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Builds Adam as one fused kernel; betas and epsilon are TensorFlow's (and torch's) defaults."""
        return torch.optim.Adam(self.parameters(), lr=self.learning_rate, fused=True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the loss and the quality of reconstructions on held-out images."""
        self.metrics["val_loss"].update(self.learn(batch)["loss"])
        self._compare("val_", batch, self._reconstructed(batch))
        self._log("val_loss", "val_psnr", "val_ssim")

    def on_test_start(self) -> None:
        """Computes the mean image of the training data."""
        total = torch.zeros((), device=self.device)
        count = 0
        for batch in self.training_batches(BASELINE_BATCHES):
            images = normalize(_images(batch))
            total = total + images.sum(0)
            count += len(images)
        self._mean_image = self.mean_over_ranks(total / count)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the quality of reconstructions on held-out images, and of the mean image as a baseline."""
        self._compare("", batch, self._reconstructed(batch))
        assert self._mean_image is not None
        images = _images(batch).flatten(0, 1)
        self._compare("baseline_", batch, self._mean_image.expand(len(images), -1, -1, -1))
        self._log("psnr", "ssim", "baseline_psnr", "baseline_ssim")

    def predict_step(self, batch: WholeEpisode, batch_idx: int) -> dict[str, Tensor]:
        """Encodes one whole episode to `mean` and `logvar`, each (steps + 1, latent_size)."""
        images = _images(batch.batch)[0]
        embeds = torch.cat([self.encode(part) for part in images.split(ENCODED_AT_ONCE)]).float()
        mean, logvar = embeds.chunk(2, -1)
        return {"mean": mean, "logvar": logvar}

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits of the hash of this V's weights, which every episode of its codes carries."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _reconstructed(self, batch: Batch) -> Tensor:
        mean = self.encode(_images(batch).flatten(0, 1)).chunk(2, -1)[0]
        return self.decode(mean).permute(0, 3, 1, 2).float()

    def _compare(self, prefix: str, batch: Batch, prediction: Tensor) -> None:
        truth = normalize(_images(batch))
        for name in ("psnr", "ssim"):
            self.metrics[f"{prefix}{name}"].update(prediction, truth)

    def _log(self, *names: str) -> None:
        for name in names:
            # Under other names than in training: two curves under one tag would hide one another.
            tag = f"vae/test_{name}" if self.trainer.testing else f"vae/{name}"
            self.log(tag, self.metrics[name], on_step=False, on_epoch=True)


def _images(batch: Batch) -> Tensor:
    if "image" not in batch.observation:
        codes = "mean" in batch.observation
        cure = (
            "give data.path a folder of episodes, not of codes" if codes else "record the picture under the key image"
        )
        raise ValueError(f"the data have {', '.join(batch.observation)} but V learns from image: {cure}")
    return batch.observation["image"]
