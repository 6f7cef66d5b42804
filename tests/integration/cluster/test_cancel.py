"""A step that receives a stop signal: a real process deletes its job first."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in import Fault, StandIn

from cluster.launching import JOB, LIMITS, RUN_ID
from mal.cluster import ClusterClient, get_job_kind, run_job

Step = subprocess.Popen[str]


@pytest.fixture
def step(cluster: StandIn) -> Iterator[Callable[[str], Step]]:
    processes: list[Step] = []
    tests = Path(__file__).parents[2]
    path = [str(tests / "integration"), str(tests / "support"), str(tests.parent)]

    def start(backend: str) -> Step:
        process = subprocess.Popen(
            [sys.executable, "-m", "cluster.step", backend],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_until_it_runs(step: Step) -> None:
    assert step.stdout is not None
    for line in step.stdout:
        if "all pods run" in line:
            return
    raise AssertionError("the step ended before its job ran")


@pytest.mark.parametrize("backend", ["pytorchjob", "trainjob"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_deletes_the_job_before_anything_else(
    cluster: StandIn,
    gate: Path,
    step: Callable[[str], Step],
    *,
    backend: str,
    number: signal.Signals,
    code: int,
) -> None:
    process = step(backend)
    wait_until_it_runs(process)
    (job,) = cluster.objects(f"{backend}s")
    process.send_signal(number)
    assert process.wait(10) == code
    (deletion,) = cluster.api.calls_of("DELETE")
    earlier = cluster.api.calls[: cluster.api.calls.index(deletion)]
    assert deletion.port in {call.port for call in earlier}, "on a connection that was open"
    assert deletion.path.endswith(f"/{backend}s/{JOB.name}")
    assert deletion.body["propagationPolicy"] == "Background"
    assert deletion.body["preconditions"] == {"uid": job["metadata"]["uid"]}
    assert cluster.objects(f"{backend}s") == []
    cluster.wait_until(lambda: cluster.pod_names() == [], "the pods go")
    assert all(run.process.poll() is not None for run in cluster.kubelet.runs.values())


def test_a_server_that_does_not_answer_does_not_hold_the_process(
    cluster: StandIn, gate: Path, step: Callable[[str], Step]
) -> None:
    process = step("pytorchjob")
    wait_until_it_runs(process)
    cluster.api.faults.add(Fault("/pytorchjobs", "DELETE", delay_s=30))
    signalled = time.monotonic()
    process.terminate()
    assert process.wait(20) == 143
    assert time.monotonic() - signalled < 10, "far below the server's 30 s"


def test_a_signal_during_the_submission_leaves_no_job(
    cluster: StandIn, gate: Path, step: Callable[[str], Step]
) -> None:
    cluster.api.faults.add(Fault("/pytorchjobs", "POST", delay_s=0.1, after_handling=True))
    process = step("pytorchjob")
    cluster.wait_until(lambda: bool(cluster.objects("pytorchjobs")), "the job is made")
    process.terminate()
    assert process.wait(10) == 143
    assert cluster.objects("pytorchjobs") == []


def test_signals_are_left_as_they_were_afterwards(cluster: StandIn) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run_job(
        JOB,
        kind=get_job_kind("pytorchjob"),
        run_id=RUN_ID,
        client=ClusterClient.connect(),
        limits=LIMITS,
        log=lambda line: None,
    )
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
