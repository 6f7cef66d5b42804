from __future__ import annotations

from typing import Any

import pytest
from sample_jobs import small

from mal.cluster import JobSettings, Placement
from mal.cluster.job_kinds import PYTORCHJOB, TRAINJOB, JobState, Phase
from mal.cluster.waiting import Sight, Wait, explain_wait

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


def look(
    *pods: dict[str, Any],
    phase: Phase = Phase.ACTIVE,
    events: dict[str, list[dict[str, str]]] | None = None,
    queue_message: str = "",
    job: JobSettings = JOB,
    kind: Any = PYTORCHJOB,
) -> Wait | None:
    found = events or {}
    sight = Sight(
        kind, job, JobState(phase), pods, lambda name: found.get(name, []), lambda: queue_message
    )
    return explain_wait(sight)


UNSCHEDULED = [
    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}
]
RUNNING = pod("m-0", "Running")
WAITS: dict[str, tuple[Wait | None, str, str]] = {
    "queue": (
        look(phase=Phase.SUSPENDED, job=small(placement=Placement(queue_name="gold"))),
        "waits in queue gold",
        "queue_timeout_s",
    ),
    "suspended by hand": (look(phase=Phase.SUSPENDED), "waits suspended", "queue_timeout_s"),
    "unschedulable": (
        look(RUNNING, pod("w-0", conditions=UNSCHEDULED)),
        "w-0 cannot be scheduled: 0/3 nodes",
        "job.placement",
    ),
    "image": (
        look(RUNNING, pod("w-0", **waiting("pytorch", "ErrImagePull", "no such tag"))),
        "w-0 cannot pull the image of pytorch: no such tag",
        "job.image",
    ),
    "init image": (
        look(
            RUNNING,
            pod("w-0", **waiting("init-pytorch", "ImagePullBackOff", "x", "initContainerStatuses")),
        ),
        "w-0 cannot pull the image of init-pytorch: x",
        "init-pytorch is the operator's",
    ),
    "secret": (
        look(RUNNING, pod("w-0", **waiting("pytorch", "CreateContainerConfigError", "no s3"))),
        "w-0 cannot make pytorch: CreateContainerConfigError: no s3",
        "job.environment",
    ),
    "being made": (
        look(*(pod(n, **waiting("pytorch", "ContainerCreating")) for n in ("m-0", "w-0"))),
        "m-0 and 1 more: the containers are being made",
        "kubectl describe pod",
    ),
    "a reason before pods that are only slow": (
        look(
            pod("m-0", **waiting("pytorch", "ContainerCreating")),
            pod("w-0", conditions=UNSCHEDULED),
        ),
        "w-0 cannot be scheduled: 0/3 nodes",
        "job.placement",
    ),
    "mount": (
        look(
            RUNNING,
            pod("w-0", **waiting("pytorch", "ContainerCreating")),
            events={"w-0": [event("Scheduled", "ok"), event("FailedMount", "no claim")]},
        ),
        "w-0 cannot mount a volume: no claim",
        "job.storage",
    ),
    "quota, by the last event": (
        look(
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
        look(
            kind=TRAINJOB,
            events={f"{JOB.name}-node-0": [event("FailedCreate", "exceeded quota: x")]},
        ),
        "waits for quota: exceeded quota: x",
        "ask for more quota",
    ),
    "refused pods": (
        look(events={JOB.name: [event("FailedCreatePod", "no service account")]}),
        "pods cannot be made: no service account",
        "Mend what the message names",
    ),
    "operator": (look(RUNNING), "1 of 2 pods are there", "the training operator v1"),
}


@pytest.mark.parametrize(("wait", "text", "advice"), WAITS.values(), ids=WAITS)
def test_a_wait_says_why_and_what_to_do(wait: Wait | None, text: str, advice: str) -> None:
    assert wait is not None
    assert wait.text == text
    assert advice in wait.advice
    assert wait.is_queued == ("queue_timeout_s" in wait.advice)


@pytest.mark.parametrize("phase", ["Running", "Succeeded", "Failed"])
def test_pods_that_run_or_ran_are_not_waited_for(phase: str) -> None:
    assert look(RUNNING, pod("w-0", phase)) is None


def test_an_image_pull_that_is_tried_again_is_the_same_wait() -> None:
    first, second = (
        look(RUNNING, pod("w-0", **waiting("pytorch", reason, message)))
        for reason, message in [("ErrImagePull", "not found"), ("ImagePullBackOff", "Back-off")]
    )
    assert first is not None
    assert second is not None
    assert (first.identity == second.identity, first.text == second.text) == (True, False)
