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
from mal.errors import WorkerError

WORKER_VARIABLE = "MAL_WORKER"
END_GRACE_S = 20.0
POLL_INTERVAL_S = 0.1


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
) -> None:
    """Start this node's workers and wait until all have ended.

    Args:
        topology: The nodes, seen from this one.
        command: Of each worker.
        received_signal: A signal that the workers are to be stopped with, once there is one.

    Raises:
        WorkerError: One failed; the others were ended.
    """
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **Worker(topology, local_rank).environment()},
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on
        )
        for local_rank in range(topology.devices_per_node)
    ]
    try:
        _watch(processes, topology, received_signal)
    finally:
        _end_all(processes)


def end_with_parent(interval_s: float = 1.0) -> None:
    """Kill this process when the one that started it is gone: nothing may go on unwatched."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _watch(
    processes: Sequence[subprocess.Popen[bytes]],
    topology: NodeTopology,
    received_signal: Callable[[], int | None],
) -> None:
    is_stopping = False
    while True:
        codes = [process.poll() for process in processes]
        if not is_stopping and (number := received_signal()) is not None:
            is_stopping = True
            for process in processes:
                process.send_signal(number)
        failed = [rank for rank, code in enumerate(codes) if code not in (None, 0)]
        if is_stopping:
            if None not in codes:
                return
        elif failed:
            # The others lose their connection to one that was killed, and fail as well.
            raise _failure(processes, min(failed, key=lambda rank: codes[rank] or 0), topology)
        elif None not in codes:
            return
        time.sleep(POLL_INTERVAL_S)


def _failure(
    processes: Sequence[subprocess.Popen[bytes]], local_rank: int, topology: NodeTopology
) -> WorkerError:
    code = processes[local_rank].returncode
    rank = Worker(topology, local_rank).rank
    name = f"rank {rank} of {topology.world_size} (node {topology.node_rank})"
    if code < 0:
        reason = f"was killed by {signal.Signals(-code).name}"
        hint = " Did it run out of memory?" if -code == signal.SIGKILL else ""
    else:
        reason, hint = f"failed with exit code {code}", " Its message stands above."
    return WorkerError(
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
