"""One training job for one pipeline step: submitted once, watched, and taken along at a stop."""

from __future__ import annotations

import enum
import hashlib
import re
import threading
from collections.abc import Callable

from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.job_kinds import PYTORCHJOB, TRAINJOB
from mal.cluster.job_watch import DEFAULT_LIMITS, FinishedJob, JobWatch, WaitLimits
from mal.cluster.refusals import ServerUnreachableError
from mal.cluster.settings import JobSettings
from mal.cluster.submission import submit

__all__ = ["Backend", "FinishedJob", "WaitLimits", "job_name", "run_job"]

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]")
_RUN_CHARACTERS, _TASK_CHARACTERS = 8, 4


class Backend(enum.StrEnum):
    """The operator that runs the job."""

    PYTORCHJOB = "pytorchjob"
    TRAINJOB = "trainjob"


_KINDS = {Backend.PYTORCHJOB: PYTORCHJOB, Backend.TRAINJOB: TRAINJOB}


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
    limits: WaitLimits = DEFAULT_LIMITS,
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
    kind = _KINDS[backend]
    cancellation = Cancellation()
    lock = threading.Lock()

    def tell_alone(line: str) -> None:
        with lock:
            tell(line)

    def submit_and_watch() -> FinishedJob:
        attempt = submit(
            client, kind, job, run_id=run_id, cancellation=cancellation, tell=tell_alone
        )
        watch = JobWatch(
            client, kind, attempt, limits=limits, cancellation=cancellation, tell=tell_alone
        )
        try:
            return watch.run()
        except ServerUnreachableError:
            raise  # the job goes on, for the step's next try
        except BaseException:
            watch.delete_unless_finished()
            raise

    return cancellation.run(submit_and_watch)
