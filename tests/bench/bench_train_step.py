"""A training step of ViT-B: the published one, and ours, with the same batch and weights."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from harness import Result, compare, has_bf16_units, share_of_peak
from literal_training import LiteralTraining, OurTraining, draw_batch

from mal.spec import load_spec

REQUIRED = {"fp32": 1.12, "bf16": 2.0}
NUM_ITEMS = 1  # the default of train.batch_size, as in TAO
REPEATS = {256: 5, 512: 3}


def run() -> Iterator[Result]:
    for crop_size, repeats in REPEATS.items():
        for precision in ("fp32", "bf16") if has_bf16_units() else ("fp32",):
            yield measure_step(crop_size, precision, repeats)
    if not has_bf16_units():
        print("train_step: bf16: not measurable here: this processor emulates it, slowly")


def measure_step(crop_size: int, precision: str, repeats: int) -> Result:
    overrides = [f"dataset.crop_size={crop_size}", f"train.precision={precision}"]
    spec = load_spec("train", {}, overrides)
    literal, ours = LiteralTraining(spec), OurTraining(spec)
    batch = draw_batch(NUM_ITEMS, crop_size)
    difference = float((literal(batch) - ours(batch)).abs())
    result = compare(
        f"{precision}, crop {crop_size}, batch {NUM_ITEMS}",
        partial(literal, batch),
        partial(ours, batch),
        required=REQUIRED[precision],
        repeats=repeats,
        warm_up=False,
        loss_difference=f"{difference:.1e}",
    )
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    result.facts.update(share_of_peak(partial(ours, batch), result.ours, dtype))
    return result
