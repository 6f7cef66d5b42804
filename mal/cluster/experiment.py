"""Runs one search with Katib for one pipeline step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mal.cluster.client import ClusterClient
from mal.cluster.job_watch import DEFAULT_LIMITS, WaitLimits
from mal.cluster.katib import (
    EXPERIMENT_LABEL,
    EXPERIMENTS,
    KIND,
    METRIC,
    TRIALS,
    KatibSearch,
    KatibTrial,
    experiment_kind,
    explain_trials,
    find_search_failure,
    read_best,
    read_trials,
)  # fmt: skip
from mal.cluster.launcher import run_job
from mal.cluster.resources import Object, Resource
from mal.cluster.settings import JobSettings
from mal.cluster.step_pod import StepPod
from mal.errors import ClusterError


@dataclass(frozen=True)
class FinishedExperiment:
    """An experiment with a best trial."""

    name: str
    namespace: str
    uid: str
    best: KatibTrial
    trials: tuple[KatibTrial, ...]


def run_experiment(
    job: JobSettings,
    search: KatibSearch,
    *,
    run_id: str,
    client: ClusterClient,
    limits: WaitLimits = DEFAULT_LIMITS,
    log: Callable[[str], None],
    step_pod: StepPod | None = None,
) -> FinishedExperiment:
    """Run the experiment and wait for its end, as `run_job` does with a job.

    `job` is each trial's job. Its name is the experiment's, and all trials write below its
    `outputs_uri`.

    Raises:
        ClusterError: It failed, no trial was measured, it was deleted, or the cluster rejected it.
    """
    finished = run_job(
        job,
        kind=experiment_kind(search),
        run_id=run_id,
        client=client,
        limits=limits,
        log=log,
        step_pod=step_pod,
    )
    name, namespace = finished.name, finished.namespace

    def list_objects(resource: Resource, labels: Mapping[str, str]) -> list[Object]:
        return client.list_objects(resource, namespace, labels=labels).items

    trials = read_trials(list_objects(TRIALS, {EXPERIMENT_LABEL: name}), search.parameters)
    trials = explain_trials(trials, job, list_objects)
    for trial in trials:
        if trial.end == "Failed":
            log(f"trial {trial.name} failed: {trial.message}")
    best_name, _ = read_best(client.find(EXPERIMENTS, namespace, name) or {})
    best = next((trial for trial in trials if trial.name == best_name), None)
    if best is None or best.metric is None:
        failure = find_search_failure("", trials)
        text = f"{KIND} {namespace}/{name} failed: {failure.what}. {failure.advice}"
        raise ClusterError("\n".join([text, *failure.details]))
    log(f"{KIND} {namespace}/{name}: best {METRIC}={best.metric:.4f} of {best.name}")
    return FinishedExperiment(name, namespace, finished.uid, best, trials)
