"""The search of a pipeline step on Katib: an experiment of jobs, and the best one's model."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.artifacts import REPORT_FILE, checkpoint_in
from mal.automl.katib import katib_search, records_of, study_of, values_of
from mal.automl.leaderboard import leaderboard_csv, markdown_from_csv
from mal.automl.report import write_search_report
from mal.automl.settings import SearchSettings
from mal.automl.space import as_overrides, build_search_space
from mal.cluster import ClusterClient, JobSettings, WaitLimits
from mal.cluster.experiment_watch import run_experiment
from mal.cluster.katib import METRIC, trial_outputs
from mal.evaluation.baselines import usefulness_warning
from mal.registry.snapshot import DatasetManifest
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import load_spec, spec_as_dict
from mal.spec.schema import action_schema
from mal.steps import training_job
from mal.steps.metadata import StepArtifact
from mal.steps.tuned_model import TunedModel, spec_text, take_model, validated_metrics
from mal.storage import fetch_results

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KatibPlace:
    """Where the trials run, and what they leave.

    Attributes:
        image: Of the trials' pods, with mal and torch.
        namespace: Of the experiment; '' is the step's own.
        outputs_uri: Below it each trial has a folder of its own; '' lies beside the model artifact.
        job: Every other setting of a trial's job.
        limits: How long the first trial may take to start.
    """

    image: str
    namespace: str
    outputs_uri: str
    job: Mapping[str, Any]
    limits: WaitLimits


def search_on_katib(
    data: DatasetManifest,
    model: StepArtifact,
    place: KatibPlace,
    experiment: ExperimentSpec,
    settings: SearchSettings,
) -> TunedModel:
    """Search with jobs on the cluster; the best trial's model becomes the step's artifact.

    Args:
        data: What to learn from.
        model: The step's model artifact.
        place: Where it runs.
        experiment: Of the train step.
        settings: Of the search.

    Raises:
        SpecError: With all problems found.
        ClusterError: The experiment failed.
        ArtifactError: The best trial left no model.
    """
    space = build_search_space(action_schema("train"), settings.keys, settings.ranges)
    search = katib_search(space, settings)
    beside = "" if place.outputs_uri else "-search"
    root = training_job.results_uri(model.uri, place.outputs_uri).rstrip("/") + beside
    log.info(
        f"searching with Katib's {search.algorithm}: {search.num_trials} trials, "
        f"{search.num_parallel} at a time, each a whole training. "
        + "; ".join(f"{p.key}: {p.describe()}" for p in space)
    )
    job = _trial_job(data, model, experiment, settings.trial_overrides, root=root, place=place)
    finished = run_experiment(
        job,
        search,
        run_id=training_job.training_identity(model, data).run_id,
        client=ClusterClient.connect(),
        limits=place.limits,
        tell=log.info,
    )
    best_values = values_of(finished.best)
    _fetch_model(trial_outputs(root, finished.best.name), Path(model.path))
    best = load_spec("train", spec_as_dict(experiment), as_overrides(best_values))
    records = records_of(finished.trials)
    assert finished.best.metric is not None, "the watch asks for it"
    measured = validated_metrics(Path(model.path))
    warning = usefulness_warning(measured, "val_")
    with tempfile.TemporaryDirectory() as scratch:
        page = Path(scratch) / REPORT_FILE
        facts = {"experiment": f"{finished.namespace}/{finished.name}", "results": root}
        write_search_report(
            page,
            records,
            study_of(space, records),
            has_baseline=False,
            facts=facts,
            warning=warning,
        )
        report = page.read_text(encoding="utf-8")
    return TunedModel(
        experiment=best,
        metrics={
            **measured,
            f"val_{METRIC}": finished.best.metric,
            "num_trials": float(len(records)),
        },
        warning=warning,
        best_values=best_values,
        best_metric=finished.best.metric,
        leaderboard=markdown_from_csv(leaderboard_csv(records)),
        report=report,
        image=place.image,
    )


def _trial_job(
    data: DatasetManifest,
    model: StepArtifact,
    experiment: ExperimentSpec,
    trial_overrides: Sequence[str],
    *,
    root: str,
    place: KatibPlace,
) -> JobSettings:
    return training_job.job_settings(
        data,
        spec=spec_text(experiment),
        overrides=trial_overrides,
        gpus_per_node=-1,
        job=place.job,
        outputs_uri=root,
        name=training_job.training_identity(model, data).name,
        namespace=place.namespace or training_job.own_namespace(),
        image=place.image,
    )


def _fetch_model(outputs: str, model_dir: Path) -> None:
    """Make the model's folder of what the best trial left.

    Raises:
        ArtifactError: It left no checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="mal-trial-") as scratch:
        fetch_results(outputs, Path(scratch))
        checkpoint_in(scratch)
        take_model(Path(scratch), model_dir)
