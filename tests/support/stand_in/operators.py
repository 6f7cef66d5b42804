"""The training operator v1 and Trainer v2, as far as a launcher and a training process see them.

Written from the code of training-operator release-1.9 and Trainer 2.1 to 2.3:
- variables are appended after the user's (pkg/controller.v1/pytorch/envvar.go);
- `backoffLimit` deletes every pod at a failure (trainer#3419), a finished job's pods are cleaned by
  the policy, a suspended job has none;
- `activeDeadlineSeconds` of a PyTorchJob is not enforced: the queue drops what is to come later
  (pkg/common/util/fake_workqueue.go:47, used in pytorchjob_controller.go:365; trainer#3358);
- a worker's pod gets an init container that looks up the master 100 times, 2 s apart
  (pkg/controller.v1/pytorch/initcontainer.go:35-46);
- a missing pod is made again under its name (pkg/controller.v1/common/pod.go:307);
- Trainer 2.1 knows neither `runtimePatches` nor `activeDeadlineSeconds` of a TrainJob, and the API
  server prunes them (release-2.1 manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml).
"""

from __future__ import annotations

import copy
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from stand_in.api import ApiServer, StatusError
from stand_in.store import NameTakenError, Object, now

_V1_PORT, _V2_PORT = "23456", "29500"
_COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
_RESERVED = {
    "PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT",
}  # fmt: skip


