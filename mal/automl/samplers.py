"""Optuna's samplers and pruners for each algorithm.

Each trial has its own sampler, seeded by the search's seed and the trial's number, so that a
resumed search tries the same values as an uninterrupted one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from mal.automl.settings import Algorithm
from mal.automl.space import Options, Parameter

NUM_RANDOM_TRIALS = 5
MEDIAN_MIN_TRIALS = 3
REDUCTION_FACTOR = 3

_USES_TPE = (Algorithm.BAYESIAN, Algorithm.BOHB)
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def distribution_of(parameter: Parameter) -> BaseDistribution:
    """Return a parameter as an Optuna distribution."""
    if isinstance(parameter, Options):
        return CategoricalDistribution(parameter.values)
    if parameter.is_whole:
        low, high, step = int(parameter.low), int(parameter.high), int(parameter.step) or 1
        return IntDistribution(low, high, log=parameter.is_log, step=step)
    return FloatDistribution(
        parameter.low, parameter.high, log=parameter.is_log, step=parameter.step or None
    )


def suggest(trial: Trial, parameter: Parameter) -> Any:
    """Return the sampler's value of a parameter for a trial; repeated calls return the same."""
    key, known = parameter.key, distribution_of(parameter)
    match known:
        case IntDistribution():
            return trial.suggest_int(key, known.low, known.high, log=known.log, step=known.step)
        case FloatDistribution():
            return trial.suggest_float(key, known.low, known.high, log=known.log, step=known.step)
        case CategoricalDistribution():
            return trial.suggest_categorical(key, known.choices)
    raise AssertionError(known)


def sampler_for(
    algorithm: Algorithm, space: Sequence[Parameter], *, seed: int, trial_number: int
) -> BaseSampler:
    """Return the sampler of one trial."""
    own_seed = int(np.random.SeedSequence([seed, trial_number]).generate_state(1)[0])
    odds = {
        parameter.key: parameter.weights
        for parameter in space
        if isinstance(parameter, Options) and len(set(parameter.weights)) > 1
    }
    if algorithm in _USES_TPE:
        return _WeightedTPESampler(odds, seed=own_seed)
    return _WeightedRandomSampler(odds, seed=own_seed)


def pruner_for(algorithm: Algorithm, epochs_per_trial: int) -> BasePruner:
    """Return the pruner, which ends trials early by their validation mIoU after each epoch.

    The median pruner is off during the first third of a trial, while rates and losses warm up.
    """
    match algorithm:
        case Algorithm.HYPERBAND | Algorithm.BOHB:
            return HyperbandPruner(1, epochs_per_trial, REDUCTION_FACTOR)
        case Algorithm.ASHA:
            return SuccessiveHalvingPruner(1, REDUCTION_FACTOR)
        case _:
            return MedianPruner(MEDIAN_MIN_TRIALS, n_warmup_steps=math.ceil(epochs_per_trial / 3))


class BaselineSampler(RandomSampler):
    """Returns the values of the baseline."""

    def __init__(self, baseline: Mapping[str, Any]) -> None:
        super().__init__(seed=0)
        self._baseline = baseline

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self._baseline[param_name]


class _WeightedOptions:
    """Draws the options of parameters by their weights."""

    def __init__(self, odds: Mapping[str, Sequence[float]], seed: int) -> None:
        self._odds = odds
        self._rng = np.random.default_rng(seed)

    def __contains__(self, param_name: str) -> bool:
        return param_name in self._odds

    def draw(self, param_name: str, distribution: BaseDistribution) -> Any:
        """Return a random option."""
        assert isinstance(distribution, CategoricalDistribution)
        weights = self._odds[param_name]
        chances = np.asarray(weights) / sum(weights)
        return distribution.choices[int(self._rng.choice(len(chances), p=chances))]


class _WeightedRandomSampler(RandomSampler):
    """Draws options by their weights."""

    def __init__(self, odds: Mapping[str, Sequence[float]], seed: int) -> None:
        super().__init__(seed=seed)
        self._options = _WeightedOptions(odds, seed)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        if param_name in self._options:
            return self._options.draw(param_name, param_distribution)
        return super().sample_independent(study, trial, param_name, param_distribution)


class _WeightedTPESampler(TPESampler):
    """Draws options by their weights until TPE has enough trials."""

    def __init__(self, odds: Mapping[str, Sequence[float]], seed: int) -> None:
        super().__init__(n_startup_trials=NUM_RANDOM_TRIALS, seed=seed)
        self._options = _WeightedOptions(odds, seed)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        num_finished = len(study.get_trials(deepcopy=False, states=_FINISHED))
        if param_name in self._options and num_finished < NUM_RANDOM_TRIALS:
            return self._options.draw(param_name, param_distribution)
        return super().sample_independent(study, trial, param_name, param_distribution)
