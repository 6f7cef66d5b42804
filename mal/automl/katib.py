"""Converts a search to Katib's terms (space, algorithm) and Katib's trials back to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial

from mal.automl.samplers import distribution_of
from mal.automl.settings import DEFAULT_NUM_TRAININGS, Algorithm, SearchSettings
from mal.automl.space import Options, Parameter, Value
from mal.automl.trial_record import TrialEnd, TrialRecord
from mal.cluster.katib import KatibParameter, KatibSearch, KatibTrial
from mal.errors import SpecError
from mal.spec.convert import yaml_text
from mal.spec.sources import parse_yaml

_ALGORITHMS = {Algorithm.BAYESIAN: "tpe", Algorithm.RANDOM: "random"}


def katib_search(space: Sequence[Parameter], settings: SearchSettings) -> KatibSearch:
    """Return the search in Katib's terms.

    No trial ends early on Katib, so that each costs a whole training; the default is five trials.

    Raises:
        SpecError: Lists everything that Katib does not support.
    """
    budget, problems = settings.budget, []
    if settings.algorithm not in _ALGORITHMS:
        problems.append(
            f"algorithm must be {' or '.join(_ALGORITHMS)} on Katib, got {settings.algorithm}. "
            "Use one of these, or backend=local."
        )
    for name, value in (("minutes", budget.minutes), ("epochs", budget.num_epochs)):
        if value:
            problems.append(f"{name} must be 0 on Katib, got {value:g}. Limit it by trials.")
    weighted = [p.key for p in space if isinstance(p, Options) and len(set(p.weights)) > 1]
    problems += [
        f"range of {key} must have no weights on Katib, got some. Leave them out."
        for key in weighted
    ]
    if problems:
        raise SpecError(problems)
    return KatibSearch(
        algorithm=_ALGORITHMS[settings.algorithm],
        parameters=tuple(_katib_parameter(parameter) for parameter in space),
        num_trials=budget.num_trials or DEFAULT_NUM_TRAININGS,
        num_parallel=max(settings.num_parallel, 1),
        seed=settings.seed,
    )


def _katib_parameter(parameter: Parameter) -> KatibParameter:
    if isinstance(parameter, Options):
        values = [yaml_text(value) for value in parameter.values]
        return KatibParameter(parameter.key, "categorical", {"list": values})
    bounds = {"min": f"{parameter.low!r}", "max": f"{parameter.high!r}"}
    if parameter.step:
        bounds["step"] = f"{parameter.step!r}"
    if parameter.is_log:
        bounds["distribution"] = "logUniform"
    return KatibParameter(parameter.key, "int" if parameter.is_whole else "double", bounds)


def values_of(trial: KatibTrial) -> dict[str, Value]:
    """Return the values of a trial, parsed from Katib's strings as the spec parses them."""
    return {key: parse_yaml(text, key) for key, text in trial.values.items()}


def records_of(trials: Sequence[KatibTrial], num_epochs: Mapping[str, int]) -> list[TrialRecord]:
    """Return Katib's trials as records, in the order of their creation.

    Args:
        trials: Katib does not know how many epochs they have trained.
        num_epochs: Finished epochs, by the trial's name.
    """
    ends: Mapping[str, TrialEnd] = {
        "Succeeded": TrialEnd.COMPLETE, "EarlyStopped": TrialEnd.PRUNED, "": TrialEnd.RUNNING,
    }  # fmt: skip
    return [
        TrialRecord(
            number=number,
            end=ends.get(trial.end, TrialEnd.FAILED),
            values=values_of(trial),
            mean_iou=trial.metric,
            num_epochs=num_epochs.get(trial.name, 0),
            duration_s=trial.duration_s,
            reason="" if trial.end in ends else f"{trial.end}: {trial.message}",
        )
        for number, trial in enumerate(trials)
    ]


def study_of(space: Sequence[Parameter], records: Sequence[TrialRecord]) -> optuna.Study:
    """Return an in-memory study of the complete trials, for the plots."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize")
    study.add_trials([_frozen(space, r) for r in records if r.end is TrialEnd.COMPLETE])
    return study


def _frozen(space: Sequence[Parameter], record: TrialRecord) -> FrozenTrial:
    return create_trial(
        state=TrialState.COMPLETE,
        value=record.mean_iou,
        params=dict(record.values),
        distributions={parameter.key: distribution_of(parameter) for parameter in space},
    )
