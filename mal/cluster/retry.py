"""What a retried step does with its earlier attempt: adopt the running job, wait for old pods.

Where the cluster does not allow it, the log says so and the training continues.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from mal.cluster import names
from mal.cluster.api_errors import ServerUnreachableError
from mal.cluster.launch_context import LaunchContext
from mal.cluster.pod import owner_reference
from mal.cluster.resources import PODS, Object
from mal.cluster.settings import JobSettings, Owner
from mal.errors import ClusterError

# After the pods' own grace: Kubernetes gives up a lost node after 300 s.
_BEYOND_GRACE_S = 420.0
_POLL_INTERVAL_S = 1.0
_MAX_NAMED = 3


def adopt_job(context: LaunchContext, made: Object, owner: Owner | None) -> None:
    """Make this step's owner that of a job which an earlier attempt created.

    It replaces one of its own kind: the pod of that attempt, or a workflow that Kubeflow has
    created again. An object exists as long as any of its owners: with both pods as owners, the job
    of a cancelled step would exist until the old pod's object is deleted. Owners of another kind
    stay.
    """
    metadata = made["metadata"]
    owners = metadata.get("ownerReferences", [])
    if owner is None or any(each["uid"] == owner.uid for each in owners):
        return
    kept = [e for e in owners if (e["apiVersion"], e["kind"]) != (owner.api_version, owner.kind)]
    change = {"uid": metadata["uid"], "ownerReferences": [*kept, owner_reference(owner)]}
    try:
        context.client.patch(
            context.kind.resource, metadata["namespace"], metadata["name"], {"metadata": change}
        )
    except ServerUnreachableError:
        raise
    except ClusterError as error:
        context.log(
            f"{metadata['name']} still belongs to the {owner.kind.lower()} of the step's earlier "
            f"attempt, and is deleted with it: {error}"
        )


class PreviousAttempts:
    """The pods of a step's earlier jobs, which write to the outputs of the next one."""

    def __init__(self, context: LaunchContext, job: JobSettings, labels: Mapping[str, str]) -> None:
        self._context, self._namespace = context, job.namespace
        # Katib gives an experiment's labels to the pod that suggests values, which writes nothing.
        self._labels = {**labels, names.COMPONENT_LABEL: names.TRAINER_COMPONENT}
        self._limit_s = job.lifetime.termination_grace_s + _BEYOND_GRACE_S
        self._since: float | None = None

    def have_ended(self) -> bool:
        """Return whether no pod runs any more; if one does, return after a short wait.

        Raises:
            ClusterError: Pods still run after the time limit.
        """
        running = self._running()
        if not running:
            return True
        now = time.monotonic()
        shown = ", ".join(running[:_MAX_NAMED])
        if self._since is None:
            self._since = now
            self._context.log(f"waits for the end of pods that still write to the outputs: {shown}")
        if now - self._since > self._limit_s:
            raise ClusterError(
                f"Pods of the step's earlier job still run after {self._limit_s:.0f} s: {shown}. "
                "They may write to the same outputs. Delete that job or these pods (kubectl -n "
                f"{self._namespace} delete pod), then run the step again."
            )
        time.sleep(_POLL_INTERVAL_S)
        return False

    def _running(self) -> list[str]:
        try:
            listing = self._context.client.list_objects(PODS, self._namespace, labels=self._labels)
        except ServerUnreachableError:
            raise
        except ClusterError as error:
            self._context.log(f"cannot check whether pods of an earlier job still run: {error}")
            return []
        ended = ("Succeeded", "Failed")
        return sorted(
            pod["metadata"]["name"]
            for pod in listing.items
            if pod["status"].get("phase") not in ended
        )
