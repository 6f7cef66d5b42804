"""The TrainJob of a job, for Trainer 2.2 and later (trainer.kubeflow.org/v1alpha1).

A TrainJob patches the pods of a training runtime. What it may not patch - restarts, clean-up,
grace, priority, the token - is the runtime's: `manifests/components/trainjob` has one that gives
the defaults of `JobSettings`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mal.cluster import names, pod
from mal.cluster.pod import Object
from mal.cluster.settings import JobSettings, Lifetime
from mal.errors import SpecError


def build_trainjob(job: JobSettings) -> Object:
    """Build the object.

    Raises:
        SpecError: Settings that a TrainJob cannot express, all at once.
    """
    problems = list(_problems(job))
    if problems:
        raise SpecError(problems)
    return {
        "apiVersion": names.TRAINJOB_API_VERSION,
        "kind": names.TRAINJOB_KIND,
        "metadata": pod.job_metadata(job),
        "spec": {
            "runtimeRef": {
                "apiGroup": names.TRAINJOB_API_VERSION.partition("/")[0],
                "kind": job.training_runtime.kind,
                "name": job.training_runtime.name,
            },
            "activeDeadlineSeconds": job.lifetime.active_deadline_s,
            "trainer": {
                "image": job.image,
                "command": pod.train_command(job),
                "env": pod.variables(job),
                "numNodes": job.num_nodes,
                "numProcPerNode": job.resources.devices_per_node,
                "resourcesPerNode": pod.container_resources(job),
            },
            "runtimePatches": [_runtime_patch(job)],
        },
    }


def _runtime_patch(job: JobSettings) -> Object:
    """Return our patch: one manager owns one, so that Kueue's stands beside it."""
    container = {
        "name": names.TRAINJOB_CONTAINER,
        "securityContext": pod.container_security(job),
        "volumeMounts": pod.volume_mounts(job),
    }
    spec: Object = {
        "serviceAccountName": job.security.service_account,
        "securityContext": pod.pod_security(job),
        **pod.placement(job),
        "containers": [container],
        "volumes": pod.volumes(job),
    }
    if job.security.image_pull_secrets:
        spec["imagePullSecrets"] = pod.pull_secrets(job)
    pod_patch = {"metadata": pod.pod_metadata(job), "spec": spec}
    replicated_job = {
        "name": names.TRAINJOB_REPLICATED_JOB,
        "template": {"spec": {"template": pod_patch}},
    }
    return {
        "manager": names.TRAINJOB_PATCH_MANAGER,
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated_job]}}},
    }


def _problems(job: JobSettings) -> Iterator[str]:
    """Name what would have no effect."""
    given, default = dict(job.lifetime), dict(Lifetime())
    of_runtime = {
        f"lifetime.{name}": given[name]
        for name in default
        if name != "active_deadline_s" and given[name] != default[name]
    }
    if job.placement.priority_class:
        of_runtime["placement.priority_class"] = job.placement.priority_class
    if job.image_pull_policy:
        of_runtime["image_pull_policy"] = job.image_pull_policy
    if job.master_port:
        of_runtime["master_port"] = job.master_port
    for name, value in of_runtime.items():
        yield (
            f"job.{name} must be left out with backend trainjob, got {value!r}: Trainer v2 takes "
            "it from the training runtime. Set it there and name that in job.training_runtime."
        )
