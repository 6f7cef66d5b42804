"""Whether a model is better than what needs no training."""

import json
from pathlib import Path
from typing import Any

import pytest

from mal.evaluation.baselines import (
    compare_with_baselines,
    metrics_of_best_epoch,
    usefulness_warning,
)


def metrics(own: float | None, **ious: float | None) -> dict[str, Any]:
    return {"mean_iou_instances": own, **{f"{name}_iou": iou for name, iou in ious.items()}}


@pytest.mark.parametrize(
    ("measured", "is_useful"),
    [
        pytest.param(metrics(0.8, box=0.5, ellipse=0.6), True, id="better than both"),
        pytest.param(metrics(0.55, box=0.5, ellipse=0.6), False, id="worse than the ellipse"),
        pytest.param(metrics(0.6, box=0.5, ellipse=0.6), False, id="the same is not better"),
        pytest.param(
            metrics(0.736, box=0.504, ellipse=0.6, training_free=0.743),
            False,
            id="worse than the training-free masks",
        ),
        pytest.param(metrics(0.8, box=0.5, training_free=None), True, id="one was not measured"),
        pytest.param(metrics(None, box=None), None, id="no validation was measured"),
        pytest.param(metrics(0.8), None, id="nothing to compare with"),
    ],
)
def test_a_model_is_useful_when_it_beats_every_measured_baseline(
    measured: dict[str, Any], is_useful: bool | None
) -> None:
    compared = compare_with_baselines(measured)
    assert compared["is_useful"] is is_useful
    assert set(compared["baselines"]) == {"box", "ellipse", "grabcut", "training_free", "zero_shot"}
    assert bool(usefulness_warning(measured)) is (is_useful is False)


def test_the_warning_names_both_numbers_the_baseline_and_what_to_try() -> None:
    text = usefulness_warning(metrics(0.736, box=0.504, training_free=0.743))
    assert "0.736" in text
    assert "training-free masks is 0.743" in text
    assert "Try another recipe" in text


def test_a_training_is_compared_by_its_validation() -> None:
    validated = {"val_mean_iou_instances": 0.4, "val_box_iou": 0.5, "val_ellipse_iou": 0.3}
    assert "plain box is 0.500" in usefulness_warning(validated, "val_")
    assert usefulness_warning({"train_loss": 0.1}, "val_") == ""


def test_the_best_epoch_of_a_training_is_found(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert metrics_of_best_epoch(path) == {}
    records = [{"epoch": 1}, {"epoch": 2, "val_mIoU": 0.7}, {"epoch": 3, "val_mIoU": 0.6}]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    assert metrics_of_best_epoch(path)["epoch"] == 2
