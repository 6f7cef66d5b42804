"""Builds and reads Katib's Experiment (kubeflow.org/v1beta1), whose trials are PyTorchJobs.

Katib's webhook joins the words of the first pod's command with blanks and runs them in a shell; the
other pods keep their command. So the command is a shell command with quoted words from the start:
it means the same in all pods.
"""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.cluster import names
from mal.cluster.diagnosis import find_failure, seconds_between
from mal.cluster.job_kind import (
    Failure,
    JobKind,
    JobSnapshot,
    JobState,
    ListObjects,
    PendingReason,
    Phase,
    find_condition,
)  # fmt: skip
from mal.cluster.pending import find_pending_reason, find_pod_reason
from mal.cluster.pod import job_metadata
from mal.cluster.pytorchjob import CONTAINER, PYTORCHJOB, build_pytorchjob
from mal.cluster.resources import PODS, Object, Resource
from mal.cluster.settings import JobSettings

API_VERSION = "kubeflow.org/v1beta1"
KIND = "Experiment"
EXPERIMENT_LABEL = "katib.kubeflow.org/experiment"
METRIC = "mIoU"
TRIALS_FOLDER = "trials"

SUGGESTION_LABEL = "katib.kubeflow.org/deployment"
KATIB = "Katib 0.19 or later"

_MANIFEST = "manifests/components/katib"
EXPERIMENTS = Resource("kubeflow.org", "v1beta1", "experiments", _MANIFEST, KATIB)
TRIALS = Resource("kubeflow.org", "v1beta1", "trials", _MANIFEST, KATIB)

_TRIAL_NAME = "trial"
_MASTER = {"training.kubeflow.org/job-role": "master"}
_MAX_SHOWN_TRIALS = 3
_MAX_SHOWN_LINES = 60
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
        find_failure=lambda snapshot: _find_failure(snapshot, search),
        describe_progress=lambda made: _describe_progress(made, search.num_trials),
    )


def _read_state(experiment: Object) -> JobState:
    for kind, phase in (("Succeeded", Phase.SUCCEEDED), ("Failed", Phase.FAILED)):
        found = find_condition(experiment, kind)
        if found:
            return JobState(phase, found.get("message", ""), found.get("reason", ""))
    return JobState(Phase.ACTIVE)


def _find_pending_reason(snapshot: JobSnapshot) -> PendingReason | None:
    """Return why no trial runs; None when all pods of at least one do."""
    name = snapshot.settings.name
    trials = snapshot.list_objects(TRIALS, {EXPERIMENT_LABEL: name})
    if not trials:
        return _before_the_first_trial(snapshot)
    active = [trial["metadata"]["name"] for trial in trials if not _end_of(trial)]
    jobs = {
        job["metadata"]["name"]: job
        for job in snapshot.list_objects(PYTORCHJOB.resource, {names.INSTANCE_LABEL: name})
    }
    reasons = [_trial_reason(snapshot, trial, jobs.get(trial)) for trial in active]
    if not reasons or None in reasons:
        return None
    return reasons[0]


def _trial_reason(snapshot: JobSnapshot, trial: str, job: Object | None) -> PendingReason | None:
    """Return why a trial's job does not run: the same reasons as any training job's."""
    own = dataclasses.replace(
        snapshot,
        settings=snapshot.settings.model_copy(update={"name": trial}),
        made=job or {},
        state=PYTORCHJOB.read_state(job) if job else JobState(Phase.ACTIVE),
        pods=trial_pods(snapshot.list_objects, trial),
    )
    return find_pending_reason(PYTORCHJOB, own)


def trial_pods(list_objects: ListObjects, trial: str) -> list[Object]:
    """Return the pods of a trial, rank 0 first."""
    assert PYTORCHJOB.pods is not None, "its pods train"
    pods = list_objects(PODS, PYTORCHJOB.pods.labels(trial))
    return sorted(pods, key=PYTORCHJOB.pods.rank)


