"""What one trial costs, and what a search needs to rank trials."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_sets import TinySet, training_spec, write_tiny_set

from mal.automl.cost import measure_cost
from mal.errors import MalError, SpecError
from mal.stages.trial import require_measurable


@pytest.fixture
def data(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=6)


def test_the_cost_of_a_trial_is_measured_by_some_steps_of_it(data: TinySet, tmp_path: Path) -> None:
    spec = training_spec(data, tmp_path / "out", "train.num_epochs=7", val=data)
    cost = measure_cost(spec, {}, lambda: None)
    assert (cost.num_epochs, cost.num_steps, cost.device) == (7, 7 * 6, "cpu")
    assert cost.step_s > 0
    assert cost.validation_s > 0
    assert cost.trial_s == pytest.approx(cost.start_s + 42 * cost.step_s + 7 * cost.validation_s)
    assert not (tmp_path / "out").exists()


def test_what_no_trial_could_train_is_told_before_one_starts(tmp_path: Path, data: TinySet) -> None:
    missing = TinySet(tmp_path / "none.json", data.images)
    spec = training_spec(missing, tmp_path / "out", val=data)
    with pytest.raises(MalError, match=r"none\.json"):
        measure_cost(spec, {}, lambda: None)


@pytest.mark.parametrize(
    ("overrides", "rule"),
    [
        (["dataset.val_ann_path="], "must be set to rank trials"),
        (["dataset.load_mask=false"], "dataset.load_mask must be true to rank trials"),
    ],
)
def test_without_masks_to_measure_with_there_is_no_search(
    overrides: list[str], rule: str, data: TinySet, tmp_path: Path
) -> None:
    spec = training_spec(data, tmp_path / "out", *overrides, val=data)
    with pytest.raises(SpecError, match=rule):
        require_measurable(spec)


def test_a_validation_set_with_masks_is_what_trials_are_ranked_by(
    data: TinySet, tmp_path: Path
) -> None:
    assert require_measurable(training_spec(data, tmp_path / "out", val=data)).boxes.has_masks()


def test_masks_that_are_the_boxes_rank_no_trials(data: TinySet, tmp_path: Path) -> None:
    document = data.document()
    for annotation in document["annotations"]:
        x, y, w, h = annotation["bbox"]
        annotation["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    val = data.rewritten(document, "box_masks.json")
    with pytest.raises(SpecError, match="its masks are the boxes themselves"):
        require_measurable(training_spec(data, tmp_path / "out", val=val))
