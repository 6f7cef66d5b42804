"""The parser of the annotation file: our stream (literal) against msgspec with raw values.

Both read the ids, the box and the byte range of each annotation into flat arrays; each in a process
of its own. Decision: docs/decisions/0006-annotation-reader.md. msgspec is not installed with MAL:
PYTHONPATH=FOLDER_WITH_MSGSPEC runs its side, else it is left out.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from coco_size import write_coco_file
from harness import Result, peak_memory_mib

SIZES = ((300_000, 41_000), (1_000_000, 137_000))
SIDES = ("stream", "indexed", "msgspec")


def run() -> Iterator[Result]:
    for num_boxes, num_images in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "instances.json"
            write_coco_file(path, num_boxes=num_boxes, num_images=num_images, with_masks=True)
            file_mib = round(path.stat().st_size / 2**20)
            sides = {side: measure_apart(side, path) for side in SIDES if is_present(side)}
        other = sides.get("msgspec", {})
        for what, unit in (("seconds", "s"), ("peak_mib", "MiB")):
            yield Result(
                f"{num_boxes:,} boxes: {what} of parsing (msgspec against ours)",
                other.get(what),
                sides["stream"][what],
                unit=unit,
                facts={"file_mib": file_mib, "with_all_checks": sides["indexed"][what]},
            )


def is_present(side: str) -> bool:
    return side != "msgspec" or importlib.util.find_spec("msgspec") is not None


def measure_apart(side: str, path: Path) -> dict[str, float]:
    command = [sys.executable, __file__, side, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def measure_here(side: str, path: Path) -> dict[str, float]:
    parse = {"stream": parse_as_stream, "indexed": index, "msgspec": parse_raw}[side]
    parse(None)
    started_s = time.process_time()
    parse(path)
    return {
        "seconds": round(time.process_time() - started_s, 2),
        "peak_mib": round(peak_memory_mib()),
    }


def parse_as_stream(path: Path | None) -> Any:
    from mal.data.annotation_stream import read_members

    if path is None:
        return None
    numbers, boxes = array("q"), array("d")
    for key, _, entries in read_members(path):
        for value, start, num_bytes in entries or ():
            if key == "annotations":
                numbers.extend((value["id"], value["image_id"], start, num_bytes))
                boxes.extend(value["bbox"])
    return numbers, boxes


def index(path: Path | None) -> Any:
    from mal.data.annotations import load_boxes

    return None if path is None else load_boxes(path, with_masks=True)


def parse_raw(path: Path | None) -> Any:
    import msgspec  # type: ignore[import-not-found]

    row_type = msgspec.defstruct("Row", [("id", int), ("image_id", int), ("bbox", list[float])])
    fields = [("images", msgspec.Raw), ("annotations", list[msgspec.Raw])]
    document_type = msgspec.defstruct("Document", fields)
    outer, inner = msgspec.json.Decoder(document_type), msgspec.json.Decoder(row_type)
    if path is None:
        return None
    content = path.read_bytes()
    numbers, boxes = array("q"), array("d")
    for raw in outer.decode(content).annotations:
        row = inner.decode(raw)
        view = memoryview(raw)
        numbers.extend((row.id, row.image_id, 0, len(view)))
        boxes.extend(row.bbox)
    return numbers, boxes


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], Path(sys.argv[2]))))
