"""Reads the node topology from the environment of any launcher.

Variables of the launchers (contract section 6):

- TAO: WORLD_SIZE (the number of NODES), NODE_RANK, MASTER_ADDR, MASTER_PORT, NUM_GPU_PER_NODE.
- PyTorchJob v1: WORLD_SIZE (nodes, times `nprocPerNode` where that is a number), RANK (the
  node's), MASTER_*, and PET_*; neither NODE_RANK nor NUM_GPU_PER_NODE.
- Trainer v2: PET_* alone.
- An Indexed Job: JOB_COMPLETION_INDEX, beside what its author sets.

PET_NNODES always is the number of nodes, so it is read first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from mal.errors import SpecError
from mal.shown import shown

_MAX_DIGITS = 18

DEFAULT_MASTER_PORT = 29500
MAX_PORT = 65535

_RANK_VARIABLES = ("NODE_RANK", "PET_NODE_RANK", "RANK", "JOB_COMPLETION_INDEX")
_COUNTED_BY_LAUNCHER = ("auto", "gpu", "cpu", "xpu")


@dataclass(frozen=True)
class NodeTopology:
    """The nodes of a run, seen from one of them.

    Attributes:
        node_rank: Rank of this node, from 0.
        devices_per_node: Processes on each node, one a device.
        master_addr: Host of node 0, which all nodes reach.
    """

    num_nodes: int = 1
    node_rank: int = 0
    devices_per_node: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int = DEFAULT_MASTER_PORT

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.num_nodes * self.devices_per_node

    @classmethod
    def from_env(cls, environ: Mapping[str, str], num_nodes: int = 1, num_devices: int = 1) -> Self:
        """Read the topology; the arguments are used where a variable is unset or empty.

        Raises:
            SpecError: Variables are missing or contradict each other.
        """
        variables = {name: value.strip() for name, value in environ.items() if value.strip()}
        devices = _devices_per_node(variables, num_devices)
        nodes = _num_nodes(variables, num_nodes)
        return cls(
            num_nodes=nodes,
            node_rank=_node_rank(variables, nodes),
            devices_per_node=devices,
            master_addr=_master_addr(variables, nodes),
            master_port=_master_port(variables),
        )


def _num_nodes(variables: Mapping[str, str], num_nodes: int) -> int:
    pet_nodes = variables.get("PET_NNODES")
    if pet_nodes is None:
        return _count(variables, "WORLD_SIZE", "the number of nodes", num_nodes)
    low, _, high = pet_nodes.partition(":")
    if high and low != high:
        raise SpecError(
            f"PET_NNODES must be one number of nodes, got {pet_nodes}: elastic jobs are not "
            "supported. Leave out elasticPolicy."
        )
    nodes = _count({"PET_NNODES": low}, "PET_NNODES", "the number of nodes", num_nodes)
    _require_world_size(variables, nodes)
    return nodes


def _require_world_size(variables: Mapping[str, str], nodes: int) -> None:
    """Check that WORLD_SIZE is the number of nodes or the number of processes."""
    world_size = _count(variables, "WORLD_SIZE", "the number of nodes", nodes)
    per_node = variables.get("PET_NPROC_PER_NODE", "")
    processes = nodes * int(per_node) if per_node.isdigit() else nodes
    if world_size not in (nodes, processes):
        raise SpecError(
            f"WORLD_SIZE must be the number of nodes ({nodes} by PET_NNODES) or of processes "
            f"({processes}), got {world_size}. Unset it, or correct PET_NNODES."
        )


def _node_rank(variables: Mapping[str, str], nodes: int) -> int:
    names = [name for name in _RANK_VARIABLES if name in variables]
    if nodes == 1 and names == ["JOB_COMPLETION_INDEX"]:
        return 0  # an Indexed Job of independent runs
    if not names:
        if nodes == 1:
            return 0
        raise SpecError(
            f"NODE_RANK must be set on each of {nodes} nodes, got none. Set it to 0 on the first "
            f"node, up to {nodes - 1} on the last."
        )
    name = names[0]
    value = variables[name]
    if not _is_whole_number(value) or int(value) >= nodes:
        raise SpecError(
            f"{name} must be a node's rank from 0 to {nodes - 1}, got {shown(value)}. Set it, or "
            "the number of nodes (WORLD_SIZE or PET_NNODES)."
        )
    return int(value)


def _devices_per_node(variables: Mapping[str, str], num_devices: int) -> int:
    if "NUM_GPU_PER_NODE" in variables:
        return _count(variables, "NUM_GPU_PER_NODE", "the devices of a node", num_devices)
    if variables.get("PET_NPROC_PER_NODE", "auto") in _COUNTED_BY_LAUNCHER:
        return num_devices
    return _count(variables, "PET_NPROC_PER_NODE", "the processes of a node", num_devices)


def _master_addr(variables: Mapping[str, str], nodes: int) -> str:
    given = variables.get("PET_MASTER_ADDR") or variables.get("MASTER_ADDR")
    if given is None and nodes > 1:
        raise SpecError(
            f"MASTER_ADDR must be set for {nodes} nodes, got none. Set it to the host of node 0."
        )
    return given or NodeTopology.master_addr


def _master_port(variables: Mapping[str, str]) -> int:
    name = "PET_MASTER_PORT" if "PET_MASTER_PORT" in variables else "MASTER_PORT"
    port = _count(variables, name, "a port", DEFAULT_MASTER_PORT)
    if port > MAX_PORT:
        raise SpecError(f"{name} must be a port of at most {MAX_PORT}, got {port}. Choose another.")
    return port


def _count(variables: Mapping[str, str], name: str, meaning: str, default: int) -> int:
    """Read a whole number of at least 1."""
    value = variables.get(name)
    if value is None:
        return default
    if not _is_whole_number(value) or int(value) < 1:
        raise SpecError(
            f"{name} must be {meaning}, a whole number of at least 1, got {shown(value)}. Set or "
            "unset it."
        )
    return int(value)


def _is_whole_number(value: str) -> bool:
    """Return whether a value is digits, and no more than any such setting has."""
    return value.isascii() and value.isdecimal() and len(value) <= _MAX_DIGITS
