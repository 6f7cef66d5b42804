"""Builds and reads Katib's Experiment (kubeflow.org/v1beta1), whose trials are PyTorchJobs.

Katib's webhook joins the words of the first pod's command with blanks and runs them in a shell; the
other pods keep their command. So the command is a shell command with quoted words from the start:
it means the same in all pods.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.cluster import names
from mal.cluster.job_kind import (
    Failure,
    JobKind,
    JobSnapshot,
    JobState,
    PendingReason,
    Phase,
    find_condition,
)  # fmt: skip
from mal.cluster.pod import job_metadata
from mal.cluster.pytorchjob import CONTAINER, build_pytorchjob
from mal.cluster.resources import Object, Resource
from mal.cluster.settings import JobSettings

API_VERSION = "kubeflow.org/v1beta1"
KIND = "Experiment"
EXPERIMENT_LABEL = "katib.kubeflow.org/experiment"
INJECTION_LABEL = "katib.kubeflow.org/metrics-collector-injection=enabled"
METRIC = "mIoU"
TRIALS_FOLDER = "trials"

_MANIFEST = "manifests/components/katib"
EXPERIMENTS = Resource("kubeflow.org", "v1beta1", "experiments", _MANIFEST, "Katib 0.19 or later")
TRIALS = Resource("kubeflow.org", "v1beta1", "trials", _MANIFEST, "Katib 0.19 or later")

_TRIAL_NAME = "trial"
_MASTER = {"training.kubeflow.org/job-role": "master"}
_MAX_SHOWN_TRIALS = 3
_HAS_CONDITION = 'status.conditions.#(type=="{}")#|#(status=="True")#'


@dataclass(frozen=True)
class KatibParameter:
    """A key that the experiment varies.

    Attributes:
        key: Dotted key of the spec.
        type: double, int or categorical.
        feasible_space: Katib's `feasibleSpace`, all values as text.
    """

    key: str
    type: str
    feasible_space: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The key without dots: a dot ends a name in Katib's templates."""
        return self.key.replace(".", "_")


@dataclass(frozen=True, kw_only=True)
class KatibSearch:
    """A search with Katib.

    Attributes:
        algorithm: Katib's name, such as tpe.
        num_trials: In all.
        num_parallel: At a time.
        seed: Random state of the algorithm.
    """

    algorithm: str
    parameters: tuple[KatibParameter, ...]
    num_trials: int
    num_parallel: int
    seed: int


def build_experiment(job: JobSettings, search: KatibSearch) -> Object:
    """Build the object; each trial is the job with its own values and outputs folder."""
    metadata = job_metadata(job)
    metadata["labels"].pop(names.QUEUE_LABEL, None)  # only the trials wait in the queue
    # Katib copies these labels to the pod that suggests values (pkg/controller.v1beta1/util/
    # labels.go:27), and mal-trainer-deny shuts in pods of the component `trainer`.
    metadata["labels"][names.COMPONENT_LABEL] = names.SEARCH_COMPONENT
    references = {parameter.name: parameter.name for parameter in search.parameters}
    references[_TRIAL_NAME] = "${trialSpec.Name}"
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": metadata,
        "spec": {
            "objective": {
                "type": "maximize",
                "objectiveMetricName": METRIC,
                "metricStrategies": [{"name": METRIC, "value": "max"}],
            },
            "algorithm": {
                "algorithmName": search.algorithm,
                "algorithmSettings": [{"name": "random_state", "value": str(search.seed)}],
            },
            "maxTrialCount": search.num_trials,
            "maxFailedTrialCount": search.num_trials,
            "parallelTrialCount": min(search.num_parallel, search.num_trials),
            "resumePolicy": "Never",
            "metricsCollectorSpec": {"collector": {"kind": "StdOut"}},
            "parameters": [
                {
                    "name": parameter.name,
                    "parameterType": parameter.type,
                    "feasibleSpace": dict(parameter.feasible_space),
                }
                for parameter in search.parameters
            ],
            "trialTemplate": {
                # Without it Katib deletes the job of a trial that ended, and the pods that say why.
                "retain": True,
                "primaryContainerName": CONTAINER,
                "primaryPodLabels": dict(_MASTER),
                "successCondition": _HAS_CONDITION.format("Succeeded"),
                "failureCondition": _HAS_CONDITION.format("Failed"),
                "trialParameters": [
                    {"name": name, "reference": reference} for name, reference in references.items()
                ],
                "trialSpec": _trial_job(job, search.parameters),
            },
        },
    }


def _trial_job(job: JobSettings, parameters: Sequence[KatibParameter]) -> Object:
    values = [f"{parameter.key}={_placeholder(parameter.name)}" for parameter in parameters]
    own = job.model_copy(
        update={
            "overrides": (*job.overrides, *values),
            "outputs_uri": trial_outputs(job.outputs_uri, _placeholder(_TRIAL_NAME)),
        }
    )
    made = build_pytorchjob(own)
    # Katib names and owns the jobs, and rejects templates with a name or owner.
    for field in ("name", "namespace", "ownerReferences"):
        made["metadata"].pop(field, None)
    for replicas in made["spec"]["pytorchReplicaSpecs"].values():
        (container,) = replicas["template"]["spec"]["containers"]
        container["command"] = ["sh", "-c", shlex.join(container["command"])]
    return made