@dataclass
class Operators:
    """Both operators.

    Attributes:
        api: Where jobs and pods are.
        pod_error: Why pods are rejected, such as an exceeded quota; '' accepts them.
        num_admitted: Pods that are accepted nevertheless.
        are_running: False when the operators are down.
        trainer_version: Of the TrainJob's definition.
        mutate_pod: Called with a job and its pod before the pod is made, as webhooks are.
    """

    api: ApiServer
    pod_error: str = ""
    num_admitted: int = 0
    are_running: bool = True
    trainer_version: str = "2.3"
    mutate_pod: Callable[[Object, Object], None] = lambda job, pod: None

    def reconcile(self) -> None:
        """Bring pods and status of all jobs up to date."""
        if not self.are_running:
            return
        for job in self.api.store.list_objects("pytorchjobs"):
            self._reconcile_pytorchjob(job)
        for job in self.api.store.list_objects("trainjobs"):
            self._reconcile_trainjob(job)

    def prune(self, plural: str, made: Object) -> None:
        """Drop the fields that the definition does not know."""
        if plural == "trainjobs" and self.trainer_version == "2.1":
            for field in ("runtimePatches", "activeDeadlineSeconds"):
                made["spec"].pop(field, None)

    def _reconcile_pytorchjob(self, job: Object) -> None:
        name, policy = job["metadata"]["name"], job["spec"]["runPolicy"]
        pods = self._pods(job, "training.kubeflow.org/job-name")
        if _finished(job):
            kept = {"Running": ("Succeeded", "Failed"), "All": ()}.get(policy["cleanPodPolicy"])
            if kept is not None:
                self._delete([p for p in pods if p["status"]["phase"] not in kept])
            return
        if policy.get("suspend"):
            self._delete(pods)
            self._set_condition("pytorchjobs", job, "Suspended", f"PyTorchJob {name} is suspended.")
            return
        self._set_condition("pytorchjobs", job, "Created", f"PyTorchJob {name} is created.")
        self._set_condition("pytorchjobs", job, "Suspended", "resumed", status="False")
        replicas = job["spec"]["pytorchReplicaSpecs"]
        self._edit_status("pytorchjobs", job, lambda status: status.setdefault("startTime", now()))
        failed = [pod for pod in pods if pod["status"]["phase"] == "Failed"]
        if failed and "backoffLimit" in policy:
            self._delete(pods)
            self._fail(
                job, f"Job {name} has failed because it has reached the specified backoff limit"
            )
            return
        for kind, spec in replicas.items():
            for index in range(spec["replicas"]):
                pod_name = f"{name}-{kind.lower()}-{index}"
                if all(pod["metadata"]["name"] != pod_name for pod in pods):
                    self._make_pod(job, pytorchjob_pod(job, kind, index), job)
        phases = {pod["metadata"]["name"]: pod["status"]["phase"] for pod in pods}
        if phases.get(f"{name}-master-0") == "Running":
            self._set_condition("pytorchjobs", job, "Running", f"PyTorchJob {name} is running.")
        if phases.get(f"{name}-master-0") == "Succeeded":
            message = f"PyTorchJob {name} is successfully completed."
            self._complete("pytorchjobs", job, "Succeeded", message)
        elif failed:
            kind = failed[0]["metadata"]["labels"]["training.kubeflow.org/replica-type"].title()
            self._fail(
                job, f"PyTorchJob {name} is failed because {len(failed)} {kind} replica(s) failed."
            )

    def _fail(self, job: Object, message: str) -> None:
        self._complete("pytorchjobs", job, "Failed", message)

    def _complete(self, plural: str, job: Object, kind: str, message: str) -> None:
        self._edit_status(plural, job, lambda status: status.setdefault("completionTime", now()))
        self._set_condition(plural, job, kind, message)

    def _reconcile_trainjob(self, job: Object) -> None:
        name, spec = job["metadata"]["name"], job["spec"]
        pods = self._pods(job, "jobset.sigs.k8s.io/jobset-name")
        if _finished(job):
            self._delete([p for p in pods if p["status"]["phase"] in ("Pending", "Running")])
            return
        if spec.get("suspend"):
            self._delete(pods)
            self._set_condition("trainjobs", job, "Suspended", "TrainJob is suspended")
            return
        self._set_condition("trainjobs", job, "Suspended", "TrainJob is resumed", status="False")
        if self._is_past_deadline(job, spec.get("activeDeadlineSeconds")):
            self._delete(pods)
            message = "TrainJob exceeded its active deadline"
            self._set_condition("trainjobs", job, "Failed", message, reason="DeadlineExceeded")
            return
        runtime = self.api.store.get(
            "trainingruntimes", job["metadata"]["namespace"], spec["runtimeRef"]["name"]
        )
        assert runtime is not None, "admission asks for it"
        there = {pod["metadata"]["labels"][_COMPLETION_INDEX] for pod in pods}
        for index in range(spec["trainer"]["numNodes"]):
            if str(index) not in there:
                # The batch Job makes the pods, and is what their events are about.
                maker = {"metadata": {**job["metadata"], "name": f"{name}-node-0"}, "kind": "Job"}
                self._make_pod(job, trainjob_pod(job, runtime, index), maker)
        phases = [pod["status"]["phase"] for pod in pods]
        if "Failed" in phases:
            message = "jobset failed due to one or more job failures"
            self._set_condition("trainjobs", job, "Failed", message, reason="FailedJobs")
        elif phases and set(phases) == {"Succeeded"} and len(phases) == spec["trainer"]["numNodes"]:
            message = "jobset completed successfully"
            self._set_condition("trainjobs", job, "Complete", message, reason="AllJobsCompleted")

    def _pods(self, job: Object, label: str) -> list[Object]:
        uid = job["metadata"]["uid"]
        return [
            pod
            for pod in self.api.store.list_objects("pods", job["metadata"]["namespace"])
            if pod["metadata"]["labels"].get(label) == job["metadata"]["name"]
            and pod["metadata"]["ownerReferences"][0]["uid"] == uid
        ]

    def _make_pod(self, job: Object, pod: Object, maker: Object) -> None:
        num_pods = len(self.api.store.list_objects("pods", job["metadata"]["namespace"]))
        if self.pod_error and num_pods >= self.num_admitted:
            reason = "FailedCreate" if maker.get("kind") == "Job" else "FailedCreatePod"
            message = f'Error creating: pods "{pod["metadata"]["name"]}" is forbidden: '
            record_event(self.api, maker, reason, message + self.pod_error)
            return
        pod["metadata"]["namespace"] = job["metadata"]["namespace"]
        pod["metadata"]["ownerReferences"] = [
            {"kind": job["kind"], "name": job["metadata"]["name"], "uid": job["metadata"]["uid"]}
        ]
        pod["status"] = {"phase": "Pending"}
        self.mutate_pod(job, pod)
        try:
            self.api.store.create("pods", pod)
        except NameTakenError:
            return  # of a deleted job, on its way out

    def _delete(self, pods: list[Object]) -> None:
        for pod in pods:
            self.api.store.delete("pods", pod)

    def _is_past_deadline(self, job: Object, seconds: int | None) -> bool:
        started = job.get("status", {}).get("startTime") or job["metadata"]["creationTimestamp"]
        lasted = datetime.now(UTC) - datetime.fromisoformat(started)
        return seconds is not None and lasted.total_seconds() > seconds

    def _edit_status(self, plural: str, job: Object, edit: Callable[[Object], Any]) -> None:
        self.api.store.change(plural, job, lambda each: edit(each.setdefault("status", {})))

    def _set_condition(
        self,
        plural: str,
        job: Object,
        kind: str,
        message: str,
        *,
        status: str = "True",
        reason: str = "",
    ) -> None:
        def edit(its_status: Object) -> None:
            conditions = its_status.setdefault("conditions", [])
            known = next((each for each in conditions if each["type"] == kind), None)
            if (known is None and status == "False") or (known and known["status"] == status):
                return
            if known:
                conditions.remove(known)
            conditions.append(
                {
                    "type": kind,
                    "status": status,
                    "reason": reason or f"{job['kind']}{kind}",
                    "message": message,
                    "lastTransitionTime": now(),
                }
            )

        self._edit_status(plural, job, edit)


