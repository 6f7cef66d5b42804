"""Sentences about `metrics.json`; imports no package, since steps in the control image use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def reason_unmeasured(metrics: Mapping[str, Any]) -> str:
    """Return why the mask metrics of `metrics.json` are None."""
    if metrics.get("reason_unmeasured"):
        return str(metrics["reason_unmeasured"])
    inside = ""
    if metrics.get("num_outside_limits_skipped"):
        inside = " inside evaluate.min_box_area and evaluate.min_box_side"
    if metrics.get("num_without_mask_skipped", 1):
        return f"no true masks{inside}"
    return f"no box{inside}" if inside or not metrics["num_crowds_skipped"] else "no box but crowds"


def skipped_objects(metrics: Mapping[str, Any]) -> list[str]:
    """Return one phrase per reason why objects were not measured, with their number."""
    return [
        f"{metrics[key]:,} {reason}"
        for key, reason in (
            (
                "num_outside_limits_skipped",
                "outside the limits evaluate.min_box_area and evaluate.min_box_side",
            ),
            ("num_crowds_skipped", "crowds"),
            ("num_without_mask_skipped", "without a true mask"),
            ("num_unusable_skipped", "annotations that cannot be used"),
        )
        if metrics.get(key)
    ]


def measured_objects(metrics: Mapping[str, Any]) -> str:
    """Return how many objects were measured, and how many were left out for which reason."""
    skipped = skipped_objects(metrics)
    left_out = f"; left out: {', '.join(skipped)}" if skipped else ""
    return f"measured {metrics['num_instances']:,} objects{left_out}"
