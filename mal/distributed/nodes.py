"""What the nodes of a run tell each other beside the process group: who is there, and why it ends.

`mal` on node 0 keeps a store for as long as it runs; the workers meet in it as well. A process
group may notice a lost process late (a rank that computes), or not at all; this does not depend
on it, and it carries the reason to every node.
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
HEAR_WAIT_S = 5.0
LEAVE_WAIT_S = 30.0
POLL_INTERVAL_S = 0.2
_END = "end"
_SHAPE_NAMES = {
    "num_nodes": "WORLD_SIZE (or PET_NNODES)",
    "devices_per_node": "NUM_GPU_PER_NODE (or PET_NPROC_PER_NODE, or num_gpus)",
}


def rendezvous_timeout_s() -> float:
    """Return how long a process waits for the others."""
    return float(os.environ.get(RENDEZVOUS_TIMEOUT_VARIABLE) or RENDEZVOUS_TIMEOUT_S)


def connect_to_store(topology: NodeTopology) -> TCPStore:
    """Return a connection to the store of node 0."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    return TCPStore(
        _store_host(topology),
        topology.master_port,
        is_master=False,
        wait_for_workers=False,
        timeout=datetime.timedelta(seconds=ANSWER_TIMEOUT_S),
    )


@dataclasses.dataclass(frozen=True)
class NodeEnd:
    """Why a node ended.

    Attributes:
        node_rank: Which.
        message: Of its error.
        signal_number: What it was stopped with, or 0.
    """

    node_rank: int
    message: str
    signal_number: int = 0

    def text(self) -> str:
        """Return what to say of it on another node."""
        return f"node {self.node_rank} failed: {self.message}"


