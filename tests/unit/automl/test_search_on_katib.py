"""A search in Katib's terms, and back."""

from __future__ import annotations

import pytest

from mal.automl.katib import katib_search, records_of, study_of, values_of
from mal.automl.settings import Algorithm, Budget, SearchSettings
from mal.automl.space import build_search_space
from mal.automl.trial_record import TrialEnd, best_of
from mal.cluster.katib import KatibTrial
from mal.errors import SpecError
from mal.spec.schema import action_schema

SPACE = build_search_space(
    action_schema("train"),
    ["train.lr", "train.batch_size", "model.teacher_momentum", "model.not_adjust_scale"],
    ["train.batch_size=2:8:2"],
)


def test_the_space_is_said_in_katibs_words() -> None:
    search = katib_search(SPACE, SearchSettings())
    spaces = {p.key: (p.type, p.feasible_space) for p in search.parameters}
    assert spaces == {
        "train.lr": ("double", {"min": "1e-07", "max": "0.01", "distribution": "logUniform"}),
        "train.batch_size": ("int", {"min": "2", "max": "8", "step": "2"}),
        "model.teacher_momentum": ("double", {"min": "0", "max": "1"}),
        "model.not_adjust_scale": ("categorical", {"list": ["false", "true"]}),
    }
    assert search.parameters[0].name == "train_lr"


def test_by_default_a_search_costs_five_trainings() -> None:
    assert katib_search(SPACE, SearchSettings()).num_trials == 5
    assert katib_search(SPACE, SearchSettings(budget=Budget(num_trials=9))).num_trials == 9


def test_all_that_katib_lacks_is_told_at_once() -> None:
    space = build_search_space(action_schema("train"), ["batch_size"], ["batch_size=2@3,4"])
    settings = SearchSettings(
        algorithm=Algorithm.BOHB, budget=Budget(minutes=3, num_epochs=7), num_parallel=2
    )
    with pytest.raises(SpecError) as refused:
        katib_search(space, settings)
    assert [problem.split()[0] for problem in refused.value.problems] == [
        "algorithm", "minutes", "epochs", "range",
    ]  # fmt: skip


TRIALS = (
    KatibTrial("a", _values := {
        "train.lr": "1.5e-05", "train.batch_size": "4", "model.teacher_momentum": "0.5",
        "model.not_adjust_scale": "true",
    }, 0.4, "Succeeded", "", duration_s=61.0),
    KatibTrial("b", _values | {"train.lr": "0.001"}, 0.6, "Succeeded", ""),
    KatibTrial("c", _values, None, "Failed", "out of memory"),
)  # fmt: skip


def test_values_that_katib_keeps_as_texts_are_read_as_the_spec_reads_them() -> None:
    assert values_of(TRIALS[0]) == {
        "train.lr": 1.5e-05,
        "train.batch_size": 4,
        "model.teacher_momentum": 0.5,
        "model.not_adjust_scale": True,
    }


def test_trials_become_records_and_a_study_to_draw() -> None:
    records = records_of(TRIALS, {"a": 3, "b": 2})
    assert [record.num_epochs for record in records] == [3, 2, 0]
    assert [record.duration_s for record in records] == [61.0, 0.0, 0.0]
    assert [record.end for record in records] == [
        TrialEnd.COMPLETE, TrialEnd.COMPLETE, TrialEnd.FAILED,
    ]  # fmt: skip
    assert records[2].reason == "Failed: out of memory"
    best = best_of(records)
    assert best is not None
    assert best.values["train.lr"] == 0.001
    study = study_of(SPACE, records)
    assert study.best_value == 0.6
    assert len(study.trials) == 2
