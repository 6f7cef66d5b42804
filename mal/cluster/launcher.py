"""Runs one training job for one pipeline step."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable

from mal.cluster.api_errors import ServerUnreachableError
from mal.cluster.cancellation import Cancellation
from mal.cluster.client import ClusterClient
from mal.cluster.job_kind import JobKind
from mal.cluster.job_watch import (
    DEFAULT_LIMITS,
    FinishedJob,
    JobWatch,
    PodLostError,
    WaitLimits,
)  # fmt: skip
from mal.cluster.launch_context import LaunchContext
from mal.cluster.settings import JobSettings
from mal.cluster.step_pod import StepPod
from mal.cluster.submission import submit

_NOT_IN_A_NAME = re.compile(r"[^a-z0-9]")
_RUN_CHARACTERS, _TASK_CHARACTERS = 8, 4


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
    kind: JobKind,
    run_id: str,
    client: ClusterClient,
    limits: WaitLimits = DEFAULT_LIMITS,
    log: Callable[[str], None],
    step_pod: StepPod | None = None,
    find_checkpoint: Callable[[], str] = lambda: "",
) -> FinishedJob:
    """Run the job and wait for its end; a retried step continues the job of its earlier attempt.

    After the loss of a pod or a node the job starts again, `job.restarts` times at most. SIGTERM
    and SIGINT delete the job first and end the process with 143 or 130; if `step_pod` is being
    removed from its node, the job continues for the step's next try. A job of another pipeline run
    is never touched. `log` takes one line of rank 0's log or about the job's state; it is called
    from several threads, never at the same time. `find_checkpoint` returns a sentence on the last
    checkpoint.

    Raises:
        ClusterError: The job failed, waited too long or was deleted, or the cluster rejected it.
    """
    lock = threading.Lock()

    def log_alone(line: str) -> None:
        with lock:
            log(line)

    context = LaunchContext(client, kind, log_alone, Cancellation(), step_pod, find_checkpoint)
    return context.cancellation.run(lambda: _run_with_restarts(context, job, run_id, limits))


def _run_with_restarts(
    context: LaunchContext, job: JobSettings, run_id: str, limits: WaitLimits
) -> FinishedJob:
    num_restarts = 0
    while True:
        watch = JobWatch(context, submit(context, job, run_id), limits)
        try:
            return watch.run()
        except ServerUnreachableError:
            raise  # the job continues, and the step's next attempt finds it
        except PodLostError as loss:
            watch.delete_unless_finished()
            if num_restarts >= job.restarts:
                raise
            num_restarts += 1
            context.log(f"{loss}\nrestart {num_restarts} of {job.restarts} (job.restarts)")
        except BaseException:
            watch.delete_unless_finished()
            raise
