"""`mal automl`: searches the settings of a training on this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mal.artifacts import (
    BEST_CHECKPOINT,
    BEST_SPEC_FILE,
    EPOCH_METRICS_FILE,
    EXPERIMENT_FILE,
    LEADERBOARD_FILE,
    REPORT_FILE,
    STUDY_FILE,
    write_json,
    write_manifest,
    write_text,
)
from mal.automl.cost import TrialCost, measure_cost
from mal.automl.devices import share_devices
from mal.automl.settings import SearchSettings
from mal.automl.space import build_search_space, value_of
from mal.automl.trial import trial_folder
from mal.data.formats import readable_path
from mal.errors import MalError, MissingExtraError, SpecError, StoreAwayError
from mal.evaluation.baselines import metrics_of_best_epoch, usefulness_warning
from mal.runtime import StopRequest, handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import load_spec, write_experiment_yaml
from mal.spec.schema import action_schema
from mal.spec.uri_list import split_uris
from mal.stages.run_identity import (
    WEIGHTS_KEY,
    RunIdentity,
    RunRecord,
    code_versions,
    describe_conflict,
    differences,
)
from mal.stages.session import upload_finished
from mal.stages.written_files import RESTORED, SEARCH, WRITTEN, require_inputs_kept, results_uri
from mal.status import MONITORED_METRIC, Status, StatusLog
from mal.storage import (
    ResultsFolder,
    describe_inputs,
    fetch_file,
    impatient,
    open_image_folder,
    patient,
)
from mal.tao import data_uris

if TYPE_CHECKING:
    from mal.automl.search import SearchPlan
    from mal.automl.study import SearchStudy
    from mal.automl.trial_record import TrialRecord

log = logging.getLogger(__name__)

ACTION = SEARCH


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        results_dir: Folder of the files below (for s3:// its local copy).
        best_trial: Number of the best trial; 0 is the baseline.
        best_values: Values of the searched keys.
        best_mean_iou: Validation mIoU of the best trial's best epoch.
        baseline_mean_iou: Validation mIoU of trial 0; None if it failed.
        checkpoint: `mal_model_best.pth`.
        best_spec: The spec with the best values, for `mal train`.
        leaderboard: CSV, one line per trial.
        report: A self-contained HTML page.
        warning: Why the best model is not useful; '' if it is.
    """

    results_dir: Path
    best_trial: int
    best_values: Mapping[str, Any]
    best_mean_iou: float
    baseline_mean_iou: float | None
    checkpoint: Path
    best_spec: Path
    leaderboard: Path
    report: Path
    num_trials: int
    warning: str = ""

    def read_best_spec(self) -> ExperimentSpec:
        """Return the spec with the best values."""
        return load_spec("train", self.best_spec)

    def lines(self) -> Iterator[str]:
        """Yield the lines that `mal automl` prints: metrics first, the results folder last."""
        yield f"mIoU={self.best_mean_iou:.4f}"
        if self.baseline_mean_iou is not None:
            yield f"baseline_mIoU={self.baseline_mean_iou:.4f}"
        yield from (f"{key}={value}" for key, value in self.best_values.items())
        yield f"trials: {self.num_trials}, the best is {self.best_trial}"
        yield f"checkpoint: {self.checkpoint}"
        yield f"spec: {self.best_spec}"
        yield f"report: {self.report}"
        yield f"results: {self.results_dir}"


def run_automl(spec: ExperimentSpec, settings: SearchSettings) -> SearchResult:
    """Search; the same call again resumes a stopped search, or extends it to a larger budget.

    Trials train on `dataset.train_*` and are ranked by their mIoU on `dataset.val_*`.

    Raises:
        SpecError: A key cannot be searched, or there are no masks to rank trials by.
        MissingExtraError: Optuna is not installed.
        MalError: No trial finished.
    """
    require_optuna()
    spec = _with_plain_seed(spec)
    space = build_search_space(action_schema("train"), settings.keys, settings.ranges)
    _require_one_node(spec)
    slots = share_devices(spec, settings.num_parallel, os.environ)
    from mal.automl.search import SearchPlan

    results = ResultsFolder(search_uri(spec))
    require_inputs_kept(ACTION, spec)
    may_overwrite = spec.train.overwrite
    spec = dataclasses.replace(spec, train=dataclasses.replace(spec.train, overwrite=False))
    plan = SearchPlan(results.path, spec, space, settings, slots)
    with (
        patient(spec.storage.retry_s),
        handling_stop_signals() as stop,
        results.held(),
        _recording(plan, results, may_overwrite=may_overwrite) as status,
    ):
        study = _search(plan, results, status, stop)
        result = _result(plan, study)
        _write_report(plan, study, result.warning)
        if result.warning:
            log.warning("%s", result.warning)
            status.write(Status.RUNNING, result.warning, verbosity="WARNING")
        message = f"best is trial {result.best_trial}, mIoU {result.best_mean_iou:.4f}"
        status.write(Status.RUNNING, message, kpi=_kpi(result.best_mean_iou))
    return result


