from __future__ import annotations

from typing import Any

import pytest

from mal.cluster import PYTORCHJOB, TRAINJOB, JobKind
from mal.cluster.job_kind import Phase

CREATED = "2026-01-01T00:00:00Z"
STARTED = "2026-01-01T01:00:00Z"
ENDED = "2026-01-01T02:00:00Z"


def condition(kind: str, value: str = "True", time: str = ENDED, **more: str) -> dict[str, str]:
    return {"type": kind, "status": value, "lastTransitionTime": time, **more}


def job(status: dict[str, Any] | None, spec: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"metadata": {"creationTimestamp": CREATED}, "spec": spec}
    return made if status is None else {**made, "status": status}


RUNNING: dict[str, Any] = {"runPolicy": {}}
SUSPENDED: dict[str, Any] = {"runPolicy": {"suspend": True}, "suspend": True}
TIMES = {"startTime": STARTED, "completionTime": ENDED}
STATES = {
    "v1 unseen by its operator": (PYTORCHJOB, job(None, RUNNING), Phase.ACTIVE, 0),
    "v1 suspended": (PYTORCHJOB, job({}, SUSPENDED), Phase.SUSPENDED, 0),
    "v1 resumed": (
        PYTORCHJOB,
        job({"conditions": [condition("Suspended", "False")]}, RUNNING),
        Phase.ACTIVE,
        0,
    ),
    "v1 restarting": (
        PYTORCHJOB,
        job({"conditions": [condition("Running", "False"), condition("Restarting")]}, RUNNING),
        Phase.ACTIVE,
        0,
    ),
    "v1 succeeded": (
        PYTORCHJOB,
        job(
            {"conditions": [condition("Running", "False"), condition("Succeeded")], **TIMES},
            RUNNING,
        ),
        Phase.SUCCEEDED,
        3600,
    ),
    "v1 failed": (
        PYTORCHJOB,
        job({"conditions": [condition("Failed", message="1 Worker")], **TIMES}, RUNNING),
        Phase.FAILED,
        3600,
    ),
    "v2 unseen": (TRAINJOB, job(None, {}), Phase.ACTIVE, 0),
    "v2 suspended": (TRAINJOB, job({}, SUSPENDED), Phase.SUSPENDED, 0),
    "v2 complete": (
        TRAINJOB,
        job({"conditions": [condition("Complete")]}, {}),
        Phase.SUCCEEDED,
        7200,
    ),
    "v2 complete after a queue": (
        TRAINJOB,
        job({"conditions": [condition("Suspended", "False", STARTED), condition("Complete")]}, {}),
        Phase.SUCCEEDED,
        3600,
    ),
    "v2 failed": (TRAINJOB, job({"conditions": [condition("Failed")]}, {}), Phase.FAILED, 7200),
}


@pytest.mark.parametrize(("kind", "made", "phase", "duration_s"), STATES.values(), ids=STATES)
def test_a_jobs_status_is_read_whatever_its_kind(
    kind: JobKind, made: dict[str, Any], phase: Phase, duration_s: float
) -> None:
    state = kind.read_state(made)
    assert (state.phase, state.duration_s) == (phase, duration_s)
    assert state.is_finished == (phase in (Phase.SUCCEEDED, Phase.FAILED))


@pytest.mark.parametrize(
    ("kind", "labels", "rank"),
    [
        (
            PYTORCHJOB,
            {
                "training.kubeflow.org/job-role": "master",
                "training.kubeflow.org/replica-index": "0",
            },
            0,
        ),
        (PYTORCHJOB, {"training.kubeflow.org/replica-index": "2"}, 3),
        (TRAINJOB, {"batch.kubernetes.io/job-completion-index": "3"}, 3),
    ],
    ids=["master", "worker", "node"],
)
def test_a_pods_rank_is_that_of_its_node(kind: JobKind, labels: dict[str, str], rank: int) -> None:
    assert kind.pods is not None
    assert kind.pods.rank({"metadata": {"labels": labels}}) == rank
