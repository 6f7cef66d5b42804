"""The pod of a pipeline step: what owns it, and whether it is being removed.

SIGTERM alone does not say why a step ends. Argo ends a terminated run by `kill` in the container
(argo-workflows workflow/controller/pod/queue.go:55) and leaves the pod's object alone. An eviction,
a drained node and a scheduler that preempts mark the pod first: `deletionTimestamp`, or the
condition DisruptionTarget. docs/decisions/0010-eviction-or-terminate.md has the reasons.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mal.cluster.client import ClusterClient
from mal.cluster.job_kind import find_condition
from mal.cluster.resources import PODS
from mal.cluster.settings import Owner
from mal.errors import ClusterError

WORKFLOW_KIND = "Workflow"
# A signal kills KFP's launcher, through which a step's own output reaches the pod's log.
_FIRST_PROCESS = Path("/proc/1")
_ARGO = b"argoexec"


@dataclass(frozen=True)
class StepPod:
    """The pod in which a step runs."""

    namespace: str
    name: str
    uid: str

    @property
    def as_owner(self) -> Owner:
        """The pod itself as an owner."""
        return Owner(name=self.name, uid=self.uid)

    def find_owner(self, client: ClusterClient, log: Callable[[str], None]) -> Owner:
        """Return the workflow of the pod, which exists as long as its run; else the pod.

        A job that the pod owns is deleted with an evicted pod, before the next try can find it.
        """
        try:
            found = client.list_objects(
                PODS, self.namespace, fields={"metadata.name": self.name}
            ).items
        except ClusterError as error:
            log(f"the job belongs to this step's pod and is deleted with it: {error}")
            return self.as_owner
        for pod in found:
            for each in pod["metadata"].get("ownerReferences") or ():
                if each["kind"] == WORKFLOW_KIND and pod["metadata"]["uid"] == self.uid:
                    return Owner(
                        api_version=each["apiVersion"],
                        kind=each["kind"],
                        name=each["name"],
                        uid=each["uid"],
                    )
        return self.as_owner

    def removal_reason_at_once(self, client: ClusterClient) -> str:
        """Return why the pod is deleted; '' if it is not, or the answer takes too long.

        A pod that the kubelet ends itself (node pressure, shutdown of the node, deadline) is not
        deleted: Argo calls it Failed, and the step has no next try.
        """
        pod = client.read_at_once(PODS, self.namespace, self.name)
        if pod is None or pod["metadata"]["uid"] != self.uid:
            return ""
        if "deletionTimestamp" not in pod["metadata"]:
            return ""
        disrupted = find_condition(pod, "DisruptionTarget") or {}
        return str(disrupted.get("reason") or "the pod was deleted")


def write_to_log_of_pod(line: str) -> bool:
    """Write a line to the log of this container by Argo's process; returns whether it could."""
    with contextlib.suppress(OSError):
        if _ARGO in (_FIRST_PROCESS / "cmdline").read_bytes():
            with (_FIRST_PROCESS / "fd" / "2").open("w", encoding="utf-8") as log:
                log.write(f"{line}\n")
            return True
    return False
