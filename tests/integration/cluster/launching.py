"""A launcher in a thread of a test, and the job that it runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from stand_in import NAMESPACE

from mal.cluster import FinishedJob, JobSettings, Resources, TrainingRuntime, WaitLimits, run_job

RUN_ID = "7f3a9c12-0000-4000-8000-000000000001"
IMAGE = "registry.example.com/mal/train:1"
JOB = JobSettings(
    name="mal-7f3a9c12-ab12",
    namespace=NAMESPACE,
    image=IMAGE,
    outputs_uri="s3://bucket/run",
    num_nodes=2,
    resources=Resources(gpus_per_node=0, cpu="1", memory="4Gi", shm_size="1Gi"),
    training_runtime=TrainingRuntime(name="mal-torch", kind="TrainingRuntime"),
)
LIMITS = WaitLimits(poll_interval_s=1)
# A pod that ends when the test creates a file.
WAITING_POD = 'echo "rank $PET_NODE_RANK"; while [ ! -e "$GATE" ]; do sleep 0.05; done; echo done'


class Launch:
    """A launcher in a thread, as a step runs it."""

    def __init__(self, run: Callable[..., Any] = run_job, **arguments: Any) -> None:
        self.lines: list[str] = []
        self._run_it = run
        self._arguments = arguments
        self._result: FinishedJob | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = self._run_it(log=self.lines.append, **self._arguments)
        except BaseException as error:  # shown by `result`
            self._error = error

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def log_lines(self) -> list[str]:
        """Return the lines of rank 0."""
        return [line for line in self.lines if not line.startswith(("PyTorchJob ", "TrainJob "))]

    def wait_for_line(self, part: str, timeout_s: float = 60, count: int = 1) -> None:
        ends = time.monotonic() + timeout_s
        while self.text.count(part) < count:
            if self._error is not None:
                raise self._error
            assert time.monotonic() < ends, f"never logged: {part}; logged: {self.text}"
            time.sleep(0.02)

    def result(self, timeout_s: float = 60) -> FinishedJob:
        self._thread.join(timeout_s)
        assert not self._thread.is_alive(), self.text
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result
