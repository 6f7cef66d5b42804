"""Argo and Kubeflow Pipelines around one step: its pods, its retries, Terminate and eviction.

- Terminate sends SIGTERM by `kill` in the container and leaves the pod's object alone
  (argo-workflows workflow/controller/pod/queue.go:55, exec_control.go:55);
- a pod that is evicted is marked, deleted and gone when its process has ended; the node is an
  Error, `pod deleted` (operator.go:1341);
- an Error is tried again, a Failed node, which is any exit code, is not: KFP 2.17's
  `retryStrategy: {limit: 2, retryPolicy: OnError}` (manifests/kustomize/third-party/argo/base/
  workflow-controller-configmap-patch.yaml);
- a workflow's own deadline, which Terminate sets to 0, forbids tries (operator.go:1066).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from stand_in import NAMESPACE, StandIn
from stand_in.kubelet import mark_evicted
from stand_in.store import Object

_TESTS = Path(__file__).parents[2]
_RETRIES = 2


class StepOfWorkflow:
    """A workflow with one step, whose tries are processes of this machine.

    Attributes:
        tries: The process of each try.
        phase: '' while it runs, then Succeeded, Failed or Error.
    """

    def __init__(
        self, cluster: StandIn, command: Sequence[str], variables: Mapping[str, str] | None = None
    ) -> None:
        self._cluster = cluster
        self._command = command
        self._variables = dict(variables or {})
        self._is_terminated = False
        self.tries: list[subprocess.Popen[str]] = []
        self.phase = ""
        metadata = {"name": "run-7f3a", "namespace": NAMESPACE}
        self.workflow = cluster.api.store.create(
            "workflows", {"kind": "Workflow", "metadata": metadata}
        )
        self._start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _k: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        for process in self.tries:
            process.kill()
            process.wait()

    def wait_for_line(self, part: str) -> str:
        """Read the output of the last try up to a line with this part; returns what was read."""
        stdout = self.tries[-1].stdout
        assert stdout is not None
        read = []
        for line in stdout:
            read.append(line)
            if part in line:
                return "".join(read)
        raise AssertionError(f"the step ended before it logged {part!r}: {''.join(read)}")

    def terminate(self) -> None:
        """Terminate the run, as the button of Kubeflow's page does."""
        self._is_terminated = True
        self.tries[-1].send_signal(signal.SIGTERM)

    def evict(self) -> None:
        """Evict the pod of the step."""
        process = self.tries[-1]
        mark_evicted(self._cluster.api, self._pod)
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        self._cluster.api.store.remove("pods", self._pod)
        self._end("Error")

    def wait(self, timeout_s: float = 60) -> int:
        """Wait for the end of the last try; returns its exit code."""
        code = self.tries[-1].wait(timeout_s)
        self._end("Failed" if code else "Succeeded")
        return code

    def delete(self) -> None:
        """Delete the workflow, as KFP 2.17 does an hour after its end."""
        self._cluster.api.store.remove("workflows", self.workflow)

    def _end(self, phase: str) -> None:
        if phase == "Error" and not self._is_terminated and len(self.tries) <= _RETRIES:
            self._start()
        else:
            self.phase = phase

    def _start(self) -> None:
        name = f"run-7f3a-step-{len(self.tries)}"
        self._cluster.kubelet.foreign.add(name)
        self._pod: Object = self._cluster.add_step_pod(name, workflow=self.workflow)
        path = [str(_TESTS / "integration"), str(_TESTS / "support"), str(_TESTS.parent)]
        own = {"KFP_POD_NAME": name, "KFP_POD_UID": self._pod["metadata"]["uid"]}
        self.tries.append(
            subprocess.Popen(
                [sys.executable, *self._command],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(path),
                    **own,
                    **self._variables,
                },
                stdout=subprocess.PIPE,
                text=True,
            )
        )
