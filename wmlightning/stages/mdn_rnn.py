"""M of World Models: a recurrent network that predicts the next code of a frozen V from codes and actions."""

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
from wmlightning.stages.checkpoints import resolve_stage, warm_start
from wmlightning.stages.memory_heads import MemoryHeads
from wmlightning.stages.requirements import check_action_size, check_codes_origin, check_min_window_rows, expected_at
from wmlightning.stages.stage import Stage
from wmlightning.stages.vae import VAE
from wmlightning.validation import above, at_least

HORIZONS = (1, 5, 20)
"""Horizons, in decisions, at which a test measures the error of the predicted mean."""
BASELINE_BATCHES = 50
"""Training batches to which a test fits its baseline."""


class MDNRNN(Stage):
    """M: a recurrent mixture density network over V's codes, with optional heads; one can dream in it.

        loss = mean over rows and dimensions of  -log p(z[t] | h[t])   + reward + done + action, for each head
        h[t] has consumed z[t-1] and the action that led to image t;   z is drawn anew from V's Gaussian for every batch

    The heads (see `MemoryHeads`) read h alone; the action head predicts the action taken at image t, so that M learns
    C's behaviour. Rows that nothing precedes are left out of the loss: those flagged is_first, and the first row of a
    window unless the memory is carried over. Batches hold V's codes (`mean`, `logvar`) or images, which V then encodes.
    With curiosity the reward head learns  reward * reward_scale + curiosity * nll  of that row, so that states which M
    predicts badly are rewarded in its dreams.

    Logged: `mdn_rnn/loss` and its parts per batch, `val_nll` per validation. In a test, in nats per dimension: `nll`,
    `copy_nll` (see `CopyBaseline`) and `untrained_nll`. Also in a test, root mean square errors of the predicted mean
    against V's mean, on dimensions with a KL above 0.1 nats, 1, 5 and 20 decisions ahead: `error_h1` and so on, and
    `copy_error_h1` and so on for the code at the start as the prediction; with a reward head `reward_error`.

    Args:
        vae: V, or the path of its checkpoint. Frozen; M's checkpoint contains its weights.
        dynamics: the recurrent network and its mixture.
        learning_rate: Adam's.
        final_learning_rate: limit of the learning rate: lr[k] = (first - final) * decay^k + final at update k.
        learning_rate_decay: the decay in that equation; 1 keeps the learning rate (CarRacing), 0.99999 is Doom's.
        clip_value: each element of the gradient is clipped to [-clip_value, clip_value].
        reward_head: predict the reward.
        done_head: predict the end of the episode.
        done_weight: weight of the rows at which an episode ends.
        action_head: predict the next action: "none", "continuous" (a unit Gaussian) or "discrete" (one-hot).
        stateful: carry the memory from each batch into the next, for data in order (ConsecutiveWindows). The
            checkpoint contains it.
        start: checkpoint of an earlier M for a warm start of dynamics and heads; V is not taken from it.
        reward_scale: factor on rewards before the head learns them; `reward` divides by it again.
        curiosity: weight of M's own nll in the reward that the head learns, at least 0.
        seed: seed of the learning noise.

    Raises:
        ValueError: if V's codes and those of the dynamics differ in size, a checkpoint holds another stage, or
            reward_scale or curiosity is given without a reward head.

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
        self.vae: VAE = resolve_stage(vae, VAE)
        # The recipe holds V itself instead of a path, so that the checkpoint alone rebuilds V too.
        self.__dict__["_arguments"]["vae"] = self.vae
        self.vae.requires_grad_(False)
        if self.vae.latent_size != dynamics.latent_size:
            raise ValueError(
                f"V's codes have {self.vae.latent_size} numbers but those of dynamics {dynamics.latent_size}: give "
                f"dynamics latent_size={self.vae.latent_size}"
            )
        self.dynamics = dynamics
        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.learning_rate_decay = learning_rate_decay
        self.clip_value = clip_value
        self.stateful = stateful
        self.curiosity = curiosity
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
        """Encodes uint8 images (..., H, W, C) to V's [mean, logvar], (..., 2 * Nz)."""
        return self.vae.encode(image)

    def decode(self, features: Tensor) -> Tensor:
        """Decodes features [z, h, c], or z alone, to the mean image in [0, 1], (..., H, W, C)."""
        return self.vae.decode(features[..., : self.dynamics.latent_size])

    def reward(self, features: Float[Tensor, "*batch features"]) -> Normal:
        """Predicts the reward for arriving at features (..., F), in the environment's units.

        Raises:
            ValueError: without a reward head.
        """
        return self.heads.reward(self._hidden(features))

    def cont(self, features: Float[Tensor, "*batch features"]) -> Bernoulli:
        """Predicts whether the episode continues from features (..., F); with probability 1 without a done head.

        The authors do not sample it: their dreamt episodes end where the probability is below 1/2.
        """
        return self.heads.cont(self._hidden(features))

    def action(self, features: Float[Tensor, "*batch features"]) -> Distribution:
        """Predicts the next action from features (..., F): unit Gaussians, or a one-hot choice.

        Raises:
            ValueError: without an action head.
        """
        return self.heads.action(self._hidden(features))

    def embeds(self, batch: Batch) -> Float[Tensor, "batch time embed"]:
        """Returns V's [mean, logvar] of a batch, which holds them as codes, or images that V encodes here."""
        if "mean" in batch.observation:
            return torch.cat([batch.observation[name].float() for name in ("mean", "logvar")], -1)
        with torch.no_grad():
            return self.encode(batch.observation["image"]).float()

    def learn(self, batch: Batch, noise: Float[Tensor, "batch time latent"] | None = None) -> dict[str, Tensor]:
        """Computes the loss and its parts, each a mean over the rows that something precedes.

        Args:
            batch: codes or images (B, T, ...), T at least 2.
            noise: standard normal numbers for z; None draws them from torch's generator.

        Returns:
            `loss`, the sum of `nll` and, for each head, of `reward`, `done` and `action`, in nats.
        """
        return self._learn(batch, noise)[0]

    def _learn(
        self,
        batch: Batch,
        noise: Tensor | None = None,
        before: State | None = None,
        mean_over_ranks: Callable[[Tensor], Tensor] = lambda count: count,
    ) -> tuple[dict[str, Tensor], State]:
        """As `learn`, from a carried state `before`; also returns the last state, without a graph."""
        self._check(batch)
        codes = self.dynamics.code(self.embeds(batch), noise)
        hidden, last = self.dynamics.remember(codes, batch.action, batch.is_first, before)
        predictable = ~batch.is_first
        if before is None:
            # Nothing precedes the first row: an LSTM trained to predict it would learn the average code.
            predictable[:, 0] = False

        def mean(nats: Tensor, rows: Tensor) -> Tensor:
            # Divided by the rows of all processes, so that the average of their gradients is that of one big batch.
            count = mean_over_ranks(rows.sum(dtype=torch.float32)).clamp(min=1e-6)
            return torch.where(rows, nats, 0.0).sum() / count

        nll = self._nll(self.dynamics, hidden, codes)
        parts = {"nll": mean(nll, predictable)}
        for name, (nats, rows) in self.heads.nats(hidden, batch, self.curiosity * nll.detach()).items():
            parts[name] = mean(nats, predictable & rows)
        return {"loss": torch.stack(list(parts.values())).sum()} | parts, last.detach()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Computes the loss of one batch and logs its parts."""
        before = self._carried
        if before is not None:
            # A batch of another size cannot continue the windows of the last one.
            continues = len(before.deter) == batch.shape[0]
            before = before.map(lambda tensor: tensor.to(self.device)) if continues else None
        parts, last = self._learn(batch, None, before, self.mean_over_ranks)
        self._carried = last if self.stateful else None
        named = {f"mdn_rnn/{name}": part.detach() for name, part in parts.items()}
        self.log_dict(named, on_step=True, on_epoch=False, sync_dist=True)
        return parts["loss"]

    def configure_optimizers(self) -> Any:
        """Builds Adam as one fused kernel, with TensorFlow's (and torch's) betas and epsilon, and its decay of lr."""
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trainable, lr=self.learning_rate, fused=True)
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
        """Clips each element of the gradient to [-clip_value, clip_value], then as the Trainer's flags say.

        Raises:
            ValueError: under `precision="16-mixed"`, which has its gradients still scaled at this point.
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
        """Resets the carried memory; Lightning reads the checkpoint after this."""
        self._carried = None

    def check_data(self, data: Any) -> None:
        """Checks also that windows have two rows or more, and that this V wrote the codes."""
        super().check_data(data)
        check_min_window_rows(2, data, "M predicts every row from the row before")
        store = getattr(data, "store", None)
        if store is not None and expected_at(store.path) is None:
            check_codes_origin(store, self.vae.fingerprint())

    def check_spec(self, spec: Spec, what: str) -> None:
        """Checks that V can read the images or wrote codes of its size, and that dynamics and heads fit actions."""
        if "mean" not in spec.observation:
            self.vae.check_spec(spec, what)
        else:
            found = spec.observation["mean"][0]
            if found != (self.vae.latent_size,):
                raise ValueError(f"{what} have codes of {found} but V's are ({self.vae.latent_size},): give M that V")
        check_action_size(spec.action_size, self.dynamics.action_size, what)
        self.heads.check_spec(spec, what)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the carried memory of every process, if there is one."""
        super().on_save_checkpoint(checkpoint)
        if self._carried is not None:
            own = {"deter": self._carried.deter, "stoch": self._carried.stoch}
            ranks: Any = self.all_gather(own)
            checkpoint["carried"] = {name: ranks[name].reshape(-1, *own[name].shape).cpu() for name in own}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores this process's carried memory."""
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
        deter = carried["deter"][self.global_rank]
        stoch = carried["stoch"][self.global_rank]
        self._carried = State(deter, stoch, torch.cat([torch.zeros_like(stoch)] * 2, -1))

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures the negative log-likelihood on held-out windows."""
        codes = self.dynamics.code(self.embeds(batch))
        hidden, _ = self.dynamics.remember(codes, batch.action, batch.is_first)
        self._count("val_nll", self._nll(self.dynamics, hidden, codes), batch)
        self._log("val_nll")

    def on_test_start(self) -> None:
        """Fits the copy baseline to training data and builds untrained dynamics as another baseline."""
        self._copy = CopyBaseline(self.dynamics.latent_size, self.device)
        for batch in self.training_batches(BASELINE_BATCHES):
            self._copy.update(self.embeds(batch), batch.is_first)
        self._copy.fit(self.mean_over_ranks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.seed, 3))
            untrained = build_recipe(recipe_of(self.dynamics))
        # In a list, so that it is not registered as a submodule.
        self._untrained = [untrained.to(self.device).eval()]

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measures likelihoods and errors of open-loop predictions on held-out windows, with their baselines."""
        assert self._copy is not None
        embeds = self.embeds(batch)
        codes = self.dynamics.code(embeds)
        hidden, _ = self.dynamics.remember(codes, batch.action, batch.is_first)
        self._count("nll", self._nll(self.dynamics, hidden, codes), batch)
        if "reward_error" in self.metrics:
            predictable = ~batch.is_first[:, 1:]
            predicted = self.heads.reward(hidden).mean[:, 1:]
            self.metrics["reward_error"].update(predicted[predictable], batch.reward[:, 1:][predictable])
            self._log("reward_error")
        untrained = self._untrained[0]
        hidden, _ = untrained.remember(codes, batch.action, batch.is_first)
        self._count("untrained_nll", self._nll(untrained, hidden, codes), batch)
        self._count("copy_nll", self._copy.nll(codes), batch)
        self._log("nll", "untrained_nll", "copy_nll")
        horizons = [h for h in HORIZONS if h < batch.shape[1]]
        ahead = predictions_ahead(self.dynamics, embeds, batch, horizons) if horizons else {}
        for h, codes_ahead in ahead.items():
            predicted, copied, true = (code[:, self._copy.informative].reshape(-1) for code in codes_ahead)
            self.metrics[f"error_h{h}"].update(predicted, true)
            self.metrics[f"copy_error_h{h}"].update(copied, true)
            self._log(f"error_h{h}", f"copy_error_h{h}")

    def _hidden(self, features: Tensor) -> Tensor:
        start = self.dynamics.latent_size
        return features[..., start : start + self.dynamics.hidden_size]

    @staticmethod
    def _nll(dynamics: Any, hidden: Tensor, codes: Tensor) -> Float[Tensor, "batch time"]:
        # `remember` lays out h with time first in memory: transposed back, 50,000 rows need not be copied.
        mixture = dynamics.mixture(dynamics.head(hidden.transpose(0, 1)))
        return -mixture.log_prob(codes.transpose(0, 1)).mean(-1).transpose(0, 1)

    def _count(self, name: str, nats: Float[Tensor, "batch time"], batch: Batch) -> None:
        predictable: Bool[Tensor, "batch time"] = ~batch.is_first
        self.metrics[name].update(nats[:, 1:][predictable[:, 1:]])

    def _log(self, *names: str) -> None:
        for name in names:
            # Under other names than in training: two curves under one tag would hide one another.
            tag = f"mdn_rnn/test_{name}" if self.trainer.testing else f"mdn_rnn/{name}"
            self.log(tag, self.metrics[name], on_step=False, on_epoch=True)

    def _check(self, batch: Batch) -> None:
        if batch.shape[1] < 2:
            raise ValueError("windows of one row leave nothing to predict: use WindowDataset with a length above 1")
        check_action_size(batch.action.shape[-1], self.dynamics.action_size, "the batch")
