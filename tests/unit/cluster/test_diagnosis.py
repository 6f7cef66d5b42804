from __future__ import annotations

from typing import Any

import pytest
from sample_jobs import SMALL

from mal.cluster.diagnosis import find_failure
from mal.cluster.job_kind import JobState, Phase

CONTAINER = "pytorch"


def pod(name: str, *, time: str = "10:00:00", **status: Any) -> dict[str, Any]:
    """Return a pod that ended; `code` and `reason` are the container's."""
    code, reason = status.pop("code", None), status.pop("reason_of_container", "Error")
    if code is not None:
        ended = {"exitCode": code, "reason": reason, "finishedAt": f"2026-01-01T{time}Z"}
        status["containerStatuses"] = [{"name": CONTAINER, "state": {"terminated": ended}}]
    return {"metadata": {"name": name}, "status": {"phase": "Failed", **status}}


def disrupted(reason: str) -> list[dict[str, str]]:
    return [{"type": "DisruptionTarget", "status": "True", "reason": reason, "message": "why"}]


KILLED_SIDECAR = {"name": "istio", "state": {"terminated": {"exitCode": 9}}}
RESTARTED = [
    {
        "name": CONTAINER,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}},
    }
]
CASES: dict[str, tuple[list[dict[str, Any]], str, str]] = {
    "traceback": ([pod("a", code=1)], "a ended with exit code 1", "traceback"),
    "settings": (
        [pod("a", code=2)],
        "a ended with exit code 2",
        "say what to correct",
    ),
    "no mal": (
        [pod("a", code=127, reason_of_container="StartError")],
        "a ended with exit code 127 (StartError: )",
        "job.image",
    ),
    "shared memory": ([pod("a", code=135)], "a ended with exit code 135", "shm_size"),
    "killed": ([pod("a", code=137)], "a ended with exit code 137", "job.resources.memory"),
    "segmentation fault": ([pod("a", code=139)], "a ended with exit code 139", "driver"),
    "stopped": ([pod("a", code=143)], "a ended with exit code 143", "last checkpoint"),
    "killed, and the others stopped in the same second": (
        [pod("a", code=143), pod("b", code=137)],
        "b ended with exit code 137",
        "job.resources.memory",
    ),
    "unknown code": ([pod("a", code=77)], "a ended with exit code 77", "The lines below"),
    "out of memory": (
        [pod("a", code=137, reason_of_container="OOMKilled")],
        "a was OOMKilled (limit 32Gi, exit code 137)",
        "train.batch_size",
    ),
    "out of memory, restarted since": (
        [pod("a", containerStatuses=RESTARTED)],
        "a was OOMKilled (limit 32Gi, exit code 137)",
        "train.batch_size",
    ),
    "evicted": (
        [pod("a", reason="Evicted", message="low on memory")],
        "a was removed: Evicted: low on memory",
        "job.storage.cache_size",
    ),
    "preempted": (
        [pod("a", conditions=disrupted("PreemptionByScheduler"))],
        "a was removed: PreemptionByScheduler: why",
        "priority_class",
    ),
    "node lost": (
        [pod("a", conditions=disrupted("DeletionByTaintManager"))],
        "a was removed: DeletionByTaintManager: why",
        "node was lost",
    ),
    "the first to exit": (
        [pod("a", code=2, time="10:00:05"), pod("b", code=1, time="10:00:01")],
        "b ended with exit code 1",
        "traceback",
    ),
    "memory before an earlier exit": (
        [pod("a", code=2), pod("b", code=137, reason_of_container="OOMKilled", time="10:00:05")],
        "b was OOMKilled (limit 32Gi, exit code 137)",
        "train.batch_size",
    ),
    "a lost node before the exits that follow": (
        [pod("a", code=2), pod("b", code=143, conditions=disrupted("DeletionByTaintManager"))],
        "b was removed: DeletionByTaintManager: why",
        "node was lost",
    ),
    "another container": (
        [pod("a", containerStatuses=[KILLED_SIDECAR])],
        "why",
        "kubectl describe pod",
    ),
    "no pod left": ([], "why", "No pod of the job is left"),
}


def test_pods_that_explain_nothing_are_shown_with_their_containers() -> None:
    initializing = {"name": CONTAINER, "state": {"waiting": {"reason": "PodInitializing"}}}
    failure = find_failure(
        JobState(Phase.FAILED, "why"),
        [pod("a", containerStatuses=[initializing])],
        SMALL,
        CONTAINER,
    )
    assert failure.details == (f"a: Failed, {CONTAINER} waiting PodInitializing",)


@pytest.mark.parametrize("state", ["state", "lastState"])
def test_an_init_container_that_failed_is_named_with_its_age_and_message(state: str) -> None:
    ended = {
        "exitCode": 1, "startedAt": "2026-01-01T10:00:00Z", "finishedAt": "2026-01-01T10:03:24Z",
        "message": "no such host",
    }  # fmt: skip
    statuses = [{"name": "init-pytorch", state: {"terminated": ended}}]
    worker = pod("w-0", initContainerStatuses=statuses)
    failure = find_failure(
        JobState(Phase.FAILED, "1 Worker replica(s) failed"),
        [worker],
        SMALL,
        CONTAINER,
    )
    assert failure.what == (
        "the init container init-pytorch of w-0 ended with exit code 1 after 204 s: no such host"
    )
    assert (failure.pod, failure.container) == ("w-0", "init-pytorch")
    assert "--pytorch-init-container-max-tries" in failure.advice


@pytest.mark.parametrize(("pods", "what", "advice"), CASES.values(), ids=CASES)
def test_a_failure_names_its_first_cause_and_what_to_change(
    pods: list[dict[str, Any]], what: str, advice: str
) -> None:
    failure = find_failure(JobState(Phase.FAILED, "why"), pods, SMALL, CONTAINER)
    assert failure.what == what
    assert advice in failure.advice


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (
            "Job x has failed because it was active longer than specified deadline",
            "PyTorchJobFailed",
        ),
        ("TrainJob exceeded its active deadline", "DeadlineExceeded"),
    ],
)
def test_a_deadline_is_told_from_what_it_did_to_the_pods(message: str, reason: str) -> None:
    state = JobState(Phase.FAILED, message, reason)
    failure = find_failure(state, [pod("a", code=143)], SMALL, CONTAINER)
    assert failure.what == f"it ran longer than 604800 s ({message})"
    assert "job.lifetime.active_deadline_s" in failure.advice
