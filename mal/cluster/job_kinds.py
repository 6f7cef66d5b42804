"""What differs between a PyTorchJob and a TrainJob once it runs: its status, and its pods."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mal.cluster import names
from mal.cluster.pod import Object
from mal.cluster.pytorchjob import build_pytorchjob
from mal.cluster.resources import PYTORCHJOBS, TRAINJOBS, Resource
from mal.cluster.settings import JobSettings
from mal.cluster.trainjob import build_trainjob

_V1_JOB, _V1_ROLE = "training.kubeflow.org/job-name", "training.kubeflow.org/job-role"
_V1_INDEX = "training.kubeflow.org/replica-index"
_V2_JOB, _V2_PART = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/replicatedjob-name"
_V2_INDEX = "batch.kubernetes.io/job-completion-index"


class Phase(enum.Enum):
    """Where a job stands; whether an active one runs is for its pods to say."""

    SUSPENDED = enum.auto()
    ACTIVE = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True)
class JobState:
    """A job's status, whatever its kind.

    Attributes:
        phase: Where it stands.
        message: What the operator says about it.
        reason: The operator's word for it.
        duration_s: From the start to the end; 0 while there is no end.
    """

    phase: Phase
    message: str = ""
    reason: str = ""
    duration_s: float = 0.0

    @property
    def is_finished(self) -> bool:
        """Whether nothing will change any more."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class JobKind:
    """One operator's way.

    Attributes:
        name: Kind of the object.
        resource: Where the API server has it.
        container: That trains.
        build: Returns the object of settings.
        read_state: Returns the status of an object.
        pod_labels: Returns the labels of a job's training pods, by the job's name.
        rank_of_pod: Returns the node's rank.
        makers: Returns the names of the objects that make the pods, and tell why they cannot.
    """

    name: str
    resource: Resource
    container: str
    build: Callable[[JobSettings], Object]
    read_state: Callable[[Object], JobState]
    pod_labels: Callable[[str], dict[str, str]]
    rank_of_pod: Callable[[Object], int]
    makers: Callable[[str], tuple[str, ...]]


def _pytorchjob_state(job: Mapping[str, Any]) -> JobState:
    is_suspended = job["spec"].get("runPolicy", {}).get("suspend", False)
    status = job.get("status") or {}
    started = status.get("startTime") or job["metadata"]["creationTimestamp"]
    return _state(status, is_suspended, "Succeeded", started)


def _trainjob_state(job: Mapping[str, Any]) -> JobState:
    status = job.get("status") or {}
    resumed = _condition(status, "Suspended", "False")
    started = resumed["lastTransitionTime"] if resumed else job["metadata"]["creationTimestamp"]
    return _state(status, job["spec"].get("suspend", False), "Complete", started)


def _state(status: Mapping[str, Any], is_suspended: bool, success: str, started: str) -> JobState:
    for kind, phase in ((success, Phase.SUCCEEDED), ("Failed", Phase.FAILED)):
        condition = _condition(status, kind, "True")
        if condition:
            ended = status.get("completionTime") or condition.get("lastTransitionTime") or started
            duration = datetime.fromisoformat(ended) - datetime.fromisoformat(started)
            return JobState(
                phase,
                condition.get("message", ""),
                condition.get("reason", ""),
                duration.total_seconds(),
            )
    return JobState(Phase.SUSPENDED if is_suspended else Phase.ACTIVE)


def _condition(status: Mapping[str, Any], kind: str, value: str) -> Mapping[str, Any] | None:
    conditions: list[Mapping[str, Any]] = status.get("conditions") or []
    return next((c for c in conditions if (c["type"], c["status"]) == (kind, value)), None)


def _pytorchjob_rank(pod: Mapping[str, Any]) -> int:
    labels = pod["metadata"]["labels"]
    return 0 if labels.get(_V1_ROLE) == "master" else int(labels[_V1_INDEX]) + 1


PYTORCHJOB = JobKind(
    name=names.PYTORCHJOB_KIND,
    resource=PYTORCHJOBS,
    container=names.PYTORCHJOB_CONTAINER,
    build=build_pytorchjob,
    read_state=_pytorchjob_state,
    pod_labels=lambda name: {_V1_JOB: name},
    rank_of_pod=_pytorchjob_rank,
    makers=lambda name: (name,),
)
TRAINJOB = JobKind(
    name=names.TRAINJOB_KIND,
    resource=TRAINJOBS,
    container=names.TRAINJOB_CONTAINER,
    build=build_trainjob,
    read_state=_trainjob_state,
    pod_labels=lambda name: {_V2_JOB: name, _V2_PART: names.TRAINJOB_REPLICATED_JOB},
    rank_of_pod=lambda pod: int(pod["metadata"]["labels"][_V2_INDEX]),
    # The TrainJob, and the batch Job of its JobSet.
    makers=lambda name: (name, f"{name}-{names.TRAINJOB_REPLICATED_JOB}-0"),
)
