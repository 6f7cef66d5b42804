"""A pipeline's train step that may search first: where it goes, and what it leaves.

The route is chosen inside one step, because kfp.local cannot choose between the artifacts of two.
"""

from __future__ import annotations

import dataclasses
import html
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mal.artifacts import (
    write_text,
)
from mal.automl import Route, RouteDecision, decide_route, packaged_automl_support
from mal.automl.leaderboard import markdown_from_csv
from mal.automl.policy import Policy
from mal.automl.settings import Budget, SearchSettings, algorithm_from
from mal.automl.trial import trial_folder
from mal.cluster import WaitLimits
from mal.errors import MissingExtraError, SpecError
from mal.evaluation.baselines import usefulness_warning
from mal.registry.snapshot import DatasetManifest
from mal.spec.experiment import ExperimentSpec
from mal.stages import run_train
from mal.stages.automl import require_optuna, run_automl
from mal.stages.trial import require_measurable
from mal.steps import step as steps
from mal.steps.metadata import (
    Facts,
    StepArtifact,
    figures,
    image_facts,
    model_metadata,
    page_metadata,
    parents,
    spec_facts,
)
from mal.steps.tuned_model import TunedModel, spec_text, take_model, validated_metrics

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
    backend: str,
    start_timeout_s: int,
    image: str,
    namespace: str,
    outputs_uri: str,
    job: Mapping[str, Any],
    **asked: Any,
) -> TunedModel:
    """Do the step's work; see the component `tune`, whose parameters these are.

    Args:
        data: What to learn from.
        model: The step's model artifact.
        spec: YAML text, `recipe:NAME`, or '' for the defaults.
        overrides: `dotted.key=value`.
        policy: `automl_policy`.
        backend: local or katib.
        start_timeout_s: Longest wait for Katib's first trial.
        image: Of Katib's trials.
        namespace: Of Katib's experiment.
        outputs_uri: Of Katib's trials.
        job: Of Katib's trials.
        asked: See `search_settings`.

    Raises:
        SpecError: With all problems found.
        MalError: The training or the search failed.
    """
    if backend not in ("local", "katib"):
        raise SpecError(f"backend must be local or katib, got {backend!r}. Choose one.")
    experiment = steps.train_spec(data, spec=spec, overrides=overrides, results_dir=model.path)

    def search_as_asked(experiment: ExperimentSpec, settings: SearchSettings) -> TunedModel:
        if backend == "local":
            return search_here(experiment, settings)
        # It imports Optuna, which a plain training does without.
        from mal.steps.tune_katib import KatibOptions, search_on_katib

        limits = WaitLimits(start_timeout_s=start_timeout_s)
        options = KatibOptions(image, namespace, outputs_uri, job, limits)
        return search_on_katib(data, model, options, experiment, settings)

    return train_or_search(
        experiment, policy=policy, settings=search_settings(**asked), search=search_as_asked
    )


def train_or_search(
    experiment: ExperimentSpec, *, policy: str, settings: SearchSettings, search: SearchRun
) -> TunedModel:
    """Train as the policy says: plainly, exactly as the component `train`, or by a search.

    Args:
        experiment: Of the train step; the model goes to `train.results_dir`.
        policy: `automl_policy`. With auto, what a search lacks makes the training plain.
        settings: Of the search.
        search: Runs it.

    Raises:
        SpecError: The policy is on, and trials cannot be ranked.
        MissingExtraError: The policy is on, and Optuna is not installed.
    """
    decision = _decide(experiment, policy)
    log.info("%s", decision.reason)
    if decision.route is Route.SEARCH:
        return search(experiment, settings)
    result = run_train(experiment)
    return TunedModel(
        experiment=experiment,
        figures=result.metrics,
        best_values={},
        best_metric=result.metrics.get("val_mIoU", UNMEASURED),
        best_spec=spec_text(experiment),
        warning=usefulness_warning(result.metrics, "val_"),
        leaderboard=f"No search: {decision.reason}.\n",
        report=f"<!DOCTYPE html><title>No search</title><p>{html.escape(decision.reason)}.</p>\n",
    )


def search_here(experiment: ExperimentSpec, settings: SearchSettings) -> TunedModel:
    """Search on the devices of this step; the best trial's model goes to `train.results_dir`.

    A retry that finds the search of its earlier try goes on with it.
    """
    model_dir = Path(experiment.train.results_dir)
    base = dataclasses.replace(experiment, results_dir=str(model_dir.with_name("search")))
    result = run_automl(base, settings)
    trial = trial_folder(result.results_dir, result.best_trial)
    take_model(trial, model_dir)
    best = dataclasses.replace(result.read_best_spec(), results_dir=experiment.results_dir)
    measured = validated_metrics(model_dir) | {
        "val_mIoU": result.best_mean_iou,
        "num_trials": float(result.num_trials),
    }
    if result.baseline_mean_iou is not None:
        measured["baseline_val_mIoU"] = result.baseline_mean_iou
    return TunedModel(
        experiment=best,
        figures=measured,
        best_values=result.best_values,
        best_metric=result.best_mean_iou,
        best_spec=spec_text(best),
        warning=result.warning,
        leaderboard=markdown_from_csv(result.leaderboard.read_text(encoding="utf-8")),
        report=result.report.read_text(encoding="utf-8"),
    )


def search_settings(
    *,
    algorithm: str,
    ranges: Sequence[str],
    trial_overrides: Sequence[str],
    trials: int,
    minutes: float,
    epochs: int,
    parallel: int,
    seed: int,
) -> SearchSettings:
    """Return a search's settings from a step's parameters.

    Raises:
        SpecError: With all problems found.
    """
    return SearchSettings(
        algorithm=algorithm_from(algorithm),
        ranges=tuple(ranges),
        trial_overrides=tuple(trial_overrides),
        budget=Budget(num_trials=trials, minutes=minutes, num_epochs=epochs),
        num_parallel=parallel,
        seed=seed,
    )


def leave_outputs(
    tuned: TunedModel, dataset: StepArtifact, model_dir: str, leaderboard: str, report: str
) -> tuple[Facts, Facts, Facts]:
    """Write the pages to the step's artifacts, and make files of the model's links.

    Returns:
        Metadata of the model, the leaderboard and the report.
    """
    warning = f"**Warning:** {tuned.warning}\n\n" if tuned.warning else ""
    write_text(Path(leaderboard), warning + tuned.leaderboard)
    write_text(Path(report), tuned.report)
    steps.replace_links_by_files(model_dir)
    model = model_metadata(tuned.experiment, model_dir, figures(tuned.figures))
    model |= image_facts(tuned.image)
    if tuned.best_values:
        model["best_params"] = json.dumps(dict(tuned.best_values))
    shared = parents(dataset)
    of_page = shared | spec_facts("train", tuned.experiment)
    of_leaderboard, of_report = (
        of_page | page_metadata("AutoML search", page) for page in (leaderboard, report)
    )
    return shared | model, of_leaderboard, of_report


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
