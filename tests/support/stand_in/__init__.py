"""A cluster on this machine for tests: an API server over HTTP, operators, and pods as processes.

It is for the launcher's protocol and rights, and for the variables of training processes. It has no
scheduler, no DNS, no containers: `environment.py` says what stands for them.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from stand_in.api import ApiServer, Call
from stand_in.faults import Fault
from stand_in.katib import Katib
from stand_in.kubelet import Kubelet
from stand_in.operators import Operators, admit_job, record_event
from stand_in.store import Object, Store

__all__ = ["Call", "Fault", "StandIn", "record_event"]

NAMESPACE = "team"
_MANIFESTS = Path(__file__).parents[3] / "manifests"
_SERVED = {
    "/v1/pods", "/v1/events", "/v1/secrets", "/v1/configmaps",
    "kubeflow.org/v1beta1/experiments", "kubeflow.org/v1beta1/trials",
    "kubeflow.org/v1/pytorchjobs", "trainer.kubeflow.org/v1alpha1/trainjobs",
    "kueue.x-k8s.io/v1beta1/workloads",
}  # fmt: skip
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


class StandIn:
    """The cluster; a context manager that leaves no process behind.

    Attributes:
        api: The API server, with its faults and the calls that it had.
        operators: Controllers of training jobs.
        katib: Controller of experiments.
        kubelet: The nodes.
        controllers: Further controllers, such as one for a job kind of a test; each is called when
            an object changed.
        queue_message: Why Kueue holds jobs that name a queue; '' admits them.
    """

    def __init__(self, folder: Path) -> None:
        self.api = ApiServer(Store(), set(_SERVED), launcher_rights())
        self.operators = Operators(self.api)
        self.katib = Katib(self.api)
        self.operators.mutate_pod = self.katib.mutate
        self.kubelet = Kubelet(self.api, folder / "pods")
        self.queue_message = ""
        self.controllers: list[Callable[[], None]] = []
        self._folder = folder
        self._is_stopping = threading.Event()
        self._fault: BaseException | None = None
        self.api.admit = self._admit
        self.api.prune = self.operators.prune
        self.add_object("trainingruntimes", self._training_runtime())

    def __enter__(self) -> Self:
        self.address = self.api.start()
        self._thread = threading.Thread(target=self._control, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        error: BaseException | None,
        _t: TracebackType | None,
    ) -> None:
        self._is_stopping.set()
        self._thread.join()
        self.kubelet.stop()
        self.api.stop()
        if self._fault is not None and error is None:
            raise self._fault

    def write_kubeconfig(self, token: str = "token-1") -> Path:
        """Write the file that KUBECONFIG may name; again with another token replaces it."""
        path = self._folder / "kubeconfig"
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "step"}}],
            "clusters": [{"name": "here", "cluster": {"server": self.address}}],
            "users": [{"name": "step", "user": {"token": token}}],
        }
        path.write_text(json.dumps(content))
        return path

    def add_image(self, name: str, script: str) -> None:
        """Make an image whose `mal` is this shell script."""
        folder = self._folder / "images" / name.replace("/", "_").replace(":", "_")
        folder.mkdir(parents=True, exist_ok=True)
        program = folder / "mal"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        self.kubelet.images[name] = folder

    def add_object(self, plural: str, content: Mapping[str, Any]) -> None:
        """Put an object there, in the namespace of the tests."""
        made = dict(content)
        made["metadata"] = {**content["metadata"], "namespace": NAMESPACE}
        self.api.store.create(plural, made)

    def add_step_pod(
        self, name: str, namespace: str = NAMESPACE, workflow: Object | None = None
    ) -> Object:
        """Put the pod of a pipeline's step there, which this cluster does not run."""
        metadata: Object = {"name": name, "namespace": namespace, "labels": {}}
        if workflow is not None:
            # argo-workflows workflow/controller/workflowpod.go:270
            metadata["ownerReferences"] = [
                {
                    "apiVersion": "argoproj.io/v1alpha1",
                    "kind": "Workflow",
                    "name": workflow["metadata"]["name"],
                    "uid": workflow["metadata"]["uid"],
                    "controller": True,
                    "blockOwnerDeletion": True,
                }
            ]
        status = {"phase": "Running", "startTime": "2026-01-01T00:00:00Z"}
        return self.api.store.create("pods", {"metadata": metadata, "status": status})

    def objects(self, plural: str) -> list[Object]:
        return self.api.store.list_objects(plural)

    def pod_names(self) -> list[str]:
        return sorted(pod["metadata"]["name"] for pod in self.objects("pods"))

    def admit_queued(self) -> None:
        """Let Kueue start what it holds."""
        self.queue_message = ""
        for plural in ("pytorchjobs", "trainjobs"):
            for job in self.objects(plural):
                self.api.store.change(plural, job, lambda each: _suspend(each, False))

    def wait_until(self, condition: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
        """Wait for something that the cluster or the launcher does."""
        ends = time.monotonic() + timeout_s
        while not condition():
            if self._fault is not None:
                raise self._fault
            assert time.monotonic() < ends, f"{what} did not come about"
            with self.api.store.changed:
                self.api.store.changed.wait(0.05)

    def _admit(self, plural: str, made: Object) -> None:
        admit_job(self.api, plural, made)
        self.katib.admit(plural, made)
        if self.queue_message and _QUEUE_LABEL in made["metadata"].get("labels", {}):
            _suspend(made, True)

    def _control(self) -> None:
        seen = -1
        store = self.api.store
        try:
            while not self._is_stopping.is_set():
                with store.changed:
                    if store.version == seen:
                        store.changed.wait(0.1)
                    seen = store.version
                store.collect_orphans()
                self.katib.reconcile()
                self.operators.reconcile()
                for reconcile in self.controllers:
                    reconcile()
                self.kubelet.reconcile()
                self._reconcile_workloads()
        except BaseException as fault:  # shown by the test that it breaks
            self._fault = fault
            raise

    def _reconcile_workloads(self) -> None:
        """Keep Kueue's own object beside every job that it holds."""
        if not self.queue_message:
            return
        condition = {"type": "QuotaReserved", "status": "False", "reason": "Pending"}
        for job in [*self.objects("pytorchjobs"), *self.objects("trainjobs")]:
            name = f"{job['kind'].lower()}-{job['metadata']['name']}"
            if self.api.store.get("workloads", NAMESPACE, name) is None:
                uid = job["metadata"]["uid"]
                metadata = {"name": name, "labels": {"kueue.x-k8s.io/job-uid": uid}}
                message = {**condition, "message": self.queue_message}
                self.add_object(
                    "workloads", {"metadata": metadata, "status": {"conditions": [message]}}
                )

    def _training_runtime(self) -> Object:
        path = _MANIFESTS / "components" / "trainjob" / "training-runtime.yaml"
        content: Object = yaml.safe_load(path.read_text())
        return content


def launcher_rights() -> set[str]:
    """Return what the account `mal-launcher` may do, by the manifests."""
    base = yaml.safe_load_all((_MANIFESTS / "base" / "launcher-role.yaml").read_text())
    rules = [rule for made in base if made["kind"] == "Role" for rule in made["rules"]]
    for patch in _MANIFESTS.glob("components/*/launcher-role-patch.yaml"):
        rules += [operation["value"] for operation in yaml.safe_load(patch.read_text())]
    return {
        f"{verb} {group}/{resource}"
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def _suspend(job: Object, is_suspended: bool) -> None:
    spec = job["spec"]["runPolicy"] if job["kind"] == "PyTorchJob" else job["spec"]
    spec["suspend"] = is_suspended
