"""Runs the search of a `tune` step with Katib; every trial is a training job."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mal.artifacts import EPOCH_METRICS_FILE, REPORT_FILE, checkpoint_in
from mal.automl.katib import katib_search, records_of, study_of, values_of
from mal.automl.leaderboard import leaderboard_csv, markdown_from_csv
from mal.automl.report import write_search_report
from mal.automl.settings import SearchSettings
from mal.automl.space import build_search_space
from mal.cluster import ClusterClient, JobSettings, WaitLimits
from mal.cluster.experiment import run_experiment
from mal.cluster.katib import METRIC, trial_outputs
from mal.errors import StorageError
from mal.evaluation.baselines import usefulness_warning
from mal.registry.snapshot import DatasetManifest
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import load_spec, spec_as_dict
from mal.spec.schema import action_schema
from mal.steps import training_job
from mal.steps.metadata import StepArtifact
from mal.steps.tuned_model import TunedModel, spec_text, take_model, validated_metrics
from mal.storage import fetch_results
from mal.storage.stores import add_artifact_uri

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KatibOptions:
    """How the trials run.

    Attributes:
        image: Image of the trials' pods, with mal and torch.
        namespace: '' is the step's own.
        outputs_uri: Each trial has its own folder below it; '' is a folder next to the model
            artifact.
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
    options: KatibOptions,
    experiment: ExperimentSpec,
    settings: SearchSettings,
) -> TunedModel:
    """Search with jobs on the cluster; the best trial's model becomes the step's artifact.

    Raises:
        SpecError: With all problems found.
        ClusterError: The experiment failed.
        ArtifactError: The best trial left no model.
    """
    add_artifact_uri(model.uri)
    space = build_search_space(action_schema("train"), settings.keys, settings.ranges)
    search = katib_search(space, settings)
    suffix = "" if options.outputs_uri else "-search"
    root = training_job.results_uri(model.uri, options.outputs_uri).rstrip("/") + suffix
    log.info(
        "searching with Katib's %s: %d trials, %d at a time, each a whole training. %s",
        search.algorithm, search.num_trials, search.num_parallel,
        "; ".join(f"{p.key}: {p.describe()}" for p in space),
    )  # fmt: skip
    job = _trial_job(data, model, experiment, settings.trial_overrides, root=root, options=options)
    client, step_pod = ClusterClient.connect(), training_job.own_pod()
    owner = training_job.job_owner(job, step_pod, client)
    finished = run_experiment(
        job.model_copy(update={"owner": owner}),
        search,
        run_id=training_job.training_identity(model, data).run_id,
        client=client,
        limits=options.limits,
        log=lambda line: log.info("%s", line),
        step_pod=step_pod,
    )
    best_values = values_of(finished.best)
    _fetch_model(trial_outputs(root, finished.best.name), Path(model.path))
    best = load_spec("train", spec_as_dict(experiment), fixed=best_values)
    epochs = {t.name: _num_epochs(trial_outputs(root, t.name)) for t in finished.trials}
    records = records_of(finished.trials, epochs)
    assert finished.best.metric is not None, "run_experiment requires it"
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
            details=facts,
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
        image=options.image,
    )


def _trial_job(
    data: DatasetManifest,
    model: StepArtifact,
    experiment: ExperimentSpec,
    trial_overrides: Sequence[str],
    *,
    root: str,
    options: KatibOptions,
) -> JobSettings:
    return training_job.job_settings(
        data,
        spec=spec_text(experiment),
        overrides=trial_overrides,
        gpus_per_node=-1,
        job=options.job,
        outputs_uri=root,
        name=training_job.training_identity(model, data).name,
        namespace=options.namespace or training_job.own_namespace(),
        image=options.image,
    )


def _num_epochs(outputs: str) -> int:
    """Return the number of epochs that a trial has recorded; 0 where it left nothing."""
    with tempfile.TemporaryDirectory(prefix="mal-trial-") as scratch:
        try:
            fetch_results(outputs, Path(scratch), (EPOCH_METRICS_FILE,))
        except StorageError as error:
            log.warning("the epochs of a trial cannot be read: %s", error)
        path = Path(scratch) / EPOCH_METRICS_FILE
        if not path.is_file():
            return 0
        return len({json.loads(line)["epoch"] for line in path.read_text().splitlines()})


def _fetch_model(outputs: str, model_dir: Path) -> None:
    """Fetch the best trial's results into the model's folder.

    Raises:
        ArtifactError: There is no checkpoint.
    """
    with tempfile.TemporaryDirectory(prefix="mal-trial-") as scratch:
        fetch_results(outputs, Path(scratch))
        checkpoint_in(scratch)
        take_model(Path(scratch), model_dir)
