"""What the workers of a node leave for the process that started them."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from mal.distributed import NodeTopology
from mal.distributed.nodes import coordinated
from mal.errors import AnnotationError, ConnectionLostError, MalError, WorkerError
from mal.runtime import Interrupted, StopRequest
from mal.stages.launch import WorkerFiles, _run_workers

LOSS = ConnectionLostError("Rank 0 of 2 lost its connection to another rank")
CAUSE = AnnotationError("images must be there, got none.")
ENDS_WITH = """
import os, sys, time
from mal.distributed.workers import Worker
code = int(sys.argv[1 + Worker.current().local_rank])
if code == 2:
    time.sleep(1)  # a connection is lost once the process at its other end is gone
os.kill(os.getpid(), -code) if code < 0 else os._exit(code)
"""


@pytest.mark.parametrize(
    ("codes", "left", "expected"),
    [
        pytest.param((2, 2), {0: LOSS, 1: CAUSE}, CAUSE, id="one rank's error"),
        pytest.param((2, 2), {0: LOSS}, LOSS, id="another node's rank is gone"),
        pytest.param((143, 143), {}, Interrupted(signal.SIGTERM), id="stopped"),
        pytest.param((143, 2), {1: LOSS}, Interrupted(signal.SIGTERM), id="stopped in between"),
        pytest.param((2, 143), {0: CAUSE}, CAUSE, id="no room for the checkpoint of a stop"),
        pytest.param((-9, 2), {1: LOSS}, WorkerError("Rank 0 of 2 (node 0) was killed by SIGKILL"),
                     id="killed"),
        pytest.param((1, 2), {1: LOSS}, WorkerError("Rank 0 of 2 (node 0) failed with exit code 1"),
                     id="crashed"),
    ],
)  # fmt: skip
def test_the_cause_ends_the_node(
    codes: tuple[int, int],
    left: dict[int, MalError],
    expected: BaseException,
    tmp_path: Path,
) -> None:
    files = WorkerFiles(tmp_path)
    for rank, error in left.items():
        files.write_error(rank, error)
    command = [sys.executable, "-c", ENDS_WITH, *map(str, codes)]
    with (
        coordinated(NodeTopology(devices_per_node=2)) as nodes,
        pytest.raises(type(expected)) as caught,
    ):
        _run_workers(command, files, nodes, StopRequest())
    assert type(caught.value) is type(expected)
    assert str(caught.value).startswith(str(expected))
