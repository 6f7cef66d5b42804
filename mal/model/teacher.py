"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """Copy the student; modules without trained parameters are shared, not copied.

    A frozen backbone is the same in both: sharing it saves memory and checkpoint size.
    """
    shared = {
        id(child): child
        for child in student.children()
        if not any(parameter.requires_grad for parameter in child.parameters())
    }
    return copy.deepcopy(student, memo=dict(shared)).requires_grad_(False)


class TeacherUpdate:
    """Moves the teacher towards the student: t <- momentum * t + (1 - momentum) * s.

    Buffers are copied (running statistics are averages already); shared tensors are skipped. The
    pairs are found once: walking through two networks takes longer than updating their heads.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self.averaged, self.current = _own_pairs(teacher.parameters(), student.parameters())
        self.copied, self.sources = _own_pairs(teacher.buffers(), student.buffers())

    @torch.no_grad()
    def __call__(self, momentum: float) -> None:
        """Move once."""
        if self.averaged:
            torch._foreach_lerp_(self.averaged, self.current, 1 - momentum)
        if self.copied:
            torch._foreach_copy_(self.copied, self.sources)


def _own_pairs(
    mine: Iterable[Tensor], theirs: Iterable[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    pairs = [(m, t) for m, t in zip(mine, theirs, strict=True) if m is not t]
    return [m for m, _ in pairs], [t for _, t in pairs]
