"""Estimates boxes for objects that have points only."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from mal.data.crop_dataset import ImageReader
from mal.data.size_prior import SizePrior
from mal.distributed.workers import Worker
from mal.labeling.box_estimation import BoxEstimator, EstimatedBox, rows_without_box, with_boxes
from mal.labeling.predictor import PredictionSettings, ProbabilityModel
from mal.progress import track
from mal.stages.sharding import merge_shares, share_of

log = logging.getLogger(__name__)

Estimates = list[tuple[int, EstimatedBox]]


def with_estimated_boxes(
    model: ProbabilityModel,
    reader: ImageReader,
    settings: PredictionSettings,
    prior: SizePrior,
) -> ImageReader:
    """Return the set with a box for every object; unchanged if all have one.

    Args:
        model: Predicts the masks whose extents are the boxes.
        reader: The data set.
        settings: Settings of the crops.
        prior: Box sizes of the set, or of the model's training set if the set has too few boxes.
    """
    estimates = estimate_boxes(model, reader, settings, prior)
    return reader.with_boxes(with_boxes(reader.boxes, estimates)) if estimates else reader


def estimate_boxes(
    model: ProbabilityModel,
    reader: ImageReader,
    settings: PredictionSettings,
    prior: SizePrior,
) -> Estimates:
    """Return row and box of every object without one; each rank estimates its share."""
    rows = rows_without_box(reader.boxes)
    if not len(rows):
        return []
    rows = rows[np.argsort(reader.boxes.image_index_N[rows], kind="stable")]
    worker = Worker.current()
    mine = BoxEstimator(model, settings, prior).estimate_all(reader, share_of(rows, worker))
    merged = merge_shares(
        mine, len(rows), worker, encode=estimate_to_json, decode=estimate_from_json
    )
    estimates = list(track(merged, "estimate boxes", len(rows), unit="objects"))
    consistency = np.array([estimate.consistency for _, estimate in estimates])
    log.info(
        "%d objects have points only; the median consistency of their boxes is %.2f",
        len(rows), float(np.median(consistency)),
    )  # fmt: skip
    return estimates


def estimate_to_json(value: tuple[int, EstimatedBox]) -> list[Any]:
    """Return row, box and consistency as plain values."""
    row, estimate = value
    return [row, estimate.box_xywh.tolist(), estimate.consistency]


def estimate_from_json(value: Sequence[Any]) -> tuple[int, EstimatedBox]:
    """Return row and estimate from plain values."""
    row, box_xywh, consistency = value
    return int(row), EstimatedBox(np.array(box_xywh, dtype=np.float64), float(consistency))
