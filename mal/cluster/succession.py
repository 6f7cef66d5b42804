"""What a step's try takes over from the tries before it: their running job, and their pods' place.

Neither is worth the training: where the cluster refuses to let it be done, the log says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mal.cluster.client import ClusterClient
from mal.cluster.pod import Object, owner_reference
from mal.cluster.refusals import ServerUnreachableError
from mal.cluster.resources import PODS, Resource
from mal.cluster.settings import JobSettings, Owner
from mal.errors import ClusterError

# Beyond their own grace: a node that was lost is given up after 300 s.
_BEYOND_GRACE_S = 420.0
_POLL_INTERVAL_S = 1.0
_MAX_NAMED = 3


def take_over(
    client: ClusterClient,
    resource: Resource,
    made: Object,
    owner: Owner | None,
    tell: Callable[[str], None],
) -> None:
    """Make the present step's pod the owner of a job that an earlier try's pod owns.

    It replaces that pod. Beside it, it would not do: an object lives as long as any of its owners,
    so that the job of a cancelled step would stay for as long as the record of an old pod. Owners
    of another kind are somebody else's and stay.
    """
    metadata = made["metadata"]
    owners = metadata.get("ownerReferences", [])
    if owner is None or any(each["uid"] == owner.uid for each in owners):
        return
    kept = [e for e in owners if (e["apiVersion"], e["kind"]) != (owner.api_version, owner.kind)]
    change = {"uid": metadata["uid"], "ownerReferences": [*kept, owner_reference(owner)]}
    try:
        client.patch(resource, metadata["namespace"], metadata["name"], {"metadata": change})
    except ServerUnreachableError:
        raise
    except ClusterError as error:
        tell(
            f"{metadata['name']} goes on belonging to the pod of the step's earlier try, and is "
            f"deleted with it: {error}"
        )


class Predecessors:
    """The pods of a step's earlier jobs, which write to the outputs of the next one."""

    def __init__(
        self,
        client: ClusterClient,
        job: JobSettings,
        labels: Mapping[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self._client, self._namespace, self._labels = client, job.namespace, labels
        self._limit_s = job.lifetime.termination_grace_s + _BEYOND_GRACE_S
        self._tell = tell
        self._since: float | None = None

    def are_gone(self) -> bool:
        """Return whether no pod runs any more; else a moment later, for the next look.

        Raises:
            ClusterError: They still run after their time.
        """
        running = self._running()
        if not running:
            return True
        now = time.monotonic()
        shown = ", ".join(running[:_MAX_NAMED])
        if self._since is None:
            self._since = now
            self._tell(f"waits for the end of pods that still write to the outputs: {shown}")
        if now - self._since > self._limit_s:
            raise ClusterError(
                f"The pods of the step's earlier job must end within {self._limit_s:.0f} s, got "
                f"{shown} still there, which may write to the same outputs. Delete that job or "
                f"them (kubectl -n {self._namespace} delete pod), then run the step again."
            )
        time.sleep(_POLL_INTERVAL_S)
        return False

    def _running(self) -> list[str]:
        try:
            pods = self._client.list_objects(PODS, self._namespace, labels=self._labels).items
        except ServerUnreachableError:
            raise
        except ClusterError as error:
            self._tell(f"whether pods of an earlier job still run cannot be told: {error}")
            return []
        ended = ("Succeeded", "Failed")
        return sorted(
            pod["metadata"]["name"] for pod in pods if pod["status"].get("phase") not in ended
        )