def _before_the_first_trial(snapshot: JobSnapshot) -> PendingReason:
    """Return how far Katib has come: it starts a pod that suggests values, and asks it."""
    name = snapshot.settings.name
    pods = snapshot.list_objects(PODS, {EXPERIMENT_LABEL: name})
    suggesting = [pod for pod in pods if SUGGESTION_LABEL in pod["metadata"].get("labels", {})]
    text, advice = "no trial exists yet", f"Read the log of the controller of {KATIB}."
    if not snapshot.made.get("status", {}).get("conditions"):
        return PendingReason(
            f"{text}, and Katib has not read the Experiment", f"Check that {KATIB} runs."
        )
    if not suggesting:
        return PendingReason(f"{text}: the pod that suggests values does not exist", advice)
    own = suggesting[0]["metadata"]["name"]
    assert PYTORCHJOB.pods is not None, "its pods train"
    if suggesting[0]["status"].get("phase") != "Running":
        reason = find_pod_reason(suggesting[0], snapshot, PYTORCHJOB.pods)
        why = reason.text if reason else f"{own} is {suggesting[0]['status'].get('phase')}"
        return PendingReason(
            f"{text}: {why}", f"The pod suggests values and is Katib's own. {advice}"
        )
    return PendingReason(
        f"{text}: {own}, which suggests values, runs",
        f"Katib's controller must reach its port 6789: apply {_MANIFEST}. {advice}",
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


def _find_failure(snapshot: JobSnapshot, search: KatibSearch) -> Failure:
    found = snapshot.list_objects(TRIALS, {EXPERIMENT_LABEL: snapshot.settings.name})
    trials = read_trials(found, search.parameters)
    trials = explain_trials(trials, snapshot.settings, snapshot.list_objects)
    failure = find_search_failure(snapshot.state.message, trials)
    lines = [
        line
        for trial in trials
        if trial.pod
        for line in (
            f"The last lines of {trial.pod}:",
            *snapshot.last_lines_of(trial.pod, CONTAINER),
        )
    ]
    return dataclasses.replace(failure, details=(*failure.details, *lines[:_MAX_SHOWN_LINES]))


@dataclass(frozen=True)
class KatibTrial:
    """A trial as Katib reports it.

    Attributes:
        name: Also the name of the trial's job.
        values: Texts, by the spec's keys.
        metric: Highest observed; None before the first.
        end: Succeeded, Failed, Killed, EarlyStopped, MetricsUnavailable, or '' while it runs.
        message: Katib's text for that end, or what the trial's pods say.
        duration_s: From its start to its end; 0 before the end.
        pod: The pod that shows why it failed; '' for none.
    """

    name: str
    values: Mapping[str, str]
    metric: float | None
    end: str
    message: str
    duration_s: float = 0.0
    pod: str = ""


def read_trials(
    trials: Sequence[Object], parameters: Sequence[KatibParameter]
) -> tuple[KatibTrial, ...]:
    """Read Trial objects, the oldest first."""
    by_age = sorted(trials, key=lambda trial: str(trial["metadata"]["creationTimestamp"]))
    return tuple(read_trial(trial, parameters) for trial in by_age)


def read_trial(trial: Object, parameters: Sequence[KatibParameter]) -> KatibTrial:
    """Read a Trial object."""
    keys = {parameter.name: parameter.key for parameter in parameters}
    end = _end_of(trial)
    status = trial.get("status", {})
    return KatibTrial(
        name=trial["metadata"]["name"],
        values={
            keys[each["name"]]: each["value"]
            for each in trial["spec"]["parameterAssignments"]
            if each["name"] in keys
        },
        metric=_observed(status.get("observation")),
        end=end,
        message=(find_condition(trial, end) or {}).get("message", ""),
        duration_s=seconds_between(status.get("startTime"), status.get("completionTime")),
    )


def _end_of(trial: Object) -> str:
    ends = ("Succeeded", "Failed", "Killed", "EarlyStopped", "MetricsUnavailable")
    return next((kind for kind in ends if find_condition(trial, kind)), "")


def explain_trials(
    trials: Sequence[KatibTrial], settings: JobSettings, list_objects: ListObjects
) -> tuple[KatibTrial, ...]:
    """Return the trials, the failed ones with what their pods say instead of Katib's message.

    Args:
        trials: All trials of the search.
        settings: Give the limits that messages name.
        list_objects: Returns the objects with some labels; called for the failed trials.
    """
    return tuple(
        _explained(trial, settings, trial_pods(list_objects, trial.name))
        if trial.end == "Failed"
        else trial
        for trial in trials
    )


def _explained(trial: KatibTrial, settings: JobSettings, pods: Sequence[Object]) -> KatibTrial:
    if not pods:
        return trial
    found = find_failure(JobState(Phase.FAILED, trial.message), pods, settings, CONTAINER)
    message = f"{found.what.rstrip('.')}. {found.advice}"
    return dataclasses.replace(trial, message=message, pod=found.pod)


def find_search_failure(message: str, trials: Sequence[KatibTrial]) -> Failure:
    """Return why a search failed or has no best trial."""
    ends = [
        f"{trial.name} {trial.end}: {trial.message}"
        for trial in trials
        if trial.end not in ("", "Succeeded")
    ]
    advice = "The trials below say why."
    if any(trial.end == "MetricsUnavailable" for trial in trials):
        advice = (
            f"Katib read no {METRIC}: label the namespace {names.INJECTION_LABEL}=enabled, "
            "and read the log of the container metrics-logger-and-collector."
        )
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
