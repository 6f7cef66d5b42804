"""What the parts of one launcher share."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable
from dataclasses import dataclass

from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.job_kind import JobKind
from mal.cluster.settings import JobSettings
from mal.cluster.step_pod import StepPod, write_to_log_of_pod


@dataclass(frozen=True)
class Attempt:
    """The job that a step waits for.

    Attributes:
        settings: With the name of this attempt.
        number: 0 for the step's first job.
        is_new: False for a job that an earlier attempt of the step created.
    """

    settings: JobSettings
    uid: str
    created_at: str
    number: int
    is_new: bool


@dataclass(frozen=True)
class LaunchContext:
    """A launcher's connection, kind of job, log and reaction to signals.

    Attributes:
        step_pod: The step's own pod; None outside of a cluster.
        find_checkpoint: Returns a sentence on the last checkpoint of the job; '' where unknown.
    """

    client: ClusterClient
    kind: JobKind
    log: Callable[[str], None]
    cancellation: Cancellation
    step_pod: StepPod | None = None
    find_checkpoint: Callable[[], str] = lambda: ""

    def delete_on_signal(self, attempt: Attempt) -> None:
        """Delete the job when the step is cancelled, and keep it when its pod is being removed."""
        client, resource, job = self.client, self.kind.resource, attempt.settings
        title = f"{self.kind.name} {job.namespace}/{job.name}"

        def end_watch(signal_number: int) -> None:
            received = f"received {signal.Signals(signal_number).name}"
            reason = self.step_pod.removal_reason_at_once(client) if self.step_pod else ""
            if reason:
                self._log_last(
                    f"{received} ({reason}): {title} continues, and the step's next try watches it"
                )
            elif client.delete_at_once(resource, job.namespace, job.name, attempt.uid):
                self._log_last(f"{received}: {title} was deleted")
            else:
                self._log_last(
                    f"{received}: {title} could not be deleted in time. To delete it: kubectl -n "
                    f"{job.namespace} delete {resource.full_name} {job.name}"
                )

        self.cancellation.call_first(end_watch)

    def _log_last(self, line: str) -> None:
        """Log a line from the signal's handler, where nothing may fail or wait."""
        if self.step_pod is not None and write_to_log_of_pod(line):
            return
        with contextlib.suppress(Exception):
            self.log(line)
