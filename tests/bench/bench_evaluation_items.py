"""Items of evaluation and inference of one loader process, images freshly opened.

The literal items are normalised floats; ours stay bytes until they are on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from harness import Result
from photographs import LiteralItems, OpenSet, compare_items, consume
from torch.utils.data import DataLoader

from mal.data.crop_dataset import PredictionCrops
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
    yield from compare_items(CASES, run_literal, run_ours)


def run_literal(open_set: OpenSet, crop_size: int) -> None:
    window_of = partial(prediction_window, test_margin_rate=MARGIN_RATE)
    items = LiteralItems(open_set(), window_of, crop_size, is_training=False)
    consume(DataLoader(items, BATCH_SIZE))


def run_ours(open_set: OpenSet, crop_size: int) -> None:
    reader = open_set()
    rows = in_image_order(reader.boxes, np.arange(len(reader.boxes)))
    crops = PredictionCrops(reader, rows, crop_size=crop_size, margin_rate=MARGIN_RATE)
    positions = range(len(crops))
    batches = [list(positions[first : first + BATCH_SIZE]) for first in positions[::BATCH_SIZE]]
    consume(prediction_loader(crops, batches, num_workers=0))
