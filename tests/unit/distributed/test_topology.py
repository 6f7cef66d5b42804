"""What each launcher sets gives the right topology, or an error that names the variable."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mal.cli import main
from mal.distributed import NodeTopology
from mal.errors import SpecError

PYTORCHJOB = {
    "WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456",
    "PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "auto",
    "PET_MASTER_ADDR": "job-master-0", "PET_MASTER_PORT": "23456",
}  # fmt: skip
TRAINJOB = {
    "PET_NNODES": "3", "PET_NPROC_PER_NODE": "4", "PET_NODE_RANK": "2",
    "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29500",
}  # fmt: skip
TAO = {
    "WORLD_SIZE": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "1234",
    "NUM_GPU_PER_NODE": "8",
}  # fmt: skip


@pytest.mark.parametrize(
    ("environ", "spec", "expected"),
    [
        pytest.param({}, (1, 1), NodeTopology(), id="nothing"),
        pytest.param({}, (1, 4), NodeTopology(devices_per_node=4), id="the spec's devices"),
        pytest.param(TAO, (1, 1), NodeTopology(2, 1, 8, "10.0.0.1", 1234), id="TAO"),
        pytest.param(TAO, (5, 3), NodeTopology(2, 1, 8, "10.0.0.1", 1234), id="beats the spec"),
        pytest.param(PYTORCHJOB, (1, 4), NodeTopology(2, 1, 4, "job-master-0", 23456), id="auto"),
        pytest.param(
            {**PYTORCHJOB, "WORLD_SIZE": "16", "PET_NPROC_PER_NODE": "8"}, (1, 1),
            NodeTopology(2, 1, 8, "job-master-0", 23456), id="numeric nprocPerNode",
        ),
        pytest.param(
            {**PYTORCHJOB, "NUM_GPU_PER_NODE": "2"}, (1, 1),
            NodeTopology(2, 1, 2, "job-master-0", 23456), id="launcher's own device count",
        ),
        pytest.param(
            {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "23456",
             "PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_NPROC_PER_NODE": "auto"}, (1, 1),
            NodeTopology(1, 0, 1, "localhost", 23456), id="master alone",
        ),
        pytest.param(TRAINJOB, (1, 1), NodeTopology(3, 2, 4, "job-node-0-0.job", 29500), id="v2"),
        pytest.param(
            {"WORLD_SIZE": "4", "JOB_COMPLETION_INDEX": "3", "MASTER_ADDR": "a"}, (1, 2),
            NodeTopology(4, 3, 2, "a", 29500), id="Indexed Job",
        ),
        pytest.param({"JOB_COMPLETION_INDEX": "3"}, (1, 1), NodeTopology(), id="Indexed shards"),
        pytest.param({"WORLD_SIZE": " ", "NODE_RANK": ""}, (1, 1), NodeTopology(), id="empty"),
        pytest.param({**TRAINJOB, "PET_NNODES": "3:3"}, (1, 1),
                     NodeTopology(3, 2, 4, "job-node-0-0.job", 29500), id="3:3"),
    ],
)  # fmt: skip
def test_a_launcher_is_understood(
    environ: dict[str, str], spec: tuple[int, int], expected: NodeTopology
) -> None:
    assert NodeTopology.from_env(environ, *spec) == expected


@pytest.mark.parametrize(
    ("environ", "spec", "message"),
    [
        ({**TAO, "WORLD_SIZE": "two"}, (1, 1), "WORLD_SIZE must be the number of nodes, a whole"),
        ({**TAO, "WORLD_SIZE": "0"}, (1, 1), "WORLD_SIZE must be the number of nodes, a whole"),
        ({**TAO, "NODE_RANK": "2"}, (1, 1), "NODE_RANK must be a node's rank from 0 to 1, got 2."),
        ({**TAO, "NODE_RANK": "-1"}, (1, 1), "NODE_RANK must be a node's rank from 0 to 1, got -1"),
        ({**TAO, "NODE_RANK": ""}, (1, 1), "NODE_RANK must be set on each of 2 nodes, got none."),
        ({**TAO, "MASTER_ADDR": ""}, (1, 1), "MASTER_ADDR must be set for 2 nodes, got none."),
        ({**TAO, "MASTER_PORT": "99999"}, (1, 1), "MASTER_PORT must be a port of at most 65535"),
        ({**TAO, "NUM_GPU_PER_NODE": "all"}, (1, 1), "NUM_GPU_PER_NODE must be the devices of a"),
        ({**PYTORCHJOB, "WORLD_SIZE": "3"}, (1, 1), "WORLD_SIZE must be the number of nodes (2 by"),
        ({**PYTORCHJOB, "PET_NNODES": "1:4"}, (1, 1), "PET_NNODES must be one number of nodes,"),
        ({**TRAINJOB, "PET_NODE_RANK": "3"}, (1, 1), "PET_NODE_RANK must be a node's rank from 0"),
        ({**TRAINJOB, "PET_NPROC_PER_NODE": "x"}, (1, 1), "PET_NPROC_PER_NODE must be the process"),
        ({"RANK": "1"}, (1, 1), "RANK must be a node's rank from 0 to 0, got 1."),
        ({}, (2, 1), "NODE_RANK must be set on each of 2 nodes, got none."),
    ],
)  # fmt: skip
def test_a_contradiction_names_the_variable(
    environ: dict[str, str], spec: tuple[int, int], message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        NodeTopology.from_env(environ, *spec)
    assert str(caught.value).startswith(message)


def test_world_size_counts_processes() -> None:
    assert NodeTopology(2, 1, 8).world_size == 16


def test_the_command_prints_the_topology_as_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in {*PYTORCHJOB, *TRAINJOB, *TAO}:
        monkeypatch.delenv(name, raising=False)
    for name, value in TRAINJOB.items():
        monkeypatch.setenv(name, value)
    assert main(["node"]) == 0
    topology = NodeTopology.from_env(TRAINJOB)
    expected = {**dataclasses.asdict(topology), "world_size": topology.world_size}
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize("value", ["many", "9" * 5000, "\u0667"])
def test_the_command_names_the_wrong_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    monkeypatch.setenv("PET_NNODES", value)
    assert main(["node"]) == 2
    assert "PET_NNODES" in capsys.readouterr().err
