"""Settings of a search: algorithm, searched keys and budget."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from mal.errors import SpecError

DEFAULT_NUM_TRIALS = 10
DEFAULT_NUM_TRAININGS = 5


class Algorithm(StrEnum):
    """How values are chosen, and which trials are pruned."""

    BAYESIAN = "bayesian"
    RANDOM = "random"
    HYPERBAND = "hyperband"
    ASHA = "asha"
    BOHB = "bohb"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a search; 0 does not limit.

    Attributes:
        num_trials: Number of trials, including the baseline.
        minutes: Wall time of one call. After it no trial starts, and running trials except the
            baseline are ended.
        num_epochs: Epochs of all trials together; no trial starts that could exceed it.
    """

    num_trials: int = 0
    minutes: float = 0
    num_epochs: int = 0

    def resolved(self, epochs_per_trial: int) -> Budget:
        """Return the budget; if it has no limit, 10 trials and the epochs of 5 plain trainings."""
        if self.num_trials or self.minutes or self.num_epochs:
            return self
        return Budget(
            num_trials=DEFAULT_NUM_TRIALS, num_epochs=DEFAULT_NUM_TRAININGS * epochs_per_trial
        )

    def most_trials(self, epochs_per_trial: int) -> int:
        """Return how many whole trials fit, ignoring the time limit; 0 for no limit.

        The baseline always fits. Pruned trials leave budget for more.
        """
        by_epochs = max(1, self.num_epochs // epochs_per_trial) if self.num_epochs else 0
        limits = [limit for limit in (self.num_trials, by_epochs) if limit]
        return min(limits, default=0)

    def describe(self) -> str:
        """Return the limits as text."""
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
    """Settings of one search.

    Attributes:
        keys: Searched keys; empty for the schema's `automl_default_parameters`.
        ranges: `KEY=RANGE`, see `mal.automl.space`.
        trial_overrides: `key=value` only for the trials, such as a shorter training.
        num_parallel: Parallel trials; 0 for as many as the devices allow.
        seed: Seed of the choice of values.

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
            f"algorithm must be one of {', '.join(Algorithm)}, got {name}. Choose one of these."
        ) from None
