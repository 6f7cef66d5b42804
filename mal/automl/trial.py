"""A trial: `mal train` in its own process, observed through the files that it writes."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from mal.artifacts import (
    BEST_CHECKPOINT,
    EPOCH_METRICS_FILE,
    LATEST_CHECKPOINT,
    STATUS_FILE,
    write_text,
)
from mal.distributed.workers import PARENT_VARIABLE
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import write_experiment_yaml

SPEC_FILE = "spec.yaml"
LOG_FILE = "log.txt"
TRIAL_MODULE = "mal.stages.trial"
METRIC = "val_mIoU"

_END_GRACE_S = 30.0


def trial_folder(search_folder: Path, number: int) -> Path:
    """Return the results folder of a trial."""
    return search_folder / "trials" / f"{number:04d}"


def start_process(
    arguments: Sequence[str], variables: Mapping[str, str], log_file: IO[bytes]
) -> subprocess.Popen[bytes]:
    """Start `mal.stages.trial`, which ends with this process, so that no trial runs unattended."""
    return subprocess.Popen(
        [sys.executable, "-m", TRIAL_MODULE, *arguments],
        env={**os.environ, **variables, PARENT_VARIABLE: str(os.getpid())},
        stdout=log_file,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # Ctrl-C reaches only the search, which forwards it
    )


class TrialProcess:
    """A running trial; `variables` are added to the environment of this process."""

    def __init__(self, folder: Path, spec: ExperimentSpec, variables: Mapping[str, str]) -> None:
        self.folder = folder
        self._last_epoch = 0
        write_text(folder / SPEC_FILE, write_experiment_yaml(spec))
        with (folder / LOG_FILE).open("ab") as log_file:
            self._process = start_process([str(folder / SPEC_FILE)], variables, log_file)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self._process.poll()

    def new_metrics(self) -> Iterator[tuple[int, float]]:
        """Yield epoch and validation mIoU of each epoch that was not yielded before."""
        path = self.folder / EPOCH_METRICS_FILE
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            record = json.loads(line)
            if record["epoch"] > self._last_epoch and METRIC in record:
                self._last_epoch = record["epoch"]
                yield record["epoch"], record[METRIC]

    def end(self) -> None:
        """Stop the process after it has written a checkpoint."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_END_GRACE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def failure(self) -> str:
        """Return the reason of the failure in one line."""
        code = self._process.returncode
        if code < 0:
            hint = " Did it run out of memory?" if -code == signal.SIGKILL else ""
            return f"it was killed by {signal.Signals(-code).name}.{hint}"
        message = _last_failure(self.folder / STATUS_FILE)
        return message or f"it ended with exit code {code}; see {self.folder / LOG_FILE}"


def delete_checkpoints(folder: Path) -> None:
    """Delete the weights of a trial that is not the best; its metrics stay."""
    for path in folder.glob("mal_model_*.pth"):
        path.unlink(missing_ok=True)


def keep_linked_checkpoints(folder: Path) -> None:
    """Delete the weights that neither `best` nor `latest` links to."""
    links = [folder / BEST_CHECKPOINT, folder / LATEST_CHECKPOINT]
    kept = {*links, *(link.resolve() for link in links)}
    for path in folder.glob("mal_model_*.pth"):
        if path not in kept and path.resolve() not in kept:
            path.unlink()


def _last_failure(path: Path) -> str:
    if not path.exists():
        return ""
    message = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if entry["status"] == "FAILURE":
                message = entry["message"].partition("\n")[0]
    return message
