"""A job from its submission to its end: why it waits, what it logs, how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.diagnosis import Failure, find_failure
from mal.cluster.job_kinds import JobKind, JobState, Phase
from mal.cluster.job_log import KEPT_LINES, LogFollower
from mal.cluster.pod import Object
from mal.cluster.refusals import ServerUnreachableError
from mal.cluster.resources import PODS, WORKLOADS
from mal.cluster.submission import Attempt
from mal.cluster.waiting import Sight, Wait, explain_wait
from mal.errors import ClusterError, SpecError

_JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


@dataclass(frozen=True, kw_only=True)
class WaitLimits:
    """How long a job may wait, and how often the launcher looks.

    Attributes:
        queue_timeout_s: Suspended by Kueue or waiting for quota; 0 waits without end. It does not
            count against `start_timeout_s`, nor against a suspended job's own deadline.
        start_timeout_s: From admission until all pods run; 0 waits without end.
        poll_interval_s: Longest time between two looks; a change of the job is seen at once.
    """

    queue_timeout_s: int = 0
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
        name: Of the job, with the suffix of its attempt.
        namespace: Of the job.
        kind: PyTorchJob or TrainJob.
        uid: Of the object.
        attempt: 0 for the first job of the step; a failed one is followed by the next.
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

    def __init__(
        self,
        client: ClusterClient,
        kind: JobKind,
        attempt: Attempt,
        *,
        limits: WaitLimits,
        cancellation: Cancellation,
        tell: Callable[[str], None],
    ) -> None:
        self._client, self._kind, self._attempt = client, kind, attempt
        self._limits, self._tell = limits, tell
        self._job = attempt.settings
        self._title = f"{kind.name} {self._job.namespace}/{self._job.name}"
        self._cancellation = cancellation
        self._cancellation.watch_over(attempt.deletion(client, kind))
        self._is_over = False
        self._pods: list[Object] = []
        self._last_pods: list[Object] = []
        self._log: LogFollower | None = None
        self._told: str | None = None
        self._clock = _WaitClock(limits)
        self._are_events_readable = True

    def run(self) -> FinishedJob:
        """Wait for the end.

        Raises:
            ClusterError: Any end but success.
        """
        try:
            return self._wait_for_end()
        finally:
            if self._log is not None:
                self._log.stop()

    def _wait_for_end(self) -> FinishedJob:
        self._tell_beginning()
        while True:
            found, version = self._find_job()
            state = self._kind.read_state(found)
            self._pods = self._list_pods()
            self._follow_log()
            if state.is_finished:
                self._end()
                return self._finish(state)
            self._last_pods = self._pods or self._last_pods
            self._report_wait(state)
            self._client.wait_for_change(
                self._kind.resource,
                self._job.namespace,
                self._job.name,
                version,
                self._limits.poll_interval_s,
            )

    def delete_unless_finished(self) -> None:
        """Leave no job behind that nobody waits for."""
        if self._is_over:
            return
        try:
            self._client.delete(
                self._kind.resource, self._job.namespace, self._job.name, self._attempt.uid
            )
        except ClusterError as error:  # the reason to delete it matters more
            self._tell(str(error))

    def _end(self) -> None:
        self._is_over = True
        self._cancellation.release()

    def _tell_beginning(self) -> None:
        how = "submitted" if self._attempt.is_new else "is there already: waiting for it"
        self._tell(
            f"{self._title} {how}. See it with: kubectl -n {self._job.namespace} describe "
            f"{self._kind.resource.full_name} {self._job.name}"
        )

    def _find_job(self) -> tuple[Object, str]:
        listing = self._client.list_objects(
            self._kind.resource, self._job.namespace, fields={"metadata.name": self._job.name}
        )
        for found in listing.items:
            if found["metadata"]["uid"] == self._attempt.uid:
                return found, listing.version
        self._end()
        raise ClusterError(
            f"{self._title} must stay until it ends, got deleted by somebody. Run the step again: "
            "training goes on from its last checkpoint."
        )

    def _list_pods(self) -> list[Object]:
        """Return the job's pods by rank, those of a deleted job of the same name left out."""
        labels = self._kind.pod_labels(self._job.name)
        pods = self._client.list_objects(PODS, self._job.namespace, labels=labels).items
        since = self._attempt.created_at
        pods = [pod for pod in pods if pod["metadata"]["creationTimestamp"] >= since]
        return sorted(pods, key=self._kind.rank_of_pod)

    def _follow_log(self) -> None:
        for pod in self._pods:
            name = pod["metadata"]["name"]
            is_started = pod["status"].get("phase") in ("Running", "Succeeded", "Failed")
            if self._kind.rank_of_pod(pod) or not is_started:
                continue
            if self._log is not None and self._log.pod != name:
                self._log.finish()
                self._log = None
            if self._log is None:
                self._log = LogFollower(
                    self._client,
                    self._job.namespace,
                    name,
                    self._kind.container,
                    tell=self._tell,
                    tail_lines=0 if self._attempt.is_new else KEPT_LINES,
                )

    def _report_wait(self, state: JobState) -> None:
        """Say why the job waits, once per change, and end it after the time for that."""
        wait = explain_wait(
            Sight(
                kind=self._kind,
                settings=self._job,
                state=state,
                pods=self._pods,
                events_of=self._list_events,
                queue_message=self._read_queue_message,
            )
        )
        told = wait.identity if wait else ""
        if told != self._told:
            self._tell(f"{self._title}: {wait.text if wait else 'all pods run'}")
        self._told = told
        exceeded = self._clock.exceeded_limit(wait)
        if wait is not None and exceeded is not None:
            name, limit_s = exceeded
            raise ClusterError(
                f"{self._title} must {name} within {limit_s} s, got no further than this: "
                f"{wait.text.rstrip('.')}. {wait.advice} The job was deleted."
            )

    def _list_events(self, object_name: str) -> list[Object]:
        if not self._are_events_readable:
            return []
        try:
            events = self._client.list_events(self._job.namespace, object_name)
        except ServerUnreachableError:
            raise
        except ClusterError as error:  # reasons are a help, not a need
            self._are_events_readable = False
            self._tell(str(error))
            return []
        since = self._attempt.created_at
        return [e for e in events if (e.get("lastTimestamp") or e.get("eventTime") or "") >= since]

    def _read_queue_message(self) -> str:
        try:
            workloads = self._client.list_objects(
                WORKLOADS,
                self._job.namespace,
                labels={_JOB_UID_LABEL: self._attempt.uid},
            ).items
        except ServerUnreachableError:
            raise
        except ClusterError:
            return ""
        conditions = [c for w in workloads for c in w.get("status", {}).get("conditions", ())]
        waiting = [c for c in conditions if (c["type"], c["status"]) == ("QuotaReserved", "False")]
        return str(waiting[0].get("message", "")) if waiting else ""

    def _finish(self, state: JobState) -> FinishedJob:
        if self._log is not None:
            self._log.finish()
        if state.phase is Phase.SUCCEEDED:
            self._tell(f"{self._title} succeeded after {state.duration_s:.0f} s")
            return FinishedJob(
                name=self._job.name,
                namespace=self._job.namespace,
                kind=self._kind.name,
                uid=self._attempt.uid,
                attempt=self._attempt.number,
                duration_s=state.duration_s,
            )
        failure = self._find_failure(state)
        lines = self._last_lines(failure.pod)
        shown = "\n".join([f"The last lines of {failure.pod or 'rank 0'}:", *lines])
        raise ClusterError(
            f"{self._title} failed: {failure.what.rstrip('.')}. {failure.advice}"
            + (f"\n{shown}" if lines else "")
        )

    def _find_failure(self, state: JobState) -> Failure:
        """Look at the pods, and as they were before where the operator deleted them."""
        found = find_failure(state, self._pods, self._job, self._kind.container)
        if found.pod:
            return found
        return find_failure(state, self._last_pods, self._job, self._kind.container)

    def _last_lines(self, pod: str) -> list[str]:
        followed = list(self._log.last_lines) if self._log else []
        if not pod or (self._log is not None and pod == self._log.pod and followed):
            return followed
        try:
            return self._client.read_log(
                self._job.namespace, pod, self._kind.container, tail_lines=KEPT_LINES
            )
        except ClusterError:
            return []  # the pod is gone


class _WaitClock:
    """Two stopwatches, one for the queue and one for the start after it."""

    def __init__(self, limits: WaitLimits) -> None:
        self._limits = limits
        self._was_queued: bool | None = None
        self._since = time.monotonic()

    def exceeded_limit(self, wait: Wait | None) -> tuple[str, int] | None:
        """Return what the job must do, and the time for it, when that is over."""
        now = time.monotonic()
        is_queued = wait.is_queued if wait is not None else None
        if is_queued != self._was_queued:
            self._was_queued, self._since = is_queued, now
        if is_queued is None:
            return None
        name, limit_s = (
            ("be admitted", self._limits.queue_timeout_s)
            if is_queued
            else ("start", self._limits.start_timeout_s)
        )
        return (name, limit_s) if limit_s and now - self._since > limit_s else None
