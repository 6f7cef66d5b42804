"""The search over trials that take milliseconds: budgets, early ends, failures, kills."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_searches import (
    BASELINE_LR,
    COST,
    NUM_EPOCHS,
    SUPPORT,
    plan_in,
    search,
    study_of,
    use_fake_trials,
)
from fake_trial import BEST_LR, HIGHEST_LR, final_figure

from mal.automl.devices import Slot
from mal.automl.search import MAX_INVALID_IN_A_ROW, Search
from mal.automl.settings import Algorithm, Budget, SearchSettings
from mal.automl.trial_record import TrialEnd
from mal.errors import SpecError
from mal.runtime import Interrupted, StopRequest
from mal.spec import load_spec

RANGE = ("train.lr=1e-6:5e-3:log",)


@pytest.fixture(autouse=True)
def _fake_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_trials(monkeypatch)


def test_the_best_trial_beats_the_baseline_and_its_weights_alone_are_kept(tmp_path: Path) -> None:
    settings = SearchSettings(ranges=RANGE, keys=("train.lr",), budget=Budget(num_trials=9))
    study = search(plan_in(tmp_path, settings))
    records, best = study.records(), study.best()
    assert best is not None
    assert len(records) == 9
    assert records[0].mean_iou == pytest.approx(final_figure(BASELINE_LR))
    assert (best.mean_iou or 0) > (records[0].mean_iou or 0) + 0.1
    checkpoint = tmp_path / "mal_model_best.pth"
    assert json.loads(checkpoint.read_text()) == best.values["train.lr"]
    assert not checkpoint.readlink().is_absolute()
    kept = [path for path in tmp_path.glob("trials/*/*.pth") if not path.is_symlink()]
    assert kept == [checkpoint.resolve()]


def test_best_spec_is_the_users_own_with_the_best_values(tmp_path: Path) -> None:
    settings = SearchSettings(
        ranges=RANGE,
        keys=("train.lr",),
        trial_overrides=("train.num_epochs=2",),
        budget=Budget(num_trials=4),
    )
    plan = plan_in(tmp_path, settings, keys={"train.loss_mil_weight": 3})
    best = search(plan).best()
    assert best is not None
    spec = load_spec("train", tmp_path / "best_spec.yaml")
    assert spec.train.lr == best.values["train.lr"]
    assert (spec.train.num_epochs, spec.train.loss_mil_weight) == (NUM_EPOCHS, 3)
    assert spec.train.validation_interval == plan.base.train.validation_interval


def test_the_leaderboard_has_every_trial_the_best_first(tmp_path: Path) -> None:
    study = search(plan_in(tmp_path, SearchSettings(ranges=RANGE, budget=Budget(num_trials=5))))
    rows = list(csv.DictReader((tmp_path / "leaderboard.csv").open()))
    best = study.best()
    assert best is not None
    assert sorted(int(row["trial"]) for row in rows) == list(range(5))
    assert int(rows[0]["trial"]) == best.number
    assert float(rows[0]["train.lr"]) == best.values["train.lr"]


def test_a_failed_trial_is_recorded_with_its_reason_and_the_search_goes_on(tmp_path: Path) -> None:
    settings = SearchSettings(
        algorithm=Algorithm.RANDOM,
        ranges=(f"train.lr={HIGHEST_LR / 10}:{HIGHEST_LR * 10}:log",),
        budget=Budget(num_trials=8),
    )
    records = search(plan_in(tmp_path, settings)).records()
    failed = [record for record in records if record.end is TrialEnd.FAILED]
    assert len(records) == 8
    assert 0 < len(failed) < 8
    assert {record.reason for record in failed} == {"train failed: train_loss must be finite"}


@pytest.mark.parametrize("algorithm", Algorithm)
def test_hopeless_trials_end_early_and_the_baseline_never(
    algorithm: Algorithm, tmp_path: Path
) -> None:
    settings = SearchSettings(algorithm=algorithm, ranges=RANGE, budget=Budget(num_trials=12))
    records = search(plan_in(tmp_path, settings)).records()
    pruned = [record for record in records if record.end is TrialEnd.PRUNED]
    assert records[0].end is TrialEnd.COMPLETE
    assert pruned
    assert all(record.num_epochs < NUM_EPOCHS for record in pruned)
    assert all("other trials were better" in record.reason for record in pruned)


def test_the_default_budget_spends_no_more_epochs_than_five_trainings(tmp_path: Path) -> None:
    records = search(plan_in(tmp_path, SearchSettings(ranges=RANGE))).records()
    assert sum(record.num_epochs for record in records) <= 5 * NUM_EPOCHS
    assert 5 <= len(records) <= 10


def test_no_trial_is_started_when_the_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAL_FAKE_EPOCH_S", "0.1")
    settings = SearchSettings(ranges=RANGE, budget=Budget(minutes=0.01))
    records = search(plan_in(tmp_path, settings)).records()
    assert records[0].end is TrialEnd.COMPLETE
    assert len(records) < 5


def test_a_larger_budget_goes_on_with_the_same_search(tmp_path: Path) -> None:
    def run(folder: Path, num_trials: int) -> list[object]:
        settings = SearchSettings(ranges=RANGE, budget=Budget(num_trials=num_trials))
        return [
            (record.values, record.mean_iou, record.end)
            for record in search(plan_in(folder, settings)).records()
        ]

    first = run(tmp_path / "grown", 4)
    grown = run(tmp_path / "grown", 8)
    assert grown == run(tmp_path / "whole", 8)
    assert grown[:4] == first


def test_values_that_do_not_go_together_are_never_trained_and_cost_nothing(tmp_path: Path) -> None:
    settings = SearchSettings(
        algorithm=Algorithm.RANDOM,
        keys=("train.lr",),
        ranges=(*RANGE, "dataset.crop_size=64,72,80,90"),
        budget=Budget(num_trials=8),
    )
    records = search(plan_in(tmp_path, settings)).records()
    refused = [record for record in records if record.end is TrialEnd.REFUSED]
    assert refused
    assert all("dataset.crop_size must be a multiple" in record.reason for record in refused)
    assert len(records) - len(refused) == 8
    assert {record.values["dataset.crop_size"] for record in refused} <= {72, 90}


def test_a_space_where_nothing_goes_together_ends_with_the_reason(tmp_path: Path) -> None:
    settings = SearchSettings(keys=("dataset.crop_size",), ranges=("dataset.crop_size=66,70",))
    with pytest.raises(SpecError, match=f"{MAX_INVALID_IN_A_ROW} invalid ones in a row.*crop_size"):
        search(plan_in(tmp_path, settings))


def test_trials_run_side_by_side_each_with_its_own_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAL_FAKE_EPOCH_S", "0.1")
    slots = (Slot({"PLACE": "0"}), Slot({"PLACE": "1"}, ("train.gpu_ids=[3]",)))
    plan = plan_in(tmp_path, SearchSettings(ranges=RANGE, budget=Budget(num_trials=4)), slots=slots)
    search(plan)
    specs = [load_spec("train", path) for path in sorted(tmp_path.glob("trials/*/spec.yaml"))]
    assert len(specs) == 4
    assert {tuple(spec.train.gpu_ids) for spec in specs} == {(0,), (3,)}
    frozen = study_of(plan).study.get_trials()
    assert frozen[1].datetime_start < frozen[0].datetime_complete  # type: ignore[operator]


def test_a_stop_ends_the_trials_and_the_next_call_goes_on_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MAL_FAKE_EPOCH_S", "0.05")
    plan = plan_in(tmp_path, SearchSettings(ranges=RANGE, budget=Budget(num_trials=4)))
    stop = StopRequest()

    def stop_after_trial_1(record: object) -> None:
        if len(study_of(plan).records()) == 2:
            stop.received = signal.SIGTERM

    with pytest.raises(Interrupted):
        Search(plan, study_of(plan), COST, stop_after_trial_1).run(stop)
    assert len(study_of(plan).records()) < 4
    records = search(plan).records()
    assert [record.end for record in records].count(TrialEnd.RUNNING) == 0
    assert len(records) == 4


KILLED_SEARCH = """
import sys
from pathlib import Path
from fake_searches import plan_in, search
from mal.automl import trial
from mal.automl.settings import Budget, SearchSettings
trial.TRIAL_MODULE = "fake_trial"
settings = SearchSettings(ranges=("train.lr=1e-6:5e-3:log",), budget=Budget(num_trials=8))
search(plan_in(Path(sys.argv[1]), settings), lambda record: print(record.number, flush=True))
"""


def test_a_killed_search_keeps_its_finished_trials_and_ends_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{SUPPORT}:{Path(__file__).parents[3]}")
    monkeypatch.setenv("MAL_FAKE_EPOCH_S", "0.03")
    plan = plan_in(tmp_path / "killed", SearchSettings(ranges=RANGE, budget=Budget(num_trials=8)))
    command = [sys.executable, "-c", KILLED_SEARCH, str(plan.folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "4":
                time.sleep(0.1)
                process.kill()
                break
    finished = [r for r in study_of(plan).records() if r.end is not TrialEnd.RUNNING]
    assert len(finished) >= 5
    records = search(plan).records()
    assert records[: len(finished)] == finished
    whole = search(plan_in(tmp_path / "whole", plan.settings)).records()
    assert [(r.values, r.mean_iou, r.end) for r in records] == [
        (r.values, r.mean_iou, r.end) for r in whole
    ]


def test_the_best_rate_is_found_within_a_decade(tmp_path: Path) -> None:
    settings = SearchSettings(ranges=RANGE, keys=("train.lr",), budget=Budget(num_trials=12))
    best = search(plan_in(tmp_path, settings)).best()
    assert best is not None
    assert BEST_LR / 10 < best.values["train.lr"] < HIGHEST_LR
