"""Which challenger may take the champion's place."""

from __future__ import annotations

from typing import Any

import pytest

from mal.registry.gate import Decision, GateSettings, judge

SETTINGS = GateSettings(
    miou_margin=0.01, category_margin=0.05, category_floor=0.3, max_parity_diff=1e-3
)


def metrics(cat: float | None, dog: float | None = 0.6, num_instances: int = 8) -> dict[str, Any]:
    known = [iou for iou in (cat, dog) if iou is not None]
    return {
        "mIoU": sum(known) / len(known) if known else None,
        "num_instances": num_instances,
        "per_category": {"cat": {"iou": cat, "count": 4}, "dog": {"iou": dog, "count": 4}},
    }


NOTHING_MEASURED: dict[str, Any] = {"mIoU": None, "num_instances": 0, "per_category": {}}


def ask(
    challenger: dict[str, Any], champion: dict[str, Any] | None, parity_diff: float = 1e-6
) -> Decision:
    return judge(challenger, champion, parity_diff=parity_diff, settings=SETTINGS)


def failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if not check.is_passed]


@pytest.mark.parametrize(
    ("challenger", "champion", "expected"),
    [
        pytest.param(metrics(0.7), metrics(0.6), [], id="better"),
        pytest.param(metrics(0.6), metrics(0.6), [], id="the same"),
        pytest.param(metrics(0.59), metrics(0.6), [], id="worse within the margin"),
        pytest.param(metrics(0.57), metrics(0.6), ["mIoU"], id="worse"),
        pytest.param(
            metrics(0.9, 0.5), metrics(0.6), ["IoU of dog"], id="better at the cost of a category"
        ),
        pytest.param(
            metrics(0.9, 0.29), metrics(0.6, 0.3), ["IoU of dog"], id="a category below the floor"
        ),
        pytest.param(metrics(0.9, None), metrics(0.6), ["IoU of dog"], id="a category has gone"),
        pytest.param(metrics(0.7), metrics(0.6, None), [], id="a category is new"),
        pytest.param(metrics(0.31, 0.9), None, [], id="the first one"),
        pytest.param(metrics(0.2, 0.9), None, ["IoU of cat"], id="a poor first one"),
        pytest.param(NOTHING_MEASURED, metrics(0.6), ["mIoU"], id="no metrics"),
        pytest.param(NOTHING_MEASURED, None, ["mIoU"], id="no metrics, no champion"),
        pytest.param(metrics(0.7), NOTHING_MEASURED, [], id="the champion has no metrics"),
        pytest.param(metrics(float("nan")), metrics(0.6), ["mIoU"], id="not a number"),
        pytest.param(
            metrics(0.7, num_instances=9), metrics(0.6), ["measured objects"], id="another set"
        ),
    ],
)
def test_the_gate_refuses(
    challenger: dict[str, Any], champion: dict[str, Any] | None, expected: list[str]
) -> None:
    decision = ask(challenger, champion)
    assert failed(decision) == expected
    assert decision.is_passed == (not expected)
    assert all(name in decision.reason for name in expected)


@pytest.mark.parametrize(("parity_diff", "is_passed"), [(1e-3, True), (1.1e-3, False)])
def test_an_export_that_differs_is_refused(parity_diff: float, is_passed: bool) -> None:
    decision = ask(metrics(0.9), metrics(0.6), parity_diff)
    assert decision.is_passed is is_passed


@pytest.mark.parametrize("step", range(11))
def test_a_better_challenger_is_never_refused_where_a_worse_one_passes(step: int) -> None:
    worse, better = metrics(0.5 + step / 50), metrics(0.5 + step / 50 + 0.01)
    champion = metrics(0.6)
    assert ask(better, champion).is_passed >= ask(worse, champion).is_passed


def with_baselines(own: float, **ious: float | None) -> dict[str, Any]:
    return {**metrics(own, own), "mean_iou_instances": own, "baselines": ious}


GAIN = "mean IoU of objects"


@pytest.mark.parametrize(
    ("challenger", "champion", "min_gain", "expected"),
    [
        pytest.param(with_baselines(0.7, box=0.5, ellipse=0.6), None, 0.0, [], id="better"),
        pytest.param(with_baselines(0.55, box=0.5, ellipse=0.6), None, 0.0, [GAIN], id="worse"),
        pytest.param(
            with_baselines(0.7, box=0.5, training_free=0.72), None, 0.0, [GAIN], id="training-free"
        ),
        pytest.param(with_baselines(0.62, box=0.6), None, 0.05, [GAIN], id="too small a gain"),
        pytest.param(with_baselines(0.4, box=0.6), None, -1.0, [], id="switched off"),
        pytest.param(with_baselines(0.7, box=None), None, 0.0, [], id="no baseline was measured"),
        pytest.param(
            with_baselines(0.55, box=0.6), metrics(0.55, 0.55), 0.0, [], id="has a champion"
        ),
    ],
)
def test_a_first_model_must_beat_what_needs_no_training(
    challenger: dict[str, Any],
    champion: dict[str, Any] | None,
    min_gain: float,
    expected: list[str],
) -> None:
    settings = GateSettings(min_gain=min_gain)
    decision = judge(challenger, champion, parity_diff=1e-6, settings=settings)
    assert failed(decision) == expected
