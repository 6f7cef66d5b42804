"""What a retried step takes over: its running job's owner, and the end of its old pods."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stand_in import Fault, StandIn

from cluster.katib_searching import TRIAL_IMAGE, search
from cluster.launching import IMAGE, JOB, WAITING_POD, Launch
from mal.cluster import Lifetime, Owner, retry
from mal.errors import ClusterError

BACKENDS = ["pytorchjob", "trainjob"]
WORKFLOW = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "run", "uid": "w-1"}


@pytest.fixture
def pods(cluster: StandIn) -> list[Any]:
    """The pods of a step's first and second try."""
    return [cluster.add_step_pod(name) for name in ("try-1", "try-2")]


def owner_of(pod: Any) -> Owner:
    return Owner(name=pod["metadata"]["name"], uid=pod["metadata"]["uid"])


def owners(cluster: StandIn, plural: str) -> list[str]:
    (made,) = cluster.objects(plural)
    return [each["name"] for each in made["metadata"].get("ownerReferences", ())]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_outlives_the_pod_of_the_try_that_made_it(
    cluster: StandIn,
    launch: Callable[..., Launch],
    gate: Path,
    pods: list[Any],
    *,
    backend: str,
) -> None:
    launch(backend=backend, owner=owner_of(pods[0])).wait_for_line("all pods run")
    assert owners(cluster, f"{backend}s") == ["try-1"]
    second = launch(backend=backend, owner=owner_of(pods[1]))
    second.wait_for_line("exists already")
    assert owners(cluster, f"{backend}s") == ["try-2"]
    cluster.api.store.remove("pods", pods[0])
    second.wait_for_line("all pods run")
    gate.touch()
    assert second.result().attempt == 0
    cluster.api.store.remove("pods", pods[1])
    assert cluster.objects(f"{backend}s") == [], "the job goes with the step that waited for it"


def test_owners_that_are_no_pods_of_the_step_stay(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, pods: list[Any]
) -> None:
    launch(owner=owner_of(pods[0])).wait_for_line("all pods run")
    (job,) = cluster.objects("pytorchjobs")
    cluster.api.store.change(
        "pytorchjobs", job, lambda each: each["metadata"]["ownerReferences"].insert(0, WORKFLOW)
    )
    for _ in range(2):
        launch(owner=owner_of(pods[1])).wait_for_line("exists already")
    assert owners(cluster, "pytorchjobs") == ["run", "try-2"]
    assert len(cluster.api.calls_of("PATCH")) == 1, "nothing is left to change for the second"
    gate.touch()


def test_a_rejected_adoption_is_logged_and_the_training_continues(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, pods: list[Any]
) -> None:
    launch(owner=owner_of(pods[0])).wait_for_line("all pods run")
    cluster.api.faults.add(Fault("/pytorchjobs", "PATCH", 403, message="forbidden: x cannot patch"))
    second = launch(owner=owner_of(pods[1]))
    second.wait_for_line("all pods run")
    gate.touch()
    second.result()
    assert f"{JOB.name} still belongs to the pod of the step's earlier attempt" in second.text
    assert "may not patch pytorchjobs.kubeflow.org" in second.text
    assert owners(cluster, "pytorchjobs") == ["try-1"]


def test_a_retried_search_makes_its_pod_the_owner_of_the_experiment(
    cluster: StandIn, gate: Path, pods: list[Any]
) -> None:
    cluster.add_image(IMAGE, TRIAL_IMAGE)
    Launch(search, owner=owner_of(pods[0]))
    cluster.wait_until(lambda: bool(cluster.kubelet.runs), "a trial runs")
    second = Launch(search, owner=owner_of(pods[1]))
    second.wait_for_line("exists already")
    assert owners(cluster, "experiments") == ["try-2"]
    cluster.api.store.remove("pods", pods[0])
    gate.touch()
    second.result()


def test_the_next_attempt_waits_until_the_pods_of_the_last_one_have_ended(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    """A failed job whose policy keeps its pods: rank 1 goes on writing."""
    cluster.add_image(IMAGE, f'[ "$PET_NODE_RANK" = 1 ] || exit 1\n{WAITING_POD}')
    with pytest.raises(ClusterError, match="exit code 1"):
        launch(lifetime=Lifetime(clean_pod_policy="None")).result()
    cluster.add_image(IMAGE, "exit 0")
    second = launch()
    survivor = f"{JOB.name}-worker-0"
    second.wait_for_line(f"waits for the end of pods that still write to the outputs: {survivor}")
    assert len(cluster.objects("pytorchjobs")) == 1
    gate.touch()
    assert second.result().attempt == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_job_waits_for_the_pods_of_one_that_was_deleted(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    """As after a cancelled run: the job's object is gone, its pods have their grace."""
    cluster.add_image(IMAGE, f"trap '' TERM\n{WAITING_POD}")
    first = launch(backend=backend)
    first.wait_for_line("all pods run")
    (job,) = cluster.objects(f"{backend}s")
    cluster.api.store.delete(f"{backend}s", job)
    with pytest.raises(ClusterError, match="was deleted before it ended"):
        first.result()
    second = launch(backend=backend)
    second.wait_for_line("waits for the end of pods")
    assert cluster.objects(f"{backend}s") == []
    gate.touch()
    second.result()


def test_pods_that_never_end_are_an_error_that_names_them(
    cluster: StandIn,
    launch: Callable[..., Launch],
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retry, "_BEYOND_GRACE_S", 0)
    cluster.add_image(IMAGE, f'[ "$PET_NODE_RANK" = 1 ] || exit 1\n{WAITING_POD}')
    lifetime = Lifetime(clean_pod_policy="None", termination_grace_s=1)
    with pytest.raises(ClusterError, match="exit code 1"):
        launch(lifetime=lifetime).result()
    with pytest.raises(ClusterError, match=r"still run after 1 s: .*-worker-0"):
        launch(lifetime=lifetime).result()
    assert len(cluster.objects("pytorchjobs")) == 1


def test_pods_that_may_not_be_listed_are_logged_and_not_waited_for(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    cluster.api.faults.add(Fault("/pods", "GET", 403, message="forbidden: x cannot list"))
    started = launch()
    started.result()
    assert "cannot check whether pods of an earlier job still run" in started.text
