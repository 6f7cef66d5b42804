"""The pod of one node, the same for every kind of job.

It satisfies the `restricted` pod standard, holds no secret value, and gets its spec through a
variable, so that a job is a single object.
"""

from __future__ import annotations

import json
import re

from mal.artifacts import GPUS_VARIABLE
from mal.cluster import names
from mal.cluster.resources import Object
from mal.cluster.rules import KEYS_OF_OUTPUTS, quantity
from mal.cluster.settings import JobSettings, Owner
from mal.spec.sources import RECIPE_PREFIX, VARIABLE_PREFIX, parse_override
from mal.storage.kfp_launcher import LAUNCHER_CONFIG_MAP, LAUNCHER_KEYS
from mal.storage.stores import CONFIG_VARIABLES

# Kubernetes replaces $(NAME) in commands and variables, and reads $$ as $.
_EXPANDED = re.compile(r"\$(?=[$(])")
_SECCOMP = {"type": "RuntimeDefault"}


def job_metadata(job: JobSettings) -> Object:
    """Return the job's own metadata: labels, queue, annotations and owner."""
    labels = _job_labels(job)
    if job.placement.queue_name:
        labels[names.QUEUE_LABEL] = job.placement.queue_name
    metadata: Object = {"name": job.name, "namespace": job.namespace, **_metadata(job, labels)}
    if job.owner is not None:
        metadata["ownerReferences"] = [owner_reference(job.owner)]
    return metadata


def owner_reference(owner: Owner) -> Object:
    """Return an entry of `ownerReferences`."""
    return {
        "apiVersion": owner.api_version,
        "kind": owner.kind,
        "name": owner.name,
        "uid": owner.uid,
    }


def pod_metadata(job: JobSettings) -> Object:
    """Return the metadata of the pods."""
    has_sidecar = "true" if job.security.istio_sidecar else "false"
    return _metadata(job, {**_job_labels(job), names.ISTIO_LABEL: has_sidecar})


def _metadata(job: JobSettings, labels: dict[str, str]) -> Object:
    annotations = {"annotations": dict(sorted(job.annotations.items()))} if job.annotations else {}
    return {"labels": labels, **annotations}


def _job_labels(job: JobSettings) -> dict[str, str]:
    """Return the labels of the job and its pods; network policies select the pods by them."""
    return {
        names.APP_LABEL: names.APP,
        names.COMPONENT_LABEL: names.TRAINER_COMPONENT,
        names.INSTANCE_LABEL: job.name,
        **dict(sorted(job.labels.items())),
    }


def pod_template(job: JobSettings, container_name: str) -> Object:
    """Return the pod template with one container of this name."""
    container: Object = {
        "name": container_name,
        "image": job.image,
        "command": train_command(job),
        "env": variables(job),
        "resources": container_resources(job),
        **container_patch(job),
    }
    if job.image_pull_policy:
        container["imagePullPolicy"] = job.image_pull_policy
    spec: Object = {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": job.lifetime.termination_grace_s,
        **pod_patch(job),
        "containers": [container],
    }
    if job.placement.priority_class:
        spec["priorityClassName"] = job.placement.priority_class
    return {"metadata": pod_metadata(job), "spec": spec}


def pod_patch(job: JobSettings) -> Object:
    """Return the fields of a pod's spec that a training runtime's pod can be patched with."""
    spec: Object = {
        "serviceAccountName": job.security.service_account,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": job.security.run_as_user,
            "fsGroup": job.security.fs_group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": dict(_SECCOMP),
        },
        "volumes": _volumes(job),
    }
    if job.placement.node_selector:
        spec["nodeSelector"] = dict(sorted(job.placement.node_selector.items()))
    if job.placement.tolerations:
        # An absent field means to Kubernetes what '' means here.
        spec["tolerations"] = [
            {name: value for name, value in toleration if value}
            for toleration in job.placement.tolerations
        ]
    if job.security.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in job.security.image_pull_secrets]
    return spec


def container_patch(job: JobSettings) -> Object:
    """Return the fields of a container that a training runtime's container can be patched with."""
    mounts = [
        {"name": "shm", "mountPath": names.SHM_DIR},
        {"name": "tmp", "mountPath": names.TMP_DIR},
        {"name": "cache", "mountPath": names.CACHE_DIR},
    ]
    claims = [
        {"name": f"claim-{index}", "mountPath": claim.mount_path, "readOnly": claim.read_only}
        for index, claim in enumerate(job.storage.claims)
    ]
    return {
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": job.security.read_only_root,
            "runAsNonRoot": True,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": dict(_SECCOMP),
        },
        "volumeMounts": [*mounts, *claims],
    }


