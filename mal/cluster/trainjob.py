"""The TrainJob of Trainer 2.2 and later (trainer.kubeflow.org/v1alpha1).

A TrainJob patches the pods of a training runtime. It cannot patch restarts, clean-up, grace,
priority and the token: the runtime sets them. `manifests/components/trainjob` has a runtime with
the defaults of `JobSettings`.
"""

from __future__ import annotations

from collections.abc import Iterator

from mal.cluster import pod
from mal.cluster.job_kind import JobKind, JobState, TrainingPods, find_condition, read_conditions
from mal.cluster.resources import Object, Resource
from mal.cluster.settings import JobSettings, Lifetime
from mal.errors import SpecError

CONTAINER = "node"
REPLICATED_JOB = "node"
PATCH_MANAGER = "mal.kubeflow.org/launcher"
_GROUP = "trainer.kubeflow.org"
_JOB_LABEL = "jobset.sigs.k8s.io/jobset-name"
_PART_LABEL = "jobset.sigs.k8s.io/replicatedjob-name"
_INDEX_LABEL = "batch.kubernetes.io/job-completion-index"


def build_trainjob(job: JobSettings) -> Object:
    """Build the object.

    Raises:
        SpecError: Settings that a TrainJob cannot express, all at once.
    """
    problems = list(_problems(job))
    if problems:
        raise SpecError(problems)
    return {
        "apiVersion": f"{_GROUP}/v1alpha1",
        "kind": "TrainJob",
        "metadata": pod.job_metadata(job),
        "spec": {
            "runtimeRef": {
                "apiGroup": _GROUP,
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
    """Return our patch. Each manager owns one, so Kueue can add its own."""
    container = {"name": CONTAINER, **pod.container_patch(job)}
    spec = {**pod.pod_patch(job), "containers": [container]}
    patch = {"metadata": pod.pod_metadata(job), "spec": spec}
    replicated_job = {"name": REPLICATED_JOB, "template": {"spec": {"template": patch}}}
    return {
        "manager": PATCH_MANAGER,
        "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [replicated_job]}}},
    }


def _problems(job: JobSettings) -> Iterator[str]:
    """Name the settings that would have no effect."""
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


def _read_state(made: Object) -> JobState:
    resumed = find_condition(made, "Suspended", "False")
    started = resumed["lastTransitionTime"] if resumed else made["metadata"]["creationTimestamp"]
    is_suspended = made["spec"].get("suspend", False)
    return read_conditions(made, "Complete", is_suspended=is_suspended, started=started)


TRAINJOB = JobKind(
    name="TrainJob",
    resource=Resource(
        _GROUP, "v1alpha1", "trainjobs", "manifests/components/trainjob", "Trainer 2.2 or later"
    ),
    build=build_trainjob,
    read_state=_read_state,
    pods=TrainingPods(
        container=CONTAINER,
        labels=lambda name: {_JOB_LABEL: name, _PART_LABEL: REPLICATED_JOB},
        rank=lambda pod: int(pod["metadata"]["labels"][_INDEX_LABEL]),
        # The TrainJob, and the batch Job of its JobSet.
        event_sources=lambda name: (name, f"{name}-{REPLICATED_JOB}-0"),
    ),
    # release-2.1 manifests/base/crds/trainer.kubeflow.org_trainjobs.yaml has neither
    # runtimePatches nor activeDeadlineSeconds: its API server prunes them without a word.
    too_old="It has Trainer 2.1 or older, and mal needs 2.2 or later",
)