def require_optuna() -> None:
    """Check that the packages of a search are installed.

    Raises:
        MissingExtraError: One is not.
    """
    for package in ("optuna", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, ACTION)


def search_uri(spec: ExperimentSpec) -> str:
    """Return the results folder of a search.

    Raises:
        SpecError: The spec has no `results_dir`.
    """
    if not spec.results_dir:
        raise SpecError("results_dir must be set, got ''. Write results_dir=FOLDER.")
    return results_uri(ACTION, spec)


def _search(
    plan: SearchPlan, results: ResultsFolder, status: StatusLog, stop: StopRequest
) -> SearchStudy:
    from mal.automl.search import Search
    from mal.automl.study import SearchStudy

    log_space(plan)
    cost = _cost(plan, stop)
    log_budget(plan, cost)
    study = SearchStudy(
        plan.folder,
        algorithm=plan.settings.algorithm,
        space=plan.space,
        baseline=plan.baseline,
        epochs_per_trial=cost.num_epochs,
        seed=plan.settings.seed,
        fingerprint=plan.fingerprint,
    )

    def on_finished(record: TrialRecord) -> None:
        message = f"trial {record.number} {record.end.value} {record.reason}".rstrip()
        status.write(Status.RUNNING, message, kpi=_kpi(record.mean_iou))
        try:
            with impatient():
                results.upload()
        except StoreAwayError as error:
            log.warning("%s The search goes on, and uploads after the next trial.", error)

    Search(plan, study, cost, on_finished).run(stop)
    return study


def log_space(plan: SearchPlan) -> None:
    """Log what the search varies."""
    log.info("searching with %s (seed %d):", plan.settings.algorithm, plan.settings.seed)
    for parameter in plan.space:
        own = plan.baseline[parameter.key]
        outside = "" if parameter.contains(own) else " (outside)"
        log.info("  %s: %s; baseline %s%s", parameter.key, parameter.describe(), own, outside)


def log_budget(plan: SearchPlan, cost: TrialCost) -> None:
    """Log how many trials the budget allows, and how long they take."""
    budget = plan.settings.budget.resolved(cost.num_epochs)
    log.info(
        "a trial: %d epochs, %d steps of %.3g s and validations of %.3g s, about %s on %s",
        cost.num_epochs, cost.num_steps, cost.step_s, cost.validation_s,
        _time_text(cost.trial_s), cost.device,
    )  # fmt: skip
    most = budget.most_trials(cost.num_epochs)
    at_a_time = len(plan.slots)
    worth = (
        f": that is {most} whole trials, about {_time_text(cost.trial_s * -(-most // at_a_time))}"
        if most
        else ""
    )
    log.info(
        "budget: %s, %d at a time%s. Trials that end early leave budget for more.",
        budget.describe(), at_a_time, worth,
    )  # fmt: skip


def _time_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _cost(plan: SearchPlan, stop: StopRequest) -> TrialCost:
    """Measure the cost of a trial; kept for the whole search."""
    path = plan.folder / f"cost-{plan.fingerprint[:12]}.json"
    if path.exists():
        return TrialCost(**json.loads(path.read_text(encoding="utf-8")))
    log.info("measuring some steps")
    slot = plan.slots[0]
    spec = plan.trial_spec(plan.baseline, plan.folder, slot)
    with stop.deferring():
        cost = measure_cost(spec, slot.variables, stop.raise_if_received)
    write_json(path, cost.as_json())
    return cost


def _result(plan: SearchPlan, study: SearchStudy) -> SearchResult:
    records, best = study.records(), study.best()
    if best is None:
        reasons = [f"trial {record.number}: {record.reason}" for record in records[:3]]
        raise MalError(
            f"None of {len(records)} trials finished ({'; '.join(reasons)}). "
            "Fix the cause, choose another results_dir and search again."
        )
    assert best.mean_iou is not None
    return SearchResult(
        results_dir=plan.folder,
        best_trial=best.number,
        best_values=best.values,
        best_mean_iou=best.mean_iou,
        baseline_mean_iou=records[0].mean_iou,
        checkpoint=plan.folder / BEST_CHECKPOINT,
        best_spec=plan.folder / BEST_SPEC_FILE,
        leaderboard=plan.folder / LEADERBOARD_FILE,
        report=plan.folder / REPORT_FILE,
        num_trials=len(records),
        warning=_usefulness_warning(plan.folder, best.number),
    )


def _usefulness_warning(folder: Path, best_trial: int) -> str:
    """Compare the best trial with the baselines; some are measured only by trial 0."""
    first, best = (
        metrics_of_best_epoch(trial_folder(folder, number) / EPOCH_METRICS_FILE)
        for number in (0, best_trial)
    )
    return usefulness_warning(first | best, "val_")


