"""The record of a trial, without Optuna: a pipeline's train step reads it to train plainly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class TrialEnd(StrEnum):
    """How a trial ended."""

    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"
    REFUSED = "refused"
    RUNNING = "running"


@dataclass(frozen=True)
class TrialRecord:
    """A trial of the study, or of Katib.

    Attributes:
        number: 0 is the baseline.
        values: Values of the searched keys.
        mean_iou: The best validation mIoU; None before the first validation.
        num_epochs: Number of measured epochs.
        duration_s: 0 while the trial runs.
        reason: Why the trial failed, was rejected, or was pruned.
    """

    number: int
    end: TrialEnd
    values: Mapping[str, Any]
    mean_iou: float | None
    num_epochs: int
    duration_s: float
    reason: str


def best_of(records: Sequence[TrialRecord]) -> TrialRecord | None:
    """Return the complete trial of the highest mIoU, the earliest of equals."""
    complete = [record for record in records if record.end is TrialEnd.COMPLETE]
    return max(complete, key=lambda r: (r.mean_iou or 0.0, -r.number), default=None)
