"""A few photographs and pretrained weights, where this machine has them; else what is generated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mal.data.synthetic import generate_demo_dataset
from mal.model.backbone import build_backbone
from mal.spec.experiment import ModelSpec

REPOSITORY = Path(__file__).parents[2]
WEIGHTS_NAME = "vit_small_patch14_dinov2_saliency_fp16.safetensors"
MIN_AREA_PX2 = 2500.0  # counts in every recipe
NUM_BOXES = range(2, 7)


def find_shared(name: str) -> Path | None:
    """Return a file or folder of `shared/`, which lies beside the repository or above it."""
    candidates = [parent / "shared" / name for parent in REPOSITORY.parents]
    return next((path for path in candidates if path.exists()), None)


@dataclass(frozen=True)
class SmallSet:
    """A set of a few images.

    Attributes:
        images: Folder of both parts.
        train: COCO JSON.
        val: COCO JSON.
    """

    images: Path
    train: Path
    val: Path

    def first_image(self) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """Return RGB pixels and boxes as xyxy of the first image of the validation part."""
        document = json.loads(self.val.read_text())
        image = document["images"][0]
        box_xywh_N4 = np.array(
            [a["bbox"] for a in document["annotations"] if a["image_id"] == image["id"]]
        )
        box_xyxy_N4 = np.hstack([box_xywh_N4[:, :2], box_xywh_N4[:, :2] + box_xywh_N4[:, 2:]])
        pixels = np.asarray(Image.open(self.images / image["file_name"]).convert("RGB"))
        return pixels, box_xyxy_N4


def write_small_set(folder: Path) -> SmallSet:
    """Write annotations of a few photographs, or generate a few demo images."""
    source = find_shared("data/coco_open")
    if source is None:
        source = folder / "demo"
        generate_demo_dataset(source, num_images=8, seed=0)
    paths = {}
    for part, num_images in (("train", 3), ("val", 2)):
        document = json.loads((source / f"{part}.json").read_text())
        paths[part] = folder / f"{part}.json"
        paths[part].write_text(json.dumps(_with_few_images(document, num_images)))
    return SmallSet(source / "images", paths["train"], paths["val"])


def _with_few_images(document: Mapping[str, Any], num_images: int) -> dict[str, Any]:
    boxes_of: dict[int, list[Any]] = {}
    for annotation in document["annotations"]:
        _, _, width, height = annotation["bbox"]
        if width * height > MIN_AREA_PX2 and not annotation.get("iscrowd"):
            boxes_of.setdefault(annotation["image_id"], []).append(annotation)
    fitting = [key for key, boxes in boxes_of.items() if len(boxes) in NUM_BOXES]
    chosen = (fitting or list(boxes_of))[:num_images]
    return {
        **document,
        "images": [image for image in document["images"] if image["id"] in chosen],
        "annotations": [box for key in chosen for box in boxes_of[key]],
    }


def weights_for(arch: str, folder: Path) -> Path:
    """Return pretrained weights of a backbone where they are at hand, else write random ones."""
    found = find_shared(f"weights/{WEIGHTS_NAME}") if arch == "vit-dinov2-small/14" else None
    if found is not None:
        return found
    path = folder / f"{arch.replace('/', '-')}.pth"
    torch.manual_seed(0)
    torch.save(build_backbone(ModelSpec(arch), 224).state_dict(), path)
    return path


def points_of_boxes(box_xyxy_N4: NDArray[np.float64]) -> Sequence[Sequence[Sequence[float]]]:
    """Return for each box a point on the object, its centre, and one off it, near a corner."""
    return [
        [[(x0 + x1) / 2, (y0 + y1) / 2, 1], [x0 + 2, y0 + 2, 0]]
        for x0, y0, x1, y1 in box_xyxy_N4.tolist()
    ]
