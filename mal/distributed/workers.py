"""The processes of a node: started, watched, and ended together.

`mal` is started once a node. It starts one worker for each device and does nothing but watch: a
worker that fails takes the others with it, a signal is passed on, and the first worker's result is
what the call returns. A worker knows its place by one variable, so that nothing that a launcher or
a library sets can be mistaken for it.
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
    """A process's place in its run.

    Attributes:
        topology: The nodes.
        local_rank: On its node, from 0.
    """

    topology: NodeTopology = NodeTopology()
    local_rank: int = 0

    @property
    def rank(self) -> int:
        """Among all processes of the run."""
        return self.topology.node_rank * self.topology.devices_per_node + self.local_rank

    @property
    def num_ranks(self) -> int:
        """Processes of the run."""
        return self.topology.world_size

    @property
    def is_first(self) -> bool:
        """Whether this process writes the results."""
        return self.rank == 0

    @classmethod
    def current(cls, environ: Mapping[str, str] = os.environ) -> Self:
        """Return this process's place; alone, unless it was started as a worker."""
        text = environ.get(WORKER_VARIABLE)
        if not text:
            return cls()
        facts = json.loads(text)
        return cls(NodeTopology(**facts["topology"]), facts["local_rank"])

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
    """Start this node's workers and wait until all have ended.

    Args:
        topology: The nodes, seen from this one.
        command: Of each worker.
        received_signal: A signal that the workers are to be stopped with, once there is one; raises
            when they need not go on.

    Returns:
        The signal that they were stopped with, None if they have finished.

    Raises:
        WorkerError: One failed; the others were ended.
    """
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **_environment(topology, local_rank)},
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
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
        # Each would start as many threads as the machine has cores.
        num_cores = len(os.sched_getaffinity(0))
        variables["OMP_NUM_THREADS"] = str(max(num_cores // topology.devices_per_node, 1))
    return variables


def end_with_parent(interval_s: float = 1.0) -> None:
    """Kill this process when the one that started it is gone: nothing may go on unwatched."""
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
        # One that was stopped has agreed on it with the others, who may still be writing.
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
    """Name the worker that failed; not one that only lost its connection to that one."""
    failed = {rank: code for rank, code in enumerate(codes) if code}
    local_rank = min(failed, key=lambda rank: (failed[rank] == EXIT_EXPLAINED, failed[rank]))
    code = failed[local_rank]
    rank = Worker(topology, local_rank).rank
    name = f"rank {rank} of {topology.world_size} (node {topology.node_rank})"
    if code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
        hint = " Did it run out of memory?" if -code == signal.SIGKILL else ""
    else:
        reason, hint = f"failed with exit code {code}", " The log of its node says why."
    error_type = ConnectionLostError if code == EXIT_EXPLAINED else WorkerError
    return error_type(
        f"{name} {reason}.{hint} The other workers were ended; run the same command on every node "
        "to go on from the last checkpoint."
    )


def _end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End what still runs: ask first, then kill. A second signal does not stop this."""
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
