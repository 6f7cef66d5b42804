"""The kinds of objects that the launcher reads and writes, and what brings the right to each."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resource:
    """A kind of objects at the API server.

    Attributes:
        group: '' is Kubernetes' own.
        version: Of the group.
        plural: Name in paths.
        manifest: Of this repository, with the right to it.
        brought_by: What makes the cluster know it.
    """

    group: str
    version: str
    plural: str
    manifest: str
    brought_by: str = "Kubernetes"

    @property
    def full_name(self) -> str:
        """The name that kubectl takes."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    def path(self, namespace: str, name: str = "", subresource: str = "") -> str:
        """Return the path of the objects, of one, or of a part of one."""
        root = f"/apis/{self.group}" if self.group else "/api"
        parts = [f"{root}/{self.version}/namespaces/{namespace}/{self.plural}", name, subresource]
        return "/".join(part for part in parts if part)


PODS = Resource("", "v1", "pods", "manifests/base")
EVENTS = Resource("", "v1", "events", "manifests/base")
PYTORCHJOBS = Resource(
    "kubeflow.org", "v1", "pytorchjobs", "manifests/base", "the training operator v1 (release 1.9)"
)
TRAINJOBS = Resource(
    "trainer.kubeflow.org",
    "v1alpha1",
    "trainjobs",
    "manifests/components/trainjob",
    "Trainer 2.2 or later",
)
WORKLOADS = Resource(
    "kueue.x-k8s.io", "v1beta1", "workloads", "manifests/components/kueue", "Kueue"
)
