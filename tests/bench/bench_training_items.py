"""Training items of one loader process, an epoch of freshly opened images.

The literal items are normalised floats; ours stay bytes until they are on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from harness import Result
from photographs import LiteralItems, OpenSet, compare_items, consume
from torch.utils.data import DataLoader

from mal.data.crop_dataset import TrainingCrops
from mal.data.crops import sample_training_window
from mal.data.datamodule import training_loader
from mal.data.sampler import EpochSampler
from mal.spec import ExperimentSpec

BATCH_SIZE = 4
# width, height, images, crop size (512 is the default, 224 the recipes'), least ratio
CASES = (
    (640, 480, 16, 512, 4.5),
    (640, 480, 16, 224, None),
    (4000, 3000, 8, 512, 6),  # 288 MiB decoded: more than one pool
)


def run() -> Iterator[Result]:
    yield from compare_items(CASES, run_literal, run_ours)


def run_literal(open_set: OpenSet, crop_size: int) -> None:
    rng, spec = np.random.default_rng(0), spec_of(crop_size)
    window_of = partial(sample_training_window, dataset=spec.dataset, train=spec.train, rng=rng)
    items = LiteralItems(open_set(), window_of, spec.dataset.crop_size, is_training=True)
    consume(DataLoader(items, BATCH_SIZE, shuffle=True))


def run_ours(open_set: OpenSet, crop_size: int) -> None:
    reader, spec = open_set(), spec_of(crop_size)
    crops = TrainingCrops(reader, np.arange(len(reader.boxes)), spec, seed=0)
    consume(training_loader(crops, EpochSampler(len(crops), seed=0), spec))


def spec_of(crop_size: int) -> ExperimentSpec:
    spec = ExperimentSpec()
    spec.dataset.crop_size = crop_size
    spec.dataset.num_workers_per_gpu = 0
    spec.train.batch_size = BATCH_SIZE
    return spec
