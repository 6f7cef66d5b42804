"""Starts, watches and ends the worker processes of a node.

`mal` is started once a node. It starts one worker for each device and only watches them: when a
worker fails the others are ended, and a signal is passed on. A worker reads its rank from a single
variable of our own, which no launcher and no library sets.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from mal.distributed.topology import NodeTopology
from mal.errors import ConnectionLostError, WorkerError

WORKER_VARIABLE = "MAL_WORKER"
PARENT_VARIABLE = "MAL_WORKER_PARENT"
END_GRACE_S = 20.0
POLL_INTERVAL_S = 0.1
EXIT_EXPLAINED = 2
_STOP_SIGNALS = {
    code: number
    for number in (signal.SIGINT, signal.SIGTERM)
    for code in (128 + number, -number)
}  # fmt: skip


@dataclass(frozen=True)
class Worker:
    """The rank of a process in its run.

    Attributes:
        local_rank: Rank on its node, from 0.
    """

    topology: NodeTopology = NodeTopology()
    local_rank: int = 0

    @property
    def rank(self) -> int:
        """Rank among all processes of the run."""
        return self.topology.node_rank * self.topology.devices_per_node + self.local_rank

    @property
    def num_ranks(self) -> int:
        """Processes of the run."""
        return self.topology.world_size

    @property
    def is_rank0(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return this process's rank; a process that is no worker is the only rank of its run."""
        text = environ.get(WORKER_VARIABLE)
        if not text:
            return cls()
        content = json.loads(text)
        return cls(NodeTopology(**content["topology"]), content["local_rank"])

    def environment(self) -> dict[str, str]:
        """Return the variables that `current` reads."""
        return {WORKER_VARIABLE: json.dumps(dataclasses.asdict(self))}


def is_worker(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by `run_workers`."""
    return bool(environ.get(WORKER_VARIABLE))


def run_workers(
    topology: NodeTopology,
    command: Sequence[str],
    received_signal: Callable[[], int | None] = lambda: None,
) -> int | None:
    """Start this node's workers and wait until all have exited.

    `received_signal` returns a signal to send to the workers, None while there is none; it raises
    to end them.

    Returns:
        The signal that stopped the workers, None if they finished.

    Raises:
        WorkerError: A worker failed; the others were ended.
    """
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **_environment(topology, local_rank)},
            start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
        )
        for local_rank in range(topology.devices_per_node)
    ]
    try:
        return _watch(processes, topology, received_signal)
    finally:
        _end_all(processes)


def _environment(topology: NodeTopology, local_rank: int) -> dict[str, str]:
    variables = Worker(topology, local_rank).environment()
    variables[PARENT_VARIABLE] = str(os.getpid())
    if topology.devices_per_node > 1 and not os.environ.get("OMP_NUM_THREADS"):
        # Each worker would start as many threads as the machine has cores.
        num_cores = len(os.sched_getaffinity(0))
        variables["OMP_NUM_THREADS"] = str(max(num_cores // topology.devices_per_node, 1))
    return variables


def end_with_parent(interval_s: float = 1.0) -> None:
    """Kill this process when the process that started it is gone."""
    parent = int(os.environ[PARENT_VARIABLE])

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _watch(
    processes: Sequence[subprocess.Popen[bytes]],
    topology: NodeTopology,
    received_signal: Callable[[], int | None],
) -> int | None:
    number: int | None = None
    while True:
        codes = [process.poll() for process in processes]
        # All workers stop together; others may still write the checkpoint.
        number = number or next((_STOP_SIGNALS[c] for c in codes if c in _STOP_SIGNALS), None)
        if None not in codes or (any(codes) and number is None):
            break
        if number is None and (number := received_signal()) is not None:
            for process in processes:
                process.send_signal(number)
        time.sleep(POLL_INTERVAL_S)
    if any(codes) and number is None:
        raise _failure(codes, topology)
    return number if any(codes) else None


def _failure(codes: Sequence[int | None], topology: NodeTopology) -> WorkerError:
    """Describe the worker that failed, and not one that only lost its connection to it."""
    failed = {rank: code for rank, code in enumerate(codes) if code}
    local_rank = min(failed, key=lambda rank: (failed[rank] == EXIT_EXPLAINED, failed[rank]))
    code = failed[local_rank]
    rank = Worker(topology, local_rank).rank
    name = f"Rank {rank} of {topology.world_size} (node {topology.node_rank})"
    if code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
        hint = " Did it run out of memory?" if -code == signal.SIGKILL else ""
    else:
        reason, hint = f"failed with exit code {code}", " The node's log says why."
    error_type = ConnectionLostError if code == EXIT_EXPLAINED else WorkerError
    return error_type(
        f"{name} {reason}.{hint} The other workers were ended. Run the same command on every node "
        "to continue from the last checkpoint."
    )


def _end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End running workers: SIGTERM first, then SIGKILL. A second signal does not stop this."""
    alive = [process for process in processes if process.poll() is None]
    for process in alive:
        process.terminate()
    deadline_s = time.monotonic() + END_GRACE_S
    for process in alive:
        try:
            process.wait(max(deadline_s - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
