from __future__ import annotations

from typing import Any

import pytest
from sample_jobs import small

from mal.cluster import PYTORCHJOB, TRAINJOB, JobKind, JobSettings, Placement
from mal.cluster.job_kind import JobSnapshot, JobState, PendingReason, Phase
from mal.cluster.pending import find_pending_reason

JOB = small(num_nodes=2)


def pod(name: str, phase: str = "Pending", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name}, "status": {"phase": phase, **status}}


def waiting(
    container: str, reason: str, message: str = "", field: str = "containerStatuses"
) -> dict[str, Any]:
    state = {"waiting": {"reason": reason, "message": message}}
    return {field: [{"name": container, "state": state}]}


def event(reason: str, message: str, time: str = "10:00:00") -> dict[str, str]:
    return {"reason": reason, "message": message, "lastTimestamp": f"2026-01-01T{time}Z"}


def reason_of(
    *pods: dict[str, Any],
    phase: Phase = Phase.ACTIVE,
    events: dict[str, list[dict[str, str]]] | None = None,
    queue_message: str = "",
    job: JobSettings = JOB,
    kind: JobKind = PYTORCHJOB,
) -> PendingReason | None:
    found = events or {}
    snapshot = JobSnapshot(
        settings=job,
        made={},
        state=JobState(phase),
        pods=pods,
        events_of=lambda name: found.get(name, []),
        queue_message=lambda: queue_message,
        list_objects=lambda resource, labels: [],
    )
    return find_pending_reason(kind, snapshot)


UNSCHEDULED = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
]
RUNNING = pod("m-0", "Running")
REASONS: dict[str, tuple[PendingReason | None, str, str]] = {
    "queue": (
        reason_of(phase=Phase.SUSPENDED, job=small(placement=Placement(queue_name="gold"))),
        "waits in queue gold",
        "queue_timeout_s",
    ),
    "suspended by hand": (reason_of(phase=Phase.SUSPENDED), "waits suspended", "queue_timeout_s"),
    "unschedulable": (
        reason_of(RUNNING, pod("w-0", conditions=UNSCHEDULED)),
        "w-0 cannot be scheduled: 0/3 nodes",
        "job.placement",
    ),
    "image": (
        reason_of(RUNNING, pod("w-0", **waiting("pytorch", "ErrImagePull", "no such tag"))),
        "w-0 cannot pull the image of pytorch: no such tag",
        "job.image",
    ),
    "init image": (
        reason_of(
            RUNNING,
            pod("w-0", **waiting("init-pytorch", "ImagePullBackOff", "x", "initContainerStatuses")),
        ),
        "w-0 cannot pull the image of init-pytorch: x",
        "init-pytorch is the operator's",
    ),
    "secret": (
        reason_of(RUNNING, pod("w-0", **waiting("pytorch", "CreateContainerConfigError", "no s3"))),
        "w-0 cannot create pytorch: CreateContainerConfigError: no s3",
        "job.environment",
    ),
    "being created": (
        reason_of(*(pod(n, **waiting("pytorch", "ContainerCreating")) for n in ("m-0", "w-0"))),
        "m-0 and 1 more: the containers are being created",
        "kubectl describe pod",
    ),
    "a reason before pods that are only slow": (
        reason_of(
            pod("m-0", **waiting("pytorch", "ContainerCreating")),
            pod("w-0", conditions=UNSCHEDULED),
        ),
        "w-0 cannot be scheduled: 0/3 nodes",
        "job.placement",
    ),
    "mount": (
        reason_of(
            RUNNING,
            pod("w-0", **waiting("pytorch", "ContainerCreating")),
            events={"w-0": [event("Scheduled", "ok"), event("FailedMount", "no claim")]},
        ),
        "w-0 cannot mount a volume: no claim",
        "job.storage",
    ),
    "quota, by the last event": (
        reason_of(
            RUNNING,
            events={
                JOB.name: [
                    event("FailedCreatePod", "exceeded quota: now", "10:00:09"),
                    event("FailedCreatePod", "older"),
                ]
            },
        ),
        "waits for quota: exceeded quota: now",
        "ask for more quota",
    ),
    "quota of a trainjob's own job": (
        reason_of(
            kind=TRAINJOB,
            events={f"{JOB.name}-node-0": [event("FailedCreate", "exceeded quota: x")]},
        ),
        "waits for quota: exceeded quota: x",
        "ask for more quota",
    ),
    "refused pods": (
        reason_of(events={JOB.name: [event("FailedCreatePod", "no service account")]}),
        "pods cannot be created: no service account",
        "Correct what the message names",
    ),
    "operator": (reason_of(RUNNING), "1 of 2 pods exist", "the training operator v1"),
}


@pytest.mark.parametrize(("reason", "text", "advice"), REASONS.values(), ids=REASONS)
def test_a_reason_says_why_and_what_to_do(
    reason: PendingReason | None, text: str, advice: str
) -> None:
    assert reason is not None
    assert reason.text == text
    assert advice in reason.advice
    assert reason.is_queued == ("queue_timeout_s" in reason.advice)


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
def test_pods_that_run_or_ran_are_not_pending(phase: str) -> None:
    assert reason_of(RUNNING, pod("w-0", phase)) is None


def test_an_image_pull_that_is_tried_again_is_the_same_reason() -> None:
    first, second = (
        reason_of(RUNNING, pod("w-0", **waiting("pytorch", reason, message)))
        for reason, message in [("ErrImagePull", "not found"), ("ImagePullBackOff", "Back-off")]
    )
    assert first is not None
    assert second is not None
    assert (first.identity == second.identity, first.text == second.text) == (True, False)
