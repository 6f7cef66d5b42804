"""The file of a search: every trial's values, figures and end, in one SQLite file.

Each change is one transaction, so that a search that is killed loses no finished trial. A trial
that was running then is found running again, and goes on under its number.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from mal.automl.samplers import BaselineSampler, pruner_for, sampler_for, suggest
from mal.automl.settings import Algorithm
from mal.automl.space import Parameter
from mal.automl.trial_record import TrialEnd, TrialRecord, best_of
from mal.errors import SpecError

STUDY_FILE = "study.db"
STUDY_NAME = "mal"

# Version 0.1.0 wrote another one, of all keys, as "fingerprint": its searches go on unchecked here.
_FINGERPRINT, _VALUES, _REASON, _REFUSED = "identity", "values", "reason", "is_refused"


class SearchStudy:
    """Asks for values, takes figures, and remembers.

    Args:
        folder: Of the search; the study file lies in it.
        algorithm: How to search.
        space: What to vary.
        baseline: The searched keys' values of trial 0.
        epochs_per_trial: Of a whole trial.
        seed: Of the choice of values.
        fingerprint: Of all that makes this search itself.

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
                f"results_dir must be that of the same search to go on, got another one's in "
                f"{folder}. Choose another results_dir, or delete that folder."
            )
        self.study.set_user_attr(_FINGERPRINT, fingerprint)

    def ask(self) -> tuple[Trial, dict[str, Any]]:
        """Return a new trial and its values; the first one has the baseline's."""
        self._place_sampler(len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        return trial, self._choose(trial)

    def unfinished(self) -> list[tuple[Trial, dict[str, Any]]]:
        """Return the trials that were running when an earlier call ended."""
        found = []
        for frozen in self.study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            self._place_sampler(frozen.number)
            trial = Trial(self.study, frozen._trial_id)
            found.append((trial, trial.user_attrs.get(_VALUES) or self._choose(trial)))
        return found

    def _place_sampler(self, number: int) -> None:
        self.study.sampler = (
            sampler_for(self.algorithm, self.space, seed=self.seed, trial_number=number)
            if number
            else BaselineSampler(self.baseline)
        )

    def _choose(self, trial: Trial) -> dict[str, Any]:
        """Choose the values; a baseline's outside the range is used, but teaches nothing."""
        values = dict(self.baseline)
        for parameter in self.space:
            if trial.number or parameter.contains(self.baseline[parameter.key]):
                values[parameter.key] = suggest(trial, parameter)
        trial.set_user_attr(_VALUES, values)
        return values

    def should_prune(self, trial: Trial, epoch: int, mean_iou: float) -> bool:
        """Take an epoch's figure; returns whether to end the trial. The baseline never is."""
        known = self.study.get_trials(deepcopy=False)[trial.number].intermediate_values
        if epoch not in known:
            trial.report(mean_iou, epoch)
        is_latest = epoch >= max(known, default=0)
        return trial.number > 0 and is_latest and trial.should_prune()

    def complete(self, trial: Trial, mean_iou: float) -> None:
        """Record that a trial came to its end."""
        self.study.tell(trial, mean_iou)

    def prune(self, trial: Trial, reason: str) -> None:
        """Record that a trial was ended early."""
        trial.set_user_attr(_REASON, reason)
        self.study.tell(trial, state=TrialState.PRUNED)

    def fail(self, trial: Trial, reason: str, *, is_refused: bool = False) -> None:
        """Record why a trial failed, or why its values were never trained with."""
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
