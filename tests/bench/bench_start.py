"""How soon `mal` answers, and how soon a training makes its first step; medians of processes."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from harness import ROOT, Result, seconds_of

HELP_LIMIT_S, HELP_REPEATS = 0.5, 7
FIRST_STEP_LIMIT_S, FIRST_STEP_REPEATS = 6.0, 3


def run() -> Iterator[Result]:
    seconds = [seconds_of(partial(call, ["--help"])) for _ in range(HELP_REPEATS)]
    yield limited("mal --help", seconds, HELP_LIMIT_S)
    with tempfile.TemporaryDirectory() as folder:
        seconds = [time_first_step(Path(folder), i) for i in range(FIRST_STEP_REPEATS)]
    yield limited("mal train, a tiny run of one step", seconds, FIRST_STEP_LIMIT_S)


def limited(part: str, seconds: Sequence[float], limit_s: float) -> Result:
    spread = round(max(seconds) / min(seconds), 2)
    return Result(part, None, statistics.median(seconds), limit=limit_s, facts={"spread": spread})


def time_first_step(folder: Path, run_index: int) -> float:
    """Time a whole run of one step: start, step, checkpoint and end."""
    sys.path.append(str(ROOT / "tests" / "support"))
    from tiny_sets import HYBRID, training_overrides, write_tiny_set

    data = write_tiny_set(folder / "set")
    overrides = training_overrides(data, folder / f"run {run_index}")
    return seconds_of(partial(call, ["train", *HYBRID, *overrides, "train.max_steps=1"]))


def call(arguments: Sequence[str]) -> None:
    """Run the installed command."""
    command = [str(Path(sys.executable).with_name("mal")), *arguments]
    subprocess.run(command, check=True, capture_output=True)
