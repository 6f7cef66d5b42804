"""Lightning's view of the processes of a run: those that mal started, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.strategies import DDPStrategy

from mal.distributed.workers import Worker


class WorkerEnvironment(ClusterEnvironment):
    """Gives Lightning the ranks of a worker; environment variables cannot change them."""

    def __init__(self, worker: Worker) -> None:
        super().__init__()
        self.worker = worker

    @property
    def creates_processes_externally(self) -> bool:
        """Lightning must not start any."""
        return True

    @property
    def main_address(self) -> str:
        """Host of the first node."""
        return self.worker.topology.master_addr

    @property
    def main_port(self) -> int:
        """Port of the first node."""
        return self.worker.topology.master_port

    @staticmethod
    def detect() -> bool:
        """Lightning must not detect this environment."""
        return False

    def world_size(self) -> int:
        """Processes of the run."""
        return self.worker.num_ranks

    def set_world_size(self, size: int) -> None:
        """Ignored: the worker knows it."""

    def global_rank(self) -> int:
        """Rank among all processes."""
        return self.worker.rank

    def set_global_rank(self, rank: int) -> None:
        """Ignored: the worker knows it."""

    def local_rank(self) -> int:
        """Rank on this node."""
        return self.worker.local_rank

    def node_rank(self) -> int:
        """Rank of this node."""
        return self.worker.topology.node_rank


def device_arguments(worker: Worker, devices: Sequence[torch.device]) -> dict[str, Any]:
    """Return the trainer's arguments for one device, or for DDP over the group of `process_group`.

    Every trained weight gets a gradient in every step, so plain DDP finds no unused ones.

    Args:
        worker: This process.
        devices: The node's devices, one per worker.
    """
    device = devices[worker.local_rank]
    accelerator = device.type
    if worker.num_ranks == 1:
        return {"accelerator": accelerator, "devices": [device.index] if device.index else 1}
    strategy = DDPStrategy(
        parallel_devices=list(devices),
        cluster_environment=WorkerEnvironment(worker),
        gradient_as_bucket_view=True,
    )
    return {
        "accelerator": accelerator,
        "strategy": strategy,
        "num_nodes": worker.topology.num_nodes,
        # PyTorch has it on CUDA only; on CPUs each rank normalises by its own part of the batch.
        "sync_batchnorm": accelerator == "cuda",
    }
