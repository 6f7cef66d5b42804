"""`mal inference` of ten thousand and of a million boxes: does its memory grow with them?

Everything runs, from the annotation file to labels and report, but the network, which draws the
same blob into every box, and the images, which are black. For a million boxes the crops are not cut
either, nor the masks made: they come ready. Each run in a process of its own; MiB are its largest
resident set. Literal: all masks in a list and the file as one object, as `json` has it.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from coco_size import write_coco_file
from harness import Result, peak_memory_mib

FEW, MORE, MANY = 10_000, 100_000, 1_000_000
BOXES_PER_IMAGE = 7  # as COCO
LIMIT_RATIO = 1.3
CROP_SIZE, MAP_SIZE = 32, 16
RUNS = (("whole", FEW), ("whole", MORE), ("masks", FEW), ("masks", MANY), ("literal", MANY))


def run() -> Iterator[Result]:
    with ThreadPoolExecutor() as pool:  # memory is measured, not time
        figures = dict(zip(RUNS, pool.map(measure_apart, RUNS), strict=True))
    literal = figures["literal", MANY]["peak_mib"]
    for (name, num_boxes), baseline, what in (
        (("whole", MORE), None, "crops and masks made"),
        (("masks", MANY), literal, "masks given"),
    ):
        few, many = figures[name, FEW], figures[name, num_boxes]
        yield Result(
            f"{num_boxes:,} boxes, {what}",
            baseline,
            many["peak_mib"],
            unit="MiB",
            limit=round(LIMIT_RATIO * few["peak_mib"]),
            facts={
                f"of_{FEW}_boxes": round(few["peak_mib"]),
                "growth_of_flat_arrays": round(many["arrays_mib"] - few["arrays_mib"]),
                "labels_mib": round(many["labels_mib"]),
            },
        )


def measure_apart(run: tuple[str, int]) -> dict[str, float]:
    command = [sys.executable, __file__, *map(str, run)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(answer.stdout.splitlines()[-1])
    return figures


def measure_here(side: str, num_boxes: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        num_images = num_boxes // BOXES_PER_IMAGE
        path = folder / "boxes.json"
        write_coco_file(path, num_boxes=num_boxes, num_images=num_images, with_masks=False)
        if side == "literal":
            label_literally(path, folder / "labels.json")
            return {"peak_mib": peak_memory_mib()}
        label_ours(path, folder, are_masks_given=side == "masks")
        boxes = load(path)
        arrays = [value for value in vars(boxes).values() if isinstance(value, np.ndarray)]
        return {
            "peak_mib": peak_memory_mib(),
            # of the index, and of the masks' figures (start, length, score, area)
            "arrays_mib": (sum(a.nbytes for a in arrays) + num_boxes * (8 + 4 + 8 + 8)) / 2**20,
            "labels_mib": (folder / "labels.json").stat().st_size / 2**20,
        }


def load(path: Path) -> Any:
    from mal.data.annotations import load_boxes

    return load_boxes(path, with_masks=False)


def label_ours(annotations: Path, folder: Path, *, are_masks_given: bool) -> None:
    """Run `mal inference` without network and images."""
    from mal.labeling.load import LoadedModel
    from mal.spec import load_spec
    from mal.stages import run_inference

    black = np.zeros((480, 640, 3), dtype=np.uint8)
    blob_MM = torch.from_numpy(draw_blob())

    def draw(image: torch.Tensor, _unit_box: Any, _area: Any) -> torch.Tensor:
        return blob_MM.expand(len(image), -1, -1)

    checkpoint = folder / "model.pth"
    checkpoint.touch()
    overrides = {
        "inference.checkpoint": checkpoint,
        "inference.ann_path": annotations,
        "inference.img_dir": folder,
        "inference.results_dir": folder,
        "inference.label_dump_path": "labels.json",
        "inference.batch_size": 32,
        "dataset.crop_size": CROP_SIZE,
        "dataset.num_workers_per_gpu": 0,
    }
    spec = load_spec("inference", {}, [f"{key}={value}" for key, value in overrides.items()])
    model = LoadedModel(draw, CROP_SIZE, checkpoint, spec)
    with (
        patch("mal.stages.measure.predict_masks", given_masks)
        if are_masks_given
        else contextlib.nullcontext(),
        patch("mal.stages.inference.load_model", lambda *_: model),
        patch("mal.data.crop_dataset.find_image", lambda folder, name: folder / name),
        patch("mal.data.crop_dataset.read_image", lambda *_, **__: black),
    ):
        run_inference(spec)


def given_masks(_model: Any, _reader: Any, rows: Any, _settings: Any) -> Iterator[Any]:
    from mal.labeling.coco_rle import area_of_rle, ellipse_rle
    from mal.labeling.masks import InstanceMask

    rle = ellipse_rle([100, 100, 80, 60], 480, 640)
    area = area_of_rle(rle)
    for row in rows.tolist():
        yield InstanceMask(row, dict(rle), (row % 1000) / 1000, area)


def draw_blob() -> Any:
    from size_mix import draw_maps

    return draw_maps(1, MAP_SIZE)[0]


def label_literally(annotations: Path, labels: Path) -> None:
    """Hold every mask and the whole file."""
    from mal.labeling.coco_rle import ellipse_rle, rle_to_json

    document = json.loads(annotations.read_bytes())
    rle = ellipse_rle([100, 100, 80, 60], 480, 640)
    masks = [dict(rle) for _ in document["annotations"]]
    for entry, rle in zip(document["annotations"], masks, strict=True):
        entry.update(segmentation=rle_to_json(rle), score=0.5)
    labels.write_text(json.dumps(document, indent=2), encoding="utf-8")


if __name__ == "__main__":
    print(json.dumps(measure_here(sys.argv[1], int(sys.argv[2]))))
