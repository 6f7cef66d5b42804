"""The resources of the API server that the launcher reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A resource of the API server.

    Attributes:
        group: '' is Kubernetes' core group.
        plural: Name in paths.
        manifest: Folder of this repository with the launcher's right to it.
        brought_by: What to install where the cluster does not know the resource.
    """

    group: str
    version: str
    plural: str
    manifest: str
    brought_by: str = "Kubernetes"

    @property
    def api_version(self) -> str:
        """Group and version, as objects write them."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def full_name(self) -> str:
        """The name that kubectl takes."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the path of all objects, of one, or of its subresource."""
        root = "/apis" if self.group else "/api"
        folder = f"{root}/{self.api_version}/namespaces/{namespace}/{self.plural}"
        parts = [folder, name, subresource]
        return "/".join(part for part in parts if part)


PODS = Resource("", "v1", "pods", "manifests/base")
EVENTS = Resource("", "v1", "events", "manifests/base")
WORKLOADS = Resource(
    "kueue.x-k8s.io", "v1beta1", "workloads", "manifests/components/kueue", "Kueue"
)
