"""Finds pods of a running job that vanished: deleted by force, or with their node.

The training operator makes a new pod of the same name (release-1.9 pkg/controller.v1/common/
pod.go:307), which cannot join the training that runs: without this the nodes wait for one another
until PyTorch's timeout, and the failure names another pod.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from mal.cluster.job_kind import JobSnapshot, Phase, find_condition
from mal.cluster.resources import Object


@dataclass(frozen=True)
class LostPod:
    """A pod that ran and is no longer there.

    Attributes:
        seen_at: When it was last seen, hh:mm:ss UTC.
        reason: Why it was being removed when it was last seen; '' if it was not.
    """

    name: str
    seen_at: str
    reason: str = ""

    def describe(self) -> str:
        """Return what happened to it."""
        why = f": {self.reason}" if self.reason else ""
        return f"the pod {self.name} is gone since {self.seen_at} UTC{why}"


class RunningPods:
    """The pods of one job that have been seen to run."""

    def __init__(self) -> None:
        self._seen: dict[str, LostPod] = {}
        self._missing: dict[str, LostPod] = {}

    @property
    def missing(self) -> Mapping[str, LostPod]:
        """Pods that ran and were missing at the last look at the active job, by uid."""
        return self._missing

    def find_lost(self, snapshot: JobSnapshot) -> LostPod | None:
        """Return a pod that was missing at two looks at a job that had not ended at either.

        One look is not enough: some operators delete the pods of a job before its state says that
        it has ended or was suspended.
        """
        if snapshot.state.phase is Phase.SUSPENDED:
            self._seen, self._missing = {}, {}
        if snapshot.state.phase is not Phase.ACTIVE:
            return None  # what is missing now the operator has deleted
        now = datetime.now(UTC).strftime("%H:%M:%S")
        there = {pod["metadata"]["uid"] for pod in snapshot.pods}
        before = self._missing
        self._missing = {uid: pod for uid, pod in self._seen.items() if uid not in there}
        for pod in snapshot.pods:
            self._remember(pod, now)
        return next((pod for uid, pod in self._missing.items() if uid in before), None)

    def _remember(self, pod: Object, now: str) -> None:
        metadata = pod["metadata"]
        if pod["status"].get("phase") == "Running":
            self._seen[metadata["uid"]] = LostPod(metadata["name"], now, _removal_of(pod))
        else:
            self._seen.pop(metadata["uid"], None)


def _removal_of(pod: Object) -> str:
    disrupted = find_condition(pod, "DisruptionTarget")
    if disrupted:
        return f"{disrupted.get('reason', '')}: {disrupted.get('message', '')}".strip(": ")
    return "it was deleted" if "deletionTimestamp" in pod["metadata"] else ""
