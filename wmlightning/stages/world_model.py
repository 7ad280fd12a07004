"""The world model of PlaNet and Dreamer: images, rewards and what lies behind them, learnt from recorded episodes."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio

from datamodules.episode import Batch, Spec
from wmlightning.dynamics.dynamics import Dynamics
from wmlightning.dynamics.state import State
from wmlightning.networks.conv import ConvDecoder, ConvEncoder
from wmlightning.networks.images import normalize, quantize
from wmlightning.networks.mlp import MLP
from wmlightning.objectives.divergence import FreeNatsKL, KLLoss
from wmlightning.objectives.overshooting import Overshooting
from wmlightning.stages.optimization import build_adam, clip_groups, parameter_group, say_kept_norms
from wmlightning.stages.stage import Stage

CHUNK = 125
"""Images that go through the convolutions at a time on a CPU: what they need then stays in memory that is kept."""

Noise = tuple[Float[Tensor, "batch time height width channels"], Float[Tensor, "batch time latent"]]
"""Uniform numbers in [0, 1) for the pixels, and what the latent takes for its samples."""


@dataclass
class Learned:
    """What a world model makes of one batch.

    Args:
        loss: what to minimise.
        posterior: the states, (B, T), with their gradients.
        metrics: named numbers without gradient, the loss among them.
    """

    loss: Tensor
    posterior: State
    metrics: dict[str, Tensor]


class WorldModel(Stage):
    """Learns latent dynamics from pixels and rewards, by a variational bound (equation 3).

        loss = mean over batch and time of   -ln p(o_t | s_t) - reward_scale ln p(r_t | s_t)
                                           + kl_scale kl(q(s_t | o<=t, a<=t), p(s_t | s_{t-1}, a_t))
                                           + global_prior KL(q || N(0, I))   + what overshooting adds

    Pixels are `quantize`d anew for every batch, and drawn and compared as such. Image and reward are the means of unit
    Gaussians, summed over pixels and channels; the reward is in the environment's units (so a reward_scale of w on a
    reward that is small by a factor f is one of w * f^2 on the full one). Gradients of all parts reach everything.
    Images are 64x64 and have three channels.

    Logged, `world_model/` in front: `loss`, `image` and `reward` (negative log-likelihoods, in nats, their constants of
    11,291.92 and 0.92 included), `kl` and `kl_clipped` (what it costs), and the parts of the options, per batch;
    `val_loss` and `val_psnr` (of reconstructions from the posterior's sample, pixels in [0, 1]) per validation.

    Args:
        dynamics: RSSM, SSM or RNN.
        kl: what the KL costs; None for FreeNatsKL(3).
        overshooting: LatentOvershooting or ObservationOvershooting; None for the standard bound.
        depth: width of the convolutions.
        reward_layers: hidden layers of the reward head.
        reward_units: their width.
        reward_scale: weight of the reward.
        kl_scale: weight of the KL.
        global_prior: weight of the KL to a standard Gaussian, without free nats; 0 for none.
        learning_rate: Adam's.
        epsilon: Adam's.
        max_norm: the gradient is scaled down to this norm where it is longer.
        warmup: updates over which the learning rate grows linearly to its value; 0 for none.
        seed: names the stream of learning noise.

    Raises:
        ValueError: if the dynamics expect other embeds than the encoder gives.

    Source: Hafner et al. 2019 (PlaNet), with the numbers of its ICML version's code. Paper and code differ: the reward
    has weight 10 in the code and none in the paper; its head 3 layers of 300 there and 2 of 200 in the paper.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        kl: KLLoss | None = None,
        overshooting: Overshooting | None = None,
        depth: int = 32,
        reward_layers: int = 3,
        reward_units: int = 300,
        reward_scale: float = 10.0,
        kl_scale: float = 1.0,
        global_prior: float = 0.0,
        learning_rate: float = 1e-3,
        epsilon: float = 1e-4,
        max_norm: float = 1000.0,
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        self.dynamics, self.kl, self.overshooting = dynamics, kl or FreeNatsKL(), overshooting
        self.reward_scale, self.kl_scale, self.global_prior = reward_scale, kl_scale, global_prior
        self.learning_rate, self.epsilon, self.max_norm, self.warmup = learning_rate, epsilon, max_norm, warmup
        self.encoder = ConvEncoder(3, depth)
        if dynamics.embed_size != self.encoder.size:
            raise ValueError(
                f"the encoder of depth {depth} gives {self.encoder.size} numbers but the dynamics expect "
                f"{dynamics.embed_size}: give dynamics embed_size={self.encoder.size}"
            )
        self.decoder = ConvDecoder(dynamics.feature_size, 3, depth)
        self.reward_head = MLP(dynamics.feature_size, 1, reward_layers, reward_units)
        self.metrics: Any = nn.ModuleDict(
            {"val_loss": MeanMetric(), "val_psnr": PeakSignalNoiseRatio(1.0, dim=(1, 2, 3))}
        )

    # ------------------------------------------------------------------------------- the promise of a `LatentModel`

    def encode(
        self,
        image: UInt8[Tensor, "*batch height width channels"],
        noise: Float[Tensor, "*batch height width channels"] | None = None,
    ) -> Float[Tensor, "*batch embed"]:
        """Images (..., H, W, C) to embeds (..., E); noise as in `quantize`, None draws it."""
        return self._embed(quantize(image, noise)).reshape(*image.shape[:-3], self.encoder.size)

    def decode(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch height width channels"]:
        """Features (..., F) to the mean image, clipped to [0, 1], (..., H, W, C)."""
        maps = self.decoder.maps(features.reshape(-1, self.dynamics.feature_size))
        image = torch.cat([self.decoder.draw(part) for part in maps.split(self._chunk(maps))]).permute(0, 2, 3, 1)
        return (image.float() + 0.5).clamp(0, 1).reshape(*features.shape[:-1], *image.shape[1:])

    def reward(self, features: Float[Tensor, "*batch features"]) -> Normal:
        """The reward for arriving at these features, in the environment's units, (...)."""
        return Normal(self.reward_head(features).float()[..., 0], 1.0, validate_args=False)

    def cont(self, features: Float[Tensor, "*batch features"]) -> Bernoulli:
        """That the episode goes on is certain, (...)."""
        return Bernoulli(probs=torch.ones_like(features[..., 0]))

    # ------------------------------------------------------------------------------------------------------- learning

    def learn(self, batch: Batch, noise: Noise | None = None) -> Learned:
        """The loss of a batch of windows (B, T), its posterior states, and its named parts.

        Args:
            batch: images uint8 (B, T, 64, 64, 3), actions and rewards.
            noise: for the pixels and for the latent; None draws both. Overshooting draws its own.

        Raises:
            ValueError: if the actions have another size than the dynamics expect.
        """
        if batch.action.shape[-1] != self.dynamics.action_size:
            raise ValueError(_wrong_action_size(batch.action.shape[-1], self.dynamics.action_size))
        uniform, normal = noise or (None, None)
        pixels = quantize(batch.observation["image"], uniform)
        embeds = self._embed(pixels).unflatten(0, batch.shape)
        posterior, prior = self.dynamics.observe(embeds, batch.action, batch.is_first, noise=normal)
        clipped, nats = self.kl(self.dynamics.latent, posterior.params, prior.params)
        parts = {
            "image": self.image_nats(posterior.features.flatten(0, 1), pixels).unflatten(0, batch.shape),
            "reward": self.reward_nats(posterior.features, batch.reward),
            "kl_clipped": clipped,
        }
        weights = {"reward": self.reward_scale, "kl_clipped": self.kl_scale, "global_kl": self.global_prior}
        if self.global_prior:
            parts["global_kl"] = self.dynamics.latent.kl_to_standard(posterior.params)
        if self.overshooting is not None:
            parts |= self.overshooting(self, posterior, batch, pixels.unflatten(0, batch.shape), self.kl)
        for name, part in parts.items():
            assert part.shape == batch.shape, f"{name} is {tuple(part.shape)}, not {batch.shape}, before its mean"
        means = {name: part.mean() for name, part in parts.items()}
        loss = torch.stack([weights.get(name, 1.0) * mean for name, mean in means.items()]).sum()
        metrics = {name: value.detach() for name, value in {"loss": loss, **means, "kl": nats.mean()}.items()}
        return Learned(loss, posterior, metrics)

    def image_nats(
        self, features: Float[Tensor, "rows features"], pixels: Float[Tensor, "rows channels height width"]
    ) -> Float[Tensor, "rows"]:
        """-ln p(image | features) of a unit Gaussian, summed over pixels and channels, constant included, (N)."""
        maps, size = self.decoder.maps(features), self._chunk(pixels)
        errors = [
            (self.decoder.draw(part).float() - target).square().sum((1, 2, 3))
            for part, target in zip(maps.split(size), pixels.split(size), strict=True)
        ]
        return 0.5 * torch.cat(errors) + 0.5 * math.log(2 * math.pi) * pixels[0].numel()

    def reward_nats(
        self, features: Float[Tensor, "*batch features"], reward: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """-ln p(reward | features) of a unit Gaussian, constant included, (...)."""
        return -self.reward(features).log_prob(reward)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns from one batch and logs the parts."""
        learned = self.learn(batch)
        named = {f"world_model/{name}": value for name, value in learned.metrics.items()}
        self.log_dict(named, on_step=True, on_epoch=False, sync_dist=True)
        return learned.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss and quality of reconstructions on held-out windows."""
        for name, metric in self.measure(batch).items():
            self.log(f"world_model/{name}", metric, on_step=False, on_epoch=True)

    def measure(self, batch: Batch) -> dict[str, Metric]:
        """The metrics of a validation by name, with this batch taken in; whoever is outermost logs them."""
        learned = self.learn(batch)
        self.metrics["val_loss"].update(learned.loss)
        image = self.decode(learned.posterior.features).flatten(0, 1).permute(0, 3, 1, 2)
        self.metrics["val_psnr"].update(image, normalize(batch.observation["image"]))
        return dict(self.metrics.items())

    def parameter_group(self) -> dict[str, Any]:
        """The weights and how they are to be learnt, for the optimizer of whatever stage this model is part of."""
        return parameter_group(self, self.learning_rate, self.epsilon, self.max_norm)

    def configure_optimizers(self) -> Any:
        """Adam without weight decay, as one fused kernel."""
        return build_adam([self.parameter_group()], self.warmup)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips by `max_norm`, and then as the Trainer's flags say. Raises ValueError under 16-mixed."""
        clip_groups(optimizer, self.trainer)
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_fit_start(self) -> None:
        """Refuses a store whose episodes this model cannot read."""
        store = getattr(getattr(self.trainer, "datamodule", None), "store", None)
        if store is not None and len(store):
            self.check_spec(store.spec, f"the episodes in {store.path}")

    def on_train_start(self) -> None:
        """Says so where a resumed optimizer's settings, which win, are not the ones asked for."""
        super().on_train_start()
        say_kept_norms(self.trainer.optimizers, [self.max_norm])

    def check_spec(self, spec: Spec, what: str) -> None:
        """Makes sure that this model can read such observations and actions.

        Args:
            spec: of a store or of an environment.
            what: names it in the error.

        Raises:
            ValueError: if it cannot, in one line that says what to do.
        """
        shape, kind = spec.observation.get("image", ((), ""))
        if tuple(shape) != (64, 64, 3) or kind != "uint8":
            found = f"{kind} images of {tuple(shape)}" if shape else f"{', '.join(spec.observation)} but no image"
            raise ValueError(f"{what} have {found} but the world model reads uint8 (64, 64, 3): record images of 64x64")
        if spec.action_size != self.dynamics.action_size:
            raise ValueError(f"{what}: " + _wrong_action_size(spec.action_size, self.dynamics.action_size))

    def _embed(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.encoder(part) for part in pixels.split(self._chunk(pixels))]).float()

    @staticmethod
    def _chunk(images: Tensor) -> int:
        return CHUNK if images.device.type == "cpu" else len(images)


def _wrong_action_size(found: int, wanted: int) -> str:
    return f"actions have {found} numbers but the dynamics expect {wanted}: give dynamics action_size={found}"
