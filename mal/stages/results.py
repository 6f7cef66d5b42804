"""The results of the four actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal.labeling.label_counts import LabelCounts


@dataclass(frozen=True)
class TrainResult:
    """A finished training run.

    Attributes:
        results_dir: Folder of the files below (for s3:// its local copy).
        checkpoint: `mal_model_latest.pth`.
        best_checkpoint: `mal_model_best.pth`.
        metrics: Metrics of the last validation and of the run (val_mIoU, train_loss, num_steps,
            train_time_s, ...).
    """

    results_dir: Path
    checkpoint: Path
    best_checkpoint: Path
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class EvaluateResult:
    """A finished evaluation; `metrics` is the content of `metrics.json`."""

    results_dir: Path
    metrics: Mapping[str, Any]
    report: Path


@dataclass(frozen=True)
class InferenceResult:
    """A finished labelling run.

    Attributes:
        labels: The written COCO file.
        num_instances: Annotations that can be used.
        counts: How many annotations have a mask, and why the others have none.
    """

    results_dir: Path
    labels: Path
    report: Path
    num_instances: int
    counts: LabelCounts = field(default_factory=LabelCounts)


@dataclass(frozen=True)
class ExportResult:
    """A finished export; `max_abs_diff` is the largest difference of probabilities from PyTorch."""

    results_dir: Path
    onnx: Path
    sidecar: Path
    max_abs_diff: float
