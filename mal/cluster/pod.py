"""The pod of one node, the same for every kind of job.

It satisfies the `restricted` pod standard, holds no secret value, and gets its spec through a
variable, so that a job is a single object.
"""

from __future__ import annotations

import json
import re

from mal.cluster import names
from mal.cluster.resources import Object
from mal.cluster.rules import KEYS_OF_OUTPUTS, quantity
from mal.cluster.settings import JobSettings, Owner, Toleration
from mal.spec.sources import RECIPE_PREFIX, VARIABLE_PREFIX, parse_override

# Kubernetes replaces $(NAME) in commands and variables, and reads $$ as $.
_EXPANDED = re.compile(r"\$(?=[$(])")
_SHM, _TMP, _CACHE = "shm", "tmp", "cache"


def job_metadata(job: JobSettings) -> Object:
    """Return the job's own metadata: labels, queue, annotations and owner."""
    labels = job_labels(job)
    if job.placement.queue_name:
        labels[names.QUEUE_LABEL] = job.placement.queue_name
    metadata: Object = {"name": job.name, "namespace": job.namespace, "labels": labels}
    if job.annotations:
        metadata["annotations"] = dict(sorted(job.annotations.items()))
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


def job_labels(job: JobSettings) -> dict[str, str]:
    """Return the labels of the job and its pods; network policies select the pods by them."""
    return {
        names.APP_LABEL: names.APP,
        names.COMPONENT_LABEL: names.TRAINER_COMPONENT,
        names.INSTANCE_LABEL: job.name,
        **dict(sorted(job.labels.items())),
    }


def pod_metadata(job: JobSettings) -> Object:
    """Return the metadata of the pods."""
    metadata: Object = {
        "labels": {
            **job_labels(job),
            names.ISTIO_LABEL: "true" if job.security.istio_sidecar else "false",
        }
    }
    if job.annotations:
        metadata["annotations"] = dict(sorted(job.annotations.items()))
    return metadata


def pod_template(job: JobSettings, container_name: str) -> Object:
    """Return the pod template with one container of this name."""
    container: Object = {
        "name": container_name,
        "image": job.image,
        "command": train_command(job),
        "env": variables(job),
        "resources": container_resources(job),
        "securityContext": container_security(job),
        "volumeMounts": volume_mounts(job),
    }
    if job.image_pull_policy:
        container["imagePullPolicy"] = job.image_pull_policy
    spec: Object = {
        "serviceAccountName": job.security.service_account,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": job.lifetime.termination_grace_s,
        "securityContext": pod_security(job),
        **placement(job),
        "containers": [container],
        "volumes": volumes(job),
    }
    if job.placement.priority_class:
        spec["priorityClassName"] = job.placement.priority_class
    if job.security.image_pull_secrets:
        spec["imagePullSecrets"] = pull_secrets(job)
    return {"metadata": pod_metadata(job), "spec": spec}


def train_command(job: JobSettings) -> list[str]:
    """Return the explicit command: `mal train` with the results in the outputs folder.

    Both result keys are set, so that the files are in that folder itself, as in the model artifact
    of a train step.
    """
    source = job.spec.strip()
    if source.startswith(RECIPE_PREFIX):
        experiment = ["-e", source]
    elif source:
        experiment = ["-e", f"{VARIABLE_PREFIX}{names.SPEC_VARIABLE}"]
    else:
        experiment = []
    outputs = [_assignment(key, job.outputs_uri) for key in KEYS_OF_OUTPUTS]
    arguments = [*experiment, *job.overrides, *outputs]
    return ["mal", "train", *map(escape_expansion, arguments)]


def variables(job: JobSettings) -> list[Object]:
    """Return the variables of the training container, secrets by reference.

    NUM_GPU_PER_NODE is set because no operator sets it; the operator sets the ranks.
    """
    values = {
        "HOME": names.TMP_DIR,
        "XDG_CACHE_HOME": names.CACHE_DIR,
        "OMP_NUM_THREADS": str(_threads_per_process(job)),
        **dict(sorted(job.environment.values.items())),
        names.CACHE_VARIABLE: names.CACHE_DIR,
        names.DEVICES_VARIABLE: str(job.resources.devices_per_node),
    }
    spec = job.spec.strip()
    if spec and not spec.startswith(RECIPE_PREFIX):
        values[names.SPEC_VARIABLE] = job.spec
    plain = {name: {"value": escape_expansion(value)} for name, value in values.items()}
    return [
        {"name": name, **source}
        for name, source in {**_configured(job), **plain, **_secret(job)}.items()
    ]


