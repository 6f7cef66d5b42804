"""What a search is asked for: how to choose values, and how much it may cost."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from mal.errors import SpecError

DEFAULT_NUM_TRIALS = 10
DEFAULT_NUM_TRAININGS = 5


class Algorithm(StrEnum):
    """How the next values are chosen, and which trials are ended early."""

    BAYESIAN = "bayesian"
    RANDOM = "random"
    HYPERBAND = "hyperband"
    ASHA = "asha"
    BOHB = "bohb"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that a search may cost; 0 does not limit.

    Attributes:
        num_trials: Trials, with the baseline.
        minutes: Wall time of one call. No trial is started after it, and those that run, but for
            the baseline, are ended.
        num_epochs: Epochs of all trials together; no trial is started that might exceed it.
    """

    num_trials: int = 0
    minutes: float = 0
    num_epochs: int = 0

    def resolved(self, epochs_per_trial: int) -> Budget:
        """Return the budget itself, or the default one where it limits nothing.

        The default is 10 trials, and no more epochs than 5 plain trainings have.
        """
        if self.num_trials or self.minutes or self.num_epochs:
            return self
        return Budget(
            num_trials=DEFAULT_NUM_TRIALS, num_epochs=DEFAULT_NUM_TRAININGS * epochs_per_trial
        )

    def most_trials(self, epochs_per_trial: int) -> int:
        """Return how many whole trials fit, time aside; 0 for no limit. The baseline always fits.

        Trials that are ended early leave room for more.
        """
        by_epochs = max(1, self.num_epochs // epochs_per_trial) if self.num_epochs else 0
        limits = [limit for limit in (self.num_trials, by_epochs) if limit]
        return min(limits, default=0)

    def describe(self) -> str:
        """Say it in words."""
        parts = []
        if self.num_trials:
            parts.append(f"{self.num_trials} trials")
        if self.num_epochs:
            parts.append(f"{self.num_epochs} epochs of all trials")
        if self.minutes:
            parts.append(f"{self.minutes:g} minutes")
        return f"at most {', '.join(parts)}"


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """One search.

    Attributes:
        algorithm: How it searches.
        keys: What it varies; none: the schema's `automl_default_parameters`.
        ranges: `KEY=RANGE`, see `mal.automl.space`.
        trial_overrides: `key=value` of the trials alone, such as a shorter training.
        budget: Its limits.
        num_parallel: Trials at a time; 0: as many as the devices allow.
        seed: Of the choice of values.

    Raises:
        SpecError: With all problems found.
    """

    algorithm: Algorithm = Algorithm.BAYESIAN
    keys: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    trial_overrides: tuple[str, ...] = ()
    budget: Budget = Budget()
    num_parallel: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        problems = list(self._problems())
        if problems:
            raise SpecError(problems)

    def _problems(self) -> Iterator[str]:
        for name, value in (
            ("trials", self.budget.num_trials),
            ("minutes", self.budget.minutes),
            ("epochs", self.budget.num_epochs),
            ("parallel", self.num_parallel),
            ("seed", self.seed),
        ):
            if not (value >= 0 and math.isfinite(value)):
                yield f"{name} of a search must be at least 0, got {value}. Use 0 for the default."


def algorithm_from(name: str) -> Algorithm:
    """Return the algorithm of a name.

    Raises:
        SpecError: There is none.
    """
    try:
        return Algorithm(name.strip().lower())
    except ValueError:
        raise SpecError(
            f"algorithm must be a known one, got {name}. Use one of {', '.join(Algorithm)}."
        ) from None
