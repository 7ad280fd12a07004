"""What watches over training: `StopOnNonFinite` and `WarnOfCollapse`. `wmlightning fit` has both unasked."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from datamodules.episode import Batch
from wmlightning.callbacks.between_epochs import batches_trained
from wmlightning.pictures.book import PictureBook, undisturbed
from wmlightning.validation import above, at_least

WINDOWS = 8
"""Windows of a batch that `latent_use` looks at."""


class StopOnNonFinite(Callback):
    """Ends training at the first loss or gradient that is NaN or infinite, before the optimizer takes it in.

    The error names the batch (batches trained before it, so the first is 0) and what broke: weights that were broken
    already, numbers of the batch itself, parts of the loss, or weights whose gradient is not finite though the loss is.
    The state from before the batch is kept in `<default_root_dir>/checkpoints/before-batch-<batch>.ckpt`. A run that
    goes on from there meets the same batch with the same noise, and breaks again; Lightning's own switch then shows the
    operation that did it:

        wmlightning fit -c RUN/config.yaml --ckpt_path=RUN/checkpoints/before-batch-N.ckpt --trainer.detect_anomaly=true

    `trainer.detect_anomaly` checks every operation of every backward pass, several times slower: switch it on for the
    batch in question, not for a run. What this callback does costs one look at the loss and one pass over the
    gradients, a hundredth of a step and less.

    Of several processes all end, wherever it broke. An optimizer without gradients (CMA-ES) refuses a NaN by itself,
    and `checkpoints/last.ckpt` is then from before it. Under `16-mixed` the scaler answers for the gradients, and only
    the loss is looked at.

    Args:
        gradients: look at the gradients too.

    Raises:
        RuntimeError: in training, as said.
    """

    def __init__(self, gradients: bool = True) -> None:
        self.gradients = gradients
        self._losses: list[Tensor] = []
        self._batch: Any = None
        self._before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Notes what the training step may replace: a memory that is carried on from batch to batch."""
        self._batch, self._before = batch, dict(vars(pl_module))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Notes the loss."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        """Stops, if anything is not finite."""
        numbers, self._losses = [loss.float().sum() for loss in self._losses], []
        wrong = [k for k, number in enumerate(numbers) if not math.isfinite(number)]
        broken = bool(wrong) or (self._looks_at_gradients(trainer) and not _finite_gradients(optimizer))
        if trainer.world_size > 1:
            broken = trainer.strategy.reduce_boolean_decision(broken, all=False)
        if broken:
            # With accumulated gradients the loss that broke may be an earlier batch's.
            earlier = len(numbers) - 1 - wrong[0] if wrong else 0
            self._stop(trainer, pl_module, batches_trained(trainer) - earlier, earlier > 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Lets go of the batch."""
        self._batch, self._before = None, {}

    def _looks_at_gradients(self, trainer: Any) -> bool:
        return self.gradients and trainer.precision != "16-mixed"

    def _stop(self, trainer: Any, stage: LightningModule, number: int, earlier: bool) -> None:
        spoilt = [name for name, weight in stage.named_parameters() if not bool(weight.isfinite().all())]
        if spoilt:
            raise RuntimeError(
                f"batch {number} met weights that are not finite ({_some(spoilt)}); go on from an earlier checkpoint"
            )
        what = ["a loss before the present batch"] if earlier else self._broken_parts(trainer, stage)
        if trainer.world_size > 1:
            told: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(told, what)
            # Where one process breaks, the gradients of all do.
            causes = {rank: parts for rank, parts in enumerate(told) if not parts[0].startswith("the gradient")}
            what = [f"process {rank}: {part}" for rank, parts in (causes or {0: told[0]}).items() for part in parts]
        cure = "go on from an earlier checkpoint"
        if trainer.checkpoint_callbacks and not trainer.fast_dev_run:
            path = Path(trainer.default_root_dir) / "checkpoints" / f"before-batch-{number:06d}.ckpt"
            try:
                self._save(trainer, stage, path)
                cure = (
                    f"the state from before it is in {path}; go on from there with --trainer.detect_anomaly=true to "
                    "see which operation it is, or with other data; a smaller learning rate wants a fresh start"
                )
            except OSError as error:
                cure += f" (the state from before it cannot be written: {error})"
        raise RuntimeError(f"batch {number} is not finite: {', '.join(what)}; {cure}")

    def _save(self, trainer: Any, stage: LightningModule, path: Path) -> None:
        """Weights and optimizers are still those from before the batch; so is the rest, once it is put back."""
        vars(stage).update(self._before)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for counts in (progress.total, progress.current):
            counts.ready = counts.started = counts.completed = counts.processed
        trainer.save_checkpoint(path)

    def _broken_parts(self, trainer: Any, stage: LightningModule) -> list[str]:
        """What is to be blamed, the earliest cause that is found."""
        if isinstance(self._batch, Batch):
            fields = {"action": self._batch.action, "reward": self._batch.reward, **self._batch.observation}
            wrong = [name for name, field in fields.items() if not bool(field.isfinite().all())]
            if wrong:
                return [f"the batch's own {name}" for name in wrong]
        logged = {}
        with suppress(AttributeError):
            logged = trainer.fit_loop._results.metrics(True)["callback"]
        wrong = {name: float(value) for name, value in logged.items() if not math.isfinite(value)}
        # A sum says less than its parts.
        parts = {name: value for name, value in wrong.items() if not name.endswith("loss")} or wrong
        if parts:
            return [_some([f"{name} is {value}" for name, value in parts.items()])]
        grown = [(name, weight.grad) for name, weight in stage.named_parameters() if weight.grad is not None]
        wrong = [name for name, gradient in grown if not bool(gradient.isfinite().all())]
        if wrong:
            return [f"the gradient of {_some(wrong)}"]
        return ["the length of the gradient" if self._looks_at_gradients(trainer) else "the loss"]


