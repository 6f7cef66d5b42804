"""Why the pods of a job failed, which one first, and what to change."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mal.cluster.job_kind import Failure, JobState
from mal.cluster.resources import Object
from mal.cluster.settings import JobSettings

_SIGNAL_BASE = 128
_RESUME = "Run it again: it continues from its last checkpoint."
_EXIT_ADVICE = {
    1: "The lines below have the traceback.",
    2: "The lines below say what to correct.",
    126: "Correct job.image: its `mal` cannot be run.",
    127: "Correct job.image: it has no `mal`.",
    _SIGNAL_BASE + signal.SIGINT: f"It received a signal to stop. {_RESUME}",
    _SIGNAL_BASE + signal.SIGABRT: "The lines below may say why.",
    _SIGNAL_BASE + signal.SIGBUS: "/dev/shm was full: raise job.resources.shm_size.",
    _SIGNAL_BASE + signal.SIGKILL: (
        "It was killed from outside, by the node or after its grace: check the node, raise "
        "job.resources.memory or job.lifetime.termination_grace_s."
    ),
    _SIGNAL_BASE + signal.SIGSEGV: "A native library failed: check job.image and its driver.",
    _SIGNAL_BASE + signal.SIGTERM: f"It received a signal to stop. {_RESUME}",
}
_POD_ADVICE = {
    "Evicted": (
        "Raise job.storage.cache_size or job.storage.tmp_size if the message names storage, else "
        "job.resources.memory."
    ),
    "Preempting": f"Raise job.placement.priority_class. {_RESUME}",
    "PreemptionByScheduler": f"Raise job.placement.priority_class. {_RESUME}",
}
_NODE_ADVICE = f"Its node was lost. {_RESUME}"
# Most likely cause first: the other pods exit because they lost a peer.
_OUT_OF_MEMORY, _DISRUPTED, _EXITED = range(3)


def find_failure(
    state: JobState, pods: Sequence[Object], job: JobSettings, container: str
) -> Failure:
    """Return the first cause: out of memory, then a disruption, then the first exit."""
    if "deadline" in state.message.lower() or state.reason == "DeadlineExceeded":
        return Failure(
            f"it ran longer than {job.lifetime.active_deadline_s} s ({state.message})",
            f"Raise job.lifetime.active_deadline_s. {_RESUME}",
        )
    found = [finding for pod in pods for finding in _findings(pod, job, container)]
    if found:
        return min(found, key=lambda finding: finding[:2])[2]
    return Failure(
        state.message or state.reason or "the operator gave no reason",
        "The pods are gone: read the log above and kubectl get events.",
    )


def _findings(pod: Object, job: JobSettings, container: str) -> Iterator[tuple[int, str, Failure]]:
    """Yield what happened to a pod, as (order, time, failure)."""
    name, status = pod["metadata"]["name"], pod["status"]
    ended = _terminated(status, container)
    if ended and ended.get("reason") == "OOMKilled":
        what = f"{name} was OOMKilled (limit {job.resources.memory}, exit code {ended['exitCode']})"
        advice = "Lower train.batch_size or raise job.resources.memory."
        yield _OUT_OF_MEMORY, ended.get("finishedAt", ""), Failure(what, advice, name)
    disruption = _disruption(status)
    if disruption:
        reason, message, time = disruption
        what = f"{name} was removed: {reason}: {message}"
        yield _DISRUPTED, time, Failure(what, _POD_ADVICE.get(reason, _NODE_ADVICE), name)
    if ended and ended["exitCode"]:
        code = ended["exitCode"]
        why = ended.get("reason", "Error")
        shown = "" if why == "Error" else f" ({why}: {ended.get('message', '')})"
        advice = _EXIT_ADVICE.get(code, "The lines below may say why.")
        yield (
            _EXITED,
            ended.get("finishedAt") or "",
            Failure(f"{name} ended with exit code {code}{shown}", advice, name),
        )


def _terminated(status: Mapping[str, Any], container: str) -> Mapping[str, Any] | None:
    """Return how the training container ended; before its restart, if it was restarted."""
    for each in status.get("containerStatuses") or ():
        if each["name"] == container:
            for field in ("state", "lastState"):
                ended: Mapping[str, Any] | None = each.get(field, {}).get("terminated")
                if ended:
                    return ended
    return None


def _disruption(status: Mapping[str, Any]) -> tuple[str, str, str] | None:
    for condition in status.get("conditions") or ():
        if (condition["type"], condition["status"]) == ("DisruptionTarget", "True"):
            reason = "Evicted" if status.get("reason") == "Evicted" else condition["reason"]
            message = status.get("message") or condition.get("message", "")
            return reason, message, condition.get("lastTransitionTime") or ""
    if status.get("phase") == "Failed" and status.get("reason"):
        return status["reason"], status.get("message", ""), ""
    return None
