"""Stores every trial's values, metrics and result in one SQLite file.

Each change is one transaction, so that a killed search loses no finished trial. A trial that was
running is found as running and resumed under its number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mal.artifacts import STUDY_FILE
from mal.automl.samplers import BaselineSampler, pruner_for, sampler_for, suggest
from mal.automl.settings import Algorithm
from mal.automl.space import Parameter
from mal.automl.trial_record import TrialEnd, TrialRecord, best_of
from mal.errors import SpecError

STUDY_NAME = "mal"

# Version 0.1.0 wrote another digest, of all keys, as "fingerprint": not checked here.
_FINGERPRINT, _VALUES, _REASON, _REFUSED = "identity", "values", "reason", "is_refused"


class SearchStudy:
    """Chooses the values of trials and records their metrics.

    Args:
        folder: Folder of the search, which has the study file.
        algorithm: Chooses values and prunes trials.
        space: The searched keys.
        baseline: Values of the searched keys in trial 0.
        epochs_per_trial: Epochs of a trial that is not pruned.
        seed: Seed of the choice of values.
        fingerprint: Digest of everything that determines the trials.

    Raises:
        SpecError: The folder has the study of another search.
    """

    def __init__(
        self,
        folder: Path,
        *,
        algorithm: Algorithm,
        space: Sequence[Parameter],
        baseline: Mapping[str, Any],
        epochs_per_trial: int,
        seed: int,
        fingerprint: str,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self.algorithm = algorithm
        self.space = space
        self.baseline = baseline
        self.seed = seed
        self.study = optuna.create_study(
            storage=f"sqlite:///{folder / STUDY_FILE}",
            study_name=STUDY_NAME,
            direction="maximize",
            load_if_exists=True,
            pruner=pruner_for(algorithm, epochs_per_trial),
        )
        known = self.study.user_attrs.get(_FINGERPRINT, fingerprint)
        if known != fingerprint:
            raise SpecError(
                f"results_dir must have the same search to resume it, got another one in {folder}. "
                "Choose another results_dir, or delete that folder."
            )
        self.study.set_user_attr(_FINGERPRINT, fingerprint)

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """Return a new trial and its values; the first one has the baseline's."""
        self._set_sampler(len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        return trial, self._choose(trial)

    def unfinished(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Return the trials that were running when an earlier call ended."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._set_sampler(frozen.number)
            trial = Trial(self.study, frozen._trial_id)
            found.append((trial, trial.user_attrs.get(_VALUES) or self._choose(trial)))
        return found

    def _set_sampler(self, number: int) -> None:
        self.study.sampler = (
            sampler_for(self.algorithm, self.space, seed=self.seed, trial_number=number)
            if number
            else BaselineSampler(self.baseline)
        )

    def _choose(self, trial: Trial) -> dict[str, Any]:
        """Choose the values; a baseline value outside the range is not given to Optuna."""
        values = dict(self.baseline)
        for parameter in self.space:
            if trial.number or parameter.contains(self.baseline[parameter.key]):
                values[parameter.key] = suggest(trial, parameter)
        trial.set_user_attr(_VALUES, values)
        return values

    def should_prune(self, trial: Trial, epoch: int, mean_iou: float) -> bool:
        """Record an epoch's mIoU; returns whether to prune the trial, never the baseline."""
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if epoch not in known:
            trial.report(mean_iou, epoch)
        is_latest = epoch >= max(known, default=0)
        return trial.number > 0 and is_latest and trial.should_prune()

    def complete(self, trial: Trial, mean_iou: float) -> None:
        """Record a finished trial."""
        self.study.tell(trial, mean_iou)

    def prune(self, trial: Trial, reason: str) -> None:
        """Record a pruned trial."""
        trial.set_user_attr(_REASON, reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str, *, is_refused: bool = False) -> None:
        """Record why a trial failed, or why its values were rejected."""
        trial.set_user_attr(_REASON, reason)
        trial.set_user_attr(_REFUSED, is_refused)
        self.study.tell(trial, state=TrialState.FAIL)

    def records(self) -> list[TrialRecord]:
        """Return every trial, by number."""
        return [_record(frozen) for frozen in self.study.get_trials(deepcopy=False)]

    def best(self) -> TrialRecord | None:
        """Return the best trial so far."""
        return best_of(self.records())


def _record(frozen: FrozenTrial) -> TrialRecord:
    attributes = frozen.user_attrs
    end = {
        TrialState.COMPLETE: TrialEnd.COMPLETE,
        TrialState.PRUNED: TrialEnd.PRUNED,
        TrialState.FAIL: TrialEnd.REFUSED if attributes.get(_REFUSED) else TrialEnd.FAILED,
    }.get(frozen.state, TrialEnd.RUNNING)
    return TrialRecord(
        number=frozen.number,
        end=end,
        values=attributes.get(_VALUES, frozen.params),
        mean_iou=max(frozen.intermediate_values.values(), default=None),
        num_epochs=len(frozen.intermediate_values),
        duration_s=frozen.duration.total_seconds() if frozen.duration else 0.0,
        reason=attributes.get(_REASON, ""),
    )
