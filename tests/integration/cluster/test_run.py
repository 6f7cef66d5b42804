"""A job from its submission to its success, for either operator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import StandIn

from cluster.launching import RUN_ID, Launch
from mal.cluster import Environment, Placement, SecretKey, WaitLimits

BACKENDS = {"pytorchjob": "pytorchjobs", "trainjob": "trainjobs"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_runs_and_rank_0s_log_is_streamed(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    started = launch(backend=backend)
    started.wait_for_line("all pods run")
    started.wait_for_line("rank 0")
    gate.touch()
    finished = started.result()
    assert started.log_lines() == ["rank 0", "done"]
    (job,) = cluster.objects(BACKENDS[backend])
    assert job["metadata"]["labels"]["mal.kubeflow.org/run-id"] == RUN_ID
    assert (finished.kind, finished.namespace, finished.name) == (
        job["kind"],
        "team",
        "mal-7f3a9c12-ab12",
    )
    assert (finished.uid, finished.attempt) == (job["metadata"]["uid"], 0)
    assert finished.duration_s >= 0


OPERATOR_VARIABLES: dict[str, dict[str, str | None]] = {
    "pytorchjob": {
        "PYTHONUNBUFFERED": "1",
        "MASTER_PORT": "23456",
        "PET_MASTER_PORT": "23456",
        "MASTER_ADDR": "mal-7f3a9c12-ab12-master-0",
        "PET_MASTER_ADDR": "mal-7f3a9c12-ab12-master-0",
        "WORLD_SIZE": "2",
        "RANK": "1",
        "PET_NODE_RANK": "1",
        "PET_NPROC_PER_NODE": "auto",
        "PET_NNODES": "2",
    },
    "trainjob": {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": "1",
        "PET_NODE_RANK": None,
        "PET_MASTER_ADDR": "mal-7f3a9c12-ab12-node-0-0.mal-7f3a9c12-ab12",
        "PET_MASTER_PORT": "29500",
        "JOB_COMPLETION_INDEX": None,
    },
}


@pytest.mark.parametrize("backend", BACKENDS)
def test_pods_have_the_operators_variables_behind_their_own(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    cluster.add_object("secrets", {"metadata": {"name": "s3"}, "stringData": {"key": "value-1"}})
    environment = Environment(
        values={"LITERAL": "$(RANK) $$"},
        secrets={"TOKEN": SecretKey(secret="s3", key="key")},
        config_map="absent-and-optional",
    )
    started = launch(backend=backend, environment=environment)
    started.wait_for_line("all pods run")
    pod = cluster.objects("pods")[1]
    container = pod["spec"]["containers"][0]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    theirs = OPERATOR_VARIABLES[backend]
    assert list(variables)[-len(theirs) :] == list(theirs)
    assert {name: variables[name] for name in theirs} == theirs
    process = cluster.kubelet.runs[pod["metadata"]["name"]].variables
    assert process["PET_NODE_RANK"] == "1"
    assert (process["LITERAL"], process["TOKEN"]) == ("$(RANK) $$", "value-1")
    assert "AWS_REGION" not in process
    assert "value-1" not in str(cluster.objects(BACKENDS[backend]))
    gate.touch()
    started.result()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_held_by_kueue_waits_without_using_up_its_time_to_start(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    cluster.queue_message = "couldn't assign flavors to pod set: insufficient unused quota"
    started = launch(
        backend=backend,
        placement=Placement(queue_name="gold"),
        limits=WaitLimits(start_timeout_s=2, poll_interval_s=1),
    )
    started.wait_for_line("waits in queue gold: couldn't assign flavors to pod set")
    looks = len(cluster.api.calls_of("GET", "workloads"))
    cluster.wait_until(
        lambda: len(cluster.api.calls_of("GET", "workloads")) > looks + 3, "longer than the limit"
    )
    assert cluster.pod_names() == []
    cluster.admit_queued()
    started.wait_for_line("all pods run")
    gate.touch()
    started.result()
    assert started.text.count("waits in queue gold") == 1
