"""Where the time of a training goes, as one table (`train.profile`)."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from pathlib import Path

import torch
from lightning.pytorch.profilers import Profiler

from mal.artifacts import PROFILE_FILE, write_json

log = logging.getLogger(__name__)

FEATURES, STUDENT, TEACHER, CRF, REST = "features", "student", "teacher", "CRF", "rest"

# By how Lightning's names of what it does end; anything else belongs to what it is done within.
_PARTS = {
    FEATURES: FEATURES,
    STUDENT: STUDENT,
    TEACHER: TEACHER,
    CRF: CRF,
    "train_dataloader_next": "loading",
    "batch_to_device": "loading",
    ".backward": "backward",
    "MALModule.optimizer_step": "optimiser",
    "MALModule.training_step": REST,
    "Validation.on_train_epoch_end": "validation",
    "Checkpoints.on_train_batch_end": "checkpoints",
    "Checkpoints.on_train_epoch_end": "checkpoints",
}


class StepProfile(Profiler):
    """Adds up the wall time of the parts of a training; a part does not count what is inside it.

    Lightning calls it at the start and end of each part. On CUDA each change waits for the device,
    so that work is credited to the part that started it: a profiled run is slower.

    Attributes:
        seconds: By part; their sum is the whole run.
        counts: How often each part began.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        super().__init__()
        self.folder = folder
        self.device = device
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.counts: defaultdict[str, int] = defaultdict(int)
        self._open: list[str] = [REST]
        self._since_s = time.perf_counter()

    def start(self, action_name: str) -> None:
        """Begin a part, or something inside the present one."""
        self._credit()
        part = _part_of(action_name)
        if part is not None:
            self.counts[part] += 1
        self._open.append(part or self._open[-1])

    def stop(self, action_name: str) -> None:
        """End what began last."""
        self._credit()
        self._open.pop()

    def summary(self) -> str:
        """Return the table, the longest part first."""
        total_s = sum(self.seconds.values())
        lines = ["part            seconds  share  times"]
        for part, seconds in sorted(self.seconds.items(), key=lambda entry: -entry[1]):
            share = seconds / max(total_s, 1e-9)
            lines.append(f"{part:<14} {seconds:8.2f} {share:6.1%} {self.counts[part]:6d}")
        return "\n".join([*lines, f"{'all':<14} {total_s:8.2f}"])

    def describe(self) -> None:
        """Print the table and write `profile.json`; Lightning calls it when the run ends."""
        self._credit()
        for line in self.summary().splitlines():
            log.info("%s", line)
        parts = {
            part: {"seconds": round(seconds, 4), "times": self.counts[part]}
            for part, seconds in self.seconds.items()
        }
        write_json(self.folder / PROFILE_FILE, {"device": str(self.device), "parts": parts})

    def _credit(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now_s = time.perf_counter()
        self.seconds[self._open[-1]] += now_s - self._since_s
        self._since_s = now_s


def _part_of(action_name: str) -> str | None:
    return next((part for end, part in _PARTS.items() if action_name.endswith(end)), None)
