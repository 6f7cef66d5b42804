"""Why a job does not run yet, and what would let it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mal.cluster.job_kinds import JobKind, JobState, Phase
from mal.cluster.pod import Object
from mal.cluster.settings import JobSettings

_PULL_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"}
    | {"RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"}
)
_CREATION_REASONS = frozenset(
    {"FailedCreate", "FailedCreatePod", "TrainJobResourcesCreationFailed"}
)
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_USUAL_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})
_STARTED_PHASES = frozenset({"Running", "Succeeded", "Failed"})


@dataclass(frozen=True)
class Wait:
    """A reason to wait.

    Attributes:
        text: What is told.
        advice: What to do if it lasts.
        is_queued: In a queue or for quota, where others decide when it ends.
        key: Two waits with the same one are the same, however their words differ.
    """

    text: str
    advice: str
    is_queued: bool = False
    key: str = ""

    @property
    def identity(self) -> str:
        """What changes when the reason does."""
        return self.key or self.text


@dataclass(frozen=True)
class Sight:
    """What the cluster shows of a job at one moment.

    Attributes:
        kind: Of the job.
        settings: Of the job.
        state: Of the job.
        pods: Of the job, those of earlier ones left out.
        events_of: Returns the events about an object, by its name.
        queue_message: Returns what Kueue says, '' where that cannot be read.
    """

    kind: JobKind
    settings: JobSettings
    state: JobState
    pods: Sequence[Object]
    events_of: Callable[[str], Iterable[Object]]
    queue_message: Callable[[], str]


def explain_wait(sight: Sight) -> Wait | None:
    """Return why the job does not run; None when all of its pods do, or did."""
    if sight.state.phase is Phase.SUSPENDED:
        return _queued(sight)
    waiting = [pod for pod in sight.pods if pod["status"].get("phase") not in _STARTED_PHASES]
    num_missing = sight.settings.num_nodes - len(sight.pods)
    if not waiting and num_missing <= 0:
        return None
    reasons = [_pod_reason(pod, sight) for pod in waiting]
    known = [reason for reason in reasons if reason is not None]
    if known:
        return known[0]
    if num_missing > 0:
        return _missing(sight, num_missing)
    return Wait(
        f"{_names(waiting)}: the containers are being made",
        "Look at the node with kubectl describe pod.",
    )


def _queued(sight: Sight) -> Wait:
    queue = sight.settings.placement.queue_name
    where = f"in queue {queue}" if queue else "suspended"
    message = sight.queue_message()
    return Wait(
        f"waits {where}" + (f": {message}" if message else ""),
        "Raise queue_timeout_s (0 waits without end), ask for more quota, or lower job.num_nodes.",
        is_queued=True,
    )


def _missing(sight: Sight, num_missing: int) -> Wait:
    events = [e for maker in sight.kind.makers(sight.settings.name) for e in sight.events_of(maker)]
    refused = _latest(events, _CREATION_REASONS)
    if "exceeded quota" in refused:
        return Wait(
            f"waits for quota: {refused}",
            "Raise queue_timeout_s (0 waits without end), ask for more quota, or lower "
            "job.num_nodes or job.resources.",
            is_queued=True,
        )
    if "PodSecurity" in refused:
        advice = (
            "The pods of mal satisfy the standard `restricted`; the operator's own init container "
            "may not. See Pod security in docs/operations.md."
        )
        return Wait(f"pods are not admitted: {refused}", advice)
    if refused:
        return Wait(f"pods cannot be made: {refused}", "Mend what the message names.")
    number = sight.settings.num_nodes
    return Wait(
        f"{number - num_missing} of {number} pods are there",
        f"Look whether {sight.kind.resource.brought_by} runs and what its log says.",
    )


def _pod_reason(pod: Object, sight: Sight) -> Wait | None:
    name, status = pod["metadata"]["name"], pod["status"]
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return Wait(
                f"{name} cannot be scheduled: {condition.get('message', '')}",
                "Lower job.resources or job.num_nodes, mend job.placement, or add nodes.",
            )
    for container, reason, message in _waiting_containers(status):
        if reason in _PULL_REASONS:
            return Wait(
                f"{name} cannot pull the image of {container}: {message or reason}",
                _pull_advice(container, sight),
                key=f"{name} {container} pull",
            )
        if reason not in _USUAL_REASONS:
            return Wait(
                f"{name} cannot make {container}: {reason}: {message}",
                "Make the Secret or ConfigMap that it names, or mend job.environment or job.image.",
            )
    unmounted = _latest(sight.events_of(name), _MOUNT_REASONS)
    if unmounted:
        return Wait(
            f"{name} cannot mount a volume: {unmounted}",
            "Look at the claims of job.storage with kubectl describe pvc.",
        )
    return None


def _pull_advice(container: str, sight: Sight) -> str:
    if container == sight.kind.container:
        return "Mend job.image, or name the registry's Secret in job.security.image_pull_secrets."
    return (
        f"{container} is the operator's: give it an image that the cluster reaches. See Pod "
        "security in docs/operations.md."
    )


def _waiting_containers(status: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for field in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(field) or ():
            waiting = container.get("state", {}).get("waiting")
            if waiting:
                yield container["name"], waiting.get("reason", ""), waiting.get("message", "")


def _latest(events: Iterable[Object], reasons: frozenset[str]) -> str:
    """Return the message of the last event that has one of the reasons."""
    chosen = [event for event in events if event.get("reason") in reasons]
    chosen.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return str(chosen[-1].get("message", "")) if chosen else ""


def _names(pods: Sequence[Object]) -> str:
    first = str(pods[0]["metadata"]["name"])
    return first if len(pods) == 1 else f"{first} and {len(pods) - 1} more"
