"""Guards of training, which `wmlightning fit` adds by default: `StopOnNonFinite` and `WarnOfCollapse`."""

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
"""Windows of a batch on which `WarnOfCollapse` measures the use of latents."""


class StopOnNonFinite(Callback):
    """Stops training at the first loss or gradient that is NaN or infinite, before the optimizer uses it.

    The error names the batch (its index among all batches trained, from 0) and the earliest cause it finds: weights
    that were not finite before, a field of the batch, a part of the loss, or weights whose gradient is not finite
    although the loss is. The state before the batch is saved as
    `<default_root_dir>/checkpoints/before-batch-<batch>.ckpt`. A run that resumes from it trains on the same batch with
    the same noise and fails again; Lightning's anomaly detection then shows the operation that failed:

        wmlightning fit -c RUN/config.yaml --ckpt_path=RUN/checkpoints/before-batch-N.ckpt --trainer.detect_anomaly=true

    `trainer.detect_anomaly` checks every operation of every backward pass and makes training several times slower, so
    switch it on for that batch only. This callback reads the loss and passes over the gradients once, which costs 1% of
    a step or less.

    If one of several processes fails, all stop. An optimizer without gradients (CMA-ES) itself refuses NaN, and
    `checkpoints/last.ckpt` is then from before it. Under `16-mixed` the gradient scaler handles gradients that are not
    finite, and this callback checks only the loss.

    Args:
        gradients: whether to check gradients too.

    Raises:
        RuntimeError: during training, at the first loss or gradient that is not finite.
    """

    def __init__(self, gradients: bool = True) -> None:
        self.gradients = gradients
        self._losses: list[Tensor] = []
        self._batch: Any = None
        self._attributes_before: dict[str, Any] = {}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps the batch, and attributes that the training step may replace, such as a memory carried over."""
        self._batch = batch
        self._attributes_before = dict(vars(pl_module))

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keeps the loss; with accumulated gradients there are several before one optimizer step."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: LightningModule, optimizer: Any) -> None:
        """Stops training if a loss or a gradient is not finite."""
        losses = [loss.float().sum() for loss in self._losses]
        self._losses = []
        failed = [k for k, loss in enumerate(losses) if not math.isfinite(loss)]
        stop = bool(failed) or (self._checks_gradients(trainer) and not _finite_gradients(optimizer))
        if trainer.world_size > 1:
            stop = trainer.strategy.reduce_boolean_decision(stop, all=False)
        if stop:
            # With accumulated gradients the failed loss may be that of an earlier batch.
            batches_ago = len(losses) - 1 - failed[0] if failed else 0
            self._stop(trainer, pl_module, batches_trained(trainer) - batches_ago, batches_ago > 0)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Releases the batch."""
        self._batch = None
        self._attributes_before = {}

    def _checks_gradients(self, trainer: Any) -> bool:
        return self.gradients and trainer.precision != "16-mixed"

    def _stop(self, trainer: Any, stage: LightningModule, batch: int, is_earlier: bool) -> None:
        """Saves the state before a batch and raises the error.

        Args:
            trainer: the Trainer of the fit.
            stage: the stage in training.
            batch: index of the batch that failed.
            is_earlier: whether it is earlier than the present batch; its data are then no longer available.
        """
        weights = [name for name, weight in stage.named_parameters() if not bool(weight.isfinite().all())]
        if weights:
            raise RuntimeError(
                f"batch {batch} met weights that are not finite ({_first_two(weights)}); resume from an earlier "
                "checkpoint"
            )
        causes = ["a loss before the present batch"] if is_earlier else self._causes(trainer, stage)
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            dist.all_gather_object(gathered, causes)
            # One process whose loss is not finite makes the averaged gradients of all so: name only that process.
            by_rank = {rank: found for rank, found in enumerate(gathered) if not found[0].startswith("the gradient")}
            by_rank = by_rank or {0: gathered[0]}
            causes = [f"process {rank}: {cause}" for rank, found in by_rank.items() for cause in found]
        cure = "resume from an earlier checkpoint"
        if trainer.checkpoint_callbacks and not trainer.fast_dev_run:
            path = Path(trainer.default_root_dir) / "checkpoints" / f"before-batch-{batch:06d}.ckpt"
            try:
                self._save(trainer, stage, path)
                cure = (
                    f"the state before it is in {path}; resume from there with --trainer.detect_anomaly=true to "
                    "see which operation it is, or with other data; a smaller learning rate needs a new run"
                )
            except OSError as error:
                cure += f" (the state before it cannot be written: {error})"
        raise RuntimeError(f"batch {batch} is not finite: {', '.join(causes)}; {cure}")

    def _save(self, trainer: Any, stage: LightningModule, path: Path) -> None:
        """Saves the state before the batch.

        Weights and optimizers have not changed since; attributes and counters are restored here.
        """
        vars(stage).update(self._attributes_before)
        progress = trainer.fit_loop.epoch_loop.batch_progress
        for counts in (progress.total, progress.current):
            counts.ready = counts.started = counts.completed = counts.processed
        trainer.save_checkpoint(path)

    def _causes(self, trainer: Any, stage: LightningModule) -> list[str]:
        """Returns what is not finite, at the earliest place in the computation where anything is."""
        if isinstance(self._batch, Batch):
            fields = {"action": self._batch.action, "reward": self._batch.reward, **self._batch.observation}
            not_finite = [name for name, field in fields.items() if not bool(field.isfinite().all())]
            if not_finite:
                return [f"the batch's own {name}" for name in not_finite]
        logged = {}
        with suppress(AttributeError):
            logged = trainer.fit_loop._results.metrics(True)["callback"]
        metrics = {name: float(value) for name, value in logged.items() if not math.isfinite(value)}
        # Naming a part of the loss helps more than naming the whole loss.
        parts = {name: value for name, value in metrics.items() if not name.endswith("loss")} or metrics
        if parts:
            return [_first_two([f"{name} is {value}" for name, value in parts.items()])]
        gradients = [(name, weight.grad) for name, weight in stage.named_parameters() if weight.grad is not None]
        not_finite = [name for name, gradient in gradients if not bool(gradient.isfinite().all())]
        if not_finite:
            return [f"the gradient of {_first_two(not_finite)}"]
        return ["the length of the gradient" if self._checks_gradients(trainer) else "the loss"]


