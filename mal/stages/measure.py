"""Predict every box of a set and measure: shared by validation and `mal evaluate`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mal.data.crop_dataset import ImageReader
from mal.data.datamodule import rows_in_image_order
from mal.evaluation.metrics import Measurement, measure_masks
from mal.labeling.masks import InstanceMask
from mal.labeling.predictor import PredictionSettings, ProbabilityModel, predict_masks
from mal.progress import track
from mal.spec.experiment import EvaluateSpec


@dataclass(frozen=True)
class MeasuredModel:
    """Predictions, one a box, and their measurement."""

    masks: list[InstanceMask]
    measurement: Measurement


def predict_every_box(
    model: ProbabilityModel, reader: ImageReader, settings: PredictionSettings, name: str
) -> Iterator[InstanceMask]:
    """Yield a mask for every box, image by image, and show the progress."""
    rows = rows_in_image_order(reader.boxes)
    return track(predict_masks(model, reader, rows, settings), name, len(rows), unit="boxes")


def measure_model(
    model: ProbabilityModel,
    reader: ImageReader,
    settings: PredictionSettings,
    limits: EvaluateSpec,
    *,
    name: str,
) -> MeasuredModel:
    """Predict every box and measure those inside the limits of `evaluate`."""
    masks = list(predict_every_box(model, reader, settings, name))
    measurement = measure_masks(
        reader.boxes, masks, min_box_area=limits.min_box_area, min_box_side=limits.min_box_side
    )
    return MeasuredModel(masks, measurement)
