"""Detection of new annotations in a set of a million boxes: time and memory of a whole process.

The time is what the process computed; what it took by the clock is among the facts.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from harness import Result, peak_memory_mib

NUM_BOXES, NUM_IMAGES, NUM_NEW = 1_000_000, 100_000, 1_000
LIMIT_S, LIMIT_MIB = 60.0, 1024.0


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), NUM_BOXES - NUM_NEW)
        measure_apart(folder)  # leaves the state of a last training
        write_set(Path(folder), NUM_BOXES)
        seconds, wall_s, mib, num_new = measure_apart(folder)
        size_mb = round((Path(folder) / "boxes.json").stat().st_size / 1e6)
    facts = {"num_new": int(num_new), "file_mb": size_mb, "by_the_clock_s": round(wall_s, 1)}
    yield Result("1,000,000 boxes, 1,000 of them new", None, seconds, limit=LIMIT_S, facts=facts)
    yield Result("the same, memory of the process", None, mib, unit="MiB", limit=LIMIT_MIB)


def write_set(folder: Path, num_boxes: int) -> None:
    rng = random.Random(0)
    images = folder / "images"
    images.mkdir(exist_ok=True)
    names = [f"{n:07d}.jpg" for n in range(NUM_IMAGES)]
    for name in names:
        (images / name).touch()
    with (folder / "boxes.json").open("w", encoding="utf-8") as file:
        entries = [{"id": n, "file_name": name} for n, name in enumerate(names)]
        file.write(f'{{"images": {json.dumps(entries)}, "categories": [], "annotations": [')
        for n in range(num_boxes):
            box = [round(rng.uniform(1, 400), 2) for _ in range(4)]
            entry = {"id": n, "image_id": n % NUM_IMAGES, "category_id": 1, "bbox": box, "area": 1}
            file.write(f"{',' if n else ''}{json.dumps(entry)}")
        file.write("]}")


def measure_apart(folder: str) -> tuple[float, ...]:
    command = [sys.executable, __file__, folder]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    return tuple(map(float, answer.stdout.split()))


def measure_here(folder: Path) -> tuple[float, ...]:
    from mal.registry.changes import detect_changes
    from mal.registry.model_store import ModelStore, StoreState

    store = ModelStore(str(folder / "store"))
    computed_s, started_s = time.process_time(), time.perf_counter()
    found = detect_changes(
        store,
        train_images=str(folder / "images"),
        train_annotations=str(folder / "boxes.json"),
        min_new_annotations=NUM_NEW,
    )
    times = (time.process_time() - computed_s, time.perf_counter() - started_s)
    training = found.training(version="v", is_promoted=True, at="")
    store.write(StoreState(last_training=training, etag=found.store_etag))
    return *times, peak_memory_mib(), found.changes.num_new


if __name__ == "__main__":
    print(*measure_here(Path(sys.argv[1])))