class WarnOfCollapse(Callback):
    """Warns of posterior collapse: a world model with a KL near zero whose reconstructions explain no variance.

    In a collapsed model the latents carry no information: the posterior equals the prior, every image is decoded to the
    mean image, and dreams have no meaning. The warning needs both signs: where the future is certain a good model has
    little KL too, and early in training no model reconstructs. A model without noise always has a KL of zero and is
    judged by its reconstructions alone.

    Logged every `every` batches: `world_model/explained`, the fraction of the images' variance that reconstructions
    from the posterior explain: 1 is perfect, 0 is the mean image, and a negative one is worse than the mean image.
    Stages without an RSSM, SSM or RNN are not checked.

    Args:
        every: batches between two checks, each of which costs less than one batch.
        nats: a mean KL per step below this counts as near zero.
        explained: a fraction of explained variance below this counts as none.

    Raises:
        ValueError: for a number out of range.
    """

    def __init__(self, every: int = 500, nats: float = 0.1, explained: float = 0.05) -> None:
        at_least(1, every=every)
        above(0, nats=nats, explained=explained)
        self.every = every
        self.nats = nats
        self.explained = explained
        self._warned = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Checks the model, every `every` batches."""
        model: Any = getattr(pl_module, "world_model", pl_module)
        has_latent = hasattr(getattr(model, "dynamics", None), "latent") and isinstance(batch, Batch)
        is_due = batches_trained(trainer) % self.every == 0
        if not (is_due and has_latent and trainer.is_global_zero and "image" in batch.observation):
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
    """Measures how much information about the images a world model's latents carry.

    Args:
        model: a `LatentModel` with a latent.
        batch: windows with images, on the model's device.

    Returns:
        KL(posterior || prior) in nats, the mean over rows; and the fraction of the images' variance (around the mean
        image of the batch) that reconstructions explain, at most 1, and 1 if the images do not vary.
    """
    image = batch.observation["image"]
    posterior, prior = model.dynamics.observe(model.encode(image), batch.action, batch.is_first)
    nats = model.dynamics.latent.kl(posterior.params, prior.params).mean()
    truth = (image.float() / 255).flatten(0, 1)
    error = (model.decode(posterior.features).flatten(0, 1) - truth).square().sum()
    variation = (truth - truth.mean(0)).square().sum()
    # A standard deviation below a hundredth of a grey level: the images do not vary.
    constant = float(variation) < truth.numel() * (0.01 / 255) ** 2
    return float(nats), 1.0 if constant else 1.0 - float(error / variation)


def _finite_gradients(optimizer: Any) -> bool:
    """Whether all gradients are finite and their squared norms do not overflow."""
    weights = (weight for group in optimizer.param_groups for weight in group["params"])
    norms = [torch.linalg.vector_norm(weight.grad) for weight in weights if weight.grad is not None]
    return not norms or math.isfinite(torch.stack(norms).float().sum())


def _first_two(names: list[str]) -> str:
    """Names the first two and counts the others, which come later and may only be consequences."""
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more
