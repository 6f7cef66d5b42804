"""Budgets, and what a search may be asked for."""

from __future__ import annotations

import pytest

from mal.automl.settings import Algorithm, Budget, SearchSettings, algorithm_from
from mal.errors import SpecError


def test_who_says_nothing_pays_for_five_trainings_at_most() -> None:
    assert Budget().resolved(4) == Budget(num_trials=10, num_epochs=20)


@pytest.mark.parametrize(
    "budget", [Budget(num_trials=50), Budget(minutes=5), Budget(num_epochs=100)]
)
def test_a_budget_that_is_given_stands_as_it_is(budget: Budget) -> None:
    assert budget.resolved(4) == budget


@pytest.mark.parametrize(
    ("budget", "most"),
    [
        (Budget(num_trials=7), 7),
        (Budget(num_epochs=20), 5),
        (Budget(num_trials=3, num_epochs=20), 3),
        (Budget(num_epochs=3), 1),
        (Budget(minutes=5), 0),
    ],
    ids=["trials", "epochs", "the tighter one", "the baseline always fits", "time alone"],
)
def test_whole_trials_of_a_budget(budget: Budget, most: int) -> None:
    assert budget.most_trials(4) == most


def test_a_budget_says_itself_in_words() -> None:
    words = Budget(num_trials=3, minutes=1.5, num_epochs=20).describe()
    assert words == "at most 3 trials, 20 epochs of all trials, 1.5 minutes"


def test_negative_limits_are_refused_together() -> None:
    with pytest.raises(SpecError) as refused:
        SearchSettings(budget=Budget(num_trials=-1, minutes=float("nan")), num_parallel=-2)
    assert len(refused.value.problems) == 3


def test_an_unknown_algorithm_is_told_the_known_ones() -> None:
    assert algorithm_from(" BOHB ") is Algorithm.BOHB
    with pytest.raises(
        SpecError, match="must be one of bayesian, random, hyperband, asha, bohb, got grid"
    ):
        algorithm_from("grid")
