"""A run that dies, wherever it dies, leaves no trace in the model store; the next tries again."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from retraining import Run, retraining_world

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(2400)]

STEPS = {
    "detect_new_annotations": "detect-new-annotations",
    "snapshot_dataset": "snapshot-dataset",
    "fetch_champion": "fetch-champion",
    "tune": "tune",
    "export": "export",
    "evaluate": "evaluate",
    "promote": "promote-2",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Run]:
    with retraining_world(tmp_path_factory.mktemp("kills")) as world:
        world.spec["train"]["max_steps"] = 2
        world.publish(8)
        died = {step: world.retrain(kill_step=step) for step in STEPS}
        # A model of two steps loses to masks that need no training.
        return died | {"": world.retrain(min_gain="-1")}


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_dies_leaves_the_store_without_champion_and_training(
    step: str, runs: Mapping[str, Run]
) -> None:
    run = runs[step]
    assert run.exit_code == 1
    assert STEPS[step] in run.steps
    # A step that does not need the dead one may still run; what needs it does not.
    assert step == "promote" or STEPS["promote"] not in run.steps
    assert "killed" in run.said
    assert run.pointer is None


def test_the_next_run_takes_the_same_boxes_for_new_and_ends_well(runs: Mapping[str, Run]) -> None:
    run = runs[""]
    assert run.exit_code == 0, run.said
    assert "8 new, 0 changed, 0 removed" in run.said
    assert run.champion
