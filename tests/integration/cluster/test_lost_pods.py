"""A pod that is lost: which one, since when, and the job starts again from its checkpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import StandIn
from stand_in.api import Call

from cluster.launching import IMAGE, JOB, WAITING_POD, Launch
from mal.cluster import Lifetime
from mal.errors import ClusterError

WORKER = f"{JOB.name}-worker-0"
CHECKPOINT = "The last checkpoint is mal_model_epoch_002_step_00213.pth in s3://bucket/run."


def test_a_worker_that_is_deleted_by_force_restarts_the_job_from_its_checkpoint(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch(find_checkpoint=lambda: CHECKPOINT)
    started.wait_for_line("all pods run")
    cluster.kubelet.delete_by_force(WORKER)
    started.wait_for_line("restart 1 of 2 (job.restarts)")
    gate.touch()
    started.result()
    assert re.search(
        rf"PyTorchJob team/{JOB.name} failed: the pod {WORKER} is gone since \d\d:\d\d:\d\d UTC\. "
        rf"It was deleted by force or its node was lost.*{re.escape(CHECKPOINT)}",
        started.text,
    )


def test_without_restarts_the_error_names_the_pod_and_the_checkpoint(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch(find_checkpoint=lambda: CHECKPOINT, restarts=0)
    started.wait_for_line("all pods run")
    cluster.kubelet.delete_by_force(WORKER)
    with pytest.raises(ClusterError, match=rf"the pod {WORKER} is gone since .*00213\.pth in s3"):
        started.result()
    assert cluster.objects("pytorchjobs") == []


def test_a_master_that_fails_because_a_worker_vanished_is_not_blamed(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    """The peers of a lost pod exit with an error of their own, often before the step looks."""
    started = launch(restarts=0)
    started.wait_for_line("all pods run")
    cluster.operators.are_running = False
    cluster.kubelet.delete_by_force(WORKER)
    deleted_at = len(cluster.api.calls)
    cluster.wait_until(lambda: has_looked(cluster.api.calls[deleted_at:]), "a whole look")
    cluster.kubelet.kill(f"{JOB.name}-master-0")
    cluster.operators.are_running = True
    with pytest.raises(ClusterError, match=rf"the pod {WORKER} is gone since"):
        started.result()


def has_looked(calls: list[Call]) -> bool:
    """Return whether the pods were read, then the job; the next watch begins after both."""
    reads = [number for number, call in enumerate(calls) if call.path.endswith("/pods")]
    return bool(reads) and any("watch" in call.query for call in calls[reads[0] :])


def test_restarts_have_an_end(cluster: StandIn, launch: Callable[..., Launch], gate: Path) -> None:
    started = launch(restarts=1)
    for number in range(2):
        started.wait_for_line("all pods run" if number == 0 else "restart 1 of 1")
        cluster.wait_until(
            lambda: [p["status"]["phase"] for p in cluster.objects("pods")] == ["Running"] * 2,
            "both pods run",
        )
        started.wait_for_line("all pods run", count=number + 1)
        cluster.kubelet.delete_by_force(WORKER)
    with pytest.raises(ClusterError, match="is gone since"):
        started.result()


def test_a_drained_worker_restarts_the_job(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    """Its process writes a checkpoint first, as long as its grace allows."""
    cluster.add_image(IMAGE, f"trap 'sleep 3; exit 143' TERM\n{WAITING_POD}")
    started = launch()
    started.wait_for_line("all pods run")
    cluster.kubelet.drain(WORKER)
    started.wait_for_line("restart 1 of 2")
    gate.touch()
    started.result()
    assert "EvictionByEvictionAPI" in started.text


def test_an_error_of_the_program_is_no_loss_and_not_restarted(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    cluster.add_image(IMAGE, "exit 2")
    started = launch()
    with pytest.raises(ClusterError, match="exit code 2"):
        started.result()
    assert "restart" not in started.text
    assert len(cluster.objects("pytorchjobs")) == 1


def test_pods_that_the_operator_restarts_are_left_to_it(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch(lifetime=Lifetime(restart_policy="OnFailure", backoff_limit=3))
    started.wait_for_line("all pods run")
    cluster.kubelet.delete_by_force(WORKER)
    reads = len(cluster.api.calls_of("GET", "/pods"))
    cluster.wait_until(
        lambda: len(cluster.api.calls_of("GET", "/pods")) > reads + 4, "four looks at the pods"
    )
    gate.touch()
    started.result()
    assert "is gone since" not in started.text


def test_an_init_container_that_gives_up_is_named_with_its_age_and_log(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    """The master's image takes longer than the worker's init container waits for its name."""
    cluster.kubelet.init_interval_s = 0.03
    cluster.kubelet.is_making_containers = True
    started = launch()
    started.wait_for_line(f"{WORKER}: the init container init-pytorch runs for ")
    started.wait_for_line("its last line: waiting for master")
    with pytest.raises(ClusterError) as failed:
        started.result()
    text = str(failed.value)
    assert f"the init container init-pytorch of {WORKER} ended with exit code 1" in text
    assert "--pytorch-init-container-max-tries" in text
    assert text.endswith(f"The last lines of init-pytorch of {WORKER}:\nwaiting for master")
    assert "pods are gone" not in text


def test_a_job_beyond_its_deadline_is_ended_by_the_step(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    """The operator v1 does not: `activeDeadlineSeconds` alone would let it run for ever."""
    cluster.add_image(IMAGE, WAITING_POD)
    started = launch(lifetime=Lifetime(active_deadline_s=2), find_checkpoint=lambda: CHECKPOINT)
    with pytest.raises(ClusterError, match=r"ran longer than 2 s\. Raise .*00213\.pth"):
        started.result()
    assert cluster.objects("pytorchjobs") == []