def pytorchjob_pod(job: Object, kind: str, index: int) -> Object:
    """Return a pod of a PyTorchJob, the operator's variables behind the user's."""
    name, replicas = job["metadata"]["name"], job["spec"]["pytorchReplicaSpecs"]
    pod: Object = copy.deepcopy(replicas[kind]["template"])
    pod["metadata"]["name"] = f"{name}-{kind.lower()}-{index}"
    pod["metadata"]["labels"] |= {
        "training.kubeflow.org/operator-name": "pytorchjob-controller",
        "training.kubeflow.org/job-name": name,
        "training.kubeflow.org/replica-type": kind.lower(),
        "training.kubeflow.org/replica-index": str(index),
    }
    if kind == "Master":
        pod["metadata"]["labels"]["training.kubeflow.org/job-role"] = "master"
    else:
        pod["spec"]["initContainers"] = [
            {"name": "init-pytorch", "image": "alpine:3.10", "command": ["sh", "-c", "nslookup"]}
        ]
    pod["spec"]["restartPolicy"] = replicas[kind]["restartPolicy"]
    total = sum(each["replicas"] for each in replicas.values())
    per_node = str(job["spec"].get("nprocPerNode", "auto"))
    master = replicas["Master"]["template"]["spec"]["containers"][0]
    port = str(next((p["containerPort"] for p in master.get("ports", ())), _V1_PORT))
    rank = index if kind == "Master" else index + 1
    for container in pod["spec"]["containers"]:
        container.setdefault("env", []).extend(
            {"name": variable, "value": value}
            for variable, value in {
                "PYTHONUNBUFFERED": "1",
                "MASTER_PORT": port,
                "PET_MASTER_PORT": port,
                "MASTER_ADDR": f"{name}-master-0",
                "PET_MASTER_ADDR": f"{name}-master-0",
                "WORLD_SIZE": str(total * (int(per_node) if per_node.isdigit() else 1)),
                "RANK": str(rank),
                "PET_NODE_RANK": str(rank),
                "PET_NPROC_PER_NODE": per_node,
                "PET_NNODES": str(total),
            }.items()
        )
    return pod


