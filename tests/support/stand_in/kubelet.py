"""Nodes: schedules pods, pulls images, and runs each pod's command as a process.

An image is a folder of programs, which the pod's command finds on its PATH; one that is not there
cannot be pulled.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from stand_in.api import ApiServer
from stand_in.environment import MissingReferenceError, expand, resolve_variables, substitute
from stand_in.pod_log import PodLog
from stand_in.store import Object, now

_GRACE_S = 30.0
_JOB_LABEL = "app.kubernetes.io/instance"


@dataclass
class Run:
    """A container's process."""

    process: subprocess.Popen[str]
    started_at: str
    variables: dict[str, str]
    is_out_of_memory: bool = False


@dataclass
class Kubelet:
    """All nodes of the cluster.

    Attributes:
        api: Where the pods are.
        folder: Parent of the pods' mounted folders.
        images: Folder of programs, by the image's name.
        variables: Variables of every image, such as PYTHONPATH.
        unschedulable: Why no pod can be scheduled; '' when they can.
        is_making_containers: While true, every container stays in ContainerCreating.
        init_tries: How often the init container of a worker looks up the master.
        init_interval_s: Seconds between two of them.
        runs: Every process so far, by pod name.
        foreign: Names of pods that a test runs itself, such as a step's.
    """

    api: ApiServer
    folder: Path
    images: dict[str, Path] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    unschedulable: str = ""
    is_making_containers: bool = False
    init_tries: int = 100
    init_interval_s: float = 2.0
    runs: dict[str, Run] = field(default_factory=dict)
    foreign: set[str] = field(default_factory=set)
    _ports: dict[str, int] = field(default_factory=dict)
    _init_started: dict[str, float] = field(default_factory=dict)

    def reconcile(self) -> None:
        """Start pods that wait, and end those that are deleted."""
        for pod in self.api.store.list_objects("pods"):
            name = pod["metadata"]["name"]
            if name in self.foreign:
                continue
            run = self.runs.get(name)
            is_own = run is not None and pod["status"].get("startTime") is not None
            if "deletionTimestamp" in pod["metadata"]:
                self._end(pod, run if is_own else None)
            elif pod["status"].get("phase") == "Pending" and not pod["status"].get("startTime"):
                self._start(pod)

    def kill(self, pod_name: str, *, is_out_of_memory: bool = False) -> None:
        """Kill the container, as the kernel does."""
        run = self.runs[pod_name]
        run.is_out_of_memory = is_out_of_memory
        _signal(run.process, signal.SIGKILL)

    def evict(self, pod_name: str, message: str) -> None:
        """Take the pod away for its use of the node."""
        (pod,) = [
            p for p in self.api.store.list_objects("pods") if p["metadata"]["name"] == pod_name
        ]
        disruption = {
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "TerminationByKubelet",
            "lastTransitionTime": now(),
        }
        evicted = {"phase": "Failed", "reason": "Evicted", "message": message}
        self._set_status(pod, {**evicted, "conditions": [disruption]})
        _signal(self.runs[pod_name].process, signal.SIGKILL)

    def drain(self, pod_name: str) -> None:
        """Evict the pod by the API, as Karpenter and `kubectl drain` do.

        kube-apiserver marks the pod (pkg/registry/core/pod/storage/eviction.go,
        EvictionByEvictionAPI) and deletes it; its processes get SIGTERM and the pod's grace.
        """
        (pod,) = [
            p for p in self.api.store.list_objects("pods") if p["metadata"]["name"] == pod_name
        ]
        mark_evicted(self.api, pod)

    def delete_by_force(self, pod_name: str) -> None:
        """Do what `kubectl delete pod --force --grace-period=0` does: the object goes first."""
        (pod,) = [
            p for p in self.api.store.list_objects("pods") if p["metadata"]["name"] == pod_name
        ]
        self.api.store.remove("pods", pod)
        _signal(self.runs[pod_name].process, signal.SIGKILL)

    def stop(self) -> None:
        for run in self.runs.values():
            _signal(run.process, signal.SIGKILL)
            run.process.wait()

    def _start(self, pod: Object) -> None:
        (container,) = pod["spec"]["containers"]
        if self.unschedulable:
            self._set_status(pod, _unscheduled(self.unschedulable))
            return
        if not self._has_initialized(pod):
            return
        image = self.images.get(container["image"])
        if image is None:
            has_failed = bool(pod["status"].get("containerStatuses"))
            reason = "ImagePullBackOff" if has_failed else "ErrImagePull"
            self._set_waiting(pod, reason, f'Back-off pulling image "{container["image"]}"')
            return
        if self.is_making_containers:
            self._set_waiting(pod, "ContainerCreating", "")
            return
        namespace = pod["metadata"]["namespace"]
        try:
            values = resolve_variables(
                pod, container, lambda plural, name: self.api.store.get(plural, namespace, name)
            )
        except MissingReferenceError as error:
            self._set_waiting(pod, "CreateContainerConfigError", str(error))
            return
        self._run(pod, container, values, image)

    def _has_initialized(self, pod: Object) -> bool:
        """Let an init container look up the master, whose name exists once its pod is ready."""
        init = pod["spec"].get("initContainers")
        if not init:
            return True
        metadata = pod["metadata"]
        job = metadata["labels"]["training.kubeflow.org/job-name"]
        master = self.api.store.get("pods", metadata["namespace"], f"{job}-master-0")
        if master is not None and master["status"].get("phase") != "Pending":
            return True
        key = metadata["namespace"], f"{metadata['name']}/{init[0]['name']}"
        known = pod["status"].get("initContainerStatuses")
        if not known:
            self._init_started[metadata["uid"]] = time.monotonic()
            self.api.logs[key] = PodLog()
            self.api.logs[key].write("waiting for master")
            state = {"running": {"startedAt": now()}}
            self._set_init_state(pod, init[0]["name"], state, "Pending")
        elapsed = time.monotonic() - self._init_started.get(metadata["uid"], time.monotonic())
        if elapsed > self.init_tries * self.init_interval_s:
            ended = {"exitCode": 1, "reason": "Error", "finishedAt": now()}
            ended["startedAt"] = known[0]["state"]["running"]["startedAt"] if known else now()
            self.api.logs[key].close()
            self._set_init_state(pod, init[0]["name"], {"terminated": ended}, "Failed")
        return False

    def _set_init_state(self, pod: Object, name: str, state: Object, phase: str) -> None:
        waiting = {"waiting": {"reason": "PodInitializing"}}
        (container,) = pod["spec"]["containers"]
        self._set_status(
            pod,
            {
                "phase": phase,
                "initContainerStatuses": [{"name": name, "state": state}],
                "containerStatuses": [{"name": container["name"], "state": waiting}],
            },
        )

    def _run(self, pod: Object, container: Object, values: dict[str, str], image: Path) -> None:
        name, namespace = pod["metadata"]["name"], pod["metadata"]["namespace"]
        mounts = {
            mount["mountPath"]: self.folder / name / mount["name"]
            for mount in container.get("volumeMounts", ())
        }
        for folder in mounts.values():
            folder.mkdir(parents=True, exist_ok=True)
        command = [expand(each, values) for each in container["command"]]
        command, variables = substitute(command, values, mounts, self._port_of(pod))
        path = f"{image}:/usr/bin:/bin"
        program = next(
            (p for p in (Path(d) / command[0] for d in path.split(":")) if p.exists()), None
        )
        if program is None:
            self._set_ended(pod, 127, "StartError", f'exec: "{command[0]}": not found', now())
            return
        process = subprocess.Popen(
            [str(program), *command[1:]],
            env={**self.variables, "PATH": path, **variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        run = Run(process, now(), variables)
        self.runs[name] = run
        self.api.logs[namespace, name] = PodLog()
        self._set_status(
            pod,
            {
                "phase": "Running",
                "startTime": run.started_at,
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [
                    {"name": container["name"], "state": {"running": {"startedAt": now()}}}
                ],
            },
        )
        threading.Thread(target=self._attend, args=(pod, run), daemon=True).start()

    def _attend(self, pod: Object, run: Run) -> None:
        """Keep the log of a process, and say how it ended."""
        log = self.api.logs[pod["metadata"]["namespace"], pod["metadata"]["name"]]
        assert run.process.stdout is not None
        for line in run.process.stdout:
            log.write(line.rstrip("\n"))
        code = run.process.wait()
        log.close()
        reason = "Completed" if code == 0 else "Error"
        if run.is_out_of_memory:
            reason = "OOMKilled"
        self._set_ended(pod, 128 - code if code < 0 else code, reason, "", run.started_at)

    def _end(self, pod: Object, run: Run | None) -> None:
        """Ask a deleted pod's process to stop; its object goes when the process is gone."""
        if run is None or run.process.poll() is not None:
            self.api.store.remove("pods", pod)
            return
        if not pod["metadata"].get("deletionGracePeriodSeconds"):
            grace_s = pod["spec"].get("terminationGracePeriodSeconds", _GRACE_S)
            self.api.store.change(
                "pods",
                pod,
                lambda each: each["metadata"].update(deletionGracePeriodSeconds=grace_s),
            )
            _signal(run.process, signal.SIGTERM)
            timer = threading.Timer(grace_s, _signal, (run.process, signal.SIGKILL))
            timer.daemon = True
            timer.start()

    def _port_of(self, pod: Object) -> int:
        job = pod["metadata"]["labels"][_JOB_LABEL]
        if job not in self._ports:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                self._ports[job] = free.getsockname()[1]
        return self._ports[job]

    def _set_waiting(self, pod: Object, reason: str, message: str) -> None:
        (container,) = pod["spec"]["containers"]
        waiting = {"reason": reason, "message": message}
        self._set_status(
            pod,
            {
                "conditions": [{"type": "PodScheduled", "status": "True"}],
                "containerStatuses": [{"name": container["name"], "state": {"waiting": waiting}}],
            },
        )

    def _set_ended(self, pod: Object, code: int, reason: str, message: str, started: str) -> None:
        (container,) = pod["spec"]["containers"]
        ended = {
            "exitCode": code,
            "reason": reason,
            "message": message,
            "startedAt": started,
            "finishedAt": now(),
        }

        def edit(each: Object) -> None:
            if each["status"].get("phase") not in ("Failed", "Succeeded"):
                each["status"]["phase"] = "Failed" if code else "Succeeded"
            each["status"]["startTime"] = started
            each["status"]["containerStatuses"] = [
                {"name": container["name"], "state": {"terminated": ended}}
            ]

        self.api.store.change("pods", pod, edit)

    def _set_status(self, pod: Object, status: Object) -> None:
        self.api.store.change("pods", pod, lambda each: each["status"].update(status))


def _unscheduled(message: str) -> Object:
    return {
        "conditions": [
            {
                "type": "PodScheduled",
                "status": "False",
                "reason": "Unschedulable",
                "message": message,
            }
        ]
    }


def _signal(process: subprocess.Popen[str], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def mark_evicted(api: ApiServer, pod: Object) -> None:
    """Mark a pod as evicted by the API, and for deletion."""
    condition = {
        "type": "DisruptionTarget",
        "status": "True",
        "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting",
        "lastTransitionTime": now(),
    }

    def edit(each: Object) -> None:
        each["status"].setdefault("conditions", []).append(condition)
        each["metadata"].setdefault("deletionTimestamp", now())

    api.store.change("pods", pod, edit)