def _write_report(plan: SearchPlan, study: SearchStudy, warning: str) -> None:
    from mal.automl.report import write_search_report

    settings = plan.settings
    details = {
        "algorithm": settings.algorithm.value,
        "seed": str(settings.seed),
        "searched": "; ".join(f"{p.key}: {p.describe()}" for p in plan.space),
        "trial overrides": " ".join(settings.trial_overrides) or "none",
        "training set": plan.base.dataset.train_ann_path,
        "validation set": plan.base.dataset.val_ann_path,
    }
    write_search_report(
        plan.folder / REPORT_FILE,
        study.records(),
        study.study,
        has_baseline=True,
        details=details,
        warning=warning,
    )


@contextmanager
def _recording(
    plan: SearchPlan, results: ResultsFolder, *, may_overwrite: bool
) -> Iterator[StatusLog]:
    """Record the search like every action: status, manifest, upload."""
    results.adopt_remote_state()
    results.restore(RESTORED[ACTION])
    record = _claim(plan, results, may_overwrite=may_overwrite)
    status = StatusLog(results.path)
    try:
        write_text(results.path / EXPERIMENT_FILE, write_experiment_yaml(plan.base))
        status.write(Status.STARTED, f"{ACTION} started")
        results.upload()
        yield status
        write_manifest(results.path, action=ACTION, inputs=record.inputs, run=record.summary())
        status.write(Status.SUCCESS, f"{ACTION} finished")
    except BaseException as error:
        with contextlib.suppress(OSError):
            status.write(Status.FAILURE, f"{ACTION} failed: {error}", verbosity="ERROR")
        with contextlib.suppress(MalError):
            results.upload()
        raise
    upload_finished(results, plan.base)


def _claim(plan: SearchPlan, results: ResultsFolder, *, may_overwrite: bool) -> RunRecord:
    """Claim the folder for this search: resume the same search, or remove another one.

    Raises:
        SpecError: The folder has another search, or a training.
    """
    inputs = _describe_fetched(plan.base)
    asked = RunIdentity(ACTION, plan.identity_values, inputs)
    known = RunRecord.read(results.path) or _record_of_earlier_version(results.path, asked)
    if known is not None:
        changed = differences(known, asked)
        if not changed:
            return known
        if known.identity.action != ACTION or (
            (results.path / STUDY_FILE).exists() and not may_overwrite
        ):
            raise SpecError(describe_conflict(results.uri, changed))
        log.warning("removing the search of %s in %s", known.started, results.uri)
        results.remove(WRITTEN[ACTION])
    record = RunRecord(asked, inputs, code=(code_versions(),))
    record.write(results.path)
    return record


def _describe_fetched(spec: ExperimentSpec) -> dict[str, dict[str, str]]:
    """Describe what the trials read; a trial reports what cannot be fetched."""
    keys = {**data_uris("train", spec), WEIGHTS_KEY: spec.train.pretrained_model_path}
    for key, uri in keys.items():
        with contextlib.suppress(MalError):
            if uri and key.endswith("_img_dir"):
                open_image_folder(uri)
            elif key.endswith("_ann_path"):
                for one in split_uris(uri):
                    readable_path(one)
            elif "://" in uri:
                fetch_file(uri)
    return describe_inputs(keys)


def _record_of_earlier_version(folder: Path, asked: RunIdentity) -> RunRecord | None:
    """Reconstruct the record of a search of version 0.1.0, which wrote no `run.json`."""
    if not (folder / STUDY_FILE).exists() or not (folder / EXPERIMENT_FILE).exists():
        return None
    spec = load_spec("train", folder / EXPERIMENT_FILE)
    values = {
        key: asked.spec[key] if key.startswith("--") else value_of(spec, key) for key in asked.spec
    }
    uris = {**data_uris("train", spec), WEIGHTS_KEY: spec.train.pretrained_model_path}
    data = {key: {"uri": uri} for key, uri in uris.items() if uri}
    return RunRecord(RunIdentity(ACTION, values, data), data, is_adopted=True)


def _kpi(mean_iou: float | None) -> dict[str, float | None]:
    return {f"val_{MONITORED_METRIC}": mean_iou, MONITORED_METRIC: mean_iou}


def _with_plain_seed(spec: ExperimentSpec) -> ExperimentSpec:
    """Give all trials the same seed, so that they differ only in the searched keys."""
    if spec.train.seed >= 0:
        return spec
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, seed=0))


def _require_one_node(spec: ExperimentSpec) -> None:
    if spec.train.num_nodes > 1:
        raise SpecError(
            f"train.num_nodes must be 1 to search on one machine, got {spec.train.num_nodes}. "
            "Search on a cluster with the component tune, backend=katib."
        )
