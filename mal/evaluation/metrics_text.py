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
    if metrics.get("num_unreadable_mask_skipped") or metrics.get("num_empty_mask_skipped"):
        return f"no true mask that can be used{inside}: {', '.join(_skipped_masks(metrics))}"
    if metrics.get("num_without_mask_skipped", 1):
        return f"no true masks{inside}"
    return f"no box{inside}" if inside or not metrics["num_crowds_skipped"] else "no box but crowds"


def skipped_objects(metrics: Mapping[str, Any]) -> list[str]:
    """Return one phrase per reason why objects were not measured, with their number."""
    limits = "outside the limits evaluate.min_box_area and evaluate.min_box_side"
    unusable = "annotations that cannot be used"
    return [
        *_counted(metrics.get("num_outside_limits_skipped"), limits),
        *_counted(metrics.get("num_crowds_skipped"), "crowds"),
        *_skipped_masks(metrics),
        *_counted(metrics.get("num_unusable_skipped"), unusable),
    ]


def _skipped_masks(metrics: Mapping[str, Any]) -> list[str]:
    """Name the reasons for which objects had no true mask to measure with."""
    num_unreadable = metrics.get("num_unreadable_mask_skipped", 0)
    num_empty = metrics.get("num_empty_mask_skipped", 0)
    num_absent = metrics.get("num_without_mask_skipped", 0) - num_unreadable - num_empty
    return [
        *_counted(num_absent, "without a true mask"),
        *_counted(num_unreadable, "whose true mask cannot be read"),
        *_counted(num_empty, "whose true mask is empty"),
    ]


def _counted(count: int | None, words: str) -> list[str]:
    return [f"{count:,} {words}"] if count else []


def measured_objects(metrics: Mapping[str, Any]) -> str:
    """Return how many objects were measured, and how many were left out for which reason."""
    skipped = skipped_objects(metrics)
    left_out = f"; left out: {', '.join(skipped)}" if skipped else ""
    return f"measured {metrics['num_instances']:,} objects{left_out}"
