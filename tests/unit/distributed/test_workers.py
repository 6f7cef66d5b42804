"""Workers are real processes here: they start together and end together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mal.distributed import NodeTopology
from mal.distributed.workers import Worker, _failure, is_worker, run_workers
from mal.errors import ConnectionLostError, WorkerError

TOPOLOGY = NodeTopology(num_nodes=2, node_rank=1, devices_per_node=2)
WRITES_ITS_RANK = """
import sys, pathlib
from mal.distributed.workers import Worker
worker = Worker.current()
pathlib.Path(sys.argv[1], str(worker.rank)).write_text(str(worker.num_ranks))
"""
FAILS_OR_SLEEPS = """
import sys, time, os, signal
from mal.distributed.workers import Worker
if Worker.current().local_rank == 1:
    {failure}
time.sleep(60)
"""


def python(code: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", code, *arguments]


def test_alone_a_process_is_the_first_and_only_one() -> None:
    assert Worker.current({}) == Worker()
    assert Worker().is_rank0
    assert Worker().num_ranks == 1
    assert not is_worker({})


def test_each_worker_knows_its_rank(tmp_path: Path) -> None:
    run_workers(TOPOLOGY, python(WRITES_ITS_RANK, str(tmp_path)))
    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert written == {"2": "4", "3": "4"}


def test_a_rank_survives_the_environment() -> None:
    worker = Worker(TOPOLOGY, 1)
    assert Worker.current(worker.environment()) == worker
    assert is_worker(worker.environment())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("sys.exit(3)", "Rank 3 of 4 (node 1) failed with exit code 3. The node's log"),
        ("os.kill(os.getpid(), 9)", "Rank 3 of 4 (node 1) was killed by SIGKILL. Did it run out"),
    ],
)
def test_a_failed_worker_ends_the_others(failure: str, message: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(WorkerError) as caught:
        run_workers(TOPOLOGY, python(FAILS_OR_SLEEPS.format(failure=failure)))
    assert str(caught.value).startswith(message)
    assert time.monotonic() - started_s < 30


def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    code = """
import pathlib, signal, sys, time
from mal.distributed.workers import Worker
def stop(*_):
    time.sleep(0.5)
    pathlib.Path(sys.argv[1], str(Worker.current().rank)).write_text("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
pathlib.Path(sys.argv[1], f"ready {Worker.current().rank}").touch()
time.sleep(60)
"""

    def received() -> int | None:
        are_ready = len(list(tmp_path.glob("ready *"))) == 2
        return signal.SIGTERM if are_ready else None

    assert run_workers(TOPOLOGY, python(code, str(tmp_path)), received) == signal.SIGTERM
    assert {path.name for path in tmp_path.iterdir()} >= {"2", "3"}


def test_one_that_was_stopped_leaves_the_others_the_time_to_write(tmp_path: Path) -> None:
    # Ranks agree on a stop; then only the first one has a checkpoint to bring away.
    code = """
import pathlib, signal, sys, time
from mal.distributed.workers import Worker
if Worker.current().local_rank == 1:
    sys.exit(143)
time.sleep(1)
pathlib.Path(sys.argv[1], "written").touch()
sys.exit(143)
"""
    assert run_workers(TOPOLOGY, python(code, str(tmp_path))) == signal.SIGTERM
    assert (tmp_path / "written").exists()


def test_finished_is_finished_whatever_signal_came_late() -> None:
    code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(0.5)"
    started_s = time.monotonic()

    def received() -> int | None:
        return signal.SIGTERM if time.monotonic() - started_s > 0.3 else None

    assert run_workers(NodeTopology(), python(code), received) is None


def test_workers_need_not_go_on_when_another_node_failed() -> None:
    def raise_failure() -> int | None:
        raise WorkerError("node 0 failed: no room")

    with pytest.raises(WorkerError, match="node 0 failed: no room"):
        run_workers(TOPOLOGY, python("import time; time.sleep(60)"), raise_failure)


def test_the_cause_is_named_and_not_what_followed_of_it() -> None:
    codes: list[tuple[list[int | None], str, type[WorkerError]]] = [
        ([2, -9], "Rank 3 of 4 (node 1) was killed by SIGKILL", WorkerError),
        ([1, 2], "Rank 2 of 4 (node 1) failed with exit code 1", WorkerError),
        ([2, None], "Rank 2 of 4 (node 1) failed with exit code 2", ConnectionLostError),
    ]
    for ends, message, error_type in codes:
        failure = _failure(ends, TOPOLOGY)
        assert str(failure).startswith(message)
        assert type(failure) is error_type


def test_workers_end_when_the_process_that_watches_them_is_killed(tmp_path: Path) -> None:
    worker = """
import json, os, pathlib, sys, time
from mal.distributed.workers import Worker, end_with_parent
end_with_parent(0.1)
pathlib.Path(sys.argv[1], str(Worker.current().rank)).write_text(json.dumps(os.getpid()))
time.sleep(60)
"""
    watcher = f"""
import sys
from mal.distributed import NodeTopology
from mal.distributed.workers import run_workers
run_workers(NodeTopology(devices_per_node=2), [sys.executable, "-c", {worker!r}, {str(tmp_path)!r}])
"""
    process = subprocess.Popen(python(watcher))
    deadline_s = time.monotonic() + 30
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline_s:
        time.sleep(0.05)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    pids = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert len(pids) == 2
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    assert not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"
