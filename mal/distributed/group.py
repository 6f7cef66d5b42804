"""How the processes of a run speak: gather values, agree on a flag. Alone, all of it is free.

Values travel as JSON: no rank ever runs what another's pickle asks for.
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
# What gloo, NCCL and the store say when another process is gone.
_SIGNS_OF_LOSS = ("gloo", "NCCL", "Connection", "TCPStore", "Socket", "socket", "timed out")


@contextlib.contextmanager
def joining(worker: Worker, device: torch.device) -> Iterator[None]:
    """Be a part of the run's process group inside the block.

    Raises:
        WorkerError: The others cannot be reached, or one of them is gone.
    """
    import torch.distributed

    topology = worker.topology
    _choose_interface(topology.master_addr)
    place = f"{topology.master_addr}:{topology.master_port}"
    log.info("rank %d of %d joins at %s", worker.rank, worker.num_ranks, place)
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
            f"rank {worker.rank} must reach the other {worker.num_ranks - 1} by way of {place}, "
            f"got {_first_line(error)}. Let the network policy allow all TCP ports between the "
            "nodes, and set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME where a node has several "
            "networks."
        ) from error
    try:
        yield
    except RuntimeError as error:
        raise explain_loss(error, worker) from error
    # Not after an error: a group whose other members wait for this one may never let it go.
    torch.distributed.destroy_process_group()


def explain_loss(error: BaseException, worker: Worker) -> BaseException:
    """Return what to say of an error that another rank's end caused; any other as it is."""
    is_loss = isinstance(error, RuntimeError) and any(s in str(error) for s in _SIGNS_OF_LOSS)
    if worker.num_ranks == 1 or not is_loss:
        return error
    return ConnectionLostError(
        f"rank {worker.rank} of {worker.num_ranks} must stay connected to the others, got "
        f"{_first_line(error)}: another rank is gone, and its log says why. Run the same command "
        "on every node to go on from the last checkpoint."
    )


def gather_values(value: Any) -> list[Any]:
    """Return the JSON value of every rank, in their order, on every rank."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return [value]
    content = _as_tensor(json.dumps(value).encode())
    num_ranks = torch.distributed.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(num_ranks)]
    torch.distributed.all_gather(sizes, torch.tensor([len(content)]))
    # Gathering wants tensors of one size.
    padded = torch.zeros(int(max(sizes)), dtype=torch.uint8)
    padded[: len(content)] = content
    contents = [torch.empty_like(padded) for _ in range(num_ranks)]
    torch.distributed.all_gather(contents, padded)
    return [
        json.loads(content[: int(size)].numpy().tobytes())
        for content, size in zip(contents, sizes, strict=True)
    ]


def value_of_first(value: Any) -> Any:
    """Return the first rank's JSON value on every rank; what the others give counts for nothing."""
    import torch.distributed

    if not torch.distributed.is_initialized():
        return value
    return json.loads(_bytes_of_first(json.dumps(value).encode()))


def file_of_first(path: Path | None, folder: Path) -> Path | None:
    """Return the first rank's file on every rank: itself where it can be seen, else a copy.

    Args:
        path: The first rank's file, or None; what the others give counts for nothing.
        folder: Where a rank that cannot see the file puts its copy.
    """
    import torch.distributed

    if not torch.distributed.is_initialized():
        return path
    facts = value_of_first(path and [str(path.resolve()), sha256_of_file(path)])
    if facts is None:
        return None
    original, sha256 = Path(facts[0]), facts[1]
    is_seen = original.is_file() and sha256_of_file(original) == sha256
    if not highest_of_ranks(not is_seen):
        return original
    copy = original if is_seen else folder / original.name
    is_first = torch.distributed.get_rank() == 0
    with contextlib.ExitStack() as files:
        source = files.enter_context(original.open("rb")) if is_first else None
        target = None if is_seen else files.enter_context(copy.open("wb"))
        while chunk := _bytes_of_first(source.read(FILE_CHUNK_BYTES) if source else b""):
            if target:
                target.write(chunk)
    return copy


def _bytes_of_first(content: bytes) -> bytes:
    import torch
    import torch.distributed

    size = torch.tensor([len(content)])
    torch.distributed.broadcast(size, src=0)
    is_first = torch.distributed.get_rank() == 0
    tensor = _as_tensor(content) if is_first else torch.empty(int(size), dtype=torch.uint8)
    torch.distributed.broadcast(tensor, src=0)
    return tensor.numpy().tobytes()


def highest_of_ranks(number: int) -> int:
    """Return the highest number that any rank has."""
    import torch
    import torch.distributed

    if not torch.distributed.is_initialized():
        return number
    highest = torch.tensor(number)
    torch.distributed.all_reduce(highest, torch.distributed.ReduceOp.MAX)
    return int(highest)


def share_buffers(module: torch.nn.Module) -> None:
    """Give all ranks the first one's buffers, as DDP does before each step.

    Between the last step and this the running statistics of batch norms are each rank's own.
    """
    import torch.distributed

    if torch.distributed.is_initialized():
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def _choose_interface(master_addr: str) -> None:
    """Name the network interface that reaches the first node.

    Left alone, gloo takes that of the host's own name, which many machines resolve to loopback.
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
