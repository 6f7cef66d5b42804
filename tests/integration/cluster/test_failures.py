"""A job that failed: which pod, how, its last lines, and what to change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import StandIn

from cluster.launching import IMAGE, Launch
from mal.cluster import Lifetime
from mal.errors import ClusterError

BACKENDS = ["pytorchjob", "trainjob"]
FAILING = 'for n in $(seq 60); do echo "line $n"; done; exit {code}'


def failure(started: Launch) -> str:
    with pytest.raises(ClusterError) as raised:
        started.result()
    return str(raised.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (1, "The lines below have the traceback."),
        (2, "The lines below say what to correct."),
        (135, "/dev/shm was full: raise job.resources.shm_size."),
    ],
)
def test_a_failed_job_ends_with_exit_code_advice_and_the_last_50_lines(
    cluster: StandIn, launch: Callable[..., Launch], backend: str, code: int, advice: str
) -> None:
    cluster.add_image(IMAGE, FAILING.format(code=code))
    text = failure(launch(backend=backend, num_nodes=1))
    first, title, *lines = text.splitlines()
    (pod,) = cluster.pod_names()
    assert first.endswith(f"failed: {pod} ended with exit code {code}. {advice}")
    assert first.startswith(("PyTorchJob team/mal-7f3a9c12-ab12", "TrainJob team/mal-7f3a9c12"))
    assert title == f"The last lines of {pod}:"
    assert lines == [f"line {n}" for n in range(11, 61)]


def test_a_worker_out_of_memory_is_blamed_and_not_those_that_miss_it(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch(num_nodes=3)
    started.wait_for_line("all pods run")
    cluster.operators.are_running = False  # until all pods have ended
    cluster.kubelet.kill("mal-7f3a9c12-ab12-master-0")
    cluster.kubelet.kill("mal-7f3a9c12-ab12-worker-1", is_out_of_memory=True)
    cluster.wait_until(
        lambda: [p["status"]["phase"] for p in cluster.objects("pods")].count("Failed") == 2,
        "two pods end",
    )
    cluster.operators.are_running = True
    text = failure(started)
    assert (
        "failed: mal-7f3a9c12-ab12-worker-1 was OOMKilled (limit 4Gi, exit code 137). Lower "
        "train.batch_size or raise job.resources.memory." in text
    )
    assert text.splitlines()[1:] == ["The last lines of mal-7f3a9c12-ab12-worker-1:", "rank 2"]
    cluster.wait_until(
        lambda: "mal-7f3a9c12-ab12-worker-0" not in cluster.pod_names(), "the survivor goes"
    )
    assert "mal-7f3a9c12-ab12-worker-1" in cluster.pod_names(), "its log can still be read"


def test_a_killed_pod_is_distinguished_from_one_that_failed(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch()
    started.wait_for_line("all pods run")
    cluster.kubelet.kill("mal-7f3a9c12-ab12-worker-0")
    assert "worker-0 ended with exit code 137. It was killed from outside" in failure(started)


def test_an_evicted_pod_is_reported_with_the_nodes_words(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch(restarts=0)
    started.wait_for_line("all pods run")
    cluster.kubelet.evict("mal-7f3a9c12-ab12-worker-0", "The node was low on ephemeral-storage")
    expected = "worker-0 was removed: Evicted: The node was low on ephemeral-storage. Raise"
    assert expected in failure(started)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_past_its_deadline_says_so(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    started = launch(backend=backend, lifetime=Lifetime(active_deadline_s=1))
    text = failure(started)
    assert "failed: it ran longer than 1 s" in text
    assert "Raise job.lifetime.active_deadline_s." in text
    cluster.wait_until(lambda: cluster.pod_names() == [], "the pods go")


def test_an_operator_that_deletes_failed_pods_leaves_what_was_seen(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    lifetime = Lifetime(restart_policy="OnFailure", backoff_limit=1)
    started = launch(lifetime=lifetime)
    started.wait_for_line("rank 0")
    cluster.kubelet.kill("mal-7f3a9c12-ab12-master-0")
    text = failure(started)
    assert "failed: " in text
    assert text.splitlines()[-1] == "rank 0"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_job_that_another_client_deletes_is_an_error(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, backend: str
) -> None:
    started = launch(backend=backend)
    started.wait_for_line("all pods run")
    plural = f"{backend}s"
    cluster.api.store.delete(plural, cluster.objects(plural)[0])
    assert "was deleted before it ended. Run the step again" in failure(started)


def test_an_image_without_mal_is_named(cluster: StandIn, launch: Callable[..., Launch]) -> None:
    (cluster.kubelet.images[IMAGE] / "mal").unlink()
    text = failure(launch(num_nodes=1))
    assert 'exit code 127 (StartError: exec: "mal": not found). Correct job.image' in text


def test_a_failure_of_the_launcher_itself_deletes_the_job(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch()
    started.wait_for_line("all pods run")
    (job,) = cluster.objects("pytorchjobs")
    spoiled = {"conditions": [{"type": "Succeeded", "status": "True"}], "startTime": "no time"}
    cluster.api.store.change("pytorchjobs", job, lambda each: each.update(status=spoiled))
    with pytest.raises(ValueError, match="no time"):
        started.result()
    assert cluster.objects("pytorchjobs") == []
