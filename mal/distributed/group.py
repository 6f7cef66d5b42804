"""Collective operations of a run's processes. With one process they return at once.

Values are sent as JSON: no rank executes another's pickle.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import json
import logging
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mal.artifacts import sha256_of_file
from mal.distributed.nodes import connect_to_store, rendezvous_timeout_s
from mal.distributed.workers import Worker
from mal.errors import ConnectionLostError, WorkerError

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

FILE_CHUNK_BYTES = 64 << 20
_SIOCGIFADDR = 0x8915
# In the errors of gloo, NCCL and the store when another process is gone.
_LOST_RANK_WORDS = ("gloo", "NCCL", "Connection", "TCPStore", "Socket", "socket", "timed out")


@contextlib.contextmanager
def process_group(worker: Worker, device: torch.device) -> Iterator[None]:
    """Join the run's process group inside the block.

    Raises:
        WorkerError: The other ranks cannot be reached, or one of them is gone.
    """
    import torch.distributed

    topology = worker.topology
    _choose_interface(topology.master_addr)
    address = f"{topology.master_addr}:{topology.master_port}"
    log.info("rank %d of %d joins at %s", worker.rank, worker.num_ranks, address)
    try:
        torch.distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=connect_to_store(topology),
            rank=worker.rank,
            world_size=worker.num_ranks,
            timeout=datetime.timedelta(seconds=rendezvous_timeout_s()),
            device_id=device if device.type == "cuda" else None,
        )
    except (RuntimeError, ValueError) as error:
        raise WorkerError(
            f"Rank {worker.rank} cannot join the other {worker.num_ranks - 1} ranks at {address}: "
            f"{_first_line(error)}. Allow all TCP ports between the nodes in the network policy, "
            "and set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where a node has several networks."
        ) from error
    try:
        yield
    except RuntimeError as error:
        raise explain_lost_rank(error, worker) from error
    # Not after an error: this call may never return while other ranks wait for this one.
    torch.distributed.destroy_process_group()


def explain_lost_rank(error: BaseException, worker: Worker) -> BaseException:
    """Return a ConnectionLostError for an error that another rank's exit caused, else the error."""
    is_lost = isinstance(error, RuntimeError) and any(w in str(error) for w in _LOST_RANK_WORDS)
    if worker.num_ranks == 1 or not is_lost:
        return error
    return ConnectionLostError(
        f"Rank {worker.rank} of {worker.num_ranks} lost its connection to another rank: "
        f"{_first_line(error)}. The log of the other rank says why. Run the same command on every "
        "node to continue from the last checkpoint."
    )


def gather_values(value: Any) -> list[Any]:
    """Return the JSON values of all ranks, by rank, on every rank."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return [value]
    content = _as_tensor(json.dumps(value).encode())
    num_ranks = torch.distributed.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(num_ranks)]
    torch.distributed.all_gather(sizes, torch.tensor([len(content)]))
    # all_gather requires tensors of one size.
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
    padded[: len(content)] = content
    contents = [torch.empty_like(padded) for _ in range(num_ranks)]
    torch.distributed.all_gather(contents, padded)
    return [
        json.loads(content[: int(size)].numpy().tobytes())
        for content, size in zip(contents, sizes, strict=True)
    ]


def broadcast_from_rank0(value: Any) -> Any:
    """Return rank 0's JSON value on every rank; the others' values are ignored."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        return value
    return json.loads(_broadcast_bytes(json.dumps(value).encode()))


def broadcast_file_from_rank0(path: Path | None, folder: Path) -> Path | None:
    """Return rank 0's file on every rank: the file itself on a shared disk, else a copy.

    A rank without access to the file writes its copy to `folder`. The others' paths are ignored.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        return path
    found = broadcast_from_rank0(path and [str(path.resolve()), sha256_of_file(path)])
    if found is None:
        return None
    original, sha256 = Path(found[0]), found[1]
    is_shared = original.is_file() and sha256_of_file(original) == sha256
    if not max_of_ranks(not is_shared):
        return original
    copy = original if is_shared else folder / original.name
    with contextlib.ExitStack() as files:
        is_rank0 = torch.distributed.get_rank() == 0
        source = files.enter_context(original.open("rb")) if is_rank0 else None
        target = None if is_shared else files.enter_context(copy.open("wb"))
        while chunk := _broadcast_bytes(source.read(FILE_CHUNK_BYTES) if source else b""):
            if target:
                target.write(chunk)
    return copy


def _broadcast_bytes(content: bytes) -> bytes:
    import torch
    import torch.distributed

    size = torch.tensor([len(content)])
    torch.distributed.broadcast(size, src=0)
    is_rank0 = torch.distributed.get_rank() == 0
    tensor = _as_tensor(content) if is_rank0 else torch.empty(int(size), dtype=torch.uint8)
    torch.distributed.broadcast(tensor, src=0)
    return tensor.numpy().tobytes()


def max_of_ranks(number: int) -> int:
    """Return the highest of all ranks' numbers."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return number
    highest = torch.tensor(number)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return int(highest)


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Copy rank 0's buffers to all ranks, as DDP does before each step.

    After the last step every rank has its own running statistics of batch norms.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _choose_interface(master_addr: str) -> None:
    """Set the network interface that reaches node 0.

    By default gloo uses that of the host's own name, which many machines resolve to loopback.
    """
    if os.environ.get("GLOO_SOCKET_IFNAME"):
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


def _as_tensor(content: bytes) -> torch.Tensor:
    import numpy as np
    import torch

    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8).copy())


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:160]
