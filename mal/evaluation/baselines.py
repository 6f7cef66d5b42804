"""Masks that need no training: a useful model is better than the best of them.

All are measured on the same boxes as the model: mean IoU over instances.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# In metrics.json each has its own key `<name>_iou`, and a key in `baselines`.
BASELINES = {
    "box": "plain box",
    "ellipse": "inscribed ellipse",
    "grabcut": "GrabCut",
    "training_free": "training-free masks",
    "zero_shot": "zero-shot masks",
}
REMEDY = (
    "Try another recipe (`mal recipes`), pretrained weights (train.pretrained_model_path), more "
    "steps (train.max_steps), or more boxes."
)

_MODEL_KEY = "mean_iou_instances"


def metrics_of_best_epoch(path: Path) -> dict[str, Any]:
    """Return the line of `metrics.jsonl` with the best validation; {} where none was measured."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines if line.strip()]
    measured = [record for record in records if "val_mIoU" in record]
    return dict(max(measured, key=lambda record: record["val_mIoU"], default={}))


def compare_with_baselines(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return `baselines` and `is_useful` of measured metrics.

    Args:
        metrics: `mean_iou_instances` and what is known of `<baseline>_iou`.
        prefix: Before these keys: `val_` for the metrics of a training.

    Returns:
        `baselines`: IoU by name, None where it was not measured. `is_useful`: whether the model is
        better than all that were; None where nothing was measured.
    """
    ious = {name: metrics.get(f"{prefix}{name}_iou") for name in BASELINES}
    own = metrics.get(f"{prefix}{_MODEL_KEY}")
    best = max((iou for iou in ious.values() if iou is not None), default=None)
    is_useful = None if own is None or best is None else bool(own > best)
    return {"baselines": ious, "is_useful": is_useful}


def best_baseline(baselines: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return name and IoU of the best baseline that was measured; None if none was."""
    measured = [(iou, name) for name, iou in baselines.items() if iou is not None]
    if not measured:
        return None
    iou, name = max(measured)
    return BASELINES.get(name, name), float(iou)


def usefulness_warning(metrics: Mapping[str, Any], prefix: str = "") -> str:
    """Return the warning for a model that is not better than the best baseline; '' if it is."""
    compared = compare_with_baselines(metrics, prefix)
    best = best_baseline(compared["baselines"])
    if compared["is_useful"] is not False or best is None:
        return ""
    name, iou = best
    own = metrics[f"{prefix}{_MODEL_KEY}"]
    return (
        f"the model is not worth using: its mean IoU is {own:.3f}, and that of the {name} is "
        f"{iou:.3f} on the same boxes, without any training. {REMEDY}"
    )