def trainjob_pod(job: Object, runtime: Object, index: int) -> Object:
    """Return a pod of a TrainJob: the runtime's, patched, with the five variables of torch."""
    name, trainer = job["metadata"]["name"], job["spec"]["trainer"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod: Object = copy.deepcopy(node["template"]["spec"]["template"])
    for patch in job["spec"].get("runtimePatches", ()):
        for part in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            _patch(pod, part["template"]["spec"]["template"])
    suffix = "".join(random.choices(string.ascii_lowercase + string.digits, k=5))
    metadata = pod.setdefault("metadata", {})
    metadata["name"] = f"{name}-node-0-{index}-{suffix}"
    metadata.setdefault("annotations", {})[_COMPLETION_INDEX] = str(index)
    metadata.setdefault("labels", {}).update(
        {
            "jobset.sigs.k8s.io/jobset-name": name,
            "jobset.sigs.k8s.io/replicatedjob-name": "node",
            "batch.kubernetes.io/job-name": f"{name}-node-0",
            _COMPLETION_INDEX: str(index),
        }
    )
    rank = {"fieldRef": {"fieldPath": f"metadata.annotations['{_COMPLETION_INDEX}']"}}
    (container,) = pod["spec"]["containers"]
    container |= {"image": trainer["image"], "command": trainer["command"]}
    container["resources"] = trainer["resourcesPerNode"]
    container["env"] = [
        *trainer["env"],
        {"name": "PET_NNODES", "value": str(trainer["numNodes"])},
        {"name": "PET_NPROC_PER_NODE", "value": str(trainer.get("numProcPerNode", "auto"))},
        {"name": "PET_NODE_RANK", "valueFrom": rank},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        {"name": "PET_MASTER_PORT", "value": _V2_PORT},
        {"name": "JOB_COMPLETION_INDEX", "valueFrom": rank},
    ]
    return pod


def admit_job(api: ApiServer, plural: str, made: Object) -> None:
    """Refuse what the operators' webhooks refuse."""
    if plural != "trainjobs":
        return
    reference = made["spec"]["runtimeRef"]
    webhook = 'admission webhook "validator.trainjob.trainer.kubeflow.org" denied the request: '
    if api.store.get("trainingruntimes", made["metadata"]["namespace"], reference["name"]) is None:
        message = (
            "spec.RuntimeRef: Invalid value: TrainingRuntime.trainer.kubeflow.org "
            f'"{reference["name"]}" not found: specified {reference["kind"]} must be created '
            "before the TrainJob is created"
        )
        raise StatusError(403, "Forbidden", webhook + message)
    reserved = _RESERVED & {each["name"] for each in made["spec"]["trainer"]["env"]}
    if reserved:
        raise StatusError(
            403, "Forbidden", f"{webhook}must not have reserved envs: {sorted(reserved)}"
        )


def record_event(api: ApiServer, about: Object, reason: str, message: str) -> None:
    """Record an event, or count it again."""
    metadata = about["metadata"]
    name = f"{metadata['name']}.{abs(hash((reason, message))):x}"
    event = {
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {"kind": about.get("kind", ""), "name": metadata["name"]},
        "reason": reason,
        "message": message,
        "lastTimestamp": now(),
        "type": "Warning",
    }
    try:
        api.store.create("events", event)
    except NameTakenError:
        return


def _patch(made: Any, patch: Any) -> None:
    """Merge as Kubernetes does: mappings by key, containers by name."""
    for key, value in patch.items():
        known = made.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            _patch(known, value)
        elif isinstance(value, list) and isinstance(known, list) and key == "containers":
            for each in value:
                for its in (its for its in known if its["name"] == each["name"]):
                    _patch(its, each)
        else:
            made[key] = copy.deepcopy(value)


def _finished(job: Object) -> bool:
    conditions = job.get("status", {}).get("conditions", ())
    return any(
        (c["type"] in ("Succeeded", "Complete", "Failed")) and c["status"] == "True"
        for c in conditions
    )