class WarnOfCollapse(Callback):
    """Warns of a world model that ignores its latents: the KL is near zero and reconstructions do not see.

    Such a model has found that the decoder does well enough by itself: every image comes out as the mean image, the
    posterior says what the prior says, and nothing that is dreamt in it means anything. One number alone is no reason:
    where the future is certain a good model has little KL, and early on every model is blind. A model without noise
    has no KL at all and is predicted_returns by its reconstructions.

    Logged every so many batches: `world_model/explained`, the share of the images' variance that reconstructions from
    the posterior explain: 1 is perfect, 0 is the mean image, below is worse than that. Stages without an RSSM, SSM or
    RNN are left alone.

    Args:
        every: batches between two looks, each of which costs less than one batch.
        nats: a mean KL per step below this is near zero.
        explained: a share of explained variance below this is blind.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(self, every: int = 500, nats: float = 0.1, explained: float = 0.05) -> None:
        at_least(1, every=every)
        above(0, nats=nats, explained=explained)
        self.every, self.nats, self.explained = every, nats, explained
        self._warned = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks, when it is time."""
        model: Any = getattr(pl_module, "world_model", pl_module)
        sees = hasattr(getattr(model, "dynamics", None), "latent") and isinstance(batch, Batch)
        due = batches_trained(trainer) % self.every == 0
        if not (due and sees and trainer.is_global_zero and "image" in batch.observation):
            return
        with undisturbed(pl_module):
            nats, explained = latent_use(model, batch.map(lambda tensor: tensor[:WINDOWS]))
        PictureBook.of(trainer).add_scalars({"world_model/explained": explained}, trainer.global_step)
        if nats < self.nats and explained < self.explained and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"the world model ignores its latents: after {batches_trained(trainer)} batches the KL is {nats:.2g} "
                f"nats a step and reconstructions explain {max(explained, 0.0):.0%} of the images' variance; lower "
                "kl_scale or the free nats, raise the learning rate, or look at whether the images change at all"
            )


def latent_use(model: Any, batch: Batch) -> tuple[float, float]:
    """How much a world model's latents know of the images.

    Args:
        model: a `LatentModel` with a latent.
        batch: windows with images, on the model's device.

    Returns:
        KL(posterior || prior) in nats, a mean over the rows; and the share of the images' variance (around the mean
        image of the batch) that reconstructions explain, at most 1, and 1 where the images do not vary.
    """
    image = batch.observation["image"]
    posterior, prior = model.dynamics.observe(model.encode(image), batch.action, batch.is_first)
    nats = model.dynamics.latent.kl(posterior.params, prior.params).mean()
    truth = (image.float() / 255).flatten(0, 1)
    error = (model.decode(posterior.features).flatten(0, 1) - truth).square().sum()
    variation = (truth - truth.mean(0)).square().sum()
    # A hundredth of a grey level: nothing moves.
    still = float(variation) < truth.numel() * (0.01 / 255) ** 2
    return float(nats), 1.0 if still else 1.0 - float(error / variation)


def _finite_gradients(optimizer: Any) -> bool:
    """Whether all gradients are finite, and not so long that their squares overflow."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    norms = [torch.linalg.vector_norm(weight.grad) for weight in weights if weight.grad is not None]
    return not norms or math.isfinite(torch.stack(norms).float().sum())


def _some(names: list[str]) -> str:
    """The first of them: what is logged or computed later may have caught it from them."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
