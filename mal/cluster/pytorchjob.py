"""The PyTorchJob of the training operator (kubeflow.org/v1).

`nprocPerNode` stays unset: with a number there WORLD_SIZE counts processes, and mal needs the
number of nodes. `elasticPolicy` stays unset: its pods know neither WORLD_SIZE nor their rank.
"""

from __future__ import annotations

import copy

from mal.cluster.job_kind import JobKind, JobState, TrainingPods, read_conditions
from mal.cluster.pod import job_metadata, pod_template
from mal.cluster.resources import Object, Resource
from mal.cluster.settings import JobSettings

CONTAINER = "pytorch"
_JOB_LABEL = "training.kubeflow.org/job-name"
_ROLE_LABEL = "training.kubeflow.org/job-role"
_INDEX_LABEL = "training.kubeflow.org/replica-index"


def build_pytorchjob(job: JobSettings) -> Object:
    """Build the object: one Master, and a Worker for every further node."""
    template = pod_template(job, CONTAINER)
    if job.master_port:
        template["spec"]["containers"][0]["ports"] = [
            {"name": "pytorchjob-port", "containerPort": job.master_port}
        ]
    replicas = {"Master": _replicas(job, template, 1)}
    if job.num_nodes > 1:
        replicas["Worker"] = _replicas(job, template, job.num_nodes - 1)
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": job_metadata(job),
        "spec": {"runPolicy": _run_policy(job), "pytorchReplicaSpecs": replicas},
    }


def _replicas(job: JobSettings, template: Object, number: int) -> Object:
    return {
        "replicas": number,
        "restartPolicy": job.lifetime.restart_policy,
        "template": copy.deepcopy(template),
    }


def _run_policy(job: JobSettings) -> Object:
    policy: Object = {
        "activeDeadlineSeconds": job.lifetime.active_deadline_s,
        "cleanPodPolicy": job.lifetime.clean_pod_policy,
        "ttlSecondsAfterFinished": job.lifetime.ttl_after_finished_s,
    }
    # With a limit of 0, operators before 1.9.4 delete the failed pod with its log, whatever
    # cleanPodPolicy says (kubeflow/trainer#3419).
    if job.lifetime.backoff_limit:
        policy["backoffLimit"] = job.lifetime.backoff_limit
    if job.num_nodes > 1:  # a gang scheduler starts all nodes, or none
        policy["schedulingPolicy"] = {"minAvailable": job.num_nodes}
        if job.placement.priority_class:
            policy["schedulingPolicy"]["priorityClass"] = job.placement.priority_class
    return policy


def _read_state(made: Object) -> JobState:
    is_suspended = made["spec"].get("runPolicy", {}).get("suspend", False)
    started = (made.get("status") or {}).get("startTime") or made["metadata"]["creationTimestamp"]
    return read_conditions(made, "Succeeded", is_suspended=is_suspended, started=started)


def _rank(pod: Object) -> int:
    labels = pod["metadata"]["labels"]
    return 0 if labels.get(_ROLE_LABEL) == "master" else int(labels[_INDEX_LABEL]) + 1


PYTORCHJOB = JobKind(
    name="PyTorchJob",
    resource=Resource(
        "kubeflow.org",
        "v1",
        "pytorchjobs",
        "manifests/base",
        "the training operator v1 (release 1.9)",
    ),
    build=build_pytorchjob,
    read_state=_read_state,
    pods=TrainingPods(container=CONTAINER, labels=lambda name: {_JOB_LABEL: name}, rank=_rank),
    # Its queue drops delayed work (release-1.9 pkg/common/util/fake_workqueue.go:47, trainer#3358).
    enforces_deadline=False,
    replaces_pods=lambda job: job.lifetime.restart_policy != "Never",
)
