"""The precision to compute in, and where half precision is not exact enough."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def chosen_precision(precision: str, *, use_amp: bool, device: torch.device) -> str:
    """Return fp32, bf16 or fp16, with `auto` resolved.

    `auto` is fp16 on CUDA with `use_amp`, else fp32.
    """
    if precision != "auto":
        return precision
    return "fp16" if use_amp and device.type == "cuda" else "fp32"


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Compute in the tensors' own precision inside the block, whatever is around it."""
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()
