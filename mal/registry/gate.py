"""The gate: checks that a challenger must pass to become the champion."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mal.evaluation.baselines import best_baseline


@dataclass(frozen=True)
class GateSettings:
    """Limits of the gate; IoU in 0..1.

    Attributes:
        miou_margin: How much lower than the champion's the mIoU may be.
        category_margin: How much lower than the champion's the IoU of any category may be.
        category_floor: Least IoU of any category, with or without a champion.
        max_parity_diff: Largest difference of the exported model's probabilities from PyTorch's.
        min_gain: For a first model: how much its mean IoU of objects must exceed that of the best
            masks without training; -1: no such check.
    """

    miou_margin: float = 0.005
    category_margin: float = 0.05
    category_floor: float = 0.0
    max_parity_diff: float = 1e-3
    min_gain: float = 0.0


@dataclass(frozen=True)
class Check:
    """The values of both models, and the rule that was applied to them."""

    name: str
    challenger: float | None
    champion: float | None
    rule: str
    is_passed: bool


@dataclass(frozen=True)
class Decision:
    """The result of all checks."""

    checks: tuple[Check, ...]

    @property
    def is_passed(self) -> bool:
        """True if every check passed."""
        return all(check.is_passed for check in self.checks)

    @property
    def reason(self) -> str:
        """The failed checks, or that all passed."""
        failed = [f"{check.name} {check.rule}" for check in self.checks if not check.is_passed]
        return "; ".join(failed) or f"all of {len(self.checks)} checks passed"


def judge(
    challenger: Mapping[str, Any],
    champion: Mapping[str, Any] | None,
    *,
    parity_diff: float,
    settings: GateSettings,
) -> Decision:
    """Apply the checks to two models that were measured on the same data set.

    Args:
        challenger: Content of its `metrics.json`.
        champion: Content of its `metrics.json`; None without a champion.
        parity_diff: Largest difference of the challenger's export from PyTorch.
        settings: Limits.
    """
    limit = settings.max_parity_diff
    parity = Check(
        "export parity", parity_diff, None, f"must be at most {limit:g}", parity_diff <= limit
    )
    return Decision((*_metric_checks(challenger, champion or {}, settings), parity))


def _metric_checks(
    challenger: Mapping[str, Any], champion: Mapping[str, Any], settings: GateSettings
) -> Iterator[Check]:
    own, best = _number(challenger.get("mIoU")), _number(champion.get("mIoU"))
    if own is None:
        yield Check("mIoU", None, best, "must be measured: the set needs true masks", False)
        return
    if best is None:
        yield Check("mIoU", own, None, "there is no champion to compare with", True)
        yield from _gain_checks(challenger, settings)
    else:
        yield _same_set(challenger, champion)
        limit = best - settings.miou_margin
        yield Check("mIoU", own, best, f"must be at least {limit:.4f}", own >= limit)
    own_of, best_of = _ious(challenger), _ious(champion)
    for name in sorted(own_of.keys() | best_of.keys()):
        own, best = own_of.get(name), best_of.get(name)
        limit = max(
            settings.category_floor, 0.0 if best is None else best - settings.category_margin
        )
        is_passed = own is not None and own >= limit
        yield Check(f"IoU of {name}", own, best, f"must be at least {limit:.4f}", is_passed)


def _gain_checks(challenger: Mapping[str, Any], settings: GateSettings) -> Iterator[Check]:
    """Compare a first model with masks that need no training."""
    best = best_baseline(challenger.get("baselines") or {})
    if settings.min_gain <= -1 or best is None:
        return
    name, iou = best
    own, limit = _number(challenger.get("mean_iou_instances")), iou + settings.min_gain
    rule = f"must be above {limit:.4f}: the {name} reaches {iou:.4f} without training (min_gain)"
    yield Check("mean IoU of objects", own, None, rule, own is not None and own > limit)


def _same_set(challenger: Mapping[str, Any], champion: Mapping[str, Any]) -> Check:
    own, best = (_number(metrics.get("num_instances")) for metrics in (challenger, champion))
    return Check("measured objects", own, best, "must be the same", own == best)


def _ious(metrics: Mapping[str, Any]) -> dict[str, float]:
    categories = metrics.get("per_category") or {}
    ious = {name: _number(category.get("iou")) for name, category in categories.items()}
    return {name: iou for name, iou in ious.items() if iou is not None}


def _number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and math.isfinite(value)
    return float(value) if is_number else None
