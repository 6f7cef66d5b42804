"""A launcher beside a cluster of this machine."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from stand_in import NAMESPACE, StandIn

from mal.cluster import (
    Backend,
    ClusterClient,
    FinishedJob,
    JobSettings,
    Resources,
    TrainingRuntime,
    WaitLimits,
    run_job,
)

pytest.importorskip("kubernetes")

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
# A pod that ends when a file is there: `until_told` of a job's pods, by the test.
WAITING_POD = 'echo "rank $PET_NODE_RANK"; while [ ! -e "$GATE" ]; do sleep 0.05; done; echo done'


class Launch:
    """A launcher in a thread, as a step runs it."""

    def __init__(self, **arguments: Any) -> None:
        self.lines: list[str] = []
        self._arguments = arguments
        self._result: FinishedJob | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._result = run_job(tell=self.lines.append, **self._arguments)
        except BaseException as error:  # shown by `result`
            self._error = error

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def log_lines(self) -> list[str]:
        """Return what rank 0 said."""
        return [line for line in self.lines if not line.startswith(("PyTorchJob ", "TrainJob "))]

    def wait_for_line(self, part: str, timeout_s: float = 20) -> None:
        ends = time.monotonic() + timeout_s
        while part not in self.text:
            if self._error is not None:
                raise self._error
            assert time.monotonic() < ends, f"never told: {part}; told: {self.text}"
            time.sleep(0.02)

    def result(self) -> FinishedJob:
        self._thread.join(60)
        assert not self._thread.is_alive(), self.text
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    with StandIn(tmp_path) as cluster:
        monkeypatch.setenv("KUBECONFIG", str(cluster.write_kubeconfig()))
        cluster.add_image(IMAGE, 'echo "rank $PET_NODE_RANK"; echo done')
        yield cluster


@pytest.fixture
def gate(cluster: StandIn, tmp_path: Path) -> Path:
    """Pods run until this file is there."""
    path = tmp_path / "gate"
    cluster.add_image(IMAGE, WAITING_POD)
    cluster.kubelet.variables["GATE"] = str(path)
    return path


@pytest.fixture
def launch(cluster: StandIn) -> Callable[..., Launch]:
    """Start a launcher; settings of the job and arguments of `run_job` may be given."""

    def start(patience_s: float = 20, **changes: Any) -> Launch:
        names = {field.name for field in dataclasses.fields(JobSettings)}
        settings = {name: value for name, value in changes.items() if name in names}
        arguments = {name: value for name, value in changes.items() if name not in names}
        return Launch(
            **{
                "job": dataclasses.replace(JOB, **settings),
                "backend": Backend.PYTORCHJOB,
                "run_id": RUN_ID,
                "client": ClusterClient.connect(patience_s=patience_s),
                "limits": LIMITS,
                **arguments,
            }
        )

    return start
