"""A training step of ViT-B: the published one, and ours, with the same batch and weights."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from harness import Result, compare
from literal_training import LiteralTraining, OurTraining, draw_batch

from mal.spec import load_spec

REQUIRED = 1.12
REQUIRED_IN_BF16 = 2.0  # of a GPU, or a processor with units for it
NUM_ITEMS = 1  # the default of train.batch_size, as in TAO
REPEATS = {256: 5, 512: 3}


def run() -> Iterator[Result]:
    for crop_size, repeats in REPEATS.items():
        spec = load_spec("train", {"dataset": {"crop_size": crop_size}})
        literal, ours = LiteralTraining(spec), OurTraining(spec)
        batch = draw_batch(NUM_ITEMS, crop_size)
        difference = float((literal(batch) - ours(batch)).abs())
        yield compare(
            f"fp32, crop {crop_size}, batch {NUM_ITEMS}",
            partial(literal, batch),
            partial(ours, batch),
            required=REQUIRED,
            clock=time.process_time,
            repeats=repeats,
            warm_up=False,
            loss_difference=f"{difference:.1e}",
        )
    print(
        f"train_step: bf16 (at least {REQUIRED_IN_BF16}): not measurable here: without AMX or "
        "AVX512-BF16 a processor emulates bf16, far more slowly than float32"
    )
