"""A real Kubeflow for `make test-cluster`: commands of the product, kubectl, and the clean-up."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from tiny_sets import TINY_SPEC

from mal.kfp.pipelines._cluster import connect
from mal.kfp.pipelines._target import images_of

ENDED = {"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}
RUN_LABEL = "mal.kubeflow.org/run-id"
STEP_LABEL = "pipeline/runid"
RUN_TIMEOUT_S = 420
LAUNCHER = "mal-launcher"
# Two of these beside the pods of a run fit two CPUs.
SMALL_JOB: Mapping[str, Any] = {"resources": {"cpu": "300m", "memory": "1500Mi"}}
_POLL_S = 3
T = TypeVar("T")


@dataclass
class RealCluster:
    """The cluster that KFP_HOST and KUBECONFIG name.

    Attributes:
        name: Name of this session, of its experiment and of its folder in the store.
    """

    host: str
    namespace: str
    name: str = field(default_factory=lambda: f"mal-test-{uuid.uuid4().hex[:8]}")
    bucket: str = field(
        default_factory=lambda: os.environ.get("MAL_TEST_ROOT", "minio://mlpipeline")
    )

    @property
    def folder(self) -> str:
        """URI of everything that this session writes."""
        return f"{self.bucket}/{self.name}"

    @cached_property
    def client(self) -> Any:
        token = os.environ.get("KFP_TOKEN_FILE")
        options = argparse.Namespace(
            host=self.host, token_file=Path(token) if token else None, ca_file=None
        )
        return connect(options)

    def mal(self, *arguments: str) -> str:
        """Run `mal pipelines`; return its output."""
        command = [sys.executable, "-m", "mal", "pipelines", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        assert done.returncode == 0, f"{arguments[0]}: {done.stdout}{done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, text: str = "", namespace: str = "") -> str:
        """Run kubectl in the namespace; return its output."""
        command = ["kubectl", "-n", namespace or self.namespace, *arguments]
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout

    def objects(self, kind: str, label: str) -> list[dict[str, Any]]:
        """Return the objects of a kind with a label."""
        found = json.loads(self.kubectl("get", kind, "-l", label, "-o", "json"))
        return list(found["items"])

    def run_in_pod(self, *command: str) -> str:
        """Run a command of the component image with the account of runs."""
        name = f"{self.name}-{uuid.uuid4().hex[:6]}"
        spec = {
            "serviceAccountName": LAUNCHER,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        }
        image = images_of().reference("component")
        return self.kubectl(
            "run", name, "--rm", "-i", "--restart=Never", "--pod-running-timeout=10m",
            f"--image={image}", "--quiet",
            f"--overrides={json.dumps({'spec': spec})}", "--", *command,
        )  # fmt: skip

    def make_data(self, *, seed: int = 0, num_images: int = 12) -> None:
        """Write the demo set into the store."""
        output = f"{self.folder}/data"
        self.run_in_pod(
            "mal", "dataset", "demo", "-o", output, "--images", str(num_images), "--seed", str(seed)
        )

    @property
    def data(self) -> dict[str, str]:
        """The parameters that name the demo set."""
        root = f"{self.folder}/data"
        return {
            "train_images": f"{root}/images",
            "train_annotations": f"{root}/train.json",
            "val_images": f"{root}/images",
            "val_annotations": f"{root}/val.json",
            "spec": TINY_SPEC,
        }

    @property
    def model_store(self) -> str:
        """URI of the model store of this session."""
        return f"{self.folder}/store"

    def options(self, parameters: Mapping[str, Any]) -> list[str]:
        """Return the options of `submit` and `schedule apply`."""
        given = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}"
            for key, value in parameters.items()
        ]
        return [part for each in given for part in ("-p", each)] + self.connection(
            "--service-account", LAUNCHER, "--memory", "2Gi", "--cpu", "500m"
        )

    def connection(self, *more: str) -> list[str]:
        """Return the options of every command about this cluster."""
        token = os.environ.get("KFP_TOKEN_FILE")
        tokens = ["--token-file", token] if token else []
        return [*more, "--host", self.host, "--namespace", self.namespace, *tokens]

    def submit(self, pipeline: str, parameters: Mapping[str, Any]) -> str:
        """Submit a run; return its id."""
        options = [*self.options(parameters), "--experiment", self.name]
        return self.mal("submit", pipeline, *options).splitlines()[-1]

    def wait(self, run_id: str, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Wait for the end of a run; return its state."""

        def state() -> str:
            found = str(self.client.get_run(run_id).state or "")
            return found if found in ENDED else ""

        return self.wait_for(state, f"end of run {run_id}", timeout_s)

    def succeed(self, pipeline: str, parameters: Mapping[str, Any]) -> str:
        """Submit a run that must succeed; return its id."""
        run_id = self.submit(pipeline, parameters)
        state = self.wait(run_id)
        assert state == "SUCCEEDED", self.mal("status", run_id, *self.connection())
        return run_id

    def wait_for(self, condition: Callable[[], T], what: str, timeout_s: float = 120) -> T:
        """Wait until a condition returns something true; return that."""
        ends = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < ends, f"{what}: not within {timeout_s:.0f} s"
            time.sleep(_POLL_S)
        return found

    def remove_everything(self) -> None:
        """Remove runs, schedules, jobs and objects of this session."""
        with contextlib.suppress(AssertionError):
            listed = self.mal("schedule", "list", *self.connection(), "--experiment", self.name)
            for line in listed.splitlines():
                name = line.partition("  ")[0]
                self.mal("schedule", "remove", name, *self.connection(), "--experiment", self.name)
        with contextlib.suppress(ValueError):
            experiment = self.client.get_experiment(
                experiment_name=self.name, namespace=self.namespace
            )
            for run in self._runs(experiment.experiment_id):
                if run.state not in ENDED:
                    self.client.terminate_run(run.run_id)
                self.client.archive_run(run.run_id)
                self.client.delete_run(run.run_id)
                with contextlib.suppress(AssertionError):
                    label = f"{RUN_LABEL}={run.run_id}"
                    self.kubectl("delete", "pytorchjobs", "-l", label, "--ignore-not-found")
            self.client.delete_experiment(experiment.experiment_id)
        self.run_in_pod("python", "-c", _REMOVE_FOLDER, self.folder)

    def _runs(self, experiment_id: str) -> Iterator[Any]:
        page = self.client.list_runs(
            experiment_id=experiment_id, namespace=self.namespace, page_size=100
        )
        yield from page.runs or ()


_REMOVE_FOLDER = """
import sys
from mal.storage.objects import delete_object, list_objects
from mal.storage.uris import parse_remote_uri
for stored in list_objects(parse_remote_uri(sys.argv[1])):
    delete_object(stored.uri)
"""

__all__ = ["LAUNCHER", "RUN_LABEL", "SMALL_JOB", "STEP_LABEL", "RealCluster"]
