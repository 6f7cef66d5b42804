"""How the processes of a run speak: gather objects, agree on a flag. Alone, all of it is free."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import logging
import os
import socket
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

from mal.distributed.workers import Worker
from mal.errors import WorkerError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

RENDEZVOUS_TIMEOUT_VARIABLE = "MAL_RENDEZVOUS_TIMEOUT_S"
RENDEZVOUS_TIMEOUT_S = 1800.0
_SIOCGIFADDR = 0x8915
_INTERFACE_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
# What gloo, NCCL and the store say when another process is gone.
_SIGNS_OF_LOSS = ("gloo", "NCCL", "Connection", "TCPStore", "Socket", "socket", "timed out")

Value = TypeVar("Value")


@contextlib.contextmanager
def joining(worker: Worker, device: torch.device) -> Iterator[None]:
    """Be a part of the run's process group inside the block.

    Raises:
        WorkerError: The others cannot be reached, or one of them is gone.
    """
    import torch.distributed

    topology = worker.topology
    _choose_interface(topology.master_addr)
    timeout_s = float(os.environ.get(RENDEZVOUS_TIMEOUT_VARIABLE) or RENDEZVOUS_TIMEOUT_S)
    place = f"{topology.master_addr}:{topology.master_port}"
    log.info("rank %d of %d joins at %s", worker.rank, worker.num_ranks, place)
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            init_method=f"tcp://{place}",
            rank=worker.rank,
            world_size=worker.num_ranks,
            timeout=datetime.timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"rank {worker.rank} must reach the other {worker.num_ranks - 1} at {place}, got "
            f"{_first_line(error)}. Start mal on every node, and check MASTER_ADDR, MASTER_PORT "
            "and the network policy."
        ) from error
    try:
        yield
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _SIGNS_OF_LOSS):
            raise
        raise WorkerError(
            f"rank {worker.rank} of {worker.num_ranks} must stay connected to the others, got "
            f"{_first_line(error)}: another rank is gone, and its log says why. Run the same "
            "command on every node to go on from the last checkpoint."
        ) from error
    finally:
        with contextlib.suppress(RuntimeError):
            torch.distributed.destroy_process_group()


def gather_objects(value: Value) -> list[Value]:
    """Return the value of every rank, in their order, on every rank."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        return [value]
    values: list[Value | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values  # type: ignore[return-value]


def any_rank(flag: bool) -> bool:
    """Return whether any rank says so: all of them act on it in the same step."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return flag
    agreed = torch.tensor(int(flag))
    torch.distributed.all_reduce(agreed, torch.distributed.ReduceOp.MAX)
    return bool(agreed)


def _choose_interface(master_addr: str) -> None:
    """Name the network interface that reaches the first node.

    Left alone, gloo takes that of the host's own name, which many machines resolve to loopback.
    """
    if any(os.environ.get(name) for name in _INTERFACE_VARIABLES):
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((master_addr, 9))  # sends nothing
        address = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode())
            with contextlib.suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, request)
                if socket.inet_ntoa(answer[20:24]) == address:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:160]
