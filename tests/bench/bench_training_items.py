"""Training items of one loader process, an epoch of freshly opened images.

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

from mal.data.crop_dataset import EpochSampler, ImageReader, TrainingCrops
from mal.data.crops import sample_training_window
from mal.data.datamodule import training_loader
from mal.spec import ExperimentSpec

BATCH_SIZE = 4
# width, height, images, crop size (512 is the default, 224 the recipes'), least ratio
CASES = (
    (640, 480, 16, 512, 4.5),
    (640, 480, 16, 224, None),
    (4000, 3000, 8, 512, 6),  # 288 MiB decoded: more than one pool
)


def run() -> Iterator[Result]:
    for width, height, num_images, crop_size, required in CASES:
        spec = ExperimentSpec()
        spec.dataset.crop_size = crop_size
        spec.dataset.num_workers_per_gpu = 0
        spec.train.batch_size = BATCH_SIZE
        with tempfile.TemporaryDirectory() as folder:
            open_set = write_photographs(
                Path(folder), num_images=num_images, width=width, height=height
            )
            yield compare(
                f"{width} x {height}, crop {crop_size}, {num_images * BOXES_PER_IMAGE} items",
                partial(run_literal, open_set, spec),
                partial(run_ours, open_set, spec),
                required=required,
                repeats=5 if width < 1000 else 3,
                warm_up=width < 1000,
            )


def run_literal(open_set: Callable[[], ImageReader], spec: ExperimentSpec) -> None:
    rng = np.random.default_rng(0)
    window_of = partial(sample_training_window, dataset=spec.dataset, train=spec.train, rng=rng)
    items = LiteralItems(open_set(), window_of, spec.dataset.crop_size, is_training=True)
    consume(DataLoader(items, BATCH_SIZE, shuffle=True))


def run_ours(open_set: Callable[[], ImageReader], spec: ExperimentSpec) -> None:
    reader = open_set()
    crops = TrainingCrops(reader, np.arange(len(reader.boxes)), spec, seed=0)
    consume(training_loader(crops, EpochSampler(len(crops), seed=0), spec))
