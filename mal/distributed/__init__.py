"""Runs with several processes: their topology, their start, and their communication."""

from mal.distributed.topology import NodeTopology

__all__ = ["NodeTopology"]
