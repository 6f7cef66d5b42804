"""What Kubernetes, the operators and the secrets' keepers ask of a job, checked before it is sent.

Every problem is one sentence with the setting's dotted name below `job.`, and what to write.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from mal.cluster import names
from mal.errors import SpecError, StorageError
from mal.spec.sources import RECIPE_PREFIX, parse_override, parse_spec_text
from mal.storage.uris import parse_remote_uri

if TYPE_CHECKING:
    from mal.cluster.settings import Environment, JobSettings, Lifetime, Resources, VolumeClaim

# Pods and services are called <job>-worker-<index>, and those names end at 63 characters.
MAX_JOB_NAME = 50
MAX_LABEL = 63
MAX_NAME = 253
# Linux takes no longer variable (MAX_ARG_STRLEN), name and '=' included.
MAX_SPEC_BYTES = 128 * 1024 - 64
MAX_PORT = 65535
MAX_USER_ID = 2**31 - 1
MAX_SECONDS = 2**31 - 1

PULL_POLICIES = ("", "Always", "IfNotPresent", "Never")
RESTART_POLICIES = ("Never", "OnFailure", "ExitCode")
CLEAN_POD_POLICIES = ("Running", "All", "None")
TOLERATION_OPERATORS = ("Exists", "Equal")
TOLERATION_EFFECTS = ("", "NoSchedule", "PreferNoSchedule", "NoExecute")
RUNTIME_KINDS = ("ClusterTrainingRuntime", "TrainingRuntime")
KEYS_OF_OUTPUTS = ("results_dir", "train.results_dir")

_UNITS: dict[str, int | Decimal] = {
    "": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50,
}  # fmt: skip
_QUANTITY = re.compile(r"(\d{1,15}(?:\.\d{1,3})?)([A-Za-z]{0,2})", re.ASCII)
_DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SECRET_KEY = re.compile(r"[-._A-Za-z0-9]+")
_IMAGE = re.compile(r"[A-Za-z0-9][^\s]*")
# The long words also at the end of one (PGPASSWORD); the short ones alone and last (KAGGLE_KEY).
_SECRET_VARIABLE = re.compile(
    r"(SECRETS?|PASSWORD|PASSWD|PASSPHRASE|TOKEN|APIKEY|CREDENTIALS?)(_|\d*$)"
    r"|(^|_)(API|ACCESS|PRIVATE)_KEY_|(^|_)(KEY|PAT|SAS|CONNECTION_STRING)_?\d*$|_(PWD|PASS)_?\d*$",
    re.IGNORECASE,
)
_HARMLESS_VARIABLE = re.compile(r"_(FILE|PATH|DIR)$|(^|_)PUBLIC_KEY$", re.IGNORECASE)
# A user, perhaps with a password, before the host; or a query that opens what it names.
_CREDENTIALS_IN_URI = re.compile(
    r"://[^/\s@]*@"
    r"|[?&](X-(Amz|Goog)-(Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig"
    r"|(access_?)?token|password|secret|api_?key)=",
    re.IGNORECASE,
)
# What follows an image's only @ is its digest.
_IMAGE_DIGEST = re.compile(r"@[a-z0-9]+([+._-][a-z0-9]+)*:[0-9a-f]{32,}$")

Problems = Iterator[str]


def job_problems(job: JobSettings) -> list[str]:
    """Return one sentence for everything that keeps the job from being built."""
    return [
        *_identity_problems(job),
        *_experiment_problems(job),
        *_outputs_problems(job),
        *_resource_problems(job.resources),
        *_placement_problems(job),
        *_storage_problems(job),
        *_environment_problems(job.environment),
        *_security_problems(job),
        *_lifetime_problems(job.lifetime),
        *_label_problems(job),
    ]


def number_of_quantity(text: str) -> Decimal | None:
    """Read a Kubernetes quantity, such as 500m or 64Gi; None when it is none."""
    match = _QUANTITY.fullmatch(text)
    if match is None or match[2] not in _UNITS:
        return None
    return Decimal(match[1]) * _UNITS[match[2]]


def _identity_problems(job: JobSettings) -> Problems:
    if len(job.name) > MAX_JOB_NAME or not _DNS_1035.fullmatch(job.name):
        yield (
            f"job.name must be lower-case letters, digits and '-', start with a letter and have at "
            f"most {MAX_JOB_NAME} characters, got {job.name!r}. Choose one like mal-train-7f3a."
        )
    yield from _name_problem("namespace", job.namespace, is_label=True)
    if "@" in _IMAGE_DIGEST.sub("", job.image) or _CREDENTIALS_IN_URI.search(job.image):
        yield _credentials_problem("image", "job.security.image_pull_secrets")
    elif not _IMAGE.fullmatch(job.image):
        yield f"job.image must be an image reference, got {job.image!r}. Write REGISTRY/NAME:TAG."
    yield from _choice_problem("image_pull_policy", job.image_pull_policy, PULL_POLICIES)
    yield from _number_problem("num_nodes", job.num_nodes, 1)
    yield from _number_problem("master_port", job.master_port, 0, MAX_PORT)
    yield from _name_problem("training_runtime.name", job.training_runtime.name)
    yield from _choice_problem("training_runtime.kind", job.training_runtime.kind, RUNTIME_KINDS)
    if job.owner is not None and not all(vars(job.owner).values()):
        yield (
            "job.owner must have api_version, kind, name and uid, got an empty one. "
            "Set all four, or no owner."
        )


def _experiment_problems(job: JobSettings) -> Problems:
    if len(job.spec.encode()) > MAX_SPEC_BYTES:
        yield (
            f"job.spec must have at most {MAX_SPEC_BYTES} bytes, got {len(job.spec.encode())}. "
            "Leave out comments and defaults."
        )
    if _CREDENTIALS_IN_URI.search(job.spec):
        yield _credentials_problem("spec")
    if not job.spec.strip().startswith(RECIPE_PREFIX):
        try:
            content = parse_spec_text(job.spec, "job.spec")
        except SpecError as error:
            yield from error.problems
        else:
            yield from _key_problems("spec", content)
    for override in job.overrides:
        if _CREDENTIALS_IN_URI.search(override):
            yield _credentials_problem(f"overrides ({override.partition('=')[0]})")
            continue
        try:
            content = parse_override(override)
        except SpecError as error:
            yield from error.problems
            continue
        yield from _key_problems("overrides", content)
        for key in set(content) & set(KEYS_OF_OUTPUTS):
            yield f"{key} must not be overridden in a job, got a value. Set job.outputs_uri."


def _key_problems(name: str, content: Mapping[str, Any]) -> Problems:
    if content.get("encryption_key"):
        yield (
            f"job.{name} must not carry encryption_key, got one, which all who may read the job "
            "would see. Leave it out: it has no effect."
        )


def _outputs_problems(job: JobSettings) -> Problems:
    if _CREDENTIALS_IN_URI.search(job.outputs_uri):
        yield _credentials_problem("outputs_uri")
        return
    try:
        if parse_remote_uri(job.outputs_uri) is not None:
            return
    except StorageError as error:
        yield f"job.outputs_uri: {error}"
        return
    if not any(is_below(job.outputs_uri, c.mount_path) for c in _writable(job.storage.claims)):
        yield (
            "job.outputs_uri must be s3://, minio:// or a folder on a claim that can be written, "
            f"got {job.outputs_uri!r}: it would be lost with the pod. Give a uri, or add the claim "
            "to job.storage.claims with read_only: false."
        )


def _resource_problems(resources: Resources) -> Problems:
    yield from _number_problem("resources.gpus_per_node", resources.gpus_per_node, 0)
    yield from _number_problem("resources.processes_per_node", resources.processes_per_node, 0)
    if resources.gpus_per_node and resources.processes_per_node:
        yield (
            "job.resources.processes_per_node must be 0 on nodes with GPUs, got "
            f"{resources.processes_per_node}: one process a GPU is started. Leave it out."
        )
    cpu = number_of_quantity(resources.cpu)
    if not cpu or not re.fullmatch(r"[\d.]+m?", resources.cpu):
        yield f"job.resources.cpu must be cores, got {resources.cpu!r}. Write 8 or 500m."
    sizes = {"memory": resources.memory, "shm_size": resources.shm_size}
    unreadable = [
        p for name, size in sizes.items() for p in _size_problem(f"resources.{name}", size)
    ]
    yield from unreadable
    memory, shm = (number_of_quantity(size) for size in sizes.values())
    if not unreadable and memory is not None and shm is not None and shm >= memory:
        yield (
            f"job.resources.shm_size must be below memory, of which it is a part, got "
            f"{resources.shm_size} of {resources.memory}. Raise memory or lower shm_size."
        )
    domain, _, name = resources.gpu_resource.partition("/")
    if not _DNS_NAME.fullmatch(domain) or not _LABEL.fullmatch(name):
        yield (
            "job.resources.gpu_resource must read domain/name, got "
            f"{resources.gpu_resource!r}. Write nvidia.com/gpu."
        )


def _placement_problems(job: JobSettings) -> Problems:
    placement = job.placement
    for key, value in placement.node_selector.items():
        yield from _label_problem("placement.node_selector", key, value)
    for position, toleration in enumerate(placement.tolerations):
        name = f"placement.tolerations[{position}]"
        yield from _choice_problem(f"{name}.operator", toleration.operator, TOLERATION_OPERATORS)
        yield from _choice_problem(f"{name}.effect", toleration.effect, TOLERATION_EFFECTS)
        if toleration.operator == "Exists" and toleration.value:
            yield (
                f"job.{name}.value must be empty with operator Exists, got {toleration.value!r}. "
                "Write operator: Equal."
            )
        if toleration.operator == "Equal" and not toleration.key:
            yield f"job.{name}.key must be set with operator Equal, got ''. Name the taint."
    if placement.queue_name:
        yield from _name_problem("placement.queue_name", placement.queue_name, is_label=True)
    if placement.priority_class:
        yield from _name_problem("placement.priority_class", placement.priority_class)


def _storage_problems(job: JobSettings) -> Problems:
    storage = job.storage
    yield from _size_problem("storage.cache_size", storage.cache_size)
    yield from _size_problem("storage.tmp_size", storage.tmp_size)
    if storage.cache_claim:
        yield from _name_problem("storage.cache_claim", storage.cache_claim)
    taken = list(names.OWN_MOUNTS)
    for position, volume in enumerate(storage.claims):
        name = f"storage.claims[{position}]"
        yield from _name_problem(f"{name}.claim", volume.claim)
        path = volume.mount_path
        if not path.startswith("/") or not path.strip("/") or ":" in path or ".." in path:
            yield f"job.{name}.mount_path must be an absolute folder, got {path!r}. Write /data."
        elif any(is_below(path, other) or is_below(other, path) for other in taken):
            yield (
                f"job.{name}.mount_path must be a folder of its own, got {path}, which meets "
                "another mount. Choose another."
            )
        taken.append(path)


def _environment_problems(environment: Environment) -> Problems:
    for name in [*environment.values, *environment.secrets]:
        if not _VARIABLE.fullmatch(name):
            yield (
                f"job.environment must name variables by letters, digits and '_', got {name!r}. "
                "Rename it."
            )
        elif name in names.OWN_VARIABLES:
            yield (
                f"job.environment.{name} must be left out, got a value: the job sets it itself. "
                "Use job.spec, job.resources or job.storage."
            )
        elif name in names.LAUNCHER_VARIABLES or name.startswith(names.LAUNCHER_VARIABLE_PREFIXES):
            yield (
                f"job.environment.{name} must be left out, got a value: the operator sets it. "
                "Use job.num_nodes and job.resources."
            )
    for name, value in environment.values.items():
        if name in environment.secrets:
            yield f"job.environment.{name} must be given once, got a value and a secret. Keep one."
        elif _SECRET_VARIABLE.search(name) and not _HARMLESS_VARIABLE.search(name):
            yield (
                f"job.environment.values.{name} must not carry a secret, got a value, which all "
                "who may read the job would see. Put it in a Secret and refer to it under "
                "job.environment.secrets."
            )
        elif _CREDENTIALS_IN_URI.search(value):
            yield _credentials_problem(f"environment.values.{name}")
    if environment.config_map:
        yield from _name_problem("environment.config_map", environment.config_map)
    for name, reference in environment.secrets.items():  # whose texts may be a misplaced value
        if not _DNS_NAME.fullmatch(reference.secret):
            yield (
                f"job.environment.secrets.{name}.secret must be the name of a Secret, got another "
                "text. Write the name as kubectl prints it, never the value."
            )
        if not _SECRET_KEY.fullmatch(reference.key):
            yield (
                f"job.environment.secrets.{name}.key must be a key of the Secret, got another "
                "text. Write the key, never its value."
            )


def _security_problems(job: JobSettings) -> Problems:
    security = job.security
    yield from _name_problem("security.service_account", security.service_account)
    for position, secret in enumerate(security.image_pull_secrets):
        yield from _name_problem(f"security.image_pull_secrets[{position}]", secret)
    # The `restricted` pod standard refuses root.
    yield from _number_problem("security.run_as_user", security.run_as_user, 1, MAX_USER_ID)
    yield from _number_problem("security.fs_group", security.fs_group, 1, MAX_USER_ID)


def _lifetime_problems(lifetime: Lifetime) -> Problems:
    yield from _number_problem("lifetime.active_deadline_s", lifetime.active_deadline_s, 1)
    yield from _number_problem("lifetime.ttl_after_finished_s", lifetime.ttl_after_finished_s, 0)
    yield from _number_problem("lifetime.termination_grace_s", lifetime.termination_grace_s, 1)
    yield from _choice_problem("lifetime.restart_policy", lifetime.restart_policy, RESTART_POLICIES)
    yield from _choice_problem(
        "lifetime.clean_pod_policy", lifetime.clean_pod_policy, CLEAN_POD_POLICIES
    )
    is_restarted = lifetime.restart_policy != "Never"
    if lifetime.restart_policy not in RESTART_POLICIES:
        return
    if is_restarted and lifetime.backoff_limit < 1:
        yield (
            f"job.lifetime.backoff_limit must be at least 1 with {lifetime.restart_policy}, got "
            f"{lifetime.backoff_limit}. Say how many restarts there may be, or write Never."
        )
    if not is_restarted and lifetime.backoff_limit != 0:
        yield (
            "job.lifetime.backoff_limit must be 0 with restart_policy Never, got "
            f"{lifetime.backoff_limit}. Leave it out, or write OnFailure."
        )


def _label_problems(job: JobSettings) -> Problems:
    for key, value in job.labels.items():
        if key in names.OWN_LABELS or key.startswith(names.OPERATOR_LABEL_PREFIXES):
            yield (
                f"job.labels must not set {key}, got {value!r}: the job or its operator does. "
                "Leave it out."
            )
        else:
            yield from _label_problem("labels", key, value)
    for key, value in job.annotations.items():
        yield from _label_problem("annotations", key, "")
        if _CREDENTIALS_IN_URI.search(value):
            yield _credentials_problem(f"annotations.{key}")


def _writable(claims: Collection[VolumeClaim]) -> Iterator[VolumeClaim]:
    return (claim for claim in claims if not claim.read_only)


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is a folder or lies in it."""
    path = posixpath.normpath(path)
    return f"{path.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/")


