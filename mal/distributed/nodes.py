"""Coordinates the nodes of a run outside the process group: who has joined, and why a node exits.

`mal` on node 0 keeps a key-value store as long as it runs; the workers use it for their rendezvous
too. A process group notices a lost process late (while a rank computes) or never. The store works
without it, and gives every node the reason of the first exit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from mal.distributed.topology import NodeTopology
from mal.errors import ConnectionLostError, SpecError, WorkerError

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

log = logging.getLogger(__name__)

RENDEZVOUS_TIMEOUT_VARIABLE = "MAL_RENDEZVOUS_TIMEOUT_S"
RENDEZVOUS_TIMEOUT_S = 1800.0
ANSWER_TIMEOUT_S = 30.0
CAUSE_WAIT_S = 5.0
FAILED_LEAVE_WAIT_S = 5.0
LEAVE_WAIT_S = 30.0
POLL_INTERVAL_S = 0.2
_EXIT_KEY = "exit"
# By field of the topology: the variables that set it.
_SAME_ON_ALL_NODES = {
    "num_nodes": "WORLD_SIZE (or PET_NNODES)",
    "devices_per_node": "NUM_GPU_PER_NODE (or PET_NPROC_PER_NODE, or num_gpus)",
}


def rendezvous_timeout_s() -> float:
    """Return how long a process waits for the others."""
    return float(os.environ.get(RENDEZVOUS_TIMEOUT_VARIABLE) or RENDEZVOUS_TIMEOUT_S)


def connect_to_store(topology: NodeTopology) -> TCPStore:
    """Return a connection to the store of node 0."""
    # A pod may not be able to resolve the name of its own service.
    host = "localhost" if topology.node_rank == 0 else topology.master_addr
    return _tcp_store(host, topology.master_port, is_server=False)


@dataclasses.dataclass(frozen=True)
class NodeExit:
    """Why a node exited.

    Attributes:
        message: The error's text.
        signal_number: The signal that stopped it, or 0.
    """

    node_rank: int
    message: str
    signal_number: int = 0

    def __str__(self) -> str:
        return f"node {self.node_rank} failed: {self.message}"


class NodeCoordinator:
    """One node's view of the run's store.

    Attributes:
        topology: With the port in use.
    """

    def __init__(self, topology: NodeTopology, store: TCPStore) -> None:
        self.topology = topology
        self._store = store

    def publish_exit(self, message: str, signal_number: int = 0) -> None:
        """Publish why this node exits; the store keeps the first exit of the run."""
        this = NodeExit(self.topology.node_rank, message, signal_number)
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(_EXIT_KEY, "", json.dumps(dataclasses.asdict(this)))

    def first_exit(self, wait_s: float = 0) -> NodeExit | None:
        """Return the first exit of a node, None if there is none after `wait_s`.

        Raises:
            ConnectionLostError: Node 0 does not answer any more.
        """
        with self._store_errors_explained():
            for waited_s in _seconds_of_waiting():
                if self._store.check([_EXIT_KEY]):
                    break
                if waited_s >= wait_s:
                    return None
            return NodeExit(**json.loads(self._store.get(_EXIT_KEY)))

    def poll(self) -> int | None:
        """Return the signal that stopped another node, None while all nodes run.

        Raises:
            WorkerError: Another node has failed.
            ConnectionLostError: Node 0 does not answer any more.
        """
        first = self.first_exit()
        if first is not None and not first.signal_number:
            raise WorkerError(str(first))
        return first.signal_number if first else None

    def join(self) -> None:
        """Wait for all nodes and compare their settings; return early when a node is stopped.

        Raises:
            SpecError: Two nodes have the same rank, or different settings.
            WorkerError: A node did not join in time, or has failed.
        """
        with self._store_errors_explained():
            self._register()
            if self._wait_for_all():
                self._compare_settings()

    def leave(self, wait_s: float) -> None:
        """Leave the run; node 0 keeps the store until all nodes left, for `wait_s` at most."""
        rank = self.topology.node_rank
        with contextlib.suppress(RuntimeError):
            self._store.set(_leave_key(rank), "")
            keys = [_leave_key(each) for each in range(self.topology.num_nodes)]
            for waited_s in _seconds_of_waiting():
                if rank or waited_s > wait_s or self._store.check(keys):
                    return

    @contextlib.contextmanager
    def _store_errors_explained(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise ConnectionLostError(
                f"Node 0 does not answer at {_address(self.topology)}: mal has exited there, and "
                "its log says why. Run the same command on every node to continue from the last "
                "checkpoint."
            ) from error

    def _register(self) -> None:
        rank = self.topology.node_rank
        if self._store.add(f"arrivals of node {rank}", 1) > 1:
            self.poll()
            raise SpecError(
                f"NODE_RANK must be another on each node, got {rank} twice. Set it to 0 on the "
                f"first node, up to {self.topology.num_nodes - 1} on the last. Before you restart "
                "a single node, wait until mal has exited on the others."
            )
        self._store.set(_settings_key(rank), json.dumps(dataclasses.asdict(self.topology)))

    def _wait_for_all(self) -> bool:
        """Return whether all nodes joined; False when one of them was stopped."""
        timeout_s = rendezvous_timeout_s()
        ranks = range(self.topology.num_nodes)
        for waited_s in _seconds_of_waiting():
            missing = [rank for rank in ranks if not self._store.check([_settings_key(rank)])]
            if not missing:
                break
            if self.poll():
                return False
            if waited_s > timeout_s:
                raise WorkerError(
                    f"NODE_RANK {', '.join(map(str, missing))} of {len(ranks)} nodes did not join "
                    f"at {_address(self.topology)} within {timeout_s:.0f} s "
                    f"({RENDEZVOUS_TIMEOUT_VARIABLE}). Start mal on every node, and check "
                    "MASTER_ADDR, NODE_RANK and the network policy there."
                )
        return True

    def _compare_settings(self) -> None:
        own = dataclasses.asdict(self.topology)
        for rank in range(self.topology.num_nodes):
            other = json.loads(self._store.get(_settings_key(rank)))
            for key, name in _SAME_ON_ALL_NODES.items():
                if other[key] != own[key]:
                    raise SpecError(
                        f"{name} must be the same on all nodes, got {own[key]} on node "
                        f"{self.topology.node_rank} and {other[key]} on node {rank}. Set the same "
                        "value on all nodes."
                    )


@contextlib.contextmanager
def coordinated(topology: NodeTopology) -> Iterator[NodeCoordinator]:
    """Wait until all nodes joined; yield this node's coordinator.

    A run of one node uses a free port, so that several runs fit on a machine.

    Raises:
        SpecError: The nodes' settings differ.
        WorkerError: Node 0 cannot be reached, or a node did not join.
    """
    if topology.num_nodes == 1:
        topology = dataclasses.replace(topology, master_addr="127.0.0.1", master_port=0)
    else:
        log.info(
            "node %d of %d waits for the others at %s",
            topology.node_rank, topology.num_nodes, _address(topology),
        )  # fmt: skip
    store = _open_store(topology) if topology.node_rank == 0 else _reach_store(topology)
    nodes = NodeCoordinator(dataclasses.replace(topology, master_port=store.port), store)
    wait_s = FAILED_LEAVE_WAIT_S
    try:
        nodes.join()
        yield nodes
        wait_s = LEAVE_WAIT_S
    except BaseException as error:
        nodes.publish_exit(str(error) or type(error).__name__, getattr(error, "signal_number", 0))
        raise
    finally:
        nodes.leave(wait_s)


def _open_store(topology: NodeTopology) -> TCPStore:
    try:
        return _tcp_store("localhost", topology.master_port, is_server=True)
    except RuntimeError as error:
        raise WorkerError(
            f"Cannot open MASTER_PORT {topology.master_port} on node 0: "
            f"{_first_line(error)[-80:]}. Choose another port on all nodes."
        ) from error


def _reach_store(topology: NodeTopology) -> TCPStore:
    """Connect to node 0, which may start later."""
    timeout_s = rendezvous_timeout_s()
    for waited_s in _seconds_of_waiting():
        try:
            # The store's own wait cannot be interrupted.
            address = (topology.master_addr, topology.master_port)
            socket.create_connection(address, timeout=ANSWER_TIMEOUT_S).close()
            return connect_to_store(topology)
        except (OSError, RuntimeError) as error:
            if waited_s > timeout_s:
                raise WorkerError(
                    f"Node {topology.node_rank} cannot reach node 0 at {_address(topology)}: "
                    f"{_first_line(error)}. Start mal there, and check MASTER_ADDR, MASTER_PORT "
                    "and the network policy."
                ) from error
    raise AssertionError("waiting has no end")


def _tcp_store(host: str, port: int, *, is_server: bool) -> TCPStore:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    timeout = datetime.timedelta(seconds=ANSWER_TIMEOUT_S)
    return TCPStore(host, port, is_master=is_server, wait_for_workers=False, timeout=timeout)


def _seconds_of_waiting() -> Iterator[float]:
    """Yield the time since the first call, once per poll interval."""
    started_s = time.monotonic()
    while True:
        yield time.monotonic() - started_s
        time.sleep(POLL_INTERVAL_S)


def _address(topology: NodeTopology) -> str:
    return f"{topology.master_addr}:{topology.master_port}"


def _settings_key(node_rank: int) -> str:
    return f"settings of node {node_rank}"


def _leave_key(node_rank: int) -> str:
    return f"leave of node {node_rank}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]
