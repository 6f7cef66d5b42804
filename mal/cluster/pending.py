"""Why the pods of a job do not run yet, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from mal.cluster.diagnosis import INIT_PYTORCH, INIT_PYTORCH_ADVICE
from mal.cluster.job_kind import JobKind, JobSnapshot, PendingReason, Phase, TrainingPods
from mal.cluster.resources import Object

_PULL_REASONS = frozenset(
    {"ImagePullBackOff", "ErrImagePull", "ErrImageNeverPull", "InvalidImageName"}
    | {"RegistryUnavailable", "ImageInspectError", "SignatureValidationFailed"}
)
_CREATION_REASONS = frozenset(
    {"FailedCreate", "FailedCreatePod", "TrainJobResourcesCreationFailed"}
)
_MOUNT_REASONS = frozenset({"FailedMount", "FailedAttachVolume", "FailedMapVolume"})
_INIT_LOG_INTERVAL_S = 60
_USUAL_REASONS = frozenset({"", "ContainerCreating", "PodInitializing"})
_STARTED_PHASES = frozenset({"Running", "Succeeded", "Failed"})
_QUEUE_ADVICE = (
    "Raise queue_timeout_s (0 waits without end), ask for more quota, or lower job.num_nodes"
)


def find_pending_reason(kind: JobKind, snapshot: JobSnapshot) -> PendingReason | None:
    """Return why the job does not run; None when all of its pods run or ran."""
    if snapshot.state.phase is Phase.SUSPENDED:
        return _queued(snapshot)
    if kind.find_pending_reason is not None:
        return kind.find_pending_reason(snapshot)
    assert kind.pods is not None, "JobKind requires one of the two"
    pending = [pod for pod in snapshot.pods if pod["status"].get("phase") not in _STARTED_PHASES]
    num_missing = snapshot.settings.num_nodes - len(snapshot.pods)
    if not pending and num_missing <= 0:
        return None
    for pod in pending:
        reason = find_pod_reason(pod, snapshot, kind.pods)
        if reason is not None:
            return reason
    if num_missing > 0:
        return _missing_pods(kind, kind.pods, snapshot, num_missing)
    return _creating_containers(pending, snapshot)


def _creating_containers(pending: Sequence[Object], snapshot: JobSnapshot) -> PendingReason:
    """Return the init container that runs, and the pods whose containers do not exist yet."""
    found = [(pod, _init_reason(pod, snapshot)) for pod in pending]
    init = next((reason for _, reason in found if reason), None)
    created = [pod for pod, reason in found if reason is None]
    if init is not None and not created:
        return init
    text = f"{_names(created)}: the containers are being created{_since(created[0])}"
    if init is None:
        advice = "Check the node with kubectl describe pod."
        return PendingReason(text, advice, key=f"{_names(created)} containers")
    return PendingReason(f"{text}; {init.text}", init.advice, key=init.key)


def _queued(snapshot: JobSnapshot) -> PendingReason:
    queue = snapshot.settings.placement.queue_name
    where = f"in queue {queue}" if queue else "suspended"
    message = snapshot.queue_message()
    text = f"waits {where}" + (f": {message}" if message else "")
    return PendingReason(text, f"{_QUEUE_ADVICE}.", is_queued=True)


def _missing_pods(
    kind: JobKind, pods: TrainingPods, snapshot: JobSnapshot, num_missing: int
) -> PendingReason:
    sources = pods.event_sources(snapshot.settings.name)
    events = [event for source in sources for event in snapshot.events_of(source)]
    message = _latest(events, _CREATION_REASONS)
    if "exceeded quota" in message:
        return PendingReason(
            f"waits for quota: {message}", f"{_QUEUE_ADVICE} or job.resources.", is_queued=True
        )
    if "PodSecurity" in message:
        advice = (
            "The pods of mal satisfy the standard `restricted`; the operator's own init container "
            "may not. See Pod security in docs/operations.md."
        )
        return PendingReason(f"pods are not admitted: {message}", advice)
    if message:
        return PendingReason(
            f"pods cannot be created: {message}", "Correct what the message names."
        )
    number = snapshot.settings.num_nodes
    return PendingReason(
        f"{number - num_missing} of {number} pods exist",
        f"Check that {kind.resource.brought_by} runs, and read its log.",
    )


def find_pod_reason(pod: Object, snapshot: JobSnapshot, pods: TrainingPods) -> PendingReason | None:
    """Return why a pod does not run; None where its containers are only being created."""
    name, status = pod["metadata"]["name"], pod["status"]
    for condition in status.get("conditions") or ():
        if condition["type"] == "PodScheduled" and condition["status"] == "False":
            return PendingReason(
                f"{name} cannot be scheduled: {condition.get('message', '')}",
                "Lower job.resources or job.num_nodes, correct job.placement, or add nodes.",
            )
    for container, reason, message in _waiting_containers(status):
        if reason in _PULL_REASONS:
            return PendingReason(
                f"{name} cannot pull the image of {container}: {message or reason}",
                _pull_advice(container, pods),
                key=f"{name} {container} pull",
            )
        if reason == "CrashLoopBackOff":
            return PendingReason(
                f"{name}: the container {container} fails and is started again: {message}",
                f"Read its log with kubectl logs {name} -c {container}.",
                key=f"{name} {container} crash",
            )
        if reason not in _USUAL_REASONS:
            return PendingReason(
                f"{name} cannot create {container}: {reason}: {message}",
                "Create the Secret or ConfigMap that it names, or correct job.environment or "
                "job.image.",
            )
    message = _latest(snapshot.events_of(name), _MOUNT_REASONS)
    if message:
        return PendingReason(
            f"{name} cannot mount a volume: {message}",
            "Check the claims of job.storage with kubectl describe pvc.",
        )
    return None


def _init_reason(pod: Object, snapshot: JobSnapshot) -> PendingReason | None:
    """Return the init container that runs, how long it does, and its last line, once a minute."""
    name = pod["metadata"]["name"]
    for each in pod["status"].get("initContainerStatuses") or ():
        running = each.get("state", {}).get("running")
        if not running:
            continue
        age_s = _age_s(running.get("startedAt"))
        lines = [line for line in snapshot.last_lines_of(name, each["name"]) if line.strip()]
        last = f"; its last line: {lines[-1].strip()}" if lines else ""
        advice = "Read its log with kubectl logs -c."
        if each["name"] == INIT_PYTORCH:
            advice = INIT_PYTORCH_ADVICE
        return PendingReason(
            f"{name}: the init container {each['name']} runs for {age_s} s{last}",
            advice,
            key=f"{name} {each['name']} init {age_s // _INIT_LOG_INTERVAL_S}",
        )
    return None


def _since(pod: Object) -> str:
    created = pod["metadata"].get("creationTimestamp")
    return f" for {_age_s(created)} s" if created else ""


def _age_s(started: str | None) -> int:
    if not started:
        return 0
    return max(0, round((datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()))


def _pull_advice(container: str, pods: TrainingPods) -> str:
    if container == pods.container:
        return (
            "Correct job.image, or name the registry's Secret in job.security.image_pull_secrets."
        )
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
