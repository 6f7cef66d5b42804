"""The trials of a search as a table: CSV for programs, Markdown for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from mal.automl.trial_record import TrialEnd, TrialRecord
from mal.markdown import escaped, short_value, table

_END_ORDER = (
    TrialEnd.COMPLETE, TrialEnd.PRUNED, TrialEnd.RUNNING, TrialEnd.FAILED, TrialEnd.REFUSED,
)  # fmt: skip


def ranked(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return complete trials by mIoU, then those that ended early, then those without a metric."""
    return sorted(records, key=lambda r: (_END_ORDER.index(r.end), -(r.mean_iou or 0.0), r.number))


def leaderboard_csv(records: Sequence[TrialRecord]) -> str:
    """Return one line per trial, the best first; trial 0 is the baseline."""
    keys = list(records[0].values) if records else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["rank", "trial", "state", "mIoU", *keys, "epochs", "duration_s", "reason"])
    for rank, record in enumerate(ranked(records), start=1):
        writer.writerow(
            [
                rank,
                record.number,
                record.end.value,
                "" if record.mean_iou is None else f"{record.mean_iou:.6f}",
                *(record.values.get(key, "") for key in keys),
                record.num_epochs,
                f"{record.duration_s:.1f}",
                record.reason,
            ]
        )
    return text.getvalue()


def markdown_from_csv(text: str) -> str:
    """Return the table of `leaderboard_csv` in Markdown."""
    header, *rows = ([*map(escaped, line)] for line in csv.reader(io.StringIO(text)))
    return table(header, rows) + "\n"


def values_text(values: Mapping[str, Any]) -> str:
    """Return the values of a trial on one line."""
    return ", ".join(f"{key}={short_value(value)}" for key, value in values.items())
