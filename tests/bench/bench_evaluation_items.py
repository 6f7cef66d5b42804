"""Items of evaluation and inference of one loader process, images freshly opened.

The literal items are normalised floats; ours stay bytes until they are on the device.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from harness import Result, compare
from photographs import BOXES_PER_IMAGE, LiteralItems, consume, write_photographs
from torch.utils.data import DataLoader

from mal.data.crop_dataset import ImageReader, PredictionCrops
from mal.data.crops import prediction_window
from mal.data.datamodule import in_image_order, prediction_loader

BATCH_SIZE = 4
MARGIN_RATE = 0.6
# width, height, images, crop size (512 is the default, 224 the recipes'), least ratio
CASES = (
    (640, 480, 16, 512, 2),
    (640, 480, 16, 224, None),
    (4000, 3000, 6, 512, 5),
)


def run() -> Iterator[Result]:
    for width, height, num_images, crop_size, required in CASES:
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


def run_literal(open_set: Callable[[], ImageReader], crop_size: int) -> None:
    window_of = partial(prediction_window, test_margin_rate=MARGIN_RATE)
    items = LiteralItems(open_set(), window_of, crop_size, is_training=False)
    consume(DataLoader(items, BATCH_SIZE))


def run_ours(open_set: Callable[[], ImageReader], crop_size: int) -> None:
    reader = open_set()
    rows = in_image_order(reader.boxes, np.arange(len(reader.boxes)))
    crops = PredictionCrops(reader, rows, crop_size=crop_size, margin_rate=MARGIN_RATE)
    consume(prediction_loader(crops, batch_size=BATCH_SIZE, num_workers=0))
