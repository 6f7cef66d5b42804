"""A step whose pod is evicted leaves its job to the next try; Terminate ends it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import Fault, StandIn
from stand_in.workflow import StepOfWorkflow

from cluster.launching import JOB, RUN_ID, Launch
from mal.cluster import ClusterClient, Resources, StepPod
from mal.errors import ClusterError

BACKENDS = ["pytorchjob", "trainjob"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_evicted_step_leaves_its_job_to_the_next_try(
    cluster: StandIn, gate: Path, backend: str
) -> None:
    with StepOfWorkflow(cluster, ["-m", "cluster.step", backend]) as step:
        step.wait_for_line("all pods run")
        (job,) = cluster.objects(f"{backend}s")
        step.evict()
        assert step.tries[0].returncode == 143
        assert step.tries[0].stdout is not None
        assert "continues, and the step's next try watches it" in step.tries[0].stdout.read()
        step.wait_for_line("exists already: waiting for it")
        gate.touch()
        assert step.wait() == 0
        assert len(step.tries) == 2
    assert cluster.objects(f"{backend}s")[0]["metadata"]["uid"] == job["metadata"]["uid"]
    assert cluster.api.calls_of("DELETE") == []


def test_a_terminated_step_deletes_its_job_and_says_so(cluster: StandIn, gate: Path) -> None:
    with StepOfWorkflow(cluster, ["-m", "cluster.step", "pytorchjob"]) as step:
        step.wait_for_line("all pods run")
        step.terminate()
        assert step.wait() == 143
        assert step.phase == "Failed"
        assert step.tries[0].stdout is not None
        assert f"received SIGTERM: PyTorchJob team/{JOB.name} was deleted" in (
            step.tries[0].stdout.read()
        )
    assert cluster.objects("pytorchjobs") == []
    cluster.wait_until(lambda: cluster.pod_names() == ["run-7f3a-step-0"], "the job's pods go")


def test_a_terminated_step_whose_pod_cannot_be_read_deletes_its_job(
    cluster: StandIn, gate: Path
) -> None:
    with StepOfWorkflow(cluster, ["-m", "cluster.step", "pytorchjob"]) as step:
        step.wait_for_line("all pods run")
        cluster.api.faults.add(Fault("/pods", "GET", 503, times=1000))
        step.terminate()
        assert step.wait() == 143
    assert cluster.objects("pytorchjobs") == []


def test_the_job_belongs_to_the_workflow_and_goes_with_it(cluster: StandIn, gate: Path) -> None:
    with StepOfWorkflow(cluster, ["-m", "cluster.step", "pytorchjob"]) as step:
        step.wait_for_line("all pods run")
        (job,) = cluster.objects("pytorchjobs")
        (owner,) = job["metadata"]["ownerReferences"]
        assert (owner["kind"], owner["uid"]) == ("Workflow", step.workflow["metadata"]["uid"])
        assert "blockOwnerDeletion" not in owner, "it would need the right to update finalizers"
        step.tries[0].kill()  # no signal handler runs
        step.delete()
    assert cluster.objects("pytorchjobs") == []


def test_a_step_that_may_not_read_its_pod_owns_the_job_by_that_pod(cluster: StandIn) -> None:
    cluster.api.rights.remove("list /pods")
    lines: list[str] = []
    owner = StepPod("team", "try-1", "u-1").find_owner(ClusterClient.connect(), lines.append)
    assert (owner.kind, owner.name, owner.uid) == ("Pod", "try-1", "u-1")
    assert "the job belongs to this step's pod and is deleted with it" in lines[0]


def test_a_job_with_other_settings_is_not_continued(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    launch().wait_for_line("all pods run")
    other = Resources(gpus_per_node=0, cpu="2", memory="4Gi", shm_size="1Gi")
    with pytest.raises(ClusterError, match="an earlier try of this step started it with other"):
        launch(resources=other, run_id=RUN_ID).result()
    second = launch(restarts=7)
    second.wait_for_line("exists already")
    gate.touch()
    second.result()
