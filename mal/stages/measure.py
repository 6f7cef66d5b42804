"""Predicts and measures every box of a set, for validation and `mal evaluate`.

Each rank predicts its share of the boxes; every rank gets all masks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import Rle
from mal.data.box_masks import reason_masks_are_boxes, reason_masks_are_unusable
from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import in_image_order
from mal.distributed.workers import Worker
from mal.evaluation.metrics import Measurement, measure_masks, rows_to_measure
from mal.labeling.masks import InstanceMask
from mal.labeling.predictor import PredictionSettings, ProbabilityModel, predict_masks
from mal.progress import track
from mal.spec.experiment import EvaluateSpec
from mal.stages.sharding import merge_shares, share_of


@dataclass(frozen=True)
class MeasuredModel:
    """One predicted mask per box, and the measurement."""

    masks: list[InstanceMask]
    measurement: Measurement


def predict_rows(
    model: ProbabilityModel,
    reader: ImageReader,
    rows: NDArray[np.int64],
    settings: PredictionSettings,
    name: str,
) -> Iterator[InstanceMask]:
    """Yield a mask for each row, image by image, with a progress bar."""
    rows = in_image_order(reader.boxes, rows)
    worker = Worker.current()
    mine = predict_masks(model, reader, share_of(rows, worker), settings)
    masks = merge_shares(mine, len(rows), worker, encode=_mask_to_json, decode=_mask_from_json)
    return track(masks, name, len(rows), unit="boxes")


def measure_model(
    model: ProbabilityModel,
    reader: ImageReader,
    settings: PredictionSettings,
    limits: EvaluateSpec,
    *,
    name: str,
) -> MeasuredModel:
    """Predict and measure the boxes within the limits of `evaluate`."""
    bounds = {"min_box_area": limits.min_box_area, "min_box_side": limits.min_box_side}
    rows = rows_to_measure(reader.boxes, **bounds)
    masks = list(predict_rows(model, reader, rows, settings, name))
    measurement = measure_masks(reader.boxes, masks, **bounds)
    return MeasuredModel(masks, measurement)


def without_box_masks(reader: ImageReader) -> tuple[ImageReader, str]:
    """Drop masks that cannot measure a prediction: they repeat the boxes, or none can be read.

    Returns:
        The set, and why its masks were dropped; '' if they were kept.
    """
    reason = reason_masks_are_boxes(reader.boxes) or reason_masks_are_unusable(reader.boxes)
    if not reason:
        return reader, ""
    boxes = dataclasses.replace(reader.boxes, segmentations=None)
    return ImageReader(boxes, reader.folder), reason


def _mask_to_json(mask: InstanceMask) -> list[Any]:
    counts = mask.rle["counts"]
    assert isinstance(counts, bytes)
    return [mask.index, mask.rle["size"], counts.decode(), mask.score, mask.area, mask.empty_reason]


def _mask_from_json(value: Sequence[Any]) -> InstanceMask:
    index, size, counts, score, area, reason = value
    return InstanceMask(index, Rle(size=size, counts=counts.encode()), score, area, reason)
