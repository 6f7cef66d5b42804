"""Why the pods of a job failed, which one first, and what to change."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from mal.cluster.job_kind import Failure, JobState
from mal.cluster.lost_pods import LostPod
from mal.cluster.resources import Object
from mal.cluster.settings import JobSettings

_SIGNAL_BASE = 128
_RESUME = "Run it again: it continues from its last checkpoint."
INIT_PYTORCH = "init-pytorch"
INIT_PYTORCH_ADVICE = (
    "It is the training operator's, and looks up rank 0's name, which exists once that pod is "
    "ready, image pull included: see why rank 0 took longer, pull job.image on the nodes before, "
    "or raise the operator's --pytorch-init-container-max-tries (100, 2 s apart)."
)
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
_LOST_ADVICE = (
    "It was deleted by force or its node was lost: look at kubectl get events and kubectl get "
    f"nodes. {_RESUME}"
)
_RESUMABLE_CODES = frozenset(
    _SIGNAL_BASE + n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
)
# Most likely cause first: the other pods exit because they lost a peer, or because the operator
# stops what is left of a failed job. Times have seconds only.
_OUT_OF_MEMORY, _DISRUPTED, _EXITED, _STOPPED = range(4)


def deadline_failure(job: JobSettings, message: str = "") -> Failure:
    """Return the failure of a job that ran longer than it may."""
    shown = f" ({message})" if message else ""
    return Failure(
        f"it ran longer than {job.lifetime.active_deadline_s} s{shown}",
        f"Raise job.lifetime.active_deadline_s. {_RESUME}",
        is_resumable=True,
    )


def loss_of(lost: LostPod) -> Failure:
    """Return the failure of a job whose pod vanished."""
    return Failure(lost.describe(), _LOST_ADVICE, is_loss=True, is_resumable=True)


def find_failure(
    state: JobState,
    pods: Sequence[Object],
    job: JobSettings,
    container: str,
    lost: Sequence[LostPod] = (),
) -> Failure:
    """Return the first cause: out of memory, then a lost or disrupted pod, then the first exit."""
    if "deadline" in state.message.lower() or state.reason == "DeadlineExceeded":
        return deadline_failure(job, state.message)
    found = [finding for pod in pods for finding in _findings(pod, job, container)]
    found += [(_DISRUPTED, "", loss_of(pod)) for pod in lost]
    if found:
        return min(found, key=lambda finding: finding[:2])[2]
    what = state.message or state.reason or "the operator gave no reason"
    if pods:
        return Failure(
            what,
            "See why with kubectl describe pod.",
            details=tuple(_describe(pod) for pod in pods),
        )
    return Failure(what, "No pod of the job is left: read the log above and kubectl get events.")


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
        advice = _POD_ADVICE.get(reason, _NODE_ADVICE)
        yield _DISRUPTED, time, Failure(what, advice, name, is_loss=True, is_resumable=True)
    yield from _init_findings(name, status)
    if ended and ended["exitCode"]:
        code = ended["exitCode"]
        why = ended.get("reason", "Error")
        shown = "" if why == "Error" else f" ({why}: {ended.get('message', '')})"
        advice = _EXIT_ADVICE.get(code, "The lines below may say why.")
        what = f"{name} ended with exit code {code}{shown}"
        yield (
            _STOPPED if code == _SIGNAL_BASE + signal.SIGTERM else _EXITED,
            ended.get("finishedAt") or "",
            Failure(what, advice, name, is_resumable=code in _RESUMABLE_CODES),
        )


def _init_findings(name: str, status: Mapping[str, Any]) -> Iterator[tuple[int, str, Failure]]:
    """Yield the init containers that failed: the training container of their pod never started."""
    for each in status.get("initContainerStatuses") or ():
        ended = each.get("state", {}).get("terminated") or each.get("lastState", {}).get(
            "terminated"
        )
        if not ended or not ended["exitCode"]:
            continue
        finished = ended.get("finishedAt") or ""
        age_s = seconds_between(ended.get("startedAt"), finished)
        after = f" after {age_s:.0f} s" if age_s else ""
        message = f": {ended['message']}" if ended.get("message") else ""
        what = (
            f"the init container {each['name']} of {name} ended with exit code "
            f"{ended['exitCode']}{after}{message}"
        )
        advice = "The lines below may say why."
        if each["name"] == INIT_PYTORCH:
            advice = INIT_PYTORCH_ADVICE
        yield _EXITED, finished, Failure(what, advice, name, each["name"])


def seconds_between(started: str | None, ended: str | None) -> float:
    """Return the time between two RFC 3339 times; 0 where one is not known."""
    if not started or not ended:
        return 0.0
    return (datetime.fromisoformat(ended) - datetime.fromisoformat(started)).total_seconds()


def _describe(pod: Object) -> str:
    """Return the state of a pod and of each of its containers that does not run."""
    status = pod["status"]
    states = []
    for field in ("initContainerStatuses", "containerStatuses"):
        for each in status.get(field) or ():
            for state in ("waiting", "terminated"):
                shown = each.get("state", {}).get(state)
                if shown:
                    words = [shown.get("reason", ""), shown.get("message", "")]
                    states.append(f"{each['name']} {state} {' '.join(filter(None, words))}".strip())
    return f"{pod['metadata']['name']}: {', '.join([status.get('phase', 'Unknown'), *states])}"


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
