"""The world model of PlaNet and Dreamer: a latent state-space model learned from images and rewards of episodes."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal
from torchmetrics import MeanMetric, Metric
from torchmetrics.image import PeakSignalNoiseRatio

from datamodules.episode import Batch, Spec
from wmlightning.dynamics.dynamics import Dynamics
from wmlightning.dynamics.state import State
from wmlightning.networks.activations import Activation
from wmlightning.networks.conv import ConvDecoder, ConvEncoder
from wmlightning.networks.heads import ContHead, RewardHead
from wmlightning.networks.pixels import normalize, quantize
from wmlightning.objectives.contrastive import Contrastive
from wmlightning.objectives.divergence import FreeNatsKL, KLLoss
from wmlightning.objectives.overshooting import Overshooting, check_distance
from wmlightning.stages.optimization import JointStage, parameter_group
from wmlightning.stages.requirements import check_action_size, check_images, window_rows
from wmlightning.validation import above, at_least, below

CHUNK = 125
"""Images per pass through the convolutions on a CPU: buffers of this size are reused instead of allocated anew."""

Noise = tuple[Float[Tensor, "batch time height width channels"] | None, Float[Tensor, "batch time latent"] | None]
"""Uniform numbers in [0, 1) for the pixels, used where these are quantised, and standard normal ones for the latent's
samples. None in place of either draws it."""


@dataclass
class ObserveOutput:
    """Posterior and prior states of one batch, and what they were computed from.

    Args:
        pixels: the encoder's input and the decoder's target, (B * T, C, H, W).
        embeds: the encoder's output, (B, T, E).
        posterior: states given images up to and including their own, (B, T), with their gradients.
        prior: states given the images before their own, (B, T).
    """

    pixels: Tensor
    embeds: Tensor
    posterior: State
    prior: State


@dataclass
class WorldModelOutput:
    """The loss of a world model on one batch, and its posterior states.

    Args:
        loss: to be minimised, a scalar.
        posterior: posterior states, (B, T), with their gradients; dreams start at them.
        metrics: named scalars without gradient, the loss among them, ready to be logged.
    """

    loss: Tensor
    posterior: State
    metrics: dict[str, Tensor]


class WorldModel(JointStage):
    """Learns latent dynamics from images and rewards by a variational bound (PlaNet, equation 3).

        loss = mean over batch and time of   -ln p(o_t | s_t) - reward_scale ln p(r_t | s_t)
                                           + kl_scale kl(q(s_t | o<=t, a<=t), p(s_t | s_{t-1}, a_t))
                                           + global_prior KL(q || N(0, I)) - cont_scale ln p(c_t | s_t)
                                           + the terms of overshooting and contrastive

    Decoder and reward head predict the means of unit Gaussians, summed over pixels and channels; the reward is in the
    environment's units (so a reward_scale of w on a reward multiplied by f equals one of w f^2 on the full reward).
    Gradients of all parts reach all weights, unless they are stopped. Images are 64x64.

    Switches choose the losses that train the states. Reward only (Dreamer V1) and no image gradients (V2):
    stop_image_gradients; the decoder still learns to reconstruct images from them. Contrastive (V1): that and
    `contrastive`. No reward gradients (V2): stop_reward_gradients; the head still learns, and dreams use it.

    Logged, `world_model/` in front: `loss`, `image` and `reward` (negative log-likelihoods, in nats, their constants of
    11,291.92 and 0.92 included; a grey image's is 3,763.97), `kl` and `kl_clipped` (with free nats, as in the loss),
    the parts of the options, and `gradient_norm` before clipping, per batch; `val_loss` and `val_psnr` (of
    reconstructions from the posterior's sample, pixels in [0, 1]) per validation.

    Args:
        dynamics: RSSM, SSM or RNN.
        kl: KL loss; None for FreeNatsKL(3).
        overshooting: LatentOvershooting or ObservationOvershooting; None for the standard bound.
        depth: width of the convolutions.
        channels: channels of an image, 3 or, grey, 1.
        pixels: "five_bits" `quantize`s them, with new noise for every batch (PlaNet); "centred" keeps all eight bits
            and adds no noise, image / 255 - 1/2 (Dreamer).
        conv_activation: activation of the convolutions, "relu" or "elu" (Dreamer V2).
        activation: activation of the heads, "relu" or "elu" (Dreamer). The dynamics have their own.
        reward_layers: hidden layers of the reward head.
        reward_units: their width.
        reward_scale: weight of the reward loss.
        reward_squash: "tanh" predicts tanh(reward), also in dreams; see `RewardHead`.
        cont_layers: hidden layers of the head that predicts whether the episode goes on; 0 for no head, which always
            predicts that it does.
        cont_units: their width.
        cont_scale: weight of that head's loss.
        cont_label: label of a step after which the episode goes on; below 1 it contains the discount, see `ContHead`.
        stop_image_gradients: the image loss trains the decoder alone.
        stop_reward_gradients: the reward loss trains its head alone.
        contrastive: contrastive loss between states and embeds of images; null for none.
        contrastive_scale: weight of the contrastive loss.
        kl_scale: weight of the KL.
        global_prior: weight of the KL to a standard Gaussian, without free nats; 0 for none.
        learning_rate: Adam's.
        epsilon: Adam's.
        max_norm: the gradient is clipped to this norm.
        decay: weight decay, the share of every weight removed at an update.
        warmup: updates over which the learning rate grows linearly to its value; 0 for none.
        seed: seed of the learning noise; inside an agent the agent's seed is used.

    Raises:
        ValueError: if the dynamics expect other embeds than the encoder gives, or a number is out of its range.

    Source: Hafner et al. 2019 (PlaNet), with the numbers of its ICML version's code. Paper and code differ: the reward
    has weight 10 in the code and none in the paper; its head 3 layers of 300 there and 2 of 200 in the paper. Dreamer's
    loss: Hafner et al. 2020, equations 10 and 12; 2021 (V2), equation 2 and table 2.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        kl: KLLoss | None = None,
        overshooting: Overshooting | None = None,
        depth: int = 32,
        channels: int = 3,
        pixels: Literal["five_bits", "centred"] = "five_bits",
        conv_activation: Activation = "relu",
        activation: Activation = "relu",
        reward_layers: int = 3,
        reward_units: int = 300,
        reward_scale: float = 10.0,
        reward_squash: Literal["none", "tanh"] = "none",
        cont_layers: int = 0,
        cont_units: int = 400,
        cont_scale: float = 1.0,
        cont_label: float = 1.0,
        stop_image_gradients: bool = False,
        stop_reward_gradients: bool = False,
        contrastive: Contrastive | None = None,
        contrastive_scale: float = 1.0,
        kl_scale: float = 1.0,
        global_prior: float = 0.0,
        learning_rate: float = 1e-3,
        epsilon: float = 1e-4,
        max_norm: float = 1000.0,
        decay: float = 0.0,
        warmup: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        at_least(0, reward_scale=reward_scale, cont_scale=cont_scale, contrastive_scale=contrastive_scale)
        at_least(0, kl_scale=kl_scale, global_prior=global_prior, decay=decay, warmup=warmup)
        at_least(0, reward_layers=reward_layers, cont_layers=cont_layers)
        at_least(1, depth=depth, channels=channels, reward_units=reward_units, cont_units=cont_units)
        above(0, learning_rate=learning_rate, epsilon=epsilon, max_norm=max_norm)
        below(1, decay=decay)
        self.dynamics, self.kl, self.overshooting = dynamics, kl or FreeNatsKL(), overshooting
        self.reward_scale, self.kl_scale, self.global_prior = reward_scale, kl_scale, global_prior
        self.cont_scale, self.contrastive_scale = cont_scale, contrastive_scale
        self.stop_image_gradients, self.stop_reward_gradients = stop_image_gradients, stop_reward_gradients
        self.learning_rate, self.epsilon, self.max_norm, self.decay = learning_rate, epsilon, max_norm, decay
        self.warmup, self.channels, self.dequantises = warmup, channels, pixels == "five_bits"
        self.encoder = ConvEncoder(channels, depth, conv_activation)
        if dynamics.embed_size != self.encoder.size:
            raise ValueError(
                f"the encoder of depth {depth} gives {self.encoder.size} numbers but the dynamics expect "
                f"{dynamics.embed_size}: give dynamics embed_size={self.encoder.size}"
            )
        size = dynamics.feature_size
        self.decoder = ConvDecoder(size, channels, depth, conv_activation)
        self.reward_head = RewardHead(size, reward_layers, reward_units, activation, reward_squash)
        self.cont_head = ContHead(size, cont_layers, cont_units, activation, cont_label)
        self.contrastive = contrastive
        if contrastive is not None:
            contrastive.build(self.encoder.size, size)
        self.metrics: Any = nn.ModuleDict(
            {"val_loss": MeanMetric(), "val_psnr": PeakSignalNoiseRatio(1.0, dim=(1, 2, 3))}
        )

    # -------------------------------------------------------------------------------- interface of a `LatentModel`

    def encode(
        self,
        image: UInt8[Tensor, "*batch height width channels"],
        noise: Float[Tensor, "*batch height width channels"] | None = None,
    ) -> Float[Tensor, "*batch embed"]:
        """Encodes images (..., H, W, C) as embeds (..., E); noise as in `quantize`, where it is used: None draws it."""
        return self._embed(self.pixels(image, noise)).reshape(*image.shape[:-3], self.encoder.size)

    def decode(self, features: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch height width channels"]:
        """Decodes features (..., F) to the mean image, clipped to [0, 1], (..., H, W, C)."""
        maps = self.decoder.maps(features.reshape(-1, self.dynamics.feature_size))
        image = torch.cat([self.decoder.draw(part) for part in maps.split(self._chunk(maps))]).permute(0, 2, 3, 1)
        return (image.float() + 0.5).clamp(0, 1).reshape(*features.shape[:-1], *image.shape[1:])

    def reward(self, features: Float[Tensor, "*batch features"]) -> Normal:
        """Predicts the reward for arriving at these features, in the environment's units or squashed, (...)."""
        return self.reward_head.distribution(features)

    def cont(self, features: Float[Tensor, "*batch features"]) -> Bernoulli:
        """Predicts whether the episode goes on, (...): 1 without a head, times the discount if the label has it."""
        return self.cont_head.distribution(features)

    # ------------------------------------------------------------------------------------------------------- learning

    def learn(self, batch: Batch, noise: Noise | None = None) -> WorldModelOutput:
        """Computes the loss of a batch of windows (B, T), its posterior states, and its named parts.

        Args:
            batch: images uint8 (B, T, 64, 64, C), actions, rewards and flags.
            noise: for the pixels and for the latent; None draws both. Overshooting draws its own.

        Raises:
            ValueError: if the actions have another size than the dynamics expect.
        """
        observed = self.observe(batch, noise)
        features = observed.posterior.features
        latent = self.dynamics.latent
        clipped, nats = self.kl(latent, observed.posterior.params, observed.prior.params)
        parts = {
            "image": self.image_nats(features.flatten(0, 1), observed.pixels).unflatten(0, batch.shape),
            "reward": self.reward_nats(features, batch.reward),
            "kl_clipped": clipped,
        }
        weights = {"reward": self.reward_scale, "kl_clipped": self.kl_scale, "global_kl": self.global_prior}
        weights |= {"cont": self.cont_scale, "contrastive": self.contrastive_scale}
        if self.global_prior:
            parts["global_kl"] = latent.kl_to_standard(observed.posterior.params)
        if self.cont_head.mlp is not None:
            parts["cont"] = self.cont_head.nats(features, batch.cont)
        if self.contrastive is not None:
            parts["contrastive"] = self.contrastive(observed.embeds, features)
        if self.overshooting is not None:
            parts |= self.overshooting(
                self, observed.posterior, batch, observed.pixels.unflatten(0, batch.shape), self.kl
            )
        for name, part in parts.items():
            assert part.shape == batch.shape, f"{name} is {tuple(part.shape)}, not {batch.shape}, before its mean"
        means = {name: part.mean() for name, part in parts.items()}
        loss = torch.stack([weights.get(name, 1.0) * mean for name, mean in means.items()]).sum()
        metrics = {name: value.detach() for name, value in {"loss": loss, **means, "kl": nats.mean()}.items()}
        return WorldModelOutput(loss, observed.posterior, metrics)

    def observe(self, batch: Batch, noise: Noise | None = None) -> ObserveOutput:
        """Computes posterior and prior of every row of a batch; arguments and errors as of `learn`."""
        check_action_size(batch.action.shape[-1], self.dynamics.action_size, "the batch")
        uniform, normal = noise or (None, None)
        pixels = self.pixels(batch.observation["image"], uniform)
        embeds = self._embed(pixels).unflatten(0, batch.shape)
        posterior, prior = self.dynamics.observe(embeds, batch.action, batch.is_first, noise=normal)
        return ObserveOutput(pixels, embeds, posterior, prior)

    def pixels(self, image: UInt8[Tensor, "*batch height width channels"], noise: Tensor | None = None) -> Tensor:
        """Returns the encoder's input and the decoder's target, (N, C, H, W); noise as in `quantize`."""
        return quantize(image, noise) if self.dequantises else normalize(image, -0.5)

    def image_nats(
        self, features: Float[Tensor, "rows features"], pixels: Float[Tensor, "rows channels height width"]
    ) -> Float[Tensor, "rows"]:
        """Returns -ln p(image | features) of a unit Gaussian, summed over a whole image, constant included, (N)."""
        if self.stop_image_gradients:
            features = features.detach()
        maps, size = self.decoder.maps(features), self._chunk(pixels)
        errors = [
            (self.decoder.draw(part).float() - target).square().sum((1, 2, 3))
            for part, target in zip(maps.split(size), pixels.split(size), strict=True)
        ]
        return 0.5 * torch.cat(errors) + 0.5 * math.log(2 * math.pi) * pixels[0].numel()

    def reward_nats(
        self, features: Float[Tensor, "*batch features"], reward: Float[Tensor, "*batch"]
    ) -> Float[Tensor, "*batch"]:
        """Returns -ln p(reward | features) of a unit Gaussian, constant included, (...)."""
        return self.reward_head.nats(features.detach() if self.stop_reward_gradients else features, reward)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns from one batch and logs the parts of the loss."""
        output = self.learn(batch)
        metrics = {f"world_model/{name}": value for name, value in output.metrics.items()}
        self.log_dict(metrics, on_step=True, on_epoch=False, sync_dist=True)
        return output.loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Logs the loss and the quality of reconstructions on held-out windows."""
        for name, metric in self.measure(batch).items():
            self.log(f"world_model/{name}", metric, on_step=False, on_epoch=True)

    def measure(self, batch: Batch) -> dict[str, Metric]:
        """Updates the validation metrics by a batch and returns them by name, for the outermost module to log."""
        output = self.learn(batch)
        self.metrics["val_loss"].update(output.loss)
        image = self.decode(output.posterior.features).flatten(0, 1).permute(0, 3, 1, 2)
        self.metrics["val_psnr"].update(image, normalize(batch.observation["image"]))
        return dict(self.metrics.items())

    def groups(self) -> dict[str, dict[str, Any]]:
        """Returns one parameter group, the whole model's."""
        learning = self.learning_rate, self.epsilon, self.max_norm, self.decay
        return {"world_model": parameter_group(self, *learning)}

    def check_data(self, data: Any) -> None:
        """Also checks that windows are long enough for the overshooting; ValueError."""
        rows = window_rows(data)
        if self.overshooting is not None and rows is not None:
            check_distance(self.overshooting.distance, rows)
        super().check_data(data)

    def check_spec(self, spec: Spec, what: str) -> None:
        """Checks the size and channels of images and the size of actions; ValueError."""
        check_images(spec, what, self.channels, "world_model.channels")
        check_action_size(spec.action_size, self.dynamics.action_size, what)

    def _embed(self, pixels: Tensor) -> Tensor:
        return torch.cat([self.encoder(part) for part in pixels.split(self._chunk(pixels))]).float()

    @staticmethod
    def _chunk(images: Tensor) -> int:
        return CHUNK if images.device.type == "cpu" else len(images)
