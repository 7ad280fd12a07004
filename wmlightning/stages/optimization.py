"""One optimizer for all parts of an agent, with a parameter group for each part, clipped by its own norm."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from wmlightning.stages.stage import Stage


class JointStage(Stage, ABC):
    """A stage whose parts learn from one loss, one backward pass and one optimizer (abstract).

    Logged once an update: `<part>/gradient_norm`, before clipping.

    Attributes:
        warmup: updates over which every learning rate grows linearly to its value; 0 for none.
    """

    warmup: int = 0

    @abstractmethod
    def groups(self) -> dict[str, dict[str, Any]]:
        """Returns the parameter group of each part by the part's name; see `parameter_group`."""

    def configure_optimizers(self) -> Any:
        """Builds AdamW as one fused kernel, with a parameter group for each part."""
        return build_adam(list(self.groups().values()), self.warmup)

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clips each part by its `max_norm`, then all of them as the Trainer's flags say.

        Raises:
            ValueError: under `precision="16-mixed"`, see `clip_groups`.
        """
        for name, norm in zip(self.groups(), clip_groups(optimizer, self.trainer), strict=True):
            self.log(f"{name}/gradient_norm", norm, on_step=True, on_epoch=False)
        if gradient_clip_val is not None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def warn_of_kept_settings(self) -> None:
        """Warns where a resumed optimizer keeps other learning rates or `max_norm`s than this stage's."""
        groups = [group for optimizer in self.trainer.optimizers for group in optimizer.param_groups]
        for key, name in (("lr", "learning_rate"), ("max_norm", "max_norm")):
            kept = [group.get(f"initial_{key}", group[key]) for group in groups]
            configured = [group[key] for group in self.groups().values()]
            if kept != configured:
                rank_zero_warn(
                    f"{name} is {configured} but the checkpoint's optimizer keeps {kept}: start afresh without "
                    "--ckpt_path to change it"
                )


def parameter_group(
    module: nn.Module,
    learning_rate: float,
    epsilon: float,
    max_norm: float,
    decay: float = 0.0,
) -> dict[str, Any]:
    """Returns the trainable weights of a part and their optimizer settings, as a group for `build_adam`.

    Args:
        module: the part.
        learning_rate: Adam's.
        epsilon: Adam's; every paper has another one.
        max_norm: the largest norm of the whole group's gradient, which is scaled down to it.
        decay: fraction that an update takes off every weight, independent of the learning rate. (AdamW multiplies its
            own `weight_decay` by the learning rate, and torch's default of it is not zero.)

    Source: for decay, the released code of Dreamer V2.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return {
        "params": trained,
        "lr": learning_rate,
        "eps": epsilon,
        "weight_decay": decay / learning_rate if decay else 0.0,
        "max_norm": max_norm,
    }


def build_adam(groups: list[dict[str, Any]], warmup: int = 0) -> Any:
    """Builds AdamW over the groups as one fused kernel, in the form that `configure_optimizers` returns.

    Args:
        groups: from `parameter_group`.
        warmup: updates over which every learning rate grows linearly to its value; 0 for none.
    """
    optimizer = torch.optim.AdamW(groups, fused=True)
    if not warmup:
        return optimizer
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: min(1.0, (update + 1) / warmup))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def clip_groups(optimizer: Any, trainer: Any) -> list[torch.Tensor]:
    """Clips every group of the optimizer by its own global norm, to its `max_norm`.

    Args:
        optimizer: from `build_adam`.
        trainer: the Trainer, for its precision.

    Returns:
        The norm of each group before clipping.

    Raises:
        ValueError: under `precision="16-mixed"`, which has its gradients still scaled at this point.
    """
    if trainer.precision == "16-mixed":
        raise ValueError("precision 16-mixed scales gradients before they are clipped: use bf16-mixed or 32-true")
    # Not Lightning's clip_gradients, which raises with fused optimizers under mixed precision.
    return [nn.utils.clip_grad_norm_(group["params"], group["max_norm"]) for group in optimizer.param_groups]
