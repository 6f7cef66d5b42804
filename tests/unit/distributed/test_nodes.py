"""Nodes join, compare their settings, and receive the reason why another one exits."""

from __future__ import annotations

import dataclasses
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from mal.distributed import NodeTopology, nodes
from mal.distributed.nodes import NodeCoordinator, coordinated
from mal.errors import ConnectionLostError, MalError, SpecError, WorkerError

Work = Callable[[NodeCoordinator], object]


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(nodes.RENDEZVOUS_TIMEOUT_VARIABLE, "30")
    monkeypatch.setattr(nodes, "FAILED_LEAVE_WAIT_S", 2)
    monkeypatch.setattr(nodes, "LEAVE_WAIT_S", 5)


@pytest.fixture
def topology() -> NodeTopology:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return NodeTopology(num_nodes=2, master_port=probe.getsockname()[1])


def of_node(topology: NodeTopology, rank: int) -> NodeTopology:
    return dataclasses.replace(topology, node_rank=rank)


def meet(topology: NodeTopology, work: Work) -> object:
    with coordinated(topology) as coordinator:
        return work(coordinator)


def meet_all(work: Work, *topologies: NodeTopology) -> list[Future[object]]:
    """Return what became of each node, all of them started together."""
    with ThreadPoolExecutor(len(topologies)) as pool:
        return [pool.submit(meet, topology, work) for topology in topologies]


def errors_of(futures: list[Future[object]]) -> list[tuple[type[BaseException], str]]:
    errors = [future.exception() for future in futures]
    return [(type(error), str(error)) for error in errors if error is not None]


def end_of_another(coordinator: NodeCoordinator) -> object:
    """Fail on node 0; on node 1 wait for that exit."""
    if coordinator.topology.node_rank == 0:
        raise MalError("disk must have room, got none. Free some.")
    while True:
        coordinator.poll()
        threading.Event().wait(0.05)


def test_nodes_that_meet_know_no_end(topology: NodeTopology) -> None:
    found = meet_all(NodeCoordinator.poll, of_node(topology, 1), of_node(topology, 0))
    assert [future.result() for future in found] == [None, None]


def test_nodes_alone_on_a_machine_use_different_ports() -> None:
    two = NodeTopology(devices_per_node=2)
    with coordinated(two) as first, coordinated(NodeTopology()) as second:
        assert first.topology.master_port != second.topology.master_port
        assert first.topology.devices_per_node == 2


def test_a_failure_is_published_to_the_other_node(topology: NodeTopology) -> None:
    failed, received = errors_of(meet_all(end_of_another, topology, of_node(topology, 1)))
    assert failed == (MalError, "disk must have room, got none. Free some.")
    assert received == (WorkerError, f"node 0 failed: {failed[1]}")


def test_a_stopped_node_gives_the_others_its_signal(topology: NodeTopology) -> None:
    def stop(coordinator: NodeCoordinator) -> object:
        if coordinator.topology.node_rank == 0:
            coordinator.publish_exit("stopped by SIGTERM", signal.SIGTERM)
            coordinator.publish_exit("what followed of it")
        return coordinator.first_exit(5) and coordinator.poll()

    found = meet_all(stop, topology, of_node(topology, 1))
    assert [future.result() for future in found] == [signal.SIGTERM] * 2


def test_nodes_with_different_settings_name_the_variable(topology: NodeTopology) -> None:
    other = dataclasses.replace(topology, node_rank=1, devices_per_node=2)
    texts = [text for _, text in errors_of(meet_all(NodeCoordinator.poll, topology, other))]
    message = "NUM_GPU_PER_NODE (or PET_NPROC_PER_NODE, or num_gpus) must be the same on all nodes"
    assert any(text.startswith(message) for text in texts)
    assert len(texts) == 2


def test_a_port_in_use_is_named(topology: NodeTopology) -> None:
    with socket.create_server(("", topology.master_port)):
        ((kind, text),) = errors_of(meet_all(NodeCoordinator.poll, topology))
    assert kind is WorkerError
    assert text.startswith(f"Cannot open MASTER_PORT {topology.master_port} on node 0: ")


def test_a_rank_that_comes_twice_is_an_error(topology: NodeTopology) -> None:
    three = dataclasses.replace(topology, num_nodes=3)
    twice = of_node(three, 1)
    errors = errors_of(meet_all(NodeCoordinator.poll, three, twice, twice))
    message = "NODE_RANK must be another on each node, got 1 twice."
    assert [text.partition(" Set")[0] for kind, text in errors if kind is SpecError] == [message]
    assert len(errors) == 3


def test_a_node_that_does_not_come_is_named(
    topology: NodeTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nodes.RENDEZVOUS_TIMEOUT_VARIABLE, "0.5")
    with pytest.raises(
        WorkerError, match=r"NODE_RANK 1 of 2 nodes did not join at .* Start mal on every node"
    ):
        meet(topology, NodeCoordinator.poll)


def test_an_address_without_node_0_is_an_error_that_names_it(
    topology: NodeTopology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(nodes.RENDEZVOUS_TIMEOUT_VARIABLE, "0.5")
    address = f"127.0.0.1:{topology.master_port}"
    with pytest.raises(WorkerError, match=f"Node 1 cannot reach node 0 at {address}: .*refused"):
        meet(of_node(topology, 1), NodeCoordinator.poll)


def test_a_first_node_that_is_gone_is_noticed(topology: NodeTopology) -> None:
    code = f"""
import os
from mal.distributed import NodeTopology
from mal.distributed.nodes import coordinated
with coordinated(NodeTopology(num_nodes=2, master_port={topology.master_port})) as coordinator:
    coordinator._store.wait(["met"])
    os._exit(9)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as first:

        def outlive(coordinator: NodeCoordinator) -> object:
            coordinator._store.set("met", "")
            first.wait(30)
            return coordinator.poll()

        with pytest.raises(ConnectionLostError, match="Node 0 does not answer at"):
            meet(of_node(topology, 1), outlive)
