"""What the study file remembers, and which values it asks for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from fake_searches import BASELINE_LR, plan_in, study_of

from mal.automl.samplers import sampler_for, suggest
from mal.automl.settings import Algorithm, SearchSettings
from mal.automl.space import build_search_space
from mal.automl.study import SearchStudy
from mal.automl.trial_record import TrialEnd
from mal.errors import SpecError
from mal.spec.schema import action_schema


def run_trials(study: SearchStudy, number: int) -> list[dict[str, Any]]:
    asked: list[dict[str, Any]] = []
    for _ in range(number):
        trial, values = study.ask()
        study.should_prune(trial, 1, 0.5 + len(asked) / 100)
        study.complete(trial, 0.5 + len(asked) / 100)
        asked.append(values)
    return asked


def study_in(folder: Path, **settings: Any) -> SearchStudy:
    return study_of(plan_in(folder, SearchSettings(**settings)))


def test_trial_0_has_the_values_of_the_baseline(tmp_path: Path) -> None:
    _, values = study_in(tmp_path).ask()
    assert values == {"train.lr": BASELINE_LR, "train.wd": 5e-4}


def test_a_baseline_outside_the_range_is_trained_all_the_same(tmp_path: Path) -> None:
    study = study_in(tmp_path, ranges=("train.lr=1e-4:1e-3:log",))
    asked = run_trials(study, 8)
    assert asked[0]["train.lr"] == BASELINE_LR
    assert all(1e-4 <= values["train.lr"] <= 1e-3 for values in asked[1:])


@pytest.mark.parametrize("algorithm", Algorithm)
def test_values_depend_on_the_seed_and_nothing_else(algorithm: Algorithm, tmp_path: Path) -> None:
    def asked(name: str, seed: int) -> list[dict[str, Any]]:
        return run_trials(study_in(tmp_path / name, algorithm=algorithm, seed=seed), 7)

    first = asked("one", 1)
    assert asked("again", 1) == first
    assert asked("two", 2)[1:] != first[1:]


@pytest.mark.parametrize("algorithm", [Algorithm.BAYESIAN, Algorithm.BOHB])
def test_a_reopened_study_asks_what_it_would_have_asked(
    algorithm: Algorithm, tmp_path: Path
) -> None:
    whole = run_trials(study_in(tmp_path / "whole", algorithm=algorithm), 9)
    run_trials(study_in(tmp_path / "parts", algorithm=algorithm), 4)
    reopened = study_in(tmp_path / "parts", algorithm=algorithm)
    trials = [reopened.ask()[1]]
    assert trials[0] == whole[4]


def test_a_trial_that_was_running_goes_on_under_its_number(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    run_trials(study, 2)
    trial, values = study.ask()
    study.should_prune(trial, 1, 0.4)
    ((again, values_again),) = study_in(tmp_path).unfinished()
    assert (again.number, values_again) == (2, values)


def test_a_trial_that_died_before_it_had_values_gets_those_that_it_would_have_had(
    tmp_path: Path,
) -> None:
    expected = run_trials(study_in(tmp_path / "whole"), 3)[2]
    study = study_in(tmp_path / "cut")
    run_trials(study, 2)
    study.study.ask()
    ((_, values),) = study_in(tmp_path / "cut").unfinished()
    assert values == expected


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"algorithm": Algorithm.RANDOM}, {"ranges": ("train.lr=1e-6:1e-2:log",)}],
    ids=["seed", "algorithm", "space"],
)
def test_the_folder_of_another_search_is_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    study_in(tmp_path)
    with pytest.raises(SpecError, match="results_dir must have the same search"):
        study_in(tmp_path, **changed)


@pytest.mark.parametrize("algorithm", [Algorithm.RANDOM, Algorithm.BAYESIAN])
def test_options_are_drawn_by_their_weights_and_repeatably(algorithm: Algorithm) -> None:
    space = build_search_space(action_schema("train"), ["batch_size"], ["batch_size=2@9,4@1"])

    def drawn() -> Counter[Any]:
        study = optuna.create_study()
        counts: Counter[Any] = Counter()
        for number in range(200):
            study.sampler = sampler_for(algorithm, space, seed=0, trial_number=number)
            counts[suggest(study.ask(), space[0])] += 1
        return counts

    assert 160 < drawn()[2] < 198
    assert drawn() == drawn()


def test_the_ends_of_trials_are_remembered_with_their_reasons(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    run_trials(study, 1)
    trial, _ = study.ask()
    study.fail(trial, "it diverged")
    trial, _ = study.ask()
    study.fail(trial, "sizes do not go together", is_refused=True)
    trial, _ = study.ask()
    study.should_prune(trial, 1, 0.3)
    study.prune(trial, "hopeless")
    ends = [(record.end, record.reason) for record in study_in(tmp_path).records()]
    assert ends == [
        (TrialEnd.COMPLETE, ""),
        (TrialEnd.FAILED, "it diverged"),
        (TrialEnd.REFUSED, "sizes do not go together"),
        (TrialEnd.PRUNED, "hopeless"),
    ]


def test_the_best_is_the_earliest_of_the_highest_complete_ones(tmp_path: Path) -> None:
    study = study_in(tmp_path)
    for figure in (0.5, 0.7, 0.7):
        trial, _ = study.ask()
        study.should_prune(trial, 1, figure)
        study.complete(trial, figure)
    trial, _ = study.ask()
    study.should_prune(trial, 1, 0.9)
    study.prune(trial, "")
    best = study.best()
    assert best is not None
    assert (best.number, best.mean_iou) == (1, 0.7)
