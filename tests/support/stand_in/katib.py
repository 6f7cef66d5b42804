"""Katib's controller and webhook, as far as a launcher and the trials see them.

Written from the code of Katib 0.19: it refuses templates with a name, suggests values, makes a
Trial and its job of the same name, hands the first pod's command to a shell, reads what that prints
by its own regular expression, and counts. The pod's log stands for the file that it reads.
- A namespace without the label is refused (pkg/webhook/v1beta1/experiment/
  validation_webhook.go:76).
- The pod that suggests values has the Experiment's labels (pkg/controller.v1beta1/util/
  labels.go:27) and must be reached on port 6789: the policy mal-trainer-deny shuts in trainers.
- The job of a trial that ended is deleted unless `retain` (trial_controller.go, reconcileJob).
"""

from __future__ import annotations

import json
import math
import random
import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from stand_in.api import ApiServer, StatusError
from stand_in.store import Object, now

# pkg/metricscollector/v1beta1/common/const.go
METRIC_LINE = re.compile(r"([\w|-]+)\s*=\s*([+-]?\d*(\.\d+)?([Ee][+-]?\d+)?)")
_PLACEHOLDER = re.compile(r"\$\{trialParameters\.(.+?)\}")
_INJECTION_LABEL = "katib.kubeflow.org/metrics-collector-injection"
_EXPERIMENT_LABEL = "katib.kubeflow.org/experiment"
_ENDS = {
    "Succeeded": "trialsSucceeded",
    "Failed": "trialsFailed",
    "MetricsUnavailable": "trialMetricsUnavailable",
}


