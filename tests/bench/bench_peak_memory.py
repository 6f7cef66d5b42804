"""Most memory of two training steps of ViT-B: each side in a process of its own.

What counts is the process' largest resident set minus that before network and optimiser are made.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from harness import Result, peak_memory_mib

LARGEST_PART = 0.70
CROP_SIZE, NUM_ITEMS, NUM_STEPS = 512, 2, 2


def run() -> Iterator[Result]:
    literal, ours = (measure_apart(side) for side in ("LiteralTraining", "OurTraining"))
    yield Result(
        f"fp32, crop {CROP_SIZE}, batch {NUM_ITEMS}",
        literal,
        ours,
        unit="MiB",
        required=1 / LARGEST_PART,
        facts={"part_of_literal": round(ours / literal, 2)},
    )


def measure_apart(side: str) -> float:
    """Return MiB that a side needs, from a fresh process."""
    command = [sys.executable, __file__, side]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(answer.stdout.split()[-1])


def measure_here(side: str) -> float:
    import literal_training

    from mal.spec import load_spec

    spec = load_spec("train", {"dataset": {"crop_size": CROP_SIZE}})
    batch = literal_training.draw_batch(NUM_ITEMS, CROP_SIZE)
    before_mib = peak_memory_mib()
    step = getattr(literal_training, side)(spec)
    for _ in range(NUM_STEPS):
        step(batch)
    return peak_memory_mib() - before_mib


if __name__ == "__main__":
    print(measure_here(sys.argv[1]))
