"""What the API server does wrong in a week of training, one fault at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from stand_in import Fault, StandIn

from cluster.launching import Launch
from mal.cluster.api_errors import ServerUnreachableError
from mal.errors import ClusterError

JOBS = "/pytorchjobs"
SURVIVED = {
    "429 at the submission": Fault(JOBS, "POST", 429, headers={"Retry-After": "1"}),
    "500 at the submission": Fault(JOBS, "POST", 500, times=2),
    "503 while listing": Fault(JOBS, "GET", 503, times=2, is_watch=False),
    "504 while listing pods": Fault("/pods", "GET", 504, times=2),
    "a connection lost before the submission": Fault(JOBS, "POST"),
    "a connection lost after the submission": Fault(JOBS, "POST", after_handling=True),
    "a watch refused with 410": Fault(JOBS, status=410, is_watch=True),
    "a watch that is dropped at once": Fault(JOBS, times=2, is_watch=True),
    "a watch that is dropped in the middle": Fault(JOBS, is_watch=True, after_lines=0),
    "a log that cannot be opened": Fault("/log", times=2, status=500),
}


@pytest.mark.parametrize("fault", SURVIVED.values(), ids=SURVIVED)
def test_a_fault_that_passes_is_survived(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, fault: Fault
) -> None:
    cluster.api.faults.add(fault)
    started = launch()
    started.wait_for_line("rank 0")
    cluster.wait_until(lambda: fault.times == 0, "the fault")
    gate.touch()
    started.result()
    assert started.log_lines() == ["rank 0", "done"]
    assert len(cluster.objects("pytorchjobs")) == 1


def test_a_server_that_asks_for_time_gets_it(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    cluster.api.faults.add(Fault(JOBS, "POST", 429, headers={"Retry-After": "1"}))
    launch().result()
    first, second = cluster.api.calls_of("POST", JOBS)
    assert second.time - first.time >= 1


def count_watches(cluster: StandIn) -> int:
    return len([call for call in cluster.api.calls if "watch" in call.query])


def test_a_watch_whose_version_expired_goes_on_from_a_new_list(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch()
    started.wait_for_line("all pods run")
    for _ in range(3):
        num_watches = count_watches(cluster)
        cluster.api.store.forget_history()
        while count_watches(cluster) == num_watches:
            time.sleep(0.05)
    gate.touch()
    started.result()


@pytest.mark.parametrize("zone", ["Z", "+08:00"])
def test_a_log_is_logged_once_however_often_its_connection_is_lost(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path, zone: str
) -> None:
    started = launch(num_nodes=1)
    started.wait_for_line("rank 0")
    log = cluster.api.logs["team", "mal-7f3a9c12-ab12-master-0"]
    for after_lines in (0, 3, 2, 4):
        cluster.api.faults.add(Fault("/log", after_lines=after_lines))
    # Two lines of one moment; fractions with and without zeros at the end; one line out of order.
    moments = ["05.1", "05.12", "05.120", "05.123456789", "06.2", "06.1", "07.500000000"]
    for number, moment in enumerate(moments):
        log.write(f"line {number}", f"2099-01-01T00:00:{moment}{zone}")
    started.wait_for_line("line 6")
    gate.touch()
    log.write("last", f"2099-01-01T00:00:08{zone}")
    started.result()
    assert started.log_lines()[:9] == ["rank 0", *(f"line {n}" for n in range(7)), "last"]


def test_an_expired_token_is_read_again(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch()
    started.wait_for_line("all pods run")
    cluster.write_kubeconfig("token-2")
    cluster.api.tokens = {"token-2"}
    gate.touch()
    started.result()


def test_a_token_that_stays_invalid_is_an_error(
    cluster: StandIn, launch: Callable[..., Launch]
) -> None:
    cluster.api.tokens = {"another"}
    with pytest.raises(ClusterError, match=r"rejected the account's token, .*: 401"):
        launch().result()
    assert len(cluster.api.calls) == 2, "read again once"


def test_a_server_that_stays_away_leaves_the_job_for_the_next_try(
    cluster: StandIn, launch: Callable[..., Launch], gate: Path
) -> None:
    started = launch(patience_s=1)
    started.wait_for_line("all pods run")
    cluster.api.faults.add(Fault("/", times=1000))
    with pytest.raises(ServerUnreachableError, match="A retried step finds its job again"):
        started.result()
    cluster.api.faults.clear()
    assert not cluster.api.calls_of("DELETE")
    retried = launch()
    retried.wait_for_line("exists already")
    gate.touch()
    assert retried.result().attempt == 0
    assert len(cluster.objects("pytorchjobs")) == 1
