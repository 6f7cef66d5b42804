"""The search on one machine: starts trials, prunes them, keeps the best.

Optuna chooses the values and decides which trials to prune; `mal train` trains each trial in its
own process. The search only watches.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mal.artifacts import (
    BEST_CHECKPOINT,
    BEST_SPEC_FILE,
    LATEST_CHECKPOINT,
    LEADERBOARD_FILE,
    point_at,
    write_text,
)
from mal.automl.cost import TrialCost
from mal.automl.devices import NO_SLOT, Slot
from mal.automl.leaderboard import leaderboard_csv, values_text
from mal.automl.settings import Budget, SearchSettings
from mal.automl.space import Parameter, value_of
from mal.automl.study import SearchStudy
from mal.automl.trial import (
    TrialProcess,
    delete_checkpoints,
    keep_linked_checkpoints,
    trial_folder,
)
from mal.automl.trial_record import TrialEnd, TrialRecord
from mal.errors import SpecError
from mal.runtime import StopRequest
from mal.spec.experiment import ExperimentSpec
from mal.spec.identity import LENGTH_KEYS, identity_values
from mal.spec.load import load_spec, spec_as_dict, write_experiment_yaml

if TYPE_CHECKING:
    from optuna.trial import Trial

log = logging.getLogger(__name__)

POLL_INTERVAL_S = 0.1
MAX_INVALID_IN_A_ROW = 25


@dataclass(frozen=True)
class SearchPlan:
    """A search before it starts.

    Attributes:
        folder: The local results folder.
        base: The spec whose keys are varied.
        slots: One for each parallel trial.
    """

    folder: Path
    base: ExperimentSpec
    space: tuple[Parameter, ...]
    settings: SearchSettings
    slots: Sequence[Slot]

    @property
    def baseline(self) -> dict[str, Any]:
        """The base spec's values of the searched keys."""
        return {parameter.key: value_of(self.base, parameter.key) for parameter in self.space}

    @property
    def identity_values(self) -> dict[str, Any]:
        """Everything that determines the trials, by name, except the budget and the data."""
        settings = self.settings
        return {
            **identity_values(self.base, is_measured=True),
            **{key: value_of(self.base, key) for key in LENGTH_KEYS},
            **{f"--range {parameter.key}": parameter.describe() for parameter in self.space},
            "--algorithm": str(settings.algorithm),
            "--seed": settings.seed,
            "--trial": list(settings.trial_overrides),
        }

    @property
    def fingerprint(self) -> str:
        """A digest of `identity_values`."""
        text = json.dumps(self.identity_values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def trial_spec(
        self, values: Mapping[str, Any], folder: Path, slot: Slot = NO_SLOT
    ) -> ExperimentSpec:
        """Return the spec of a trial, which validates after each epoch for the pruner.

        Raises:
            SpecError: The spec's rules forbid this combination of values.
        """
        is_baseline = dict(values) == self.baseline
        overrides = [
            "train.validation_interval=1",
            # Equal for all trials; the baseline measures it.
            *([] if is_baseline else ["evaluate.training_free=false"]),
            *self.settings.trial_overrides,
            *slot.overrides,
        ]
        fixed = {**values, "train.results_dir": str(folder)}
        return load_spec("train", spec_as_dict(self.base), overrides, fixed=fixed)

    def best_spec(self, values: Mapping[str, Any]) -> ExperimentSpec:
        """Return the base spec with a trial's values."""
        return load_spec("train", spec_as_dict(self.base), fixed=values)


@dataclass
class _Running:
    trial: Trial
    slot: Slot
    process: TrialProcess
    mean_ious: list[float] = field(default_factory=list)


class Search:
    """Runs the trials of a plan until the budget is spent.

    Args:
        plan: The search.
        study: Stores the trials.
        cost: The cost of one trial.
        on_finished: Called after each trial, when the folder has the results so far.
    """

    def __init__(
        self,
        plan: SearchPlan,
        study: SearchStudy,
        cost: TrialCost,
        on_finished: Callable[[TrialRecord], None] = lambda _: None,
    ) -> None:
        self.plan = plan
        self.study = study
        self.on_finished = on_finished
        self.epochs_per_trial = cost.num_epochs
        self.budget: Budget = plan.settings.budget.resolved(cost.num_epochs)
        self._running: list[_Running] = []
        self._started_s = time.monotonic()

    def run(self, stop: StopRequest) -> None:
        """Run until the budget is spent or a stop is requested; a later call resumes the trials.

        Raises:
            Interrupted: A stop was requested.
        """
        if self.study.records():
            publish_so_far(self.plan, self.study)  # an earlier call may have been killed before it
        waiting = self.study.unfinished()
        with stop.deferring():
            try:
                while True:
                    while self._has_slot() and (waiting or self._may_start()):
                        self._start(*(waiting.pop(0) if waiting else self._next()))
                    if not self._running:
                        return
                    for running in list(self._running):
                        self._check(running)
                    if stop.received is not None:
                        break
                    time.sleep(POLL_INTERVAL_S)
            finally:
                for running in self._running:
                    running.process.end()
        stop.raise_if_received()

    def _has_slot(self) -> bool:
        return len(self._running) < len(self.plan.slots)

    def _is_time_over(self) -> bool:
        minutes = (time.monotonic() - self._started_s) / 60
        return 0 < self.budget.minutes <= minutes

    def _may_start(self) -> bool:
        """Whether the budget allows another whole trial; the baseline is always allowed."""
        records = [r for r in self.study.records() if r.end is not TrialEnd.REFUSED]
        if not records:
            return True
        num_epochs = sum(
            self.epochs_per_trial if r.end is TrialEnd.RUNNING else r.num_epochs for r in records
        )
        budget = self.budget
        return (
            not self._is_time_over()
            and (not budget.num_trials or len(records) < budget.num_trials)
            and (not budget.num_epochs or num_epochs + self.epochs_per_trial <= budget.num_epochs)
        )

    def _next(self) -> tuple[Trial, dict[str, Any]]:
        """Return a new trial with a combination of values that the spec's rules allow.

        Raises:
            SpecError: Too many combinations in a row are forbidden.
        """
        problem = ""
        for _ in range(MAX_INVALID_IN_A_ROW):
            trial, values = self.study.ask()
            try:
                self.plan.trial_spec(values, self.plan.folder)
            except SpecError as error:
                problem = error.problems[0]
                self.study.fail(trial, problem, is_refused=True)
                continue
            return trial, values
        raise SpecError(
            f"searched keys must have valid combinations, got {MAX_INVALID_IN_A_ROW} invalid ones "
            f"in a row. Change --range: {problem}"
        )

    def _start(self, trial: Trial, values: Mapping[str, Any]) -> None:
        taken = [running.slot for running in self._running]
        slot = next(slot for slot in self.plan.slots if slot not in taken)
        folder = trial_folder(self.plan.folder, trial.number)
        spec = self.plan.trial_spec(values, folder, slot)
        process = TrialProcess(folder, spec, slot.variables)
        self._running.append(_Running(trial, slot, process))
        name = "baseline" if trial.number == 0 else "trial"
        log.info("%s %d starts: %s", name, trial.number, values_text(values))

    def _check(self, running: _Running) -> None:
        code, trial = running.process.poll(), running.trial
        for epoch, mean_iou in running.process.new_metrics():
            running.mean_ious.append(mean_iou)
            log.info("trial %d epoch %d: mIoU=%.4f", trial.number, epoch, mean_iou)
            is_pruned = self.study.should_prune(trial, epoch, mean_iou)
            if is_pruned and epoch < self.epochs_per_trial:
                running.process.end()
                self.study.prune(trial, f"ended after epoch {epoch}: other trials were better then")
                self._finish(running)
                return
        if code is None and trial.number > 0 and self._is_time_over():
            running.process.end()
            self.study.prune(trial, "ended: the time limit of the search was reached")
            self._finish(running)
        elif code == 0 and running.mean_ious:
            self.study.complete(trial, max(running.mean_ious))
            self._finish(running)
        elif code is not None:
            reason = running.process.failure() if code else "no validation was measured"
            self.study.fail(trial, reason)
            self._finish(running)

    def _finish(self, running: _Running) -> None:
        self._running.remove(running)
        publish_so_far(self.plan, self.study)
        record, best = self.study.records()[running.trial.number], self.study.best()
        outcome = record.reason or f"mIoU={record.mean_iou:.4f}"
        best_text = f"; best is trial {best.number}, mIoU={best.mean_iou:.4f}" if best else ""
        log.info("trial %d %s: %s%s", record.number, record.end.value, outcome, best_text)
        self.on_finished(record)


def publish_so_far(plan: SearchPlan, study: SearchStudy) -> None:
    """Write leaderboard and best spec, link the best weights, delete those of other trials."""
    records, best = study.records(), study.best()
    for record in records:
        is_over = record.end is not TrialEnd.RUNNING
        if is_over and (best is None or record.number != best.number):
            delete_checkpoints(trial_folder(plan.folder, record.number))
    if best is not None:
        folder = trial_folder(plan.folder, best.number)
        keep_linked_checkpoints(folder)
        for name in (BEST_CHECKPOINT, LATEST_CHECKPOINT):
            point_at(plan.folder / name, (folder / BEST_CHECKPOINT).resolve())
        write_text(plan.folder / BEST_SPEC_FILE, write_experiment_yaml(plan.best_spec(best.values)))
    write_text(plan.folder / LEADERBOARD_FILE, leaderboard_csv(records))