class NodeBoard:
    """The place where every node writes and reads.

    Attributes:
        topology: Of the run, with the port in use.
    """

    def __init__(self, topology: NodeTopology, store: TCPStore) -> None:
        self.topology = topology
        self._store = store

    def tell_end(self, message: str, signal_number: int = 0) -> None:
        """Say why this node ends; the first node to do so is heard."""
        end = NodeEnd(self.topology.node_rank, message, signal_number)
        with contextlib.suppress(RuntimeError):
            self._store.compare_set(_END, "", json.dumps(dataclasses.asdict(end)))

    def first_end(self, wait_s: float = 0) -> NodeEnd | None:
        """Return the end of the node that ended first, if one has.

        Args:
            wait_s: How long to wait for it.

        Raises:
            ConnectionLostError: Node 0 does not answer any more.
        """
        with self._answering():
            for waited_s in _seconds_of_waiting():
                if self._store.check([_END]):
                    break
                if waited_s >= wait_s:
                    return None
            return NodeEnd(**json.loads(self._store.get(_END)))

    def hear(self) -> int | None:
        """Return the signal that another node was stopped with, None while all go on.

        Raises:
            WorkerError: Another node has failed.
            ConnectionLostError: Node 0 does not answer any more.
        """
        end = self.first_end()
        if end is None:
            return None
        if not end.signal_number:
            raise WorkerError(end.text())
        return end.signal_number

    def arrive(self) -> None:
        """Wait for all nodes, and check that they were started alike; return when one is stopped.

        Raises:
            SpecError: They were not.
            WorkerError: A node does not come, or has failed meanwhile.
        """
        with self._answering():
            self._take_place()
            if self._wait_for_all():
                self._require_one_shape()

    def leave(self, wait_s: float) -> None:
        """End; node 0 keeps the store for the others, but not for longer than this."""
        mine = self.topology.node_rank
        with contextlib.suppress(RuntimeError):
            self._store.set(_leave_key(mine), "")
            keys = [_leave_key(rank) for rank in self._ranks()]
            for waited_s in _seconds_of_waiting():
                if mine or waited_s > wait_s or self._store.check(keys):
                    return

    @contextlib.contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn what the store says when node 0 is gone into a sentence."""
        try:
            yield
        except RuntimeError as error:
            raise ConnectionLostError(
                f"node 0 must stay connected, got no answer at {_place(self.topology)}: mal has "
                "ended there, and its log says why. Run the same command on every node to go on "
                "from the last checkpoint."
            ) from error

    def _take_place(self) -> None:
        mine = self.topology.node_rank
        if self._store.add(f"arrivals of node {mine}", 1) > 1:
            self.hear()
            raise SpecError(
                f"NODE_RANK must be another on each node, got {mine} twice. Set it to 0 on the "
                f"first node, up to {self.topology.num_nodes - 1} on the last; a node that was "
                "restarted alone must wait until mal has ended on the others."
            )
        self._store.set(_shape_key(mine), json.dumps(_shape_of(self.topology)))

    def _wait_for_all(self) -> bool:
        """Return whether they have come; not where one of them was stopped meanwhile."""
        timeout_s = rendezvous_timeout_s()
        for waited_s in _seconds_of_waiting():
            missing = [rank for rank in self._ranks() if not self._store.check([_shape_key(rank)])]
            if not missing:
                break
            if self.hear():
                return False
            if waited_s > timeout_s:
                raise WorkerError(
                    f"all {self.topology.num_nodes} nodes must meet at {_place(self.topology)} "
                    f"within {timeout_s:.0f} s ({RENDEZVOUS_TIMEOUT_VARIABLE}), got none of "
                    f"NODE_RANK {', '.join(map(str, missing))}. Start mal on every node, and check "
                    "MASTER_ADDR, NODE_RANK and the network policy there."
                )
        return True

    def _ranks(self) -> range:
        return range(self.topology.num_nodes)

    def _require_one_shape(self) -> None:
        mine = _shape_of(self.topology)
        for rank in range(self.topology.num_nodes):
            theirs = json.loads(self._store.get(_shape_key(rank)))
            for key, name in _SHAPE_NAMES.items():
                if theirs[key] != mine[key]:
                    raise SpecError(
                        f"{name} must be the same on all nodes, got {mine[key]} on node "
                        f"{self.topology.node_rank} and {theirs[key]} on node {rank}. Start all "
                        "nodes alike."
                    )


@contextlib.contextmanager
def meeting(topology: NodeTopology) -> Iterator[NodeBoard]:
    """Wait until all nodes are there; yield what they speak through.

    One node alone takes a free port, so that several runs fit on a machine.

    Raises:
        SpecError: The nodes were not started alike.
        WorkerError: Node 0 cannot be reached, or a node does not come.
    """
    if topology.num_nodes == 1:
        topology = dataclasses.replace(topology, master_addr="127.0.0.1", master_port=0)
    else:
        log.info(
            "node %d of %d waits for the others at %s",
            topology.node_rank, topology.num_nodes, _place(topology),
        )  # fmt: skip
    store = _open_store(topology) if topology.node_rank == 0 else _reach_store(topology)
    board = NodeBoard(dataclasses.replace(topology, master_port=store.port), store)
    wait_s = HEAR_WAIT_S
    try:
        board.arrive()
        yield board
        wait_s = LEAVE_WAIT_S
    except BaseException as error:
        board.tell_end(str(error) or type(error).__name__, getattr(error, "signal_number", 0))
        raise
    finally:
        board.leave(wait_s)


def _open_store(topology: NodeTopology) -> TCPStore:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    try:
        return TCPStore(
            "localhost",
            topology.master_port,
            is_master=True,
            wait_for_workers=False,
            timeout=datetime.timedelta(seconds=ANSWER_TIMEOUT_S),
        )
    except RuntimeError as error:
        raise WorkerError(
            f"MASTER_PORT must be free on node 0, got {topology.master_port} "
            f"({str(error).partition(chr(10))[0][-80:]}). Choose another on all nodes."
        ) from error


def _reach_store(topology: NodeTopology) -> TCPStore:
    """Connect to node 0, which may start later."""
    timeout_s = rendezvous_timeout_s()
    for waited_s in _seconds_of_waiting():
        try:
            # A store's own way to wait cannot be interrupted.
            address = (topology.master_addr, topology.master_port)
            socket.create_connection(address, timeout=ANSWER_TIMEOUT_S).close()
            return connect_to_store(topology)
        except (OSError, RuntimeError) as error:
            if waited_s > timeout_s:
                raise WorkerError(
                    f"node {topology.node_rank} must reach node 0 at {_place(topology)}, got "
                    f"{str(error).partition(chr(10))[0]}. Start mal there, and check MASTER_ADDR, "
                    "MASTER_PORT and the network policy."
                ) from error
    raise AssertionError("waiting has no end")


def _seconds_of_waiting() -> Iterator[float]:
    """Yield how long the caller has been waiting, again and again."""
    started_s = time.monotonic()
    while True:
        yield time.monotonic() - started_s
        time.sleep(POLL_INTERVAL_S)


def _store_host(topology: NodeTopology) -> str:
    """Return where a process finds the store; a pod may not resolve its own service's name."""
    return "localhost" if topology.node_rank == 0 else topology.master_addr


def _place(topology: NodeTopology) -> str:
    return f"{topology.master_addr}:{topology.master_port}"


def _shape_key(node_rank: int) -> str:
    return f"shape of node {node_rank}"


def _leave_key(node_rank: int) -> str:
    return f"leave of node {node_rank}"


def _shape_of(topology: NodeTopology) -> dict[str, int]:
    return {key: getattr(topology, key) for key in _SHAPE_NAMES}
