"""Annotations arrive in waves: nothing new, enough new ones, and ones that make the model worse."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from retraining import Run, retraining_world

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(2400)]

FIRST_WAVE, SECOND_WAVE = 16, 24
SKIPPED = ["detect-new-annotations", "record-skip"]


@dataclass(frozen=True)
class Waves:
    """Every run by what it met, and the records of the versions in the end."""

    runs: Mapping[str, Run]
    records: Mapping[str, Mapping[str, Any]]

    def __getitem__(self, wave: str) -> Run:
        return self.runs[wave]


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Waves:
    runs = {}
    with retraining_world(tmp_path_factory.mktemp("waves")) as world:
        world.publish(FIRST_WAVE)
        runs["first"] = world.retrain()
        runs["nothing new"] = world.retrain()
        world.publish(FIRST_WAVE + 1)
        runs["too few"] = world.retrain()
        world.publish(SECOND_WAVE)
        runs["killed"] = world.retrain(kill_step="evaluate", kill_where="/fetch-champion/champion")
        runs["second"] = world.retrain()
        world.publish(SECOND_WAVE, is_poisoned=True)
        runs["poisoned"] = world.retrain()
        runs["still poisoned"] = world.retrain()
        return Waves(runs, world.records())


def outputs_of(run: Run, step: str) -> Any:
    return json.loads((run.folder / step / "executor_output.json").read_text())


def test_the_first_model_with_figures_becomes_champion(waves: Waves) -> None:
    first = waves["first"]
    assert first.exit_code == 0, first.said
    assert f"{FIRST_WAVE} new, 0 changed, 0 removed" in first.said
    assert first.champion
    assert waves.records[first.champion]["metrics"]["mIoU"] > 0.6


@pytest.mark.parametrize("wave", ["nothing new", "too few", "still poisoned"])
def test_a_run_without_enough_new_boxes_is_a_recorded_skip(wave: str, waves: Waves) -> None:
    run = waves[wave]
    assert run.exit_code == 0, run.said
    assert run.steps == SKIPPED
    (skipped,) = outputs_of(run, "record-skip")["artifacts"]["skipped"]["artifacts"]
    assert skipped["metadata"]["reason"] in run.said


def test_skips_and_a_killed_run_leave_the_pointer_as_it_was(waves: Waves) -> None:
    for wave in ("nothing new", "too few", "killed"):
        assert waves[wave].pointer == waves["first"].pointer
    assert waves["killed"].exit_code == 1
    assert "killed" in waves["killed"].said


def test_enough_new_boxes_make_a_new_champion_that_started_from_the_old_one(waves: Waves) -> None:
    first, second = waves["first"], waves["second"]
    assert second.exit_code == 0, second.said
    assert f"{SECOND_WAVE - FIRST_WAVE} new, 0 changed, 0 removed" in second.said
    assert second.champion not in ("", first.champion)
    model = waves.records[second.champion]["lineage"]["model"]
    assert f"/versions/{first.champion}/" in model["parent_model_uri"]
    assert model["parent_model_sha256"] == waves.records[first.champion]["sha256"]


def test_champion_and_challenger_were_measured_on_the_same_objects(waves: Waves) -> None:
    checks = waves.records[waves["second"].champion]["gate"]["checks"]
    (measured,) = [check for check in checks if check["name"] == "measured objects"]
    assert measured["champion"] == measured["challenger"] > 0


def test_a_poisoned_wave_is_refused_and_the_champion_stays(waves: Waves) -> None:
    poisoned = waves["poisoned"]
    assert poisoned.exit_code == 0, poisoned.said
    assert f"0 new, {SECOND_WAVE} changed, 0 removed" in poisoned.said
    assert poisoned.champion == waves["second"].champion
    refused = [r for r in waves.records.values() if not r["gate"]["is_passed"]]
    assert len(refused) == 1
    assert refused[0]["metrics"]["mIoU"] < waves.records[poisoned.champion]["metrics"]["mIoU"]
    promoted = outputs_of(poisoned, "promote")["parameterValues"]["promoted"]
    assert promoted is False


def test_the_pointer_tells_the_whole_story(waves: Waves) -> None:
    pointer = json.loads(waves["still poisoned"].pointer or b"{}")
    story = [(change["previous"], change["version"]) for change in pointer["history"]]
    first, second = waves["first"].champion, waves["second"].champion
    assert story == [("", first), (first, second)]
    assert pointer["last_training"]["is_promoted"] is False
