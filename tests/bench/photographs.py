"""Photo-like JPEGs with boxes, and the items of the literal algorithm."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Result, compare
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms  # type: ignore[import-untyped]
from torchvision.transforms import functional  # type: ignore[import-untyped]

from mal.data.annotations import load_boxes
from mal.data.batch import IMAGENET_MEAN, IMAGENET_STD
from mal.data.crop_dataset import ImageReader
from mal.data.crops import Window, xyxy_from_xywh

OpenSet = Callable[[], ImageReader]

BOXES_PER_IMAGE = 14
JPEG_QUALITY = 90


def write_photographs(
    folder: Path, *, num_images: int, width: int, height: int
) -> Callable[[], ImageReader]:
    """Draw a set; the result opens it anew, with nothing decoded yet."""
    rng = np.random.default_rng(0)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(num_images):
        name = f"{index}.jpg"
        _draw_photograph(rng, width, height).save(folder / name, quality=JPEG_QUALITY)
        images.append({"id": index, "file_name": name, "width": width, "height": height})
        for _ in range(BOXES_PER_IMAGE):
            side = height * np.exp(rng.uniform(np.log(0.08), np.log(0.6), 2))
            corner = rng.uniform(0, [width, height] - side)
            annotations.append(
                {"id": len(annotations), "image_id": index, "bbox": [*corner, *side]}
            )
    path = folder / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return lambda: ImageReader(load_boxes(path, with_masks=False), folder)


def _draw_photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Draw soft shapes, finer ones on them, and a little noise."""

    def soft(cell_px: int) -> NDArray[np.float32]:
        cells = rng.integers(0, 256, (height // cell_px + 1, width // cell_px + 1, 3))
        image = Image.fromarray(cells.astype(np.uint8))
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC), np.float32)

    levels = 0.6 * soft(height // 6) + 0.3 * soft(height // 40)
    levels += rng.normal(12, 4, (height, width, 1)).astype(np.float32)
    return Image.fromarray(levels.clip(0, 255).astype(np.uint8))


class LiteralItems(Dataset[dict[str, Tensor]]):
    """One box an item: the image decoded, made an array of numbers, and cut, each time.

    The student's colours change as torchvision's transforms change them; both views are
    normalised here, in the loader.
    """

    def __init__(
        self,
        reader: ImageReader,
        window_of: Callable[[NDArray[np.float64]], Window],
        crop_size: int,
        *,
        is_training: bool,
    ) -> None:
        self.reader = reader
        self.window_of = window_of
        self.crop_size = crop_size
        self.is_training = is_training
        jitter = transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)
        self.augmentation = transforms.Compose(
            [
                transforms.RandomApply([jitter], p=0.5),
                transforms.RandomGrayscale(p=0.2),
                transforms.RandomApply([_blur_at_random], p=0.5),
            ]
        )
        self.normalize = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        )

    def __len__(self) -> int:
        return len(self.reader.boxes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        boxes = self.reader.boxes
        box_xyxy = xyxy_from_xywh(boxes.box_xywh_N4[index])
        with Image.open(self.reader.path_of(int(boxes.image_index_N[index]))) as image:
            image_HW3 = np.asarray(image.convert("RGB"), dtype=np.float32)
        box_mask_HW = np.zeros(image_HW3.shape[:2], dtype=np.float32)
        x0, y0, x1, y1 = (max(round(side), 0) for side in box_xyxy)
        box_mask_HW[y0:y1, x0:x1] = 1
        window = self.window_of(box_xyxy)
        crop, mask = self._resized(image_HW3, window), self._resized(box_mask_HW, window)
        if self.is_training and torch.rand(()) < 0.5:
            crop, mask = functional.hflip(crop), functional.hflip(mask)
        item = {
            "image": self.normalize(crop),
            "mask": torch.from_numpy(np.array(mask, dtype=np.float32)),
            "area": torch.tensor(boxes.box_area_N[index]),
            "index": torch.tensor(index),
        }
        if self.is_training:
            item["student_image"] = self.normalize(self.augmentation(crop))
        return item

    def _resized(self, values: NDArray[np.float32], window: Window) -> Image.Image:
        height, width = values.shape[:2]
        x0, y0, x1, y1 = window
        patch = np.zeros((y1 - y0, x1 - x0, *values.shape[2:]), dtype=np.float32)
        left, top, right, bottom = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
        patch[top - y0 : bottom - y0, left - x0 : right - x0] = values[top:bottom, left:right]
        is_image = values.ndim == 3
        return Image.fromarray(patch.astype(np.uint8)).resize(
            (self.crop_size, self.crop_size),
            Image.Resampling.BILINEAR if is_image else Image.Resampling.NEAREST,
        )


def _blur_at_random(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(float(torch.empty(()).uniform_(0.1, 2.0))))


def compare_items(
    cases: Iterable[tuple[int, int, int, int, float | None]],
    run_literal: Callable[[OpenSet, int], None],
    run_ours: Callable[[OpenSet, int], None],
) -> Iterator[Result]:
    """Compare two ways to all items of freshly opened sets.

    Args:
        cases: Width, height, images, crop size, least ratio.
        run_literal: Takes how a set is opened, and the crop size.
        run_ours: Likewise.
    """
    for width, height, num_images, crop_size, required in cases:
        with tempfile.TemporaryDirectory() as folder:
            open_set = write_photographs(
                Path(folder), num_images=num_images, width=width, height=height
            )
            yield compare(
                f"{width} x {height}, crop {crop_size}, {num_images * BOXES_PER_IMAGE} items",
                partial(run_literal, open_set, crop_size),
                partial(run_ours, open_set, crop_size),
                required=required,
                repeats=5 if width < 1000 else 3,
                warm_up=width < 1000,
            )


def consume(loader: Any) -> None:
    """Take every batch of a loader."""
    for _ in loader:
        pass
