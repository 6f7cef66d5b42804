"""Data sets and specs small enough that a test can train on them in seconds."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mal.spec import ExperimentSpec, load_spec
from mal.stages import TrainResult

HYBRID = (
    "model.arch=vit-hybrid-small/8",
    "model.mask_head=pyramid",
    "dataset.crop_size=32",
    "dataset.window_rate=[1.3, 1.8]",
    "dataset.box_jitter=0.2",
    "train.crf_num_iter=3",
)
TINY_VIT = (
    "model.arch=vit-mae-tiny/16",
    "model.mask_head_hidden_channel=8",
    "model.mask_head_out_channel=8",
    "dataset.crop_size=32",
    "train.crf_num_iter=3",
)

# For the demo set, through every step.
TINY_SPEC = """\
device: cpu
dataset: {crop_size: 64, num_workers_per_gpu: 0, min_obj_size: 0}
model: {arch: vit-mae-tiny/16, mask_head_hidden_channel: 16, mask_head_out_channel: 16}
train: {batch_size: 4, num_epochs: 1, max_steps: 2, lr: 1e-4, crf_num_iter: 2}
evaluate: {batch_size: 4}
inference: {batch_size: 4}
"""


@dataclass(frozen=True)
class TinySet:
    """A written set.

    Attributes:
        annotations: COCO JSON.
        images: Folder.
    """

    annotations: Path
    images: Path

    def document(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.annotations.read_text())
        return content

    def rewritten(self, document: dict[str, Any], name: str) -> "TinySet":
        """Return the same images with other annotations."""
        path = self.annotations.with_name(name)
        path.write_text(json.dumps(document))
        return TinySet(path, self.images)


def write_tiny_set(
    folder: Path, *, num_images: int = 3, boxes_per_image: int = 2, size_px: int = 48, seed: int = 0
) -> TinySet:
    """Draw bright diamonds on dark noise; boxes, true masks, two categories, odd extra fields."""
    rng = np.random.default_rng(seed)
    images_dir = folder / "images"
    images_dir.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        picture = rng.integers(0, 90, (size_px, size_px, 3))
        for _ in range(boxes_per_image):
            side = int(rng.integers(14, 24))
            x, y = (int(v) for v in rng.integers(0, size_px - side, 2))
            rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
            inside = abs(rows) + abs(columns) <= side / 2
            picture[y : y + side, x : x + side][inside] = rng.integers(150, 255, 3)
            half = side / 2
            corners = [x + half, y, x + side, y + half, x + half, y + side, x, y + half]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": 1 + len(annotations) % 2,
                    "bbox": [x, y, side, side],
                    "area": side * side,
                    "iscrowd": 0,
                    "segmentation": [corners],
                    "note": {"kept": [1, 2.5, "ü"]},
                }
            )
        name = f"picture {index}.png"
        Image.fromarray(picture.astype(np.uint8)).save(images_dir / name)
        images.append(
            {"id": index + 1, "file_name": name, "width": size_px, "height": size_px, "date": "x"}
        )
    document = {
        "info": {"year": 2026},
        "images": images,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    return TinySet(path, images_dir)


def write_set_of_seven(folder: Path) -> TinySet:
    """Write a set of seven boxes: batches of two leave an incomplete last one."""
    whole = write_tiny_set(folder, num_images=4)
    document = whole.document()
    document["annotations"].pop()
    return whole.rewritten(document, "seven.json")


KINDS = ("box", "box+points", "point")


def with_points(data: TinySet, name: str = "points.json", kinds: Sequence[str] = KINDS) -> TinySet:
    """Return the set with its objects of these kinds in turn: a box, two points more, one point."""
    document = data.document()
    for number, annotation in enumerate(document["annotations"]):
        x, y, w, h = annotation["bbox"]
        centre, corner = [x + w / 2, y + h / 2, 1], [x + 1, y + 1, 0]
        kind = kinds[number % len(kinds)]
        if kind == "box+points":
            annotation["points"] = [centre, corner]
        elif kind == "point":
            annotation["points"] = [centre]
            del annotation["bbox"]
    return data.rewritten(document, name)


def training_overrides(
    train: TinySet, results_dir: Path | str, val: TinySet | None = None
) -> list[str]:
    """Return overrides of a training run of a few CPU seconds."""
    overrides = [
        f"train.results_dir={results_dir}",
        f"dataset.train_ann_path={train.annotations}",
        f"dataset.train_img_dir={train.images}",
        "dataset.min_obj_size=0",
        "dataset.num_workers_per_gpu=0",
        "device=cpu",
        "wandb.enable=false",
        "train.num_epochs=2",
        "train.batch_size=2",
        "train.lr=1e-3",
        "train.loss_mil_step=0",
        "train.loss_crf_step=0",
        "evaluate.batch_size=4",
    ]
    if val is not None:
        overrides += [
            f"dataset.val_ann_path={val.annotations}",
            f"dataset.val_img_dir={val.images}",
        ]
    return overrides


def training_spec(
    train: TinySet,
    results_dir: Path | str,
    *overrides: str,
    val: TinySet | None = None,
    network: Sequence[str] = HYBRID,
) -> ExperimentSpec:
    """Return the spec of a training run of a few CPU seconds."""
    return load_spec(
        "train", {}, [*network, *training_overrides(train, results_dir, val), *overrides]
    )


@dataclass(frozen=True)
class Trained:
    """A finished run on a set."""

    data: TinySet
    result: TrainResult