def trial_outputs(outputs_uri: str, trial: str) -> str:
    """Return the results folder of a trial."""
    return f"{outputs_uri.rstrip('/')}/{TRIALS_FOLDER}/{trial}"


def _placeholder(name: str) -> str:
    return f"${{trialParameters.{name}}}"


def experiment_kind(search: KatibSearch) -> JobKind:
    """Return how the experiments of a search are built and read."""
    return JobKind(
        name=KIND,
        resource=EXPERIMENTS,
        build=lambda job: build_experiment(job, search),
        read_state=_read_state,
        pods=None,
        find_pending_reason=_find_pending_reason,
        find_failure=lambda snapshot: find_search_failure(
            snapshot.settings,
            snapshot.state.message,
            read_trials(
                snapshot.list_objects(TRIALS, {EXPERIMENT_LABEL: snapshot.settings.name}),
                search.parameters,
            ),
        ),
        describe_progress=lambda made: _describe_progress(made, search.num_trials),
    )


def _read_state(experiment: Object) -> JobState:
    for kind, phase in (("Succeeded", Phase.SUCCEEDED), ("Failed", Phase.FAILED)):
        found = find_condition(experiment, kind)
        if found:
            return JobState(phase, found.get("message", ""), found.get("reason", ""))
    return JobState(Phase.ACTIVE)


def _find_pending_reason(snapshot: JobSnapshot) -> PendingReason | None:
    if snapshot.made.get("status", {}).get("trials"):
        return None
    return PendingReason(
        "no trial exists yet", f"Check that {EXPERIMENTS.brought_by} runs, and read its log."
    )


def _describe_progress(experiment: Object, num_trials: int) -> str:
    status = experiment.get("status", {})
    counts = {
        word: status.get(field, 0)
        for word, field in (
            ("succeeded", "trialsSucceeded"), ("running", "trialsRunning"),
            ("pending", "trialsPending"), ("failed", "trialsFailed"),
            ("without metrics", "trialMetricsUnavailable"),
        )
    }  # fmt: skip
    words = [f"{number} {word}" for word, number in counts.items() if number]
    name, metric = read_best(experiment)
    best = f"; best {METRIC}={metric:.4f} of {name}" if name and metric is not None else ""
    return f"{', '.join(words)} of {num_trials} trials{best}" if words else ""


@dataclass(frozen=True)
class KatibTrial:
    """A trial as Katib reports it.

    Attributes:
        name: Also the name of the trial's job.
        values: Texts, by the spec's keys.
        metric: Highest observed; None before the first.
        end: Succeeded, Failed, Killed, EarlyStopped, MetricsUnavailable, or '' while it runs.
        message: Katib's text for that end.
    """

    name: str
    values: Mapping[str, str]
    metric: float | None
    end: str
    message: str


def read_trials(
    trials: Sequence[Object], parameters: Sequence[KatibParameter]
) -> tuple[KatibTrial, ...]:
    """Read Trial objects, the oldest first."""
    by_age = sorted(trials, key=lambda trial: str(trial["metadata"]["creationTimestamp"]))
    return tuple(read_trial(trial, parameters) for trial in by_age)


def read_trial(trial: Object, parameters: Sequence[KatibParameter]) -> KatibTrial:
    """Read a Trial object."""
    keys = {parameter.name: parameter.key for parameter in parameters}
    ends = ("Succeeded", "Failed", "Killed", "EarlyStopped", "MetricsUnavailable")
    end = next((kind for kind in ends if find_condition(trial, kind)), "")
    return KatibTrial(
        name=trial["metadata"]["name"],
        values={
            keys[each["name"]]: each["value"]
            for each in trial["spec"]["parameterAssignments"]
            if each["name"] in keys
        },
        metric=_observed(trial.get("status", {}).get("observation")),
        end=end,
        message=(find_condition(trial, end) or {}).get("message", ""),
    )


def find_search_failure(
    settings: JobSettings, message: str, trials: Sequence[KatibTrial]
) -> Failure:
    """Return why a search failed or has no best trial."""
    ends = [
        f"{trial.name} {trial.end}: {trial.message}"
        for trial in trials
        if trial.end not in ("", "Succeeded")
    ]
    # Katib deletes the job of a failed trial, and its pods with it.
    folder = trial_outputs(settings.outputs_uri, "TRIAL")
    advice = f"The end of status.json in {folder} says why."
    if any(trial.end == "MetricsUnavailable" for trial in trials):
        advice = f"Label the namespace {INJECTION_LABEL}, so that Katib reads what trials print."
    return Failure(
        message or "no trial was measured", advice, details=tuple(ends[:_MAX_SHOWN_TRIALS])
    )


def read_best(experiment: Object) -> tuple[str, float | None]:
    """Return name and metric of `currentOptimalTrial`; '' while there is none."""
    best = experiment.get("status", {}).get("currentOptimalTrial") or {}
    return best.get("bestTrialName", ""), _observed(best.get("observation"))


def _observed(observation: Mapping[str, Any] | None) -> float | None:
    """Return the highest value of the metric; without one Katib writes `unavailable`."""
    for metric in (observation or {}).get("metrics") or ():
        if metric["name"] == METRIC:
            try:
                value = float(metric["max"])
            except ValueError:
                return None
            return value if math.isfinite(value) else None
    return None
