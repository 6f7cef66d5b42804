"""A run over several nodes on one machine: a real `mal` for each, as a launcher starts it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from mal.distributed.workers import WORKER_VARIABLE

END_TIMEOUT_S = 60  # every process of a run must have ended this long after one was lost
WORK_TIMEOUT_S = 400  # generous: a hang, not a slow machine
_LAUNCHER_VARIABLES = ("WORLD_SIZE", "RANK", "NODE_RANK", "MASTER_", "PET_", "NUM_GPU_PER_NODE")


@dataclass(frozen=True)
class Place:
    """Where node 0 is met, and how a command is started on a node.

    Attributes:
        address: Of node 0.
        port: Free there.
        prefixes: What stands before a node's command.
    """

    address: str
    port: int
    prefixes: Sequence[Sequence[str]] = ((), ())


Dialect = Callable[[Place, int, int], dict[str, str]]
"""(place, node rank, processes a node) -> the variables that a launcher sets on a node of two."""


def tao(place: Place, node_rank: int, num_processes: int) -> dict[str, str]:
    return {
        "WORLD_SIZE": "2",
        "NODE_RANK": str(node_rank),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
        "NUM_GPU_PER_NODE": str(num_processes),
    }


def trainer_v2(place: Place, node_rank: int, num_processes: int) -> dict[str, str]:
    return {
        "PET_NNODES": "2",
        "PET_NPROC_PER_NODE": str(num_processes),
        "PET_NODE_RANK": str(node_rank),
        "PET_MASTER_ADDR": place.address,
        "PET_MASTER_PORT": str(place.port),
    }


def pytorchjob_v1(place: Place, node_rank: int, num_processes: int) -> dict[str, str]:
    return {
        **trainer_v2(place, node_rank, num_processes),
        "PYTHONUNBUFFERED": "1",
        "WORLD_SIZE": str(2 * num_processes),
        "RANK": str(node_rank),
        "MASTER_ADDR": place.address,
        "MASTER_PORT": str(place.port),
    }


@dataclass(frozen=True)
class Node:
    """A started node.

    Attributes:
        process: `mal`, which watches the node's workers.
        errors: Its stderr and that of its workers.
    """

    process: subprocess.Popen[bytes]
    errors: Path

    def told(self) -> str:
        return self.errors.read_text(encoding="utf-8", errors="replace")

    def worker_pids(self) -> list[int]:
        """Return the workers by local rank."""
        found = {}
        for pid in _children_of(self.process.pid):
            content = Path(f"/proc/{pid}/environ").read_bytes().decode()
            variables = dict(line.partition("=")[::2] for line in content.split("\0"))
            if WORKER_VARIABLE in variables:
                found[json.loads(variables[WORKER_VARIABLE])["local_rank"]] = pid
        return [found[rank] for rank in sorted(found)]


@dataclass(frozen=True)
class Run:
    """The nodes of a run; leaving `running` ends what is left of it."""

    nodes: Sequence[Node]

    def wait(self, timeout_s: float = WORK_TIMEOUT_S) -> list[int]:
        """Return the exit code of each node."""
        deadline_s = time.monotonic() + timeout_s
        return [node.process.wait(max(deadline_s - time.monotonic(), 0.1)) for node in self.nodes]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + WORK_TIMEOUT_S
        while not condition():
            assert all(node.process.poll() is None for node in self.nodes), self.told()
            assert time.monotonic() < deadline_s, self.told()
            time.sleep(0.02)

    def told(self) -> str:
        return "\n".join(f"node {rank}:\n{node.told()}" for rank, node in enumerate(self.nodes))


@contextlib.contextmanager
def running(
    arguments: Sequence[str] | Sequence[Sequence[str]],
    place: Place,
    folder: Path,
    *,
    dialect: Dialect = tao,
    num_processes: int = 2,
) -> Iterator[Run]:
    """Start `mal` on two nodes.

    Args:
        arguments: Of `mal`, for all nodes or for each.
        place: Where they meet.
        folder: For their logs.
        dialect: Of the launcher.
        num_processes: On each node.
    """
    own = [name for name in os.environ if name.startswith(_LAUNCHER_VARIABLES)]
    environ = {name: value for name, value in os.environ.items() if name not in own}
    environ["OMP_NUM_THREADS"] = "1"
    folder.mkdir(parents=True, exist_ok=True)
    nodes = [
        _start_node(
            [*prefix, sys.executable, "-m", "mal", *_arguments_of(arguments, rank)],
            {**environ, **dialect(place, rank, num_processes)},
            folder / f"node {rank}.log",
        )
        for rank, prefix in enumerate(place.prefixes)
    ]
    try:
        yield Run(nodes)
    finally:
        for node in nodes:
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGKILL)
                node.process.wait()


def run_to_end(
    arguments: Sequence[str],
    place: Place,
    folder: Path,
    *,
    dialect: Dialect = tao,
    num_processes: int = 2,
) -> Run:
    """Run `mal` on two nodes; both must succeed."""
    with running(arguments, place, folder, dialect=dialect, num_processes=num_processes) as run:
        assert run.wait() == [0, 0], run.told()
    return run


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def loopback() -> Place:
    """Return a free place on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Place("127.0.0.1", int(probe.getsockname()[1]))


@contextlib.contextmanager
def two_namespaces() -> Iterator[Place]:
    """Yield two network namespaces, each with nothing but its end of one cable and a loopback.

    Where the machine does not let them be made the test is skipped, but never in CI.
    """
    names = [f"mal-{os.getpid()}-{rank}" for rank in range(2)]
    cable = [f"mal{os.getpid() % 100_000}n{rank}" for rank in range(2)]
    commands = [f"ip netns add {name}" for name in names]
    commands.append(f"ip link add {cable[0]} type veth peer name {cable[1]}")
    for rank, (name, end) in enumerate(zip(names, cable, strict=True)):
        commands += [
            f"ip link set {end} netns {name}",
            f"ip -n {name} address add 10.93.0.{rank + 1}/24 dev {end}",
            f"ip -n {name} link set {end} up",
            f"ip -n {name} link set lo up",
        ]
    try:
        for command in commands:
            _require_permitted(command)
        # Nothing else listens in a new namespace.
        prefixes = [("ip", "netns", "exec", name) for name in names]
        yield Place("10.93.0.1", 29500, prefixes)
    finally:
        if shutil.which("ip"):
            for name in names:
                subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def _require_permitted(command: str) -> None:
    try:
        subprocess.run(command.split(), check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = f"{command}: {getattr(error, 'stderr', '') or error}".strip()
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI needs iproute2 and CAP_NET_ADMIN, CAP_SYS_ADMIN. {reason}")
        pytest.skip(f"network namespaces cannot be made here. {reason}")


def _start_node(command: Sequence[str], environ: Mapping[str, str], errors: Path) -> Node:
    with errors.open("wb") as file:
        process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=file)
    return Node(process, errors)


def _arguments_of(
    arguments: Sequence[str] | Sequence[Sequence[str]], node_rank: int
) -> Sequence[str]:
    mine = arguments[node_rank]
    return [str(argument) for argument in arguments] if isinstance(mine, str) else mine


def _children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
