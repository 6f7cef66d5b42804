"""How soon `mal` answers, and how soon a training makes its first step; medians of processes.

Seconds are of the processor: one thread does all of it, and does not wait for the disk where the
packages have been read before. What passed on the clock of a shared machine is told beside.
"""

from __future__ import annotations

import resource
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
    times = [time_call(["--help"]) for _ in range(HELP_REPEATS)]
    yield limited("mal --help", times, HELP_LIMIT_S)
    with tempfile.TemporaryDirectory() as folder:
        times = [time_first_step(Path(folder), i) for i in range(FIRST_STEP_REPEATS)]
    yield limited("mal train, a tiny run of one step", times, FIRST_STEP_LIMIT_S)


def limited(part: str, times: Sequence[tuple[float, float]], limit_s: float) -> Result:
    seconds, clock_seconds = zip(*times, strict=True)
    facts = {
        "spread": round(max(seconds) / min(seconds), 2),
        "fastest_on_the_clock_s": round(min(clock_seconds), 2),
    }
    return Result(part, None, statistics.median(seconds), limit=limit_s, facts=facts)


def time_first_step(folder: Path, run_index: int) -> tuple[float, float]:
    """Time a whole run of one step: start, step, checkpoint and end."""
    sys.path.append(str(ROOT / "tests" / "support"))
    from tiny_sets import HYBRID, training_overrides, write_tiny_set

    data = write_tiny_set(folder / "set")
    overrides = training_overrides(data, folder / f"run {run_index}")
    return time_call(["train", *HYBRID, *overrides, "train.max_steps=1"])


def time_call(arguments: Sequence[str]) -> tuple[float, float]:
    """Run the installed command; return seconds of the processor and of the clock."""
    command = [str(Path(sys.executable).with_name("mal")), *arguments]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock_s = seconds_of(partial(subprocess.run, command, check=True, capture_output=True))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, clock_s
