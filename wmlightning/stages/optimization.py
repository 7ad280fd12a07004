"""One optimizer for all parts of an agent: a parameter group for each, clipped by its own norm."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn


def parameter_group(
    module: nn.Module,
    learning_rate: float,
    epsilon: float,
    max_norm: float,
    weight_decay: float = 0.0,
) -> dict[str, Any]:
    """The trained weights of a part, and how they are to be learnt, as a group for `build_adam`.

    Args:
        module: the part.
        learning_rate: Adam's.
        epsilon: Adam's; no two of the papers have the same.
        max_norm: the gradient of the whole group is scaled down to this norm where it is longer.
        weight_decay: AdamW's, of which torch's default is not zero.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return {
        "params": trained,
        "lr": learning_rate,
        "eps": epsilon,
        "weight_decay": weight_decay,
        "max_norm": max_norm,
    }


def build_adam(groups: list[dict[str, Any]], warmup: int = 0) -> Any:
    """AdamW over the groups as one fused kernel, in the form that `configure_optimizers` returns.

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
        trainer: the Trainer, asked for its precision.

    Returns:
        The norms before clipping, one a group.

    Raises:
        ValueError: under `precision="16-mixed"`, whose gradients are still scaled at this point.
    """
    if trainer.precision == "16-mixed":
        raise ValueError("precision 16-mixed scales gradients before they are clipped: use bf16-mixed or 32-true")
    # Not Lightning's clip_gradients, which raises with fused optimizers under mixed precision.
    return [nn.utils.clip_grad_norm_(group["params"], group["max_norm"]) for group in optimizer.param_groups]


def say_kept_norms(optimizers: Iterable[Any], wanted: list[float]) -> None:
    """Warns where a resumed optimizer's `max_norm`, which wins, is not the one asked for, group by group."""
    kept = [group["max_norm"] for optimizer in optimizers for group in optimizer.param_groups]
    if kept != wanted:
        rank_zero_warn(
            f"max_norm is {wanted} but the checkpoint's optimizer goes on with {kept}: start afresh without "
            "--ckpt_path to change it"
        )
