"""Katib's Experiment (kubeflow.org/v1beta1) around a PyTorchJob, and what its status says.

Katib's webhook joins the command of the first pod by blanks and hands it to a shell, whose output
its collector reads; the pods of further nodes keep theirs. So the command is a shell's from the
start, with every word quoted: it means the same in both.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.cluster import names
from mal.cluster.job_kinds import JobKind, JobState, Phase
from mal.cluster.pod import Object, job_metadata
from mal.cluster.pytorchjob import build_pytorchjob
from mal.cluster.resources import Resource
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
_HAS_CONDITION = 'status.conditions.#(type=="{}")#|#(status=="True")#'


@dataclass(frozen=True)
class KatibParameter:
    """A key that the experiment varies.

    Attributes:
        key: Dotted key of the spec.
        type: double, int or categorical.
        feasible_space: As Katib has it, all values as text.
    """

    key: str
    type: str
    feasible_space: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The key without dots, which end a name in Katib's templates."""
        return self.key.replace(".", "_")


@dataclass(frozen=True, kw_only=True)
class KatibSearch:
    """What Katib is asked for.

    Attributes:
        algorithm: Katib's name of it.
        parameters: What is varied.
        num_trials: In all.
        num_parallel: At a time.
        seed: Of the choice of values.
    """

    algorithm: str
    parameters: tuple[KatibParameter, ...]
    num_trials: int
    num_parallel: int
    seed: int


def build_experiment(job: JobSettings, search: KatibSearch) -> Object:
    """Build the object; each trial is the job, with its values and an outputs folder of its own."""
    metadata = job_metadata(job)
    metadata["labels"].pop(names.QUEUE_LABEL, None)  # the trials wait in the queue, not this
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
                "primaryContainerName": names.PYTORCHJOB_CONTAINER,
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
    # Katib names and owns the jobs itself, and refuses templates that do.
    for field in ("name", "namespace", "ownerReferences"):
        made["metadata"].pop(field, None)
    for replicas in made["spec"]["pytorchReplicaSpecs"].values():
        (container,) = replicas["template"]["spec"]["containers"]
        container["command"] = ["sh", "-c", shlex.join(container["command"])]
    return made


def trial_outputs(outputs_uri: str, trial: str) -> str:
    """Return where a trial leaves its results."""
    return f"{outputs_uri.rstrip('/')}/{TRIALS_FOLDER}/{trial}"


def _placeholder(name: str) -> str:
    return f"${{trialParameters.{name}}}"


def experiment_kind(search: KatibSearch) -> JobKind:
    """Return how the experiments of a search are made and read, for those who submit jobs."""
    return JobKind(
        name=KIND,
        resource=EXPERIMENTS,
        container=names.PYTORCHJOB_CONTAINER,
        build=lambda job: build_experiment(job, search),
        read_state=read_state,
        pod_labels=lambda name: {EXPERIMENT_LABEL: name},
        rank_of_pod=lambda _: 0,
        makers=lambda name: (name,),
    )


def read_state(experiment: Mapping[str, Any]) -> JobState:
    """Return where an experiment stands."""
    for kind, phase in (("Succeeded", Phase.SUCCEEDED), ("Failed", Phase.FAILED)):
        found = _condition(experiment, kind)
        if found:
            return JobState(phase, found.get("message", ""), found.get("reason", ""))
    return JobState(Phase.ACTIVE)


@dataclass(frozen=True)
class KatibTrial:
    """A trial as Katib reports it.

    Attributes:
        name: Of the trial and its job.
        values: Texts, by the spec's keys.
        metric: Highest observed; None before one is.
        end: Succeeded, Failed, Killed, EarlyStopped, MetricsUnavailable, or '' while it runs.
        message: Of that end.
    """

    name: str
    values: Mapping[str, str]
    metric: float | None
    end: str
    message: str


def read_trial(trial: Mapping[str, Any], parameters: Sequence[KatibParameter]) -> KatibTrial:
    """Read a Trial object."""
    keys = {parameter.name: parameter.key for parameter in parameters}
    ends = ("Succeeded", "Failed", "Killed", "EarlyStopped", "MetricsUnavailable")
    ended = next((kind for kind in ends if _condition(trial, kind)), "")
    return KatibTrial(
        name=trial["metadata"]["name"],
        values={
            keys[each["name"]]: each["value"]
            for each in trial["spec"]["parameterAssignments"]
            if each["name"] in keys
        },
        metric=_observed(trial.get("status", {}).get("observation")),
        end=ended,
        message=(_condition(trial, ended) or {}).get("message", "") if ended else "",
    )


def read_best(experiment: Mapping[str, Any]) -> tuple[str, float | None]:
    """Return name and metric of `currentOptimalTrial`; '' while there is none."""
    best = experiment.get("status", {}).get("currentOptimalTrial") or {}
    return best.get("bestTrialName", ""), _observed(best.get("observation"))


def _observed(observation: Mapping[str, Any] | None) -> float | None:
    """Return the highest value of the metric; Katib writes `unavailable` where there is none."""
    for metric in (observation or {}).get("metrics") or ():
        if metric["name"] == METRIC:
            try:
                value = float(metric["max"])
            except ValueError:
                return None
            return value if math.isfinite(value) else None
    return None


def _condition(made: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    conditions: Sequence[Mapping[str, Any]] = made.get("status", {}).get("conditions") or ()
    return next((c for c in conditions if (c["type"], c["status"]) == (kind, "True")), None)
