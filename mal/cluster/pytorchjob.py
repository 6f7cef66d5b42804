"""The PyTorchJob of a job, for the training operator (kubeflow.org/v1).

`nprocPerNode` stays unset: a number there makes WORLD_SIZE count processes, where it is to count
nodes. `elasticPolicy` stays unset: its pods know neither WORLD_SIZE nor each other's place.
"""

from __future__ import annotations

import copy

from mal.cluster import names
from mal.cluster.pod import Object, job_metadata, pod_template
from mal.cluster.settings import JobSettings


def build_pytorchjob(job: JobSettings) -> Object:
    """Build the object: one Master, and a Worker for every further node."""
    template = pod_template(job, names.PYTORCHJOB_CONTAINER)
    if job.master_port:
        template["spec"]["containers"][0]["ports"] = [
            {"name": names.PYTORCHJOB_PORT_NAME, "containerPort": job.master_port}
        ]
    replicas = {"Master": _replicas(job, template, 1)}
    if job.num_nodes > 1:
        replicas["Worker"] = _replicas(job, template, job.num_nodes - 1)
    return {
        "apiVersion": names.PYTORCHJOB_API_VERSION,
        "kind": names.PYTORCHJOB_KIND,
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
    # A limit of 0 says nothing that Never does not, and made operators before 1.9.4 delete the
    # failed pod with its log, whatever the clean-up policy (kubeflow/trainer#3419).
    if job.lifetime.backoff_limit:
        policy["backoffLimit"] = job.lifetime.backoff_limit
    if job.num_nodes > 1:  # read by an operator with a gang scheduler: all nodes start, or none
        policy["schedulingPolicy"] = {"minAvailable": job.num_nodes}
        if job.placement.priority_class:
            policy["schedulingPolicy"]["priorityClass"] = job.placement.priority_class
    return policy