@dataclass
class Katib:
    """The controller of experiments and trials.

    Attributes:
        api: Where they are.
        is_running: False when the controller is down.
        is_injecting: Whether the namespace has the label that makes Katib change trials' pods.
        suggestion_phase: Of the pod that suggests values.
        is_shut_in: Whether a network policy of the namespace denies the way to that pod.
    """

    api: ApiServer
    is_running: bool = True
    is_injecting: bool = True
    suggestion_phase: str = "Running"
    is_shut_in: bool = False
    _suggesters: dict[str, random.Random] = field(default_factory=dict)

    def admit(self, plural: str, made: Object) -> None:
        """Refuse what the webhook refuses."""
        if plural != "experiments":
            return
        template = made["spec"]["trialTemplate"]
        known = {each["name"] for each in template["trialParameters"]}
        used = set(_PLACEHOLDER.findall(json.dumps(template["trialSpec"])))
        metadata = template["trialSpec"]["metadata"]
        if known != used:
            _refuse(f"parameters {known ^ used} in spec.trialTemplate do not match")
        if not self.is_injecting:
            raise StatusError(
                400,
                "BadRequest",
                'admission webhook "validator.experiment.katib.kubeflow.org" denied the request: '
                f'Cannot create the Experiment "{made["metadata"]["name"]}" in namespace "team": '
                f'the namespace lacks label "{_INJECTION_LABEL}: enabled"',
            )
        if "name" in metadata or "namespace" in metadata:
            _refuse("metadata.name and metadata.namespace in spec.trialTemplate must be omitted")

    def mutate(self, job: Object, pod: Object) -> None:
        """Hand the command of a trial's first pod to a shell, as the webhook does."""
        owners = job["metadata"].get("ownerReferences", ())
        is_master = pod["metadata"]["labels"].get("training.kubeflow.org/job-role") == "master"
        if not self.is_injecting or not is_master or all(o["kind"] != "Trial" for o in owners):
            return
        for container in pod["spec"]["containers"]:
            command = container["command"]
            shell, words = ["sh", "-c"], command
            if command[0] in ("sh", "bash") and command[1] == "-c":
                shell, words = command[:2], command[2:]
            container["command"] = [*shell, " ".join([*words, "2>&1", "&&", "echo", "completed"])]

    def reconcile(self) -> None:
        """Bring all experiments up to date."""
        if not self.is_running:
            return
        for experiment in self.api.store.list_objects("experiments"):
            if not _condition(experiment, "Succeeded") and not _condition(experiment, "Failed"):
                self._reconcile(experiment)

    def _reconcile(self, experiment: Object) -> None:
        spec, name = experiment["spec"], experiment["metadata"]["name"]
        if not _condition(experiment, "Created"):
            self._end(experiment, "Created", "Experiment is created")
        if not self._suggests(experiment):
            return
        trials = [
            trial
            for trial in self.api.store.list_objects("trials")
            if trial["metadata"]["labels"][_EXPERIMENT_LABEL] == name
        ]
        for trial in trials:
            if not _end_of(trial):
                self._reconcile_trial(trial)
            elif not spec["trialTemplate"].get("retain"):
                self._delete_job(trial)
        num_active = sum(not _end_of(trial) for trial in trials)
        if num_active < spec["parallelTrialCount"] and len(trials) < spec["maxTrialCount"]:
            self._make_trial(experiment)
        self._count(experiment)

    def _suggests(self, experiment: Object) -> bool:
        """Start the pod that suggests values; returns whether the controller reaches it."""
        metadata = experiment["metadata"]
        name = f"{metadata['name']}-{experiment['spec']['algorithm']['algorithmName']}"
        pod = self.api.store.get("pods", metadata["namespace"], name)
        if pod is None:
            labels = {
                **metadata["labels"],
                "katib.kubeflow.org/deployment": name,
                _EXPERIMENT_LABEL: metadata["name"],
            }
            made = {"name": name, "namespace": metadata["namespace"], "labels": labels}
            made["ownerReferences"] = [_owner(experiment)]
            status = {"phase": self.suggestion_phase, "startTime": now()}
            pod = self.api.store.create("pods", {"metadata": made, "spec": {}, "status": status})
        component = pod["metadata"]["labels"].get("app.kubernetes.io/component")
        is_shut_in = self.is_shut_in or component == "trainer"
        return pod["status"]["phase"] == "Running" and not is_shut_in

    def _delete_job(self, trial: Object) -> None:
        job = self.api.store.get(
            "pytorchjobs", trial["metadata"]["namespace"], trial["metadata"]["name"]
        )
        if job is not None:
            self.api.store.delete("pytorchjobs", job)

    def _make_trial(self, experiment: Object) -> None:
        spec, metadata = experiment["spec"], experiment["metadata"]
        seed = spec["algorithm"]["algorithmSettings"][0]["value"]
        rng = self._suggesters.setdefault(metadata["uid"], random.Random(seed))
        suffix = "".join(rng.choices(string.ascii_lowercase + string.digits, k=8))
        values = {p["name"]: _suggest(rng, p) for p in spec["parameters"]}
        name = f"{metadata['name']}-{suffix}"
        template = spec["trialTemplate"]
        replaced = {
            each["name"]: name
            if each["reference"] == "${trialSpec.Name}"
            else values[each["reference"]]
            for each in template["trialParameters"]
        }
        text = _PLACEHOLDER.sub(lambda m: replaced[m[1]], json.dumps(template["trialSpec"]))
        trial = self.api.store.create(
            "trials",
            {
                "kind": "Trial",
                "metadata": {
                    "name": name,
                    "namespace": metadata["namespace"],
                    "labels": {_EXPERIMENT_LABEL: metadata["name"]},
                    "ownerReferences": [_owner(experiment)],
                },
                "spec": {
                    "parameterAssignments": [
                        {"name": key, "value": value} for key, value in values.items()
                    ]
                },
                "status": {"conditions": [], "startTime": now()},
            },
        )
        job = json.loads(text)
        job["metadata"] |= {"name": name, "namespace": metadata["namespace"]}
        job["metadata"]["ownerReferences"] = [_owner(trial)]
        self.api.store.create("pytorchjobs", job)

    def _reconcile_trial(self, trial: Object) -> None:
        namespace, name = trial["metadata"]["namespace"], trial["metadata"]["name"]
        job = self.api.store.get("pytorchjobs", namespace, name) or {}
        observed = self._observe(namespace, f"{name}-master-0") if self.is_injecting else []
        if observed:
            metric = {"name": "mIoU", "latest": observed[-1]}
            metric |= {"max": max(observed, key=float), "min": min(observed, key=float)}
            self._edit(trial, lambda s: s.update(observation={"metrics": [metric]}))
        if _condition(job, "Succeeded"):
            end = "Succeeded" if observed else "MetricsUnavailable"
            self._end(trial, end, "" if observed else "Metrics are not available")
        elif _condition(job, "Failed"):
            self._end(trial, "Failed", _condition(job, "Failed")["message"])

    def _observe(self, namespace: str, pod: str) -> list[str]:
        log = self.api.logs.get((namespace, pod))
        lines = [text for _, text in log.read(since="", tail=None, follow=False)] if log else []
        found = [match for line in lines for match in METRIC_LINE.finditer(line)]
        return [match[2] for match in found if match[1] == "mIoU" and match[2]]

    def _count(self, experiment: Object) -> None:
        spec, name = experiment["spec"], experiment["metadata"]["name"]
        trials = [
            trial
            for trial in self.api.store.list_objects("trials")
            if trial["metadata"]["labels"][_EXPERIMENT_LABEL] == name
        ]
        ends = [_end_of(trial) for trial in trials]
        counts = {field_name: ends.count(end) for end, field_name in _ENDS.items()}
        measured = [t for t in trials if _end_of(t) == "Succeeded"]
        status: Object = {**counts, "trials": len(trials), "trialsRunning": ends.count("")}
        if measured:
            best = max(measured, key=_metric_of)
            status["currentOptimalTrial"] = {
                "bestTrialName": best["metadata"]["name"],
                "parameterAssignments": best["spec"]["parameterAssignments"],
                "observation": best["status"]["observation"],
            }
        self._edit(experiment, lambda s: s.update(status))
        num_failed = counts["trialsFailed"] + counts["trialMetricsUnavailable"]
        if num_failed >= spec["maxFailedTrialCount"]:
            self._end(experiment, "Failed", "Experiment has failed because max failed trial count "
                                            "has reached")  # fmt: skip
        elif len([end for end in ends if end]) >= spec["maxTrialCount"]:
            self._end(experiment, "Succeeded", "Experiment has succeeded because max trial count "
                                               "has reached")  # fmt: skip

    def _end(self, made: Object, kind: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "message": message, "reason": kind}
        condition["lastTransitionTime"] = now()
        self._edit(made, lambda s: s.setdefault("conditions", []).append(condition))
        if kind != "Created":
            self._edit(made, lambda s: s.update(completionTime=now()))

    def _edit(self, made: Object, edit: Callable[[Object], Any]) -> None:
        plural = "trials" if made["kind"] == "Trial" else "experiments"
        self.api.store.change(plural, made, lambda each: edit(each.setdefault("status", {})))


def _suggest(rng: random.Random, parameter: Object) -> str:
    space = parameter["feasibleSpace"]
    if "list" in space:
        return str(rng.choice(space["list"]))
    low, high = float(space["min"]), float(space["max"])
    if space.get("distribution") == "logUniform":
        return repr(math.exp(rng.uniform(math.log(low), math.log(high))))
    value = rng.uniform(low, high)
    return str(round(value)) if parameter["parameterType"] == "int" else repr(value)


def _metric_of(trial: Object) -> float:
    return float(trial["status"]["observation"]["metrics"][0]["max"])


def _end_of(trial: Object) -> str:
    return next((end for end in _ENDS if _condition(trial, end)), "")


def _condition(made: Object, kind: str) -> Object:
    conditions = made.get("status", {}).get("conditions", ())
    return next((c for c in conditions if (c["type"], c["status"]) == (kind, "True")), {})


def _owner(made: Object) -> Object:
    metadata = made["metadata"]
    return {"kind": made["kind"], "name": metadata["name"], "uid": metadata["uid"]}


def _refuse(message: str) -> None:
    webhook = 'admission webhook "validator.experiment.katib.kubeflow.org" denied the request: '
    raise StatusError(400, "BadRequest", webhook + message)