def _credentials_problem(name: str, place: str = "job.environment.secrets") -> str:
    return (
        f"job.{name} must not carry credentials, got some in a uri. Put them in a Secret and refer "
        f"to it under {place}."
    )


def _name_problem(name: str, value: str, *, is_label: bool = False) -> Problems:
    pattern, longest = (_DNS_LABEL, MAX_LABEL) if is_label else (_DNS_NAME, MAX_NAME)
    if len(value) > longest or not pattern.fullmatch(value):
        kind = "letters, digits and '-'" if is_label else "letters, digits, '-' and '.'"
        yield (
            f"job.{name} must be a Kubernetes name (lower-case {kind}, at most {longest}), got "
            f"{value!r}. Write the name as kubectl prints it."
        )


def _choice_problem(name: str, value: str, choices: Collection[str]) -> Problems:
    if value not in choices:
        shown = ", ".join(choice or "''" for choice in choices)
        yield f"job.{name} must be one of {shown}, got {value!r}. Choose one."


def _number_problem(name: str, value: int, least: int, most: int = MAX_SECONDS) -> Problems:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        yield f"job.{name} must be from {least} to {most}, got {value!r}. Write a whole number."


def _size_problem(name: str, value: str) -> Problems:
    if not number_of_quantity(value) or not re.fullmatch(r".*\d[kMGTP]i?", value):
        yield f"job.{name} must be a size with a unit, got {value!r}. Write 64Gi or 500Mi."


def _label_problem(name: str, key: str, value: str) -> Problems:
    prefix, separator, short = key.rpartition("/")
    is_key = (
        len(short) <= MAX_LABEL
        and _LABEL.fullmatch(short)
        and (not separator or (len(prefix) <= MAX_NAME and _DNS_NAME.fullmatch(prefix)))
    )
    if not is_key:
        yield f"job.{name} must have keys like example.com/team, got {key!r}. Rename it."
    if value and (len(value) > MAX_LABEL or not _LABEL.fullmatch(value)):
        yield (
            f"job.{name}.{key} must be at most {MAX_LABEL} letters, digits, '-', '_' and '.', and "
            f"start and end with a letter or digit, got {value!r}. Shorten it."
        )
