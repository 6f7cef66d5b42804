"""Steps of a frozen backbone: cached features against features in every step and full training.

Against the literal algorithm in both. Computing the features once is not in a step's time: the
facts say what it costs and after how many steps it has paid.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import torch
from harness import Result, compare, seconds_of
from literal_training import LiteralTraining, OurTraining, draw_batch

from mal.data.batch import CropBatch, normalize_image
from mal.model.network import MALNetwork
from mal.spec import ExperimentSpec, load_spec

REQUIRED_OVER_ONLINE, REQUIRED_OVER_FULL = 5, 15
NUM_CROPS = 800  # of the recipe
REPEATS = 3


def run() -> Iterator[Result]:
    spec = load_spec("train", ["recipe:small_set", {"train": {"loss_crf_window": []}}])
    ours = OurTraining(spec)
    batch = draw_batch(spec.train.batch_size, spec.dataset.crop_size)
    network = ours.module.student
    compute_s = seconds_of(partial(with_features, batch, network), time.process_time)
    cached = with_features(batch, network)
    features_s = compute_s / len(batch) * NUM_CROPS
    for name, required, is_frozen in (
        ("frozen, features in every step", REQUIRED_OVER_ONLINE, True),
        ("full fine-tuning", REQUIRED_OVER_FULL, False),
    ):
        literal = LiteralTraining(with_frozen_backbone(spec, is_frozen=is_frozen))
        result = compare(
            f"over {name}, batch {len(batch)}",
            partial(literal, batch),
            partial(ours, cached),
            required=required,
            repeats=REPEATS,
            warm_up=is_frozen,
            features_s=round(features_s, 1),
        )
        assert result.baseline is not None
        paid_after = features_s / (result.baseline - result.ours)
        result.facts["paid_after_steps"] = round(paid_after)
        yield result


@torch.inference_mode()
def with_features(batch: CropBatch, network: MALNetwork) -> CropBatch:
    """Return the batch as the cache gives it: with the levels of the clean crops, in half."""
    levels = network.encode(normalize_image(batch.image_BCSS))
    features = torch.from_numpy(torch.stack(levels, dim=1).half().numpy())
    return dataclasses.replace(batch, features_BLDhw=features)


def with_frozen_backbone(spec: ExperimentSpec, *, is_frozen: bool) -> ExperimentSpec:
    return dataclasses.replace(
        spec, model=dataclasses.replace(spec.model, freeze_backbone=is_frozen)
    )