def _configured(job: JobSettings) -> dict[str, Object]:
    name = job.environment.config_map
    if not name:
        return {}
    return {
        key: {"valueFrom": {"configMapKeyRef": {"name": name, "key": key, "optional": True}}}
        for key in names.CONFIG_VARIABLES
    }


def _secret(job: JobSettings) -> dict[str, Object]:
    return {
        name: {"valueFrom": {"secretKeyRef": {"name": reference.secret, "key": reference.key}}}
        for name, reference in sorted(job.environment.secrets.items())
    }


def container_resources(job: JobSettings) -> Object:
    """Return limits, and requests equal to them."""
    amounts = {"cpu": job.resources.cpu, "memory": job.resources.memory}
    if job.resources.gpus_per_node:
        amounts[job.resources.gpu_resource] = str(job.resources.gpus_per_node)
    return {"requests": dict(amounts), "limits": dict(amounts)}


def pod_security(job: JobSettings) -> Object:
    """Return the security context of the pod."""
    return {
        "runAsNonRoot": True,
        "runAsUser": job.security.run_as_user,
        "fsGroup": job.security.fs_group,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security(job: JobSettings) -> Object:
    """Return the security context of the training container."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": job.security.read_only_root,
        "runAsNonRoot": True,
        "capabilities": {"drop": ["ALL"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def volumes(job: JobSettings) -> list[Object]:
    """Return shared memory, the two folders that can be written, and the claims."""
    cache: Object = {"emptyDir": {"sizeLimit": job.storage.cache_size}}
    if job.storage.cache_claim:
        cache = {"persistentVolumeClaim": {"claimName": job.storage.cache_claim}}
    own: list[Object] = [
        {"name": _SHM, "emptyDir": {"medium": "Memory", "sizeLimit": job.resources.shm_size}},
        {"name": _TMP, "emptyDir": {"sizeLimit": job.storage.tmp_size}},
        {"name": _CACHE, **cache},
    ]
    claims: list[Object] = [
        {
            "name": _claim_volume(position),
            "persistentVolumeClaim": {"claimName": volume.claim, "readOnly": volume.read_only},
        }
        for position, volume in enumerate(job.storage.claims)
    ]
    return own + claims


def volume_mounts(job: JobSettings) -> list[Object]:
    """Return the mounts of `volumes`."""
    own: list[Object] = [
        {"name": _SHM, "mountPath": names.SHM_DIR},
        {"name": _TMP, "mountPath": names.TMP_DIR},
        {"name": _CACHE, "mountPath": names.CACHE_DIR},
    ]
    claims: list[Object] = [
        {
            "name": _claim_volume(position),
            "mountPath": volume.mount_path,
            "readOnly": volume.read_only,
        }
        for position, volume in enumerate(job.storage.claims)
    ]
    return own + claims


def placement(job: JobSettings) -> Object:
    """Return node selector and tolerations, if any."""
    placed: Object = {}
    if job.placement.node_selector:
        placed["nodeSelector"] = dict(sorted(job.placement.node_selector.items()))
    if job.placement.tolerations:
        placed["tolerations"] = [_toleration(each) for each in job.placement.tolerations]
    return placed


def pull_secrets(job: JobSettings) -> list[Object]:
    """Return references to the Secrets of the registry."""
    return [{"name": name} for name in job.security.image_pull_secrets]


def escape_expansion(text: str) -> str:
    """Escape `$(NAME)`, which Kubernetes would replace."""
    return _EXPANDED.sub("$$", text)


def _assignment(key: str, text: str) -> str:
    plain = f"{key}={text}"
    # A JSON string is a YAML string, whatever characters the text has.
    return plain if parse_override(plain) == {key: text} else f"{key}={json.dumps(text)}"


def _toleration(toleration: Toleration) -> Object:
    # An absent field means to Kubernetes what '' means here.
    return {name: value for name, value in dict(toleration).items() if value}


def _claim_volume(position: int) -> str:
    return f"claim-{position}"


def _threads_per_process(job: JobSettings) -> int:
    """Divide the pod's cores: by default every process starts a thread for each machine core."""
    cores = quantity(job.resources.cpu)
    return max(1, int(cores) // job.resources.devices_per_node)
