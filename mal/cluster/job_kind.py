"""What a kind of training job is: how its object is built, read, and explained.

A new kind is one file with a `JobKind`, and one call of `mal.cluster.register_job_kind`.
`docs/extending/job_kind.md` has an example. Every kind is cancelled in the same way: its object is
deleted in the background, and Kubernetes deletes what the object owns.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from mal.cluster.resources import Object, Resource
from mal.cluster.settings import JobSettings
from mal.errors import ClusterError

# Returns the objects of a resource that have some labels.
ListObjects = Callable[[Resource, Mapping[str, str]], list[Object]]


class Phase(enum.Enum):
    """State of a job. Whether the pods of an active one run is not part of it."""

    SUSPENDED = enum.auto()
    ACTIVE = enum.auto()
    SUCCEEDED = enum.auto()
    FAILED = enum.auto()


@dataclass(frozen=True)
class JobState:
    """A job's status, in the same form for every kind.

    Attributes:
        message: The operator's text.
        reason: The operator's word, such as DeadlineExceeded.
        duration_s: From the start to the end; 0 before the end.
        started_at: RFC 3339 time from which the job's deadline counts; '' where unknown.
    """

    phase: Phase
    message: str = ""
    reason: str = ""
    duration_s: float = 0.0
    started_at: str = ""

    @property
    def is_finished(self) -> bool:
        """Whether the state is final."""
        return self.phase in (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class JobSnapshot:
    """What the cluster shows of a job at one moment.

    Attributes:
        made: The job's object.
        pods: By rank; without those of an earlier job of the same name.
        events_of: Returns the events about an object, by its name.
        queue_message: Returns Kueue's message, '' where it cannot be read.
        list_objects: Returns the objects of a resource that have these labels.
        last_lines_of: Returns the last lines of a pod's container, by their names; () where its log
            cannot be read.
    """

    settings: JobSettings
    made: Object
    state: JobState
    pods: Sequence[Object]
    events_of: Callable[[str], Iterable[Object]]
    queue_message: Callable[[], str]
    list_objects: ListObjects
    last_lines_of: Callable[[str, str], Sequence[str]] = lambda pod, container: ()


@dataclass(frozen=True)
class PendingReason:
    """Why a job does not run yet.

    Attributes:
        advice: What to do if it lasts.
        is_queued: In a queue or for quota, where others decide when it ends.
        key: Two reasons with the same key are the same, although their texts differ.
    """

    text: str
    advice: str
    is_queued: bool = False
    key: str = ""

    @property
    def identity(self) -> str:
        """A value that changes when the reason changes."""
        return self.key or self.text


@dataclass(frozen=True)
class Failure:
    """Why a job failed.

    Attributes:
        what: What happened.
        advice: What to do.
        pod: The pod whose log shows it; '' for none.
        container: The container of that pod; '' is the one that trains.
        details: Lines to show below.
        is_loss: Whether a pod or a node was lost: the same job may succeed on another node.
        is_resumable: Whether running it again continues from its last checkpoint.
    """

    what: str
    advice: str
    pod: str = ""
    container: str = ""
    details: tuple[str, ...] = ()
    is_loss: bool = False
    is_resumable: bool = False


@dataclass(frozen=True, kw_only=True)
class TrainingPods:
    """How the training pods of a kind of job are found and read.

    Attributes:
        container: Name of the container that trains.
        labels: Returns the labels of a job's training pods, by the job's name.
        rank: Returns the rank of a pod's node; the log of rank 0 is followed.
        event_sources: Returns the names of the objects whose events explain missing pods, by the
            job's name.
    """

    container: str
    labels: Callable[[str], dict[str, str]]
    rank: Callable[[Object], int]
    event_sources: Callable[[str], tuple[str, ...]] = lambda name: (name,)


@dataclass(frozen=True, kw_only=True)
class JobKind:
    """One kind of training job.

    Attributes:
        name: Kind of the object, such as PyTorchJob.
        build: Returns the object of settings; raises SpecError for settings it cannot express.
        read_state: Returns the state of an object.
        pods: None where a controller creates jobs and not pods. Then the next two are set.
        find_pending_reason: Returns None when the job runs; by default the pods are read.
        find_failure: Returns why a job failed; by default the pods are read.
        describe_progress: Returns a line for the log, written whenever it changes; '' for none.
        enforces_deadline: False where the operator lets a job run beyond its deadline; then the
            step ends it.
        too_old: What it means where the cluster drops fields of the object; '' does not look.
        replaces_pods: Returns whether the operator may replace the pods of a running job.
    """

    name: str
    resource: Resource
    build: Callable[[JobSettings], Object]
    read_state: Callable[[Object], JobState]
    pods: TrainingPods | None
    find_pending_reason: Callable[[JobSnapshot], PendingReason | None] | None = None
    find_failure: Callable[[JobSnapshot], Failure] | None = None
    describe_progress: Callable[[Object], str] = lambda _: ""
    enforces_deadline: bool = True
    too_old: str = ""
    replaces_pods: Callable[[JobSettings], bool] = lambda _: True

    def __post_init__(self) -> None:
        if self.pods is None and None in (self.find_pending_reason, self.find_failure):
            raise TypeError(
                f"The job kind {self.name} has no pods, so it must define find_pending_reason and "
                "find_failure."
            )

    def build_checked(self, job: JobSettings) -> Object:
        """Build the object, and check that the watch will find it.

        Raises:
            SpecError: The kind cannot express a setting.
            ClusterError: The kind builds an object that it cannot find again.
        """
        made = self.build(job)
        metadata = made.get("metadata", {})
        pairs = {
            "apiVersion": (made.get("apiVersion"), self.resource.api_version),
            "kind": (made.get("kind"), self.name),
            "metadata.name": (metadata.get("name"), job.name),
            "metadata.namespace": (metadata.get("namespace"), job.namespace),
        }
        pairs |= {
            f"label {key}": (metadata.get("labels", {}).get(key), value)
            for key, value in job.labels.items()
        }
        for field, (built, expected) in pairs.items():
            if built != expected:
                raise ClusterError(
                    f"The job kind {self.name} builds an object with {field} {built!r} where the "
                    f"watch expects {expected!r}. Correct its `build`: mal.cluster.pod.job_metadata"
                    " returns the metadata."
                )
        return made


def read_conditions(made: Object, success: str, *, is_suspended: bool, started: str) -> JobState:
    """Return the state of an object that reports it by conditions, as most kinds do.

    Args:
        made: The object.
        success: Type of the condition that means success; `Failed` means failure.
        is_suspended: Whether the object's spec suspends it.
        started: RFC 3339 time from which the duration counts.
    """
    status = made.get("status") or {}
    for kind, phase in ((success, Phase.SUCCEEDED), ("Failed", Phase.FAILED)):
        condition = find_condition(made, kind)
        if condition:
            ended = status.get("completionTime") or condition.get("lastTransitionTime") or started
            duration = datetime.fromisoformat(ended) - datetime.fromisoformat(started)
            return JobState(
                phase,
                condition.get("message", ""),
                condition.get("reason", ""),
                duration.total_seconds(),
                started,
            )
    return JobState(Phase.SUSPENDED if is_suspended else Phase.ACTIVE, started_at=started)


def find_condition(made: Object, kind: str, status: str = "True") -> Mapping[str, Any] | None:
    """Return an object's condition of this type and status."""
    conditions = (made.get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if (c["type"], c["status"]) == (kind, status)), None)
