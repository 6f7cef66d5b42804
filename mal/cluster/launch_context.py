"""What the parts of one launcher share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.job_kind import JobKind
from mal.cluster.settings import JobSettings


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
    """A launcher's connection, kind of job, log and reaction to signals."""

    client: ClusterClient
    kind: JobKind
    log: Callable[[str], None]
    cancellation: Cancellation

    def delete_on_signal(self, attempt: Attempt) -> None:
        """Delete the job at once when the step is cancelled."""
        client, resource, job = self.client, self.kind.resource, attempt.settings
        self.cancellation.delete_first(
            lambda: client.delete_at_once(resource, job.namespace, job.name, attempt.uid)
        )
