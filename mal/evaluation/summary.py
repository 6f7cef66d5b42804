"""The lines that a finished action prints on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mal.evaluation.metrics_text import measured_objects, reason_unmeasured


def result_lines(action: str, result: Any) -> Iterator[str]:
    """Yield the lines that `mal <action>` prints: metrics first, the results folder last."""
    match action:
        case "train":
            yield from _train_lines(result.metrics)
            yield f"checkpoint: {result.checkpoint}"
        case "evaluate":
            yield from evaluation_lines(result.metrics)
            yield f"report: {result.report}"
        case "inference":
            yield f"masks: {result.counts.line()}"
            yield f"labels: {result.labels} ({result.num_instances} boxes)"
            yield f"report: {result.report}"
        case _:
            yield f"onnx: {result.onnx} (differs from PyTorch by {result.max_abs_diff:.1e})"
    yield f"results: {result.results_dir}"


def _train_lines(metrics: Mapping[str, float]) -> Iterator[str]:
    for name in (
        "val_mIoU",
        "val_mean_iou_instances",
        "val_box_iou",
        "val_ellipse_iou",
        "val_training_free_iou",
        "train_time_s",
    ):
        if name in metrics:
            yield f"{name}={metrics[name]:.4f}"


def evaluation_lines(metrics: Mapping[str, Any]) -> Iterator[str]:
    """Yield the metrics of the model and of the baselines."""
    if metrics["mIoU"] is None:
        yield f"{reason_unmeasured(metrics)}: nothing is measured"
        return
    yield measured_objects(metrics)
    for name in (
        "mIoU",
        "mean_iou_instances",
        "box_iou",
        "ellipse_iou",
        "training_free_iou",
        "AP",
        "AP50",
        "AP75",
    ):
        if metrics.get(name) is not None:
            yield f"{name}={metrics[name]:.4f}"
