"""Watches one job of any kind: why it is pending, its log, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from mal.cluster.api_errors import ServerUnreachableError
from mal.cluster.diagnosis import deadline_failure, find_failure, loss_of
from mal.cluster.job_kind import (
    Failure,
    JobSnapshot,
    PendingReason,
    Phase,
    find_condition,
)  # fmt: skip
from mal.cluster.job_log import KEPT_LINES, LogFollower
from mal.cluster.launch_context import Attempt, LaunchContext
from mal.cluster.lost_pods import RunningPods
from mal.cluster.pending import find_pending_reason
from mal.cluster.resources import PODS, WORKLOADS, Object, Resource
from mal.errors import ClusterError, SpecError

# A job that a quota admits in part would hold its first pods' GPUs for ever.
DEFAULT_QUEUE_TIMEOUT_S = 24 * 3600
_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


class PodLostError(ClusterError):
    """The job failed because a pod or a node was lost: it may be started again."""


@dataclass(frozen=True, kw_only=True)
class WaitLimits:
    """How long a job may wait, and how often the launcher reads its state.

    Attributes:
        queue_timeout_s: Suspended by Kueue or waiting for quota; 0 waits without end. It does not
            count against `start_timeout_s`, nor against a suspended job's own deadline. While a
            quota holds back some pods of a job, its other pods hold their GPUs.
        start_timeout_s: From admission until all pods run (a search: until its first trial starts);
            0 waits without end.
        poll_interval_s: Longest time between two reads; a change of the job is read at once.
    """

    queue_timeout_s: int = DEFAULT_QUEUE_TIMEOUT_S
    start_timeout_s: int = 1800
    poll_interval_s: float = 5.0

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be 0 or more seconds, got {limit_s}. Write 0 to wait without end."
            for name, limit_s in vars(self).items()
            if limit_s < 0
        ]
        if problems:
            raise SpecError(problems)


DEFAULT_LIMITS = WaitLimits()


@dataclass(frozen=True)
class FinishedJob:
    """A job that succeeded.

    Attributes:
        name: With the suffix of its attempt.
        kind: Such as PyTorchJob.
        attempt: 0 for the first job of the step; the one after a failed job has the next number.
        duration_s: From its start, after any queue, to its end.
    """

    name: str
    namespace: str
    kind: str
    uid: str
    attempt: int
    duration_s: float


class JobWatch:
    """One job, from its submission to its end."""

    def __init__(self, context: LaunchContext, attempt: Attempt, limits: WaitLimits) -> None:
        self._client, self._kind, self._log = context.client, context.kind, context.log
        self._attempt, self._limits = attempt, limits
        self._job = attempt.settings
        self._title = f"{context.kind.name} {self._job.namespace}/{self._job.name}"
        self._cancellation = context.cancellation
        self._find_checkpoint = context.find_checkpoint
        self._running_pods = RunningPods()
        self._is_over = False
        self._last_pods: list[Object] = []
        self._follower: LogFollower | None = None
        self._logged_reason: str | None = None
        self._logged_progress = ""
        self._clock = _WaitClock(limits)
        self._are_events_readable = True

    def run(self) -> FinishedJob:
        """Wait for the end.

        Raises:
            ClusterError: The job did not succeed.
        """
        how = "submitted" if self._attempt.is_new else "exists already: waiting for it"
        self._log(
            f"{self._title} {how}. To inspect it: kubectl -n {self._job.namespace} describe "
            f"{self._kind.resource.full_name} {self._job.name}"
        )
        try:
            return self._wait_for_end()
        finally:
            if self._follower is not None:
                self._follower.stop()

    def delete_unless_finished(self) -> None:
        """Delete a job that no launcher waits for any more."""
        if self._is_over:
            return
        try:
            self._client.delete(
                self._kind.resource, self._job.namespace, self._job.name, self._attempt.uid
            )
        except ClusterError as error:  # the reason to delete the job matters more
            self._log(str(error))

    def _wait_for_end(self) -> FinishedJob:
        while True:
            snapshot, version = self._take_snapshot()
            self._follow_log(snapshot.pods)
            self._log_progress(snapshot)
            lost = self._running_pods.find_lost(snapshot)
            if snapshot.state.is_finished:
                self._end()
                return self._finish(snapshot)
            if lost is not None and not self._kind.replaces_pods(self._job):
                raise self._error_of(loss_of(lost))
            self._require_deadline(snapshot)
            self._last_pods = list(snapshot.pods) or self._last_pods
            self._log_pending_reason(snapshot)
            self._client.wait_for_change(
                self._kind.resource,
                self._job.namespace,
                self._job.name,
                version,
                self._limits.poll_interval_s,
            )

    def _require_deadline(self, snapshot: JobSnapshot) -> None:
        """End a job beyond its deadline where the operator does not.

        Raises:
            ClusterError: The deadline has passed.
        """
        state, limit_s = snapshot.state, self._job.lifetime.active_deadline_s
        is_running = state.phase is Phase.ACTIVE and state.started_at
        if self._kind.enforces_deadline or not is_running:
            return
        lasted = datetime.now(UTC) - datetime.fromisoformat(state.started_at)
        if lasted.total_seconds() > limit_s:
            raise self._error_of(deadline_failure(self._job))

    def _end(self) -> None:
        self._is_over = True
        self._cancellation.release()

    def _take_snapshot(self) -> tuple[JobSnapshot, str]:
        """Return the job's state, and the version of the list that it was read from.

        The pods are read before the job: an operator deletes the pods of a job that has ended, so
        that a pod that is missing beside an active job is lost. An ended job's pods are read again.
        """
        pods = self._list_pods()
        listing = self._client.list_objects(
            self._kind.resource, self._job.namespace, fields={"metadata.name": self._job.name}
        )
        for made in listing.items:
            if made["metadata"]["uid"] == self._attempt.uid:
                state = self._kind.read_state(made)
                snapshot = JobSnapshot(
                    settings=self._job,
                    made=made,
                    state=state,
                    pods=self._list_pods() if state.is_finished else pods,
                    events_of=self._list_events,
                    queue_message=self._read_queue_message,
                    list_objects=self._list_objects,
                    last_lines_of=self._read_last_lines,
                )
                return snapshot, listing.version
        self._end()
        checkpoint = self._find_checkpoint() or "Training continues from its last checkpoint."
        raise ClusterError(
            f"{self._title} was deleted before it ended. Run the step again. {checkpoint}"
        )

    def _list_objects(self, resource: Resource, labels: Mapping[str, str]) -> list[Object]:
        return self._client.list_objects(resource, self._job.namespace, labels=labels).items

    def _list_pods(self) -> list[Object]:
        """Return the pods by rank, without those of a deleted job of the same name."""
        if self._kind.pods is None:
            return []
        pods = self._list_objects(PODS, self._kind.pods.labels(self._job.name))
        since = self._attempt.created_at
        pods = [pod for pod in pods if pod["metadata"]["creationTimestamp"] >= since]
        return sorted(pods, key=self._kind.pods.rank)

    def _follow_log(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            assert self._kind.pods is not None, "there are pods"
            name = pod["metadata"]["name"]
            is_started = pod["status"].get("phase") in ("Running", "Succeeded", "Failed")
            if self._kind.pods.rank(pod) or not is_started:
                continue
            if self._follower is not None and self._follower.pod != name:
                self._follower.finish()
                self._follower = None
            if self._follower is None:
                self._follower = LogFollower(
                    self._client,
                    self._job.namespace,
                    name,
                    self._kind.pods.container,
                    log=self._log,
                    tail_lines=0 if self._attempt.is_new else KEPT_LINES,
                )

    def _log_progress(self, snapshot: JobSnapshot) -> None:
        progress = self._kind.describe_progress(snapshot.made)
        if progress and progress != self._logged_progress:
            self._log(f"{self._title}: {progress}")
        self._logged_progress = progress

    def _log_pending_reason(self, snapshot: JobSnapshot) -> None:
        """Log why the job is pending, once per change.

        Raises:
            ClusterError: It has been pending for too long.
        """
        reason = find_pending_reason(self._kind, snapshot)
        identity = reason.identity if reason else ""
        if identity != self._logged_reason:
            started = "all pods run" if self._kind.pods else "it has started"
            self._log(f"{self._title}: {reason.text if reason else started}")
        self._logged_reason = identity
        exceeded = self._clock.exceeded_limit(reason)
        if reason is not None and exceeded is not None:
            what, limit_s = exceeded
            raise ClusterError(
                f"{self._title} was not {what} within {limit_s} s: {reason.text.rstrip('.')}. "
                f"{reason.advice} The {self._kind.name} was deleted."
            )

    def _list_events(self, object_name: str) -> list[Object]:
        if not self._are_events_readable:
            return []
        try:
            events = self._client.list_events(self._job.namespace, object_name)
        except ServerUnreachableError:
            raise
        except ClusterError as error:  # the training does not need the reasons
            self._are_events_readable = False
            self._log(str(error))
            return []
        since = self._attempt.created_at
        return [e for e in events if (e.get("lastTimestamp") or e.get("eventTime") or "") >= since]

    def _read_queue_message(self) -> str:
        try:
            workloads = self._list_objects(WORKLOADS, {_JOB_UID_LABEL: self._attempt.uid})
        except ServerUnreachableError:
            raise
        except ClusterError:
            return ""
        conditions = [find_condition(w, "QuotaReserved", "False") for w in workloads]
        return next((str(c.get("message", "")) for c in conditions if c), "")

    def _finish(self, snapshot: JobSnapshot) -> FinishedJob:
        state = snapshot.state
        if self._follower is not None:
            self._follower.finish()
        if state.phase is Phase.SUCCEEDED:
            self._log(f"{self._title} succeeded after {state.duration_s:.0f} s")
            return FinishedJob(
                name=self._job.name,
                namespace=self._job.namespace,
                kind=self._kind.name,
                uid=self._attempt.uid,
                attempt=self._attempt.number,
                duration_s=state.duration_s,
            )
        raise self._error_of(self._find_failure(snapshot))

    def _error_of(self, failure: Failure) -> ClusterError:
        """Return the error of a failure, with the last lines of the pod that shows it."""
        text = f"{self._title} failed: {failure.what.rstrip('.')}. {failure.advice}"
        if failure.is_resumable and (checkpoint := self._find_checkpoint()):
            text = f"{text} {checkpoint}"
        lines = list(failure.details)
        if self._kind.pods is not None and (shown := self._last_lines(failure)):
            where = failure.pod or "rank 0"
            if failure.container:
                where = f"{failure.container} of {where}"
            lines += [f"The last lines of {where}:", *shown]
        kind = PodLostError if failure.is_loss else ClusterError
        return kind("\n".join([text, *lines]))

    def _find_failure(self, snapshot: JobSnapshot) -> Failure:
        if self._kind.find_failure is not None:
            return self._kind.find_failure(snapshot)
        assert self._kind.pods is not None, "JobKind requires one of the two"
        container = self._kind.pods.container
        is_restarted = self._job.lifetime.restart_policy != "Never"
        lost = [] if is_restarted else list(self._running_pods.missing.values())
        found = find_failure(snapshot.state, snapshot.pods, self._job, container, lost)
        if found.pod:
            return found
        # The operator may have deleted the pods: use their last state before that.
        return find_failure(snapshot.state, self._last_pods, self._job, container, lost)

    def _last_lines(self, failure: Failure) -> list[str]:
        follower, pod = self._follower, failure.pod
        followed = list(follower.last_lines) if follower is not None else []
        is_followed = follower is not None and pod == follower.pod and not failure.container
        if not pod or (is_followed and followed):
            return followed
        assert self._kind.pods is not None, "the caller checks it"
        return self._read_last_lines(pod, failure.container or self._kind.pods.container)

    def _read_last_lines(self, pod: str, container: str) -> list[str]:
        try:
            return self._client.read_log(self._job.namespace, pod, container, tail_lines=KEPT_LINES)
        except ClusterError:
            return []  # the pod is gone


class _WaitClock:
    """Measures the time in the queue, and the time to start after it."""

    def __init__(self, limits: WaitLimits) -> None:
        self._limits = limits
        self._was_queued: bool | None = None
        self._since = time.monotonic()

    def exceeded_limit(self, reason: PendingReason | None) -> tuple[str, int] | None:
        """Return what did not happen and its limit in seconds; None within the limit."""
        now = time.monotonic()
        is_queued = reason.is_queued if reason is not None else None
        if is_queued != self._was_queued:
            self._was_queued, self._since = is_queued, now
        if is_queued is None:
            return None
        what, limit_s = (
            ("admitted", self._limits.queue_timeout_s)
            if is_queued
            else ("started", self._limits.start_timeout_s)
        )
        return (what, limit_s) if limit_s and now - self._since > limit_s else None
