"""Paired timings: the literal algorithm and ours in turn, in one process, on one thread.

A bench is a file `bench_<case>.py` with a function `run()` that yields results. What counts is
the ratio of the two medians; the times themselves are this machine's.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what is measured decides what is imported
    import torch

PACKAGES = ("torch", "torchvision", "timm", "lightning", "numpy", "pillow", "onnxruntime")
PEAK_SIDE = 1536
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        part: What was compared.
        baseline: Of the literal algorithm; None where there is only a limit.
        ours: Of `mal`.
        unit: Of both; less is better. s, MiB, or what the name says.
        required: Least ratio baseline / ours; None where there is none.
        limit: Most that `ours` may be; None where there is none.
        facts: What else was seen, by name.
    """

    part: str
    baseline: float | None
    ours: float
    unit: str = "s"
    required: float | None = None
    limit: float | None = None
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How many times ours is better."""
        return None if self.baseline is None else self.baseline / self.ours

    @property
    def is_met(self) -> bool:
        """Whether the requirement, if any, holds."""
        is_fast = self.required is None or (self.ratio or 0) >= self.required
        return is_fast and (self.limit is None or self.ours <= self.limit)


def compare(
    part: str,
    baseline: Callable[[], Any],
    ours: Callable[[], Any],
    *,
    required: float | None = None,
    repeats: int = 5,
    warm_up: bool = True,
    **facts: Any,
) -> Result:
    """Time two functions in turn; the medians of `repeats` runs count.

    Seconds are of the processor: what the one thread computed, not what it waited for others on a
    shared machine.
    """
    if warm_up:
        baseline()
        ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for function, seconds in zip((baseline, ours), times, strict=True):
            seconds.append(seconds_of(function, time.process_time))
    slow, fast = map(statistics.median, times)
    spread = max(max(seconds) / min(seconds) for seconds in times)
    return Result(part, slow, fast, required=required, facts={"spread": round(spread, 2), **facts})


def seconds_of(
    function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time one call."""
    started_s = clock()
    function()
    return clock() - started_s


def has_bf16_units() -> bool:
    """Whether the processor multiplies bf16 itself, rather than emulate it."""
    flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    return bool({"avx512_bf16", "amx_bf16"} & set(flags))


def share_of_peak(
    function: Callable[[], Any], seconds: float, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Return what a function multiplies, and what part of this processor's best it reaches.

    The best is a product of two large square matrices, timed here and now.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows attention only as the products it is made of.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function()
    matrix = torch.ones(PEAK_SIDE, PEAK_SIDE, dtype=dtype)
    fastest_s = min(seconds_of(lambda: matrix @ matrix, time.process_time) for _ in range(5))
    peak = 2 * PEAK_SIDE**3 / fastest_s
    return {
        "gflop": round(counter.get_total_flops() / 1e9),
        "matmul_peak_gflop_s": round(peak / 1e9),
        "of_matmul_peak": round(counter.get_total_flops() / seconds / peak, 2),
    }


def peak_memory_mib() -> float:
    """Most that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def record_of(case: str, result: Result) -> dict[str, Any]:
    """Return the JSON line of a result: figures, machine, versions and commit."""
    return {
        "case": case,
        **dataclasses.asdict(result),
        "ratio": result.ratio,
        "is_met": result.is_met,
        "machine": machine(),
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def machine() -> str:
    """Name processor, cores and system."""
    cpu = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    return f"{cpu}, {os.cpu_count()} cores, {platform.system()}"


def _commit() -> str:
    answer = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return answer.stdout.strip()
