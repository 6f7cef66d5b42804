"""What is known of one trial.

Whoever only reads results needs no Optuna: a pipeline's train step imports this to train plainly.
"""

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
    """One trial as the study, or Katib, has it.

    Attributes:
        number: 0 is the baseline.
        end: How it ended.
        values: Of the searched keys.
        mean_iou: Its best validation mIoU, or None before the first.
        num_epochs: Measured epochs.
        duration_s: From its start to its end; 0 while it runs.
        reason: Why it failed, was refused, or was ended early.
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
