"""The optimiser of a run and its learning rate, the same for every family of models."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from ..config import OptimizerConfig


def learning_rate_factor(step: int, config: OptimizerConfig, steps: int) -> float:
    """What the learning rate is multiplied by: a linear rise over the warmup, then constant or half a cosine to 0."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    if config.decay == "constant":
        return rise
    return rise * 0.5 * (1.0 + math.cos(math.pi * min(1.0, step / steps)))


def make_optimizer(parameters: Iterable[nn.Parameter], options: OptimizerConfig, steps: int) -> dict[str, Any]:
    """AdamW and its learning rate, as Lightning takes them.

    Args:
        parameters: What is trained.
        options: The optimizer section of the configuration.
        steps: The updates of the run, over which the learning rate falls.
    """
    optimizer = torch.optim.AdamW(parameters, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, options, steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def apply_options(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, options: OptimizerConfig
) -> None:
    """Replace the options that an optimiser and its schedule were loaded with; nothing where they are the same."""
    for group in optimizer.param_groups:
        group["betas"], group["weight_decay"] = tuple(options.betas), options.weight_decay
    if set(schedule.base_lrs) != {options.lr}:
        schedule.base_lrs = [options.lr] * len(optimizer.param_groups)
        factors = [factor(schedule.last_epoch) for factor in schedule.lr_lambdas]
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["initial_lr"], group["lr"] = options.lr, options.lr * factor
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