def _volumes(job: JobSettings) -> list[Object]:
    storage = job.storage
    cache: Object = {"emptyDir": {"sizeLimit": storage.cache_size}}
    if storage.cache_claim:
        cache = {"persistentVolumeClaim": {"claimName": storage.cache_claim}}
    claims = [{"claimName": claim.claim, "readOnly": claim.read_only} for claim in storage.claims]
    return [
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": job.resources.shm_size}},
        {"name": "tmp", "emptyDir": {"sizeLimit": storage.tmp_size}},
        {"name": "cache", **cache},
        *(
            {"name": f"claim-{index}", "persistentVolumeClaim": claim}
            for index, claim in enumerate(claims)
        ),
    ]


def train_command(job: JobSettings) -> list[str]:
    """Return the command: `mal train` with the results in the outputs folder.

    Both result keys are set, so that the files are in that folder itself, as in the model artifact
    of a train step.
    """
    experiment = []
    if _is_recipe(job):
        experiment = ["-e", job.spec.strip()]
    elif job.spec.strip():
        experiment = ["-e", f"{VARIABLE_PREFIX}{names.SPEC_VARIABLE}"]
    outputs = [_assignment(key, job.outputs_uri) for key in KEYS_OF_OUTPUTS]
    arguments = [*experiment, *job.overrides, *outputs]
    return ["mal", "train", *map(escape_expansion, arguments)]


def variables(job: JobSettings) -> list[Object]:
    """Return the variables of the training container, secrets by reference.

    NUM_GPU_PER_NODE is set because no operator sets it; the operator sets the ranks.
    """
    environment = job.environment
    # By default every process starts a thread for each core of the machine.
    threads = max(1, int(quantity(job.resources.cpu)) // job.resources.devices_per_node)
    values = {
        "HOME": names.TMP_DIR,
        "XDG_CACHE_HOME": names.CACHE_DIR,
        "OMP_NUM_THREADS": str(threads),
        **dict(sorted(environment.values.items())),
        names.CACHE_VARIABLE: names.CACHE_DIR,
        names.DEVICES_VARIABLE: str(job.resources.devices_per_node),
    }
    if job.resources.gpus_per_node:
        values[GPUS_VARIABLE] = str(job.resources.gpus_per_node)
    if job.spec.strip() and not _is_recipe(job):
        values[names.SPEC_VARIABLE] = job.spec
    sources: Object = {}
    if environment.config_map:
        for key in CONFIG_VARIABLES:
            sources[key] = _key_of_config_map(environment.config_map, key)
    for name, key in LAUNCHER_KEYS.items():
        sources[name] = _key_of_config_map(LAUNCHER_CONFIG_MAP, key)
    sources |= {name: {"value": escape_expansion(value)} for name, value in values.items()}
    for name, secret in sorted(environment.secrets.items()):
        reference = {"name": secret.secret, "key": secret.key}
        optional = {"optional": True} if secret.optional else {}
        sources[name] = {"valueFrom": {"secretKeyRef": {**reference, **optional}}}
    return [{"name": name, **source} for name, source in sources.items()]


def _key_of_config_map(name: str, key: str) -> Object:
    return {"valueFrom": {"configMapKeyRef": {"name": name, "key": key, "optional": True}}}


def container_resources(job: JobSettings) -> Object:
    """Return limits, and requests equal to them."""
    amounts = {"cpu": job.resources.cpu, "memory": job.resources.memory}
    if job.resources.gpus_per_node:
        amounts[job.resources.gpu_resource] = str(job.resources.gpus_per_node)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def escape_expansion(text: str) -> str:
    """Escape `$(NAME)`, which Kubernetes would replace."""
    return _EXPANDED.sub("$$", text)


def _is_recipe(job: JobSettings) -> bool:
    return job.spec.strip().startswith(RECIPE_PREFIX)


def _assignment(key: str, text: str) -> str:
    plain = f"{key}={text}"
    # A JSON string is a YAML string, whatever characters the text has.
    return plain if parse_override(plain) == {key: text} else f"{key}={json.dumps(text)}"
