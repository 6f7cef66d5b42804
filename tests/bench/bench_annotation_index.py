"""The index of a file of COCO train2017's size; literal: what pycocotools makes of it, as in TAO.

Each side in a process of its own; seconds are of its processor, MiB its largest resident set, the
interpreter included. A loader process that has looked at every box and image tells what of the
index it had to copy.
"""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coco_size import write_coco_file
from harness import Result, peak_memory_mib

NUM_BOXES, NUM_IMAGES = 860_000, 118_000
LIMIT_S, LIMIT_MIB, REPEATS = 20.0, 300.0, 3


def run() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "instances.json"
        write_coco_file(path, num_boxes=NUM_BOXES, num_images=NUM_IMAGES, with_masks=True)
        literal = measure_apart("literal", path)
        ours = [measure_apart("ours", path) for _ in range(REPEATS)]
        file_mib = round(path.stat().st_size / 2**20)
    seconds = sorted(one["seconds"] for one in ours)
    what = f"{NUM_BOXES:,} boxes, {NUM_IMAGES:,} images"
    yield Result(
        f"{what}: loading",
        literal["seconds"],
        seconds[len(seconds) // 2],
        limit=LIMIT_S,
        facts={"spread": round(seconds[-1] / seconds[0], 2), "file_mib": file_mib},
    )
    peak = max(one["peak_mib"] for one in ours)
    own = max(one["worker_own_mib"] for one in ours)
    yield Result(
        f"{what}: most memory of the process",
        literal["peak_mib"],
        peak,
        unit="MiB",
        limit=LIMIT_MIB,
        facts={"after_loading": max(one["resident_mib"] for one in ours)},
    )
    yield Result(
        f"{what}: a loader process' own memory",
        literal["worker_own_mib"],
        own,
        unit="MiB",
        facts={"of_an_idle_one": max(one["idle_own_mib"] for one in ours)},
    )


def measure_apart(side: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, side, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def measure_here(side: str, path: Path) -> dict[str, float]:
    load, look = (load_literally, look_literally) if side == "literal" else (load_ours, look_ours)
    started_s = time.process_time()
    index = load(path)
    return {
        "seconds": time.process_time() - started_s,
        "peak_mib": peak_memory_mib(),
        "resident_mib": round(memory_mib("Rss")),
        "worker_own_mib": round(own_memory_of_worker(look, index), 1),
        "idle_own_mib": round(own_memory_of_worker(lambda _: None, index), 1),
    }


def own_memory_of_worker(look: Any, index: Any) -> float:
    """Return MiB that a forked process has for itself after looking at the whole index."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def work() -> None:
        look(index)
        sender.send(memory_mib("Private_Clean") + memory_mib("Private_Dirty"))

    process = context.Process(target=work)
    process.start()
    own_mib: float = receiver.recv()
    process.join()
    return own_mib


def memory_mib(kind: str) -> float:
    for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise LookupError(kind)


def load_literally(path: Path) -> Any:
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


def look_literally(coco: Any) -> None:
    for annotation in coco.anns.values():
        assert annotation["bbox"][2] >= 0
        assert coco.imgs[annotation["image_id"]]["file_name"]


def load_ours(path: Path) -> Any:
    from mal.data.annotations import load_boxes

    return load_boxes(path, with_masks=True)


def look_ours(boxes: Any) -> None:
    for index in range(len(boxes)):
        assert boxes.box_xywh_N4[index, 2] >= 0
        assert boxes.image_of(index).file_name


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], Path(sys.argv[2]))))
