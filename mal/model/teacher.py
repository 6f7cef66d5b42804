"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """Copy the student; modules without trained parameters are shared, not copied.

    A frozen backbone is the same in both: sharing it saves its memory, and its place in the
    checkpoint.
    """
    shared = {
        id(child): child
        for child in student.children()
        if not any(parameter.requires_grad for parameter in child.parameters())
    }
    return copy.deepcopy(student, memo=dict(shared)).requires_grad_(False)


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher towards the student: t <- momentum * t + (1 - momentum) * s.

    Buffers (running statistics, averages already) are copied.
    """
    pairs = [
        (mine, theirs)
        for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True)
        if mine is not theirs
    ]
    if pairs:
        averaged, current = zip(*pairs, strict=True)
        torch._foreach_lerp_(list(averaged), list(current), 1 - momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        if mine is not theirs:
            mine.copy_(theirs)
