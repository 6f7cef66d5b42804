"""Several processes as one run: who there is, who starts them, how they speak."""

from mal.distributed.topology import NodeTopology

__all__ = ["NodeTopology"]
