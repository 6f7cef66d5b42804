"""One training job for one pipeline step: submitted once, watched, and taken along at a stop."""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mal.cluster.client import ClusterClient
    from mal.cluster.settings import JobSettings

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]")
_RUN_CHARACTERS, _TASK_CHARACTERS = 8, 4


class Backend(enum.StrEnum):
    """The operator that runs the job."""

    PYTORCHJOB = "pytorchjob"
    TRAINJOB = "trainjob"


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


def job_name(run_id: str, task_id: str) -> str:
    """Return the name of a step's job, the same on every retry: mal-<run, 8>-<task, 4>."""
    run = _NOT_IN_A_NAME.sub("", run_id.lower())[:_RUN_CHARACTERS]
    if len(run) < _RUN_CHARACTERS:
        run = hashlib.sha256(run_id.encode()).hexdigest()[:_RUN_CHARACTERS]
    task = hashlib.sha256(task_id.encode()).hexdigest()[:_TASK_CHARACTERS]
    return f"mal-{run}-{task}"


def run_job(
    job: JobSettings,
    *,
    backend: Backend,
    run_id: str,
    client: ClusterClient,
    limits: WaitLimits = WaitLimits(),
    tell: Callable[[str], None],
) -> FinishedJob:
    """Run the job and wait for its end; a retried step re-attaches to its job or adopts it.

    SIGTERM and SIGINT delete the job first and end the process with 143 or 130.

    Args:
        job: What to run; its name is the step's, see `job_name`.
        backend: The operator that runs it.
        run_id: Of the pipeline run; a job of another run is never touched.
        client: Of the cluster.
        limits: How long it may wait.
        tell: Takes one line at a time, of rank 0's log or why the job waits. Called from several
            threads, never at the same time.

    Raises:
        ClusterError: The job failed, waited too long, was deleted, or the cluster refused it.
    """
    raise NotImplementedError
