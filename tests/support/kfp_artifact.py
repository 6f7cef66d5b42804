"""A stand-in for an artifact that Kubeflow Pipelines hands to a step."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Artifact:
    """A file of a step, whose place in the bucket is that on the disk."""

    path: str
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        return f"minio://bucket{self.path}"
