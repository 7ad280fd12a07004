"""M of World Models: learns to predict the next code from codes and actions, on top of a frozen V."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributions import Bernoulli, Distribution, Normal
from torchmetrics import MeanMetric, MeanSquaredError

from datamodules.episode import Batch, Spec
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.dynamics.state import State
from wmlightning.recipes import build_recipe, recipe_of
from wmlightning.seeds import derive_seed
from wmlightning.stages.baselines import CopyBaseline, predictions_ahead
from wmlightning.stages.checkpoints import loaded, warm_start
from wmlightning.stages.memory_heads import MemoryHeads
from wmlightning.stages.requirements import check_action_size, check_codes, check_least, promised
from wmlightning.stages.stage import Stage
from wmlightning.stages.vae import VAE
from wmlightning.validation import above, at_least

HORIZONS = (1, 5, 20)
"""Decisions ahead at which a test measures the error of the predicted mean."""
BASELINE_BATCHES = 50
"""Training batches to which the baseline of a test is fitted."""


class MDNRNN(Stage):
    """A world one can dream in: V's codes, a recurrent mixture density network over them, and optional heads.

        loss = mean over rows and dimensions of  -log p(z[t] | h[t])   + reward + done + action, where there are heads
        h[t] has consumed z[t-1] and the action that led to image t;   z is drawn anew from V's Gaussian for every batch

    The heads (see `MemoryHeads`) read h alone; the one for the action taken at image t lets M absorb what C does. Rows
    that nothing can predict do not count: those flagged is_first, and a window's first unless state was carried over.
    Batches hold V's codes (`mean`, `logvar`) or images, which V then encodes. With curiosity the reward that is learnt
    is  reward * reward_scale + curiosity * nll  of that row: what surprised M is worth going to in its dreams.

    Logged: `mdn_rnn/loss` and its parts per batch, `val_nll` per validation. A test gives, in nats per dimension,
    `nll`, `copy_nll` (see `CopyBaseline`) and `untrained_nll`; and the root mean square error of the predicted mean
    against V's mean on dimensions with a KL above 0.1 nats, 1, 5 and 20 decisions ahead, beside that of copying:
    `error_h1`, `copy_error_h1` and so on; with a reward head also that of the reward, `reward_error`.

    Args:
        vae: V, or the path of its checkpoint. Frozen; its weights travel in M's checkpoint.
        dynamics: the memory.
        learning_rate: Adam's.
        final_learning_rate: where the learning rate goes: lr[k] = (first - final) * decay^k + final at update k.
        learning_rate_decay: that decay; 1 keeps the learning rate (CarRacing), 0.99999 is Doom's.
        clip_value: every number of the gradient is clipped to [-clip_value, clip_value].
        reward_head: predict the reward.
        done_head: predict the end of the episode.
        done_weight: weight of the rows at which an episode ends.
        action_head: predict the next action: "none", "continuous" (a unit Gaussian) or "discrete" (one-hot).
        stateful: carry the memory from each batch into the next, for data in order (ConsecutiveWindows). It is part of
            the checkpoint.
        start: checkpoint of an earlier M whose memory and heads this one begins with; V is this one's own.
        reward_scale: what rewards are multiplied by before the head learns them; `reward` gives them back divided.
        curiosity: weight of M's own loss in the reward that is learnt, at least 0.
        seed: names the stream of learning noise.

    Raises:
        ValueError: if V's codes and the memory's differ in size, a checkpoint is not what it should be, or the reward
            is scaled or made curious without a reward head.

    Source: Ha and Schmidhuber 2018; their released code (carracing/rnn/rnn.py, doomrnn/rnn_train.py).
    """

    def __init__(
        self,
        vae: VAE | str,
        dynamics: MDNLSTM,
        learning_rate: float = 1e-3,
        final_learning_rate: float = 1e-5,
        learning_rate_decay: float = 1.0,
        clip_value: float = 1.0,
        reward_head: bool = False,
        done_head: bool = False,
        done_weight: float = 10.0,
        action_head: Literal["none", "continuous", "discrete"] = "none",
        stateful: bool = False,
        start: str | None = None,
        reward_scale: float = 1.0,
        curiosity: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(seed)
        above(0, learning_rate=learning_rate, final_learning_rate=final_learning_rate, clip_value=clip_value)
        at_least(0, curiosity=curiosity, done_weight=done_weight, learning_rate_decay=learning_rate_decay)
        self.vae: VAE = loaded(vae, VAE)
        # The recipe must not depend on a path: the checkpoint alone rebuilds V too.
        self.__dict__["_arguments"]["vae"] = self.vae
        self.vae.requires_grad_(False)
        if self.vae.latent_size != dynamics.latent_size:
            raise ValueError(
                f"V's codes have {self.vae.latent_size} numbers but the memory's {dynamics.latent_size}: give dynamics "
                f"latent_size={self.vae.latent_size}"
            )
        self.dynamics = dynamics
        self.learning_rate, self.final_learning_rate = learning_rate, final_learning_rate
        self.learning_rate_decay, self.clip_value = learning_rate_decay, clip_value
        self.stateful, self.curiosity = stateful, curiosity
        sizes = dynamics.hidden_size, dynamics.action_size
        self.heads = MemoryHeads(*sizes, reward_head, done_head, done_weight, action_head, reward_scale)
        if not reward_head and (curiosity or reward_scale != 1):
            raise ValueError("reward_scale and curiosity change what the reward head learns: set reward_head=true")
        if start is not None:
            warm_start(self, start, ("dynamics", "heads"))
        names = ["val_nll", "nll", "copy_nll", "untrained_nll"]
        self.metrics: Any = nn.ModuleDict({name: MeanMetric() for name in names})
        if reward_head:
            self.metrics["reward_error"] = MeanSquaredError(squared=False)
        for h in HORIZONS:
            for name in (f"error_h{h}", f"copy_error_h{h}"):
                self.metrics[name] = MeanSquaredError(squared=False)
        self._carried: State | None = None
        self._copy: CopyBaseline | None = None

    def encode(self, image: Tensor) -> Tensor:
        """uint8 images (..., H, W, C) to V's [mean, logvar], (..., 2 * Nz)."""
        return self.vae.encode(image)

    def decode(self, features: Tensor) -> Tensor:
        """Features [z, h, c], or z alone, to the mean image in [0, 1], (..., H, W, C)."""
        return self.vae.decode(features[..., : self.dynamics.latent_size])

    def reward(self, features: Float[Tensor, "*batch features"]) -> Normal:
        """The reward for arriving at features (..., F), in the environment's units.

        Raises:
            ValueError: without a reward head.
        """
        return self.heads.reward(self._hidden(features))

    def cont(self, features: Float[Tensor, "*batch features"]) -> Bernoulli:
        """Whether the episode goes on from features (..., F): certain without a done head.

        The authors do not sample it: an episode is over where the probability is below 1/2.
        """
        return self.heads.cont(self._hidden(features))

    def action(self, features: Float[Tensor, "*batch features"]) -> Distribution:
        """The action that will be taken at features (..., F): unit Gaussians, or a one-hot choice.

        Raises:
            ValueError: without an action head.
        """
        return self.heads.action(self._hidden(features))

    def embeds(self, batch: Batch) -> Float[Tensor, "batch time embed"]:
        """V's [mean, logvar] of a batch: read where it holds codes, computed where it holds images."""
        if "mean" in batch.observation:
            return torch.cat([batch.observation[name].float() for name in ("mean", "logvar")], -1)
        with torch.no_grad():
            return self.encode(batch.observation["image"]).float()

    def learn(self, batch: Batch, noise: Float[Tensor, "batch time latent"] | None = None) -> dict[str, Tensor]:
        """The parts of the loss, each a mean over the rows that can be predicted.

        Args:
            batch: codes or images (B, T, ...), T at least 2.
            noise: standard normal numbers for z; None draws them from torch's generator.

        Returns:
            `loss`, the sum of `nll` and of `reward`, `done` and `action` where there are heads, in nats.
        """
        return self._learn(batch, noise)[0]

    def _learn(
        self,
        batch: Batch,
        noise: Tensor | None = None,
        before: State | None = None,
        over_ranks: Callable[[Tensor], Tensor] = lambda count: count,
    ) -> tuple[dict[str, Tensor], State]:
        self._check(batch)
        codes = self.dynamics.code(self.embeds(batch), noise)
        hidden, last = self.dynamics.remember(codes, batch.action, batch.is_first, before)
        known = ~batch.is_first
        if before is None:
            known[:, 0] = False  # nothing was seen before, and an LSTM that guesses from nothing learns the average

        def mean(nats: Tensor, rows: Tensor) -> Tensor:
            # Divided by the rows of all processes, so that the average of their gradients is that of one big batch.
            return torch.where(rows, nats, 0.0).sum() / over_ranks(rows.sum(dtype=torch.float32)).clamp(min=1e-6)

        surprise = self._nll(self.dynamics, hidden, codes)
        parts = {"nll": mean(surprise, known)}
        for name, (nats, rows) in self.heads.nats(hidden, batch, self.curiosity * surprise.detach()).items():
            parts[name] = mean(nats, known & rows)
        return {"loss": torch.stack(list(parts.values())).sum()} | parts, last.detach()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Learns from one batch and logs the parts."""
        before = self._carried
        if before is not None:  # of no use to a batch of another size
            fits = len(before.deter) == batch.shape[0]
            before = before.map(lambda tensor: tensor.to(self.device)) if fits else None
        parts, last = self._learn(batch, None, before, self.over_ranks)
        self._carried = last if self.stateful else None
        named = {f"mdn_rnn/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(named, on_step=True, on_epoch=False, sync_dist=True)
        return parts["loss"]

    def configure_optimizers(self) -> Any:
        """Adam as one fused kernel, betas and epsilon TensorFlow's (and torch's) defaults; lr by the update count."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=self.learning_rate, fused=True)
        if self.learning_rate_decay == 1:
            return optimizer
        final = self.final_learning_rate / self.learning_rate
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda update: (1 - final) * self.learning_rate_decay**update + final
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips every number of the gradient to [-clip_value, clip_value], and then as the Trainer's flags say.

        Raises:
            ValueError: under `precision="16-mixed"`, whose gradients are still scaled at this point.
        """
        if self.trainer.precision == "16-mixed":
            raise ValueError("precision 16-mixed scales gradients before they are clipped: use bf16-mixed or 32-true")
        nn.utils.clip_grad_value_([p for p in self.parameters() if p.requires_grad], self.clip_value)
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def train(self, mode: bool = True) -> "MDNRNN":
        """Sets the mode of everything but V, which stays in evaluation mode."""
        super().train(mode)
        self.vae.eval()
        return self

    def setup(self, stage: str) -> None:
        """Begins without a carried memory; a checkpoint that has one is read after this."""
        self._carried = None

    def check_data(self, data: Any) -> None:
        """Refuses codes that another V wrote, and windows of one row, beside episodes of other sizes."""
        super().check_data(data)
        check_least(2, data, "M predicts a row from the one before it")
        if (store := getattr(data, "store", None)) is not None and promised(store.path) is None:
            check_codes(store, self.vae.fingerprint())

    def check_spec(self, spec: Spec, what: str) -> None:
        """V's codes, or images that V can encode; actions as the memory takes them and as their head predicts them."""
        if "mean" not in spec.observation:
            self.vae.check_spec(spec, what)
        elif (found := spec.observation["mean"][0]) != (self.vae.latent_size,):
            raise ValueError(f"{what} have codes of {found} but V's are ({self.vae.latent_size},): give M that V")
        check_action_size(spec.action_size, self.dynamics.action_size, what)
        self.heads.check_spec(spec, what)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the memory that every process carries, if it does."""
        super().on_save_checkpoint(checkpoint)
        if self._carried is not None:
            own = {"deter": self._carried.deter, "stoch": self._carried.stoch}
            ranks: Any = self.all_gather(own)
            checkpoint["carried"] = {name: ranks[name].reshape(-1, *own[name].shape).cpu() for name in own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes up this process's carried memory."""
        super().on_load_checkpoint(checkpoint)
        carried = checkpoint.get("carried")
        if carried is None or not self.stateful:
            return
        if len(carried["deter"]) != self.trainer.world_size:
            rank_zero_warn(
                f"the checkpoint carries the memories of {len(carried['deter'])} processes and there are now "
                f"{self.trainer.world_size}: the memory starts from zero"
            )
            return
        deter, stoch = (carried[name][self.global_rank] for name in ("deter", "stoch"))
        self._carried = State(deter, stoch, torch.cat([torch.zeros_like(stoch)] * 2, -1))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Negative log-likelihood on held-out windows."""
        codes = self.dynamics.code(self.embeds(batch))
        hidden, _ = self.dynamics.remember(codes, batch.action, batch.is_first)
        self._count("val_nll", self._nll(self.dynamics, hidden, codes), batch)
        self._log("val_nll")

    def on_test_start(self) -> None:
        """Fits the baseline to training data and builds an untrained M."""
        self._copy = CopyBaseline(self.dynamics.latent_size, self.device)
        for batch in self.training_batches(BASELINE_BATCHES):
            self._copy.update(self.embeds(batch), batch.is_first)
        self._copy.fit(self.over_ranks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, 3))
            untrained = build_recipe(recipe_of(self.dynamics))
        # A list, so that it becomes no part of this module.
        self._untrained = [untrained.to(self.device).eval()]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Likelihoods of held-out windows and errors of open-loop predictions, beside their baselines."""
        assert self._copy is not None
        embeds = self.embeds(batch)
        codes = self.dynamics.code(embeds)
        hidden, _ = self.dynamics.remember(codes, batch.action, batch.is_first)
        self._count("nll", self._nll(self.dynamics, hidden, codes), batch)
        if "reward_error" in self.metrics:
            known = ~batch.is_first[:, 1:]
            guess = self.heads.reward(hidden).mean[:, 1:]
            self.metrics["reward_error"].update(guess[known], batch.reward[:, 1:][known])
            self._log("reward_error")
        untrained = self._untrained[0]
        hidden, _ = untrained.remember(codes, batch.action, batch.is_first)
        self._count("untrained_nll", self._nll(untrained, hidden, codes), batch)
        self._count("copy_nll", self._copy.nll(codes), batch)
        self._log("nll", "untrained_nll", "copy_nll")
        horizons = [h for h in HORIZONS if h < batch.shape[1]]
        ahead = predictions_ahead(self.dynamics, embeds, batch, horizons) if horizons else {}
        for h, codes_ahead in ahead.items():
            guess, copy, truth = (code[:, self._copy.informative].reshape(-1) for code in codes_ahead)
            self.metrics[f"error_h{h}"].update(guess, truth)
            self.metrics[f"copy_error_h{h}"].update(copy, truth)
            self._log(f"error_h{h}", f"copy_error_h{h}")

    def _hidden(self, features: Tensor) -> Tensor:
        start = self.dynamics.latent_size
        return features[..., start : start + self.dynamics.hidden_size]

    @staticmethod
    def _nll(dynamics: Any, hidden: Tensor, codes: Tensor) -> Float[Tensor, "batch time"]:
        # Time first is how `remember` lays out h: 50,000 rows need not be copied.
        mixture = dynamics.mixture(dynamics.head(hidden.transpose(0, 1)))
        return -mixture.log_prob(codes.transpose(0, 1)).mean(-1).transpose(0, 1)

    def _count(self, name: str, nats: Float[Tensor, "batch time"], batch: Batch) -> None:
        known: Bool[Tensor, "batch time"] = ~batch.is_first
        self.metrics[name].update(nats[:, 1:][known[:, 1:]])

    def _log(self, *names: str) -> None:
        for name in names:
            # Named apart from what training logs: two curves under one tag would hide one another.
            tag = f"mdn_rnn/test_{name}" if self.trainer.testing else f"mdn_rnn/{name}"
            self.log(tag, self.metrics[name], on_step=False, on_epoch=True)

    def _check(self, batch: Batch) -> None:
        if batch.shape[1] < 2:
            raise ValueError("windows of one row leave nothing to predict: use WindowDataset with a length above 1")
        check_action_size(batch.action.shape[-1], self.dynamics.action_size, "the batch")
