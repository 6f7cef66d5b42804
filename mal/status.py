"""`status.json`: what a run is doing, one JSON object a line, as TAO's tools read it."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from mal.artifacts import STATUS_FILE


class Status(StrEnum):
    """States of a run."""

    STARTED = "STARTED"
    RUNNING = "RUNNING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"


class StatusLog:
    """Appends whole lines to `status.json` of a result folder.

    A line is written by one `write` of an append-only descriptor, so a kill never leaves half a
    line, and a line cut by a full disk is closed before the next.
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
            message: One line a person can read.
            kpi: Figures by name.
            verbosity: INFO, WARNING or ERROR.
        """
        now = datetime.datetime.now()
        line = json.dumps(
            {
                "date": now.strftime("%m/%d/%Y"),
                "time": now.strftime("%H:%M:%S"),
                "status": status.value,
                "verbosity": verbosity,
                "message": message,
                "kpi": dict(kpi or {}),
            }
        )
        prefix = "" if self._ends_with_newline() else "\n"
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, f"{prefix}{line}\n".encode())
        finally:
            os.close(descriptor)

    def _ends_with_newline(self) -> bool:
        if not self.path.exists() or self.path.stat().st_size == 0:
            return True
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
