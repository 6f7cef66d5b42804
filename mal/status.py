"""`status.json`: the progress of a run, one JSON object per line, as TAO's tools read it."""

from __future__ import annotations

import datetime
import errno
import json
import math
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from mal.artifacts import STATUS_FILE
from mal.redaction import redact_text

MONITORED_METRIC = "mIoU"  # TAO's services read it from a run's metrics


class Status(StrEnum):
    """States of a run."""

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


class StatusLog:
    """Appends whole lines to `status.json` of a results folder.

    A line is one `write` to an append-only descriptor, so that a kill never leaves half a line. A
    line that a full disk truncates is removed; a line that another program truncated is ended.
    """

    def __init__(self, results_dir: Path) -> None:
        self.path = results_dir / STATUS_FILE
        results_dir.mkdir(parents=True, exist_ok=True)

    def write(
        self,
        status: Status,
        message: str,
        *,
        kpi: Mapping[str, float | None] | None = None,
        verbosity: str = "INFO",
    ) -> None:
        """Append one line.

        Args:
            status: State after this line.
            message: One line for people.
            kpi: Metrics by name; NaN and infinity become null.
            verbosity: INFO, WARNING or ERROR.

        Raises:
            OSError: The disk is full.
        """
        now = datetime.datetime.now()
        line = json.dumps(
            {
                "date": now.strftime("%m/%d/%Y"),
                "time": now.strftime("%H:%M:%S"),
                "status": status.value,
                "verbosity": verbosity,
                "message": redact_text(message),
                "kpi": {name: _finite_or_none(value) for name, value in (kpi or {}).items()},
            },
            allow_nan=False,
        )
        prefix = "" if self._ends_with_newline() else "\n"
        self._append(f"{prefix}{line}\n".encode())

    def _append(self, data: bytes) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, data) != len(data):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        finally:
            os.close(descriptor)

    def _ends_with_newline(self) -> bool:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"


def last_metrics(path: Path) -> dict[str, float]:
    """Return the metrics of the last line of a `status.json` that has any."""
    for line in reversed(path.read_text(encoding="utf-8").splitlines()):
        kpi = json.loads(line)["kpi"] if line.strip() else {}
        if kpi:
            return {name: value for name, value in kpi.items() if value is not None}
    return {}


def _finite_or_none(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
