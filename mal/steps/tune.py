"""A pipeline's train step that may search first.

One step does both: kfp.local cannot choose between the artifacts of two steps.
"""

from __future__ import annotations

import dataclasses
import html
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mal.automl import Route, RouteDecision, decide_route, packaged_automl_support
from mal.automl.leaderboard import markdown_from_csv
from mal.automl.policy import Policy
from mal.automl.settings import SearchSettings
from mal.automl.trial import trial_folder
from mal.cluster import WaitLimits
from mal.errors import MissingExtraError, SpecError
from mal.evaluation.baselines import usefulness_warning
from mal.lineage.page_record import with_record
from mal.markdown import escaped
from mal.registry.snapshot import DatasetManifest
from mal.spec.experiment import ExperimentSpec
from mal.stages import run_train
from mal.stages.automl import require_optuna, run_automl
from mal.stages.trial import require_measurable
from mal.steps.metadata import (
    Metadata,
    StepArtifact,
    image_metadata,
    model_metadata,
    model_spec_metadata,
)
from mal.steps.page import StepPage, digests_of
from mal.steps.specs import step_spec
from mal.steps.tuned_model import TunedModel, take_model, validated_metrics

log = logging.getLogger(__name__)

UNMEASURED = -1.0

SearchRun = Callable[[ExperimentSpec, SearchSettings], TunedModel]


def tune(
    data: DatasetManifest,
    model: StepArtifact,
    *,
    spec: str,
    overrides: Sequence[str],
    policy: str,
    settings: SearchSettings,
    backend: str,
    image: str,
    namespace: str,
    outputs_uri: str,
    job: Mapping[str, Any],
    start_timeout_s: int,
) -> TunedModel:
    """Train or search into the folder of `model`; the component `tune` describes the parameters.

    Raises:
        SpecError: With all problems found.
        MalError: The training or the search failed.
    """
    if backend not in ("local", "katib"):
        raise SpecError(f"backend must be local or katib, got {backend!r}. Choose one.")
    experiment = step_spec("train", data, spec=spec, overrides=overrides, results_dir=model.path)

    def search_on_backend(experiment: ExperimentSpec, settings: SearchSettings) -> TunedModel:
        if backend == "local":
            return search_here(experiment, settings)
        # It imports Optuna, which a plain training does without.
        from mal.steps.tune_katib import KatibOptions, search_on_katib

        limits = WaitLimits(start_timeout_s=start_timeout_s)
        options = KatibOptions(image, namespace, outputs_uri, job, limits)
        return search_on_katib(data, model, options, experiment, settings)

    return train_or_search(experiment, policy=policy, settings=settings, search=search_on_backend)


def train_or_search(
    experiment: ExperimentSpec, *, policy: str, settings: SearchSettings, search: SearchRun
) -> TunedModel:
    """Search, or train exactly as the component `train` does.

    Args:
        experiment: Names the model's folder in `train.results_dir`.
        policy: on, off, or auto, which trains without a search where a search is impossible.
        settings: Passed to `search`.
        search: Runs the search.

    Raises:
        SpecError: The policy is on, and trials cannot be ranked.
        MissingExtraError: The policy is on, and Optuna is not installed.
    """
    decision = _decide(experiment, policy)
    log.info("%s", decision.reason)
    if decision.route is Route.SEARCH:
        return search(experiment, settings)
    metrics = run_train(experiment).metrics
    return TunedModel(
        experiment=experiment,
        metrics=metrics,
        best_values={},
        best_metric=metrics.get("val_mIoU", UNMEASURED),
        warning=usefulness_warning(metrics, "val_"),
        leaderboard=f"No search: {decision.reason}.\n",
        report=f"<!DOCTYPE html><title>No search</title><p>{html.escape(decision.reason)}.</p>\n",
    )


def search_here(experiment: ExperimentSpec, settings: SearchSettings) -> TunedModel:
    """Search on the devices of this step; the best trial's model goes to `train.results_dir`.

    A retry of the step continues the search of the first try.
    """
    model_dir = Path(experiment.train.results_dir)
    base = dataclasses.replace(experiment, results_dir=str(model_dir.with_name("search")))
    result = run_automl(base, settings)
    take_model(trial_folder(result.results_dir, result.best_trial), model_dir)
    best = dataclasses.replace(result.read_best_spec(), results_dir=experiment.results_dir)
    metrics = validated_metrics(model_dir) | {
        "val_mIoU": result.best_mean_iou,
        "num_trials": float(result.num_trials),
    }
    if result.baseline_mean_iou is not None:
        metrics["baseline_val_mIoU"] = result.baseline_mean_iou
    return TunedModel(
        experiment=best,
        metrics=metrics,
        best_values=result.best_values,
        best_metric=result.best_mean_iou,
        warning=result.warning,
        leaderboard=markdown_from_csv(result.leaderboard.read_text(encoding="utf-8")),
        report=result.report.read_text(encoding="utf-8"),
    )


def tuned_model_metadata(tuned: TunedModel, model: StepArtifact) -> Metadata:
    """Describe the model of a training or search."""
    metadata = model_metadata(tuned.experiment, model.path, tuned.metrics, uri=model.uri)
    metadata |= image_metadata(tuned.image)
    if tuned.best_values:
        metadata["best_params"] = json.dumps(dict(tuned.best_values))
    return metadata


def search_metadata(model: StepArtifact) -> Metadata:
    """Describe the leaderboard and the report of the search that found a model."""
    return {"display_name": "AutoML search", **model_spec_metadata(model)}


def leaderboard_page(tuned: TunedModel, model: StepArtifact) -> str:
    """Return the Markdown page of a search, with the record of its model."""
    metrics = tuned.metrics
    is_measured = tuned.best_metric != UNMEASURED
    numbers: dict[str, object] = {"validation mIoU": tuned.best_metric} if is_measured else {}
    names = {"baseline_val_mIoU": "mIoU of the first trial", "num_trials": "trials"}
    numbers |= {names[name]: metrics[name] for name in names if name in metrics}
    page = StepPage(
        "The best trial" if tuned.best_values else "Trained without a search",
        numbers,
        notice=f"**Warning:** {escaped(tuned.warning)}" if tuned.warning else "",
        next_step="do not label with this model yet."
        if tuned.warning
        else "read the page of evaluate: it measures the model.",
        tables=[tuned.leaderboard],
        digests=digests_of(model.metadata),
    )
    return with_record(page.markdown(), model=model)


def _decide(experiment: ExperimentSpec, policy: str) -> RouteDecision:
    decision = decide_route(policy, support=packaged_automl_support())
    if decision.route is Route.PLAIN:
        return decision
    try:
        require_optuna()
        require_measurable(experiment)
    except (MissingExtraError, SpecError) as obstacle:
        if decision.policy is Policy.ON:
            raise
        reason = f"training plainly: automl_policy is {decision.policy}, but {obstacle}"
        return RouteDecision(Route.PLAIN, decision.policy, reason.rstrip("."))
    return decision
