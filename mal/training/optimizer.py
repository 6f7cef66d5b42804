"""The optimiser and its schedules, as pure functions of the step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import AdamW

from mal.spec.experiment import TrainSpec

log = logging.getLogger(__name__)


def build_optimizer(
    network: nn.Module, train: TrainSpec, lr: float, *, is_fused: bool = True
) -> AdamW:
    """Return AdamW over the trained parameters only.

    Biases, norms and position embeddings are not decayed: pulling them to zero regularises
    nothing.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        is_plain = parameter.ndim <= 1 or name.endswith(("pos_embed", "cls_token"))
        (plain if is_plain else decayed).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": train.wd},
        {"params": plain, "weight_decay": 0.0},
    ]
    beta1, beta2 = train.optim_betas
    return AdamW(groups, lr=lr, betas=(beta1, beta2), eps=train.optim_eps, fused=is_fused)


def effective_lr(train: TrainSpec, num_devices: int) -> float:
    """Return the learning rate of all devices of all nodes together."""
    return train.lr * num_devices * train.batch_size


def lr_factor(
    step: int, *, steps_per_epoch: int, num_steps: int, peak_lr: float, train: TrainSpec
) -> float:
    """Return the learning rate of a step as a part of its peak.

    Linear warm-up, then (1 - low) / 2 * (1 + cos(pi * waves * progress)) + low. A warm-up as long
    as the run leaves no cosine.
    """
    warmup_steps = (
        train.warmup_rate * num_steps
        if train.warmup_rate
        else train.warmup_epochs * steps_per_epoch
    )
    if step + 1 <= warmup_steps:
        return (step + 1) / warmup_steps
    low = train.min_lr_rate
    if train.min_lr > 0:
        low = train.min_lr / peak_lr
    progress = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    progress = max(progress, 0.0)
    return low + (1 - low) / 2 * (1 + math.cos(math.pi * progress * train.num_wave))


def warmup_factor(step: int, warmup_steps: int) -> float:
    """Return the part of a loss weight that counts in a step: linear from the run's start."""
    return 1.0 if warmup_steps <= 0 else min((step + 1) / warmup_steps, 1.0)


def window_factor(step: int, num_steps: int, window: Sequence[float]) -> float:
    """Return the part of a loss weight between [begin, end] as parts of the run."""
    begin, end = sorted(window)
    progress = step / max(num_steps, 1)
    if end <= begin:
        return float(progress >= begin)
    return min(max((progress - begin) / (end - begin), 0.0), 1.0)


def use_deterministic_math(train: TrainSpec) -> None:
    """Apply the cuDNN switches; timing algorithms and choosing among equals exclude each other."""
    if train.cudnn.benchmark and train.cudnn.deterministic:
        log.warning(
            "train.cudnn.benchmark has no effect with train.cudnn.deterministic. Set "
            "train.cudnn.deterministic=false for speed."
        )
    torch.backends.cudnn.benchmark = train.cudnn.benchmark and not train.cudnn.deterministic
    torch.backends.cudnn.deterministic = train.cudnn.deterministic
