"""A step that is tried again: never two jobs for it, and never another one's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import StandIn

from cluster.launching import IMAGE, JOB, RUN_ID, Launch
from mal.errors import ClusterError

BACKENDS = ["pytorchjob", "trainjob"]


def names(cluster: StandIn) -> list[str]:
    jobs = [*cluster.objects("pytorchjobs"), *cluster.objects("trainjobs")]
    return sorted(job["metadata"]["name"] for job in jobs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_retried_step_waits_for_the_job_that_runs(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    first = launch(backend=backend)
    first.wait_for_line("all pods run")
    second = launch(backend=backend)
    second.wait_for_line("exists already")
    second.wait_for_line("rank 0")
    gate.touch()
    assert first.result() == second.result()
    assert names(cluster) == [JOB.name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_retried_step_adopts_the_job_that_succeeded(
    cluster: StandIn, launch: Callable[..., Launch], backend: str
) -> None:
    finished = launch(backend=backend).result()
    cluster.add_image(IMAGE, "exit 1")
    assert launch(backend=backend).result() == finished
    assert names(cluster) == [JOB.name]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_failed_job_is_followed_by_the_next_attempt(
    cluster: StandIn, launch: Callable[..., Launch], backend: str
) -> None:
    cluster.add_image(IMAGE, "exit 1")
    for _ in range(2):
        with pytest.raises(ClusterError, match="exit code 1"):
            launch(backend=backend).result()
    cluster.add_image(IMAGE, "exit 0")
    third = launch(backend=backend)
    finished = third.result()
    assert (finished.name, finished.attempt) == (f"{JOB.name}-r2", 2)
    third.wait_for_line(f"{JOB.name}-r1 failed or was deleted before: this is attempt 2")
    assert names(cluster) == [JOB.name, f"{JOB.name}-r1", f"{JOB.name}-r2"]


def test_a_later_attempt_is_found_when_the_first_has_been_deleted(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    gate.touch()
    cluster.add_image(IMAGE, "exit 1")
    with pytest.raises(ClusterError):
        launch().result()
    gate.unlink()
    cluster.add_image(IMAGE, 'while [ ! -e "$GATE" ]; do sleep 0.05; done')
    second = launch()
    second.wait_for_line("all pods run")
    (first,) = [j for j in cluster.objects("pytorchjobs") if j["metadata"]["name"] == JOB.name]
    cluster.api.store.delete("pytorchjobs", first)
    third = launch()
    third.wait_for_line("exists already")
    gate.touch()
    assert third.result() == second.result()
    assert names(cluster) == [f"{JOB.name}-r1"]


def test_launchers_that_start_together_make_one_job(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    launchers = [launch() for _ in range(4)]
    for each in launchers:
        each.wait_for_line("all pods run")
    gate.touch()
    assert len({each.result() for each in launchers}) == 1
    assert names(cluster) == [JOB.name]


@pytest.mark.parametrize(
    "changes",
    [{"run_id": "7f3a9c12-another-run"}, {"outputs_uri": "s3://bucket/another-step"}],
    ids=["run", "step"],
)
def test_the_job_of_another_run_or_step_is_left_alone(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, changes: dict[str, str]
) -> None:
    other = launch(**changes)
    other.wait_for_line("all pods run")
    with pytest.raises(ClusterError, match=r"another run or step has a PyTorchJob of this name"):
        launch(run_id=RUN_ID).result()
    gate.touch()
    other.result()


def test_a_job_of_a_name_that_begins_with_the_same_letters_is_no_attempt(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    launch(name=f"{JOB.name}-run").result()
    assert launch().result().name == JOB.name


def test_a_run_may_be_named_by_what_is_no_label(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    finished = launch(run_id="s3://bucket/run:1/model").result()
    assert launch(run_id="s3://bucket/run:1/model").result() == finished
    with pytest.raises(ClusterError, match=r"another run or step has a PyTorchJob"):
        launch(run_id="s3://bucket/run:2/model").result()
