"""Every setting of a training job on a cluster, whatever operator runs it.

Settings are checked when they are created, so every `JobSettings` object can be built. A rule on
two settings belongs to the one that is declared later: pydantic then finds all problems at once.
docs/operations.md explains every setting; a docstring here only has what the value does not say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypedDict, Unpack

import pydantic
from pydantic import Field, StrictBool, ValidationInfo, field_validator

from mal.cluster import names, rules
from mal.cluster.problems import problems_of
from mal.errors import SpecError, StorageError
from mal.storage.uris import parse_remote_uri

_GPU_NODE: Mapping[str, str] = {"cpu": "8", "memory": "32Gi"}
# A node without GPUs must fit a small cluster, beside the pods of the run itself.
_CPU_NODE: Mapping[str, str] = {"cpu": "2", "memory": "8Gi"}
_MAX_DEFAULT_SHM = "8Gi"


class _Settings(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,  # a default may contradict an earlier setting
        hide_input_in_errors=True,  # it may be a misplaced secret
    )


class Resources(_Settings):
    """What each node of the job gets. Requests equal limits, so that no pod is evicted for more.

    Attributes:
        gpus_per_node: 0 trains on CPUs.
        processes_per_node: On CPUs; 0 is one. A node with GPUs runs one process a GPU.
        cpu: '' is 8; 2 without GPUs.
        memory: '' is 32Gi; 8Gi without GPUs.
        shm_size: Size of /dev/shm, through which data loader processes pass batches; '' is half of
            `memory`, at most 8Gi.
    """

    gpus_per_node: Annotated[rules.Whole, rules.between(0)] = 1
    processes_per_node: Annotated[rules.Whole, rules.between(0)] = 0
    cpu: rules.Cores = ""
    memory: rules.Size = ""
    shm_size: rules.Size = ""
    gpu_resource: rules.Text = "nvidia.com/gpu"

    @property
    def devices_per_node(self) -> int:
        """Training processes of a node."""
        return self.gpus_per_node or self.processes_per_node or 1

    @field_validator("cpu", "memory", "shm_size", mode="before")
    @classmethod
    def _fill_in(cls, amount: Any, info: ValidationInfo) -> Any:
        if amount != "":
            return amount
        if info.field_name == "shm_size":
            return rules.smaller_size(rules.half_of(info.data.get("memory", "")), _MAX_DEFAULT_SHM)
        has_gpus = info.data.get("gpus_per_node", 1)
        return (_GPU_NODE if has_gpus else _CPU_NODE)[str(info.field_name)]

    @field_validator("processes_per_node")
    @classmethod
    def _only_on_cpus(cls, number: int, info: ValidationInfo) -> int:
        if number and info.data.get("gpus_per_node"):
            raise ValueError(
                f"must be 0 on nodes with GPUs, got {number}: one process a GPU is started. Leave "
                "it out."
            )
        return number

    @field_validator("shm_size")
    @classmethod
    def _is_part_of_memory(cls, size: str, info: ValidationInfo) -> str:
        memory = info.data.get("memory")
        if memory and rules.quantity(size) >= rules.quantity(memory):
            raise ValueError(
                f"must be below memory, of which it is a part, got {size} of {memory}. Raise "
                "memory or lower shm_size."
            )
        return size


class Toleration(_Settings):
    """A taint of nodes on which the pods may run; an empty key or effect is every one."""

    key: rules.Text = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: rules.Text = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""

    @field_validator("operator")
    @classmethod
    def _has_a_key_with_equal(cls, operator: str, info: ValidationInfo) -> str:
        if operator == "Equal" and info.data.get("key") == "":
            raise ValueError("must be Exists without a key, got 'Equal'. Name the taint in key.")
        return operator

    @field_validator("value")
    @classmethod
    def _is_empty_with_exists(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("operator") == "Exists":
            raise ValueError(
                f"must be empty with operator Exists, got {value!r}. Write operator: Equal."
            )
        return value


class Placement(_Settings):
    """Where and when the pods are scheduled; `queue_name` is Kueue's LocalQueue."""

    node_selector: Mapping[rules.Text, rules.Text] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    queue_name: rules.OptionalName = ""
    priority_class: rules.OptionalName = ""


class VolumeClaim(_Settings):
    """A PersistentVolumeClaim that the pods mount; to write, it must be ReadWriteMany."""

    claim: rules.Name
    mount_path: rules.MountPath
    read_only: StrictBool = True


class Storage(_Settings):
    """Volumes of the pods. Without a `cache_claim` the cache is a disk of the node."""

    claims: tuple[VolumeClaim, ...] = ()
    cache_size: rules.Size = "100Gi"
    cache_claim: rules.OptionalName = ""
    tmp_size: rules.Size = "10Gi"

    @field_validator("claims")
    @classmethod
    def _do_not_overlap(cls, claims: tuple[VolumeClaim, ...]) -> tuple[VolumeClaim, ...]:
        taken = list(names.OWN_MOUNTS)
        problems = []
        for position, path in enumerate(claim.mount_path for claim in claims):
            if any(rules.is_below(path, other) or rules.is_below(other, path) for other in taken):
                text = f"must not overlap another mount, got {path}. Choose another folder."
                problems.append((f"[{position}].mount_path", text))
            taken.append(path)
        if problems:
            raise rules.Problems(*problems)
        return claims


class SecretKey(_Settings):
    """Reference to a key of a Secret; the value itself is nowhere in a job.

    Attributes:
        optional: Whether the pods start without the Secret or the key.
    """

    secret: rules.SecretName
    key: rules.KeyInSecret
    optional: StrictBool = False


class Environment(_Settings):
    """Variables of the training processes.

    Attributes:
        values: Plain, readable by everyone who may read the job; literal, `$(NAME)` included.
        secrets: References, by variable.
        config_map: ConfigMap with the object store's MAL_S3_ENDPOINT_URL and MAL_S3_REGION, unless
            the others set them; '' for none.
    """

    values: Mapping[rules.PlainVariable, rules.SafeText] = Field(default_factory=dict)
    secrets: Mapping[rules.Variable, SecretKey] = Field(default_factory=dict)
    config_map: rules.OptionalName = ""

    @field_validator("secrets")
    @classmethod
    def _are_not_values_too(
        cls, secrets: Mapping[str, SecretKey], info: ValidationInfo
    ) -> Mapping[str, SecretKey]:
        text = "must be given once, got a value and a secret. Keep one."
        problems = [(f".{name}", text) for name in secrets if name in info.data.get("values", ())]
        if problems:
            raise rules.Problems(*problems)
        return secrets


class Security(_Settings):
    """Rights of the pods; every value satisfies the `restricted` pod standard.

    Attributes:
        istio_sidecar: A sidecar keeps pods from ending, and nodes from reaching each other.
    """

    service_account: rules.Name = names.TRAINER_ACCOUNT
    run_as_user: Annotated[rules.Whole, rules.between(1, rules.MAX_INT32)] = 1000
    fs_group: Annotated[rules.Whole, rules.between(1, rules.MAX_INT32)] = 1000
    read_only_root: StrictBool = True
    image_pull_secrets: tuple[rules.Name, ...] = ()
    istio_sidecar: StrictBool = False


class Lifetime(_Settings):
    """How long the job and its pods exist, and what follows a failure.

    Attributes:
        active_deadline_s: The step ends the job after this time. Trainer v2 does so itself; the
            training operator v1 does not.
        ttl_after_finished_s: The finished job is deleted after this time.
        termination_grace_s: From SIGTERM to SIGKILL, for writing a checkpoint.
        restart_policy: ExitCode restarts on exit codes of 128 and above.
        clean_pod_policy: Pods that are deleted when the job ends. With Running the survivors of a
            failure free their GPUs and the failed pod keeps its log.
    """

    active_deadline_s: Annotated[rules.Whole, rules.between(1)] = 7 * 24 * 3600
    ttl_after_finished_s: Annotated[rules.Whole, rules.between(0)] = 24 * 3600
    termination_grace_s: Annotated[rules.Whole, rules.between(1)] = 120
    restart_policy: Literal["Never", "OnFailure", "ExitCode"] = "Never"
    backoff_limit: rules.Whole = 0
    clean_pod_policy: Literal["Running", "All", "None"] = "Running"

    @field_validator("backoff_limit")
    @classmethod
    def _fits_the_restart_policy(cls, number: int, info: ValidationInfo) -> int:
        policy = info.data.get("restart_policy", "")
        if policy == "Never" and number != 0:
            raise ValueError(
                f"must be 0 with restart_policy Never, got {number}. Leave it out, or write "
                "OnFailure."
            )
        if policy in ("OnFailure", "ExitCode") and number < 1:
            raise ValueError(
                f"must be at least 1 with {policy}, got {number}. Write how many restarts there "
                "may be, or write Never."
            )
        return number


class Owner(_Settings):
    """The object with which the job is deleted, in the job's namespace.

    By default the workflow of the pipeline run; where a step cannot read it, the step's pod.
    """

    name: rules.Text
    uid: rules.Text
    kind: rules.Text = "Pod"
    api_version: rules.Text = "v1"


class TrainingRuntime(_Settings):
    """Trainer v2's template that a TrainJob starts from; a PyTorchJob has none."""

    name: rules.Name = "torch-distributed"
    kind: Literal["ClusterTrainingRuntime", "TrainingRuntime"] = "ClusterTrainingRuntime"


class JobSettings(_Settings):
    """One `mal train` on some nodes of a cluster.

    Attributes:
        spec: YAML text, `recipe:NAME`, or '' for the defaults.
        overrides: `dotted.key=value`; they win over `spec`.
        image_pull_policy: '' is Kubernetes' own choice.
        restarts: How often the step starts the job again after the loss of a pod or a node.
        master_port: Where the nodes meet; 0 is the operator's own.
        outputs_uri: Folder of the results: s3://, minio://, or on a claim that can be written.

    Raises:
        SpecError: With all problems found.
    """

    name: rules.JobName
    namespace: rules.Name
    image: rules.Image
    spec: rules.SpecText = ""
    overrides: tuple[rules.Override, ...] = ()
    num_nodes: Annotated[rules.Whole, rules.between(1)] = 1
    restarts: Annotated[rules.Whole, rules.between(0)] = 2
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    master_port: Annotated[rules.Whole, rules.between(0, rules.MAX_PORT)] = 0
    resources: Resources = Resources()
    placement: Placement = Placement()
    storage: Storage = Storage()
    outputs_uri: rules.SafeText
    environment: Environment = Environment()
    security: Security = Security()
    lifetime: Lifetime = Lifetime()
    labels: Mapping[rules.OwnLabelKey, rules.Text] = Field(default_factory=dict)
    annotations: Mapping[rules.Text, rules.SafeText] = Field(default_factory=dict)
    owner: Owner | None = None
    training_runtime: TrainingRuntime = TrainingRuntime()

    if not TYPE_CHECKING:  # which reads the parameters from the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except pydantic.ValidationError as error:
                raise SpecError(problems_of(error, JobSettings)) from None

    @field_validator("outputs_uri")
    @classmethod
    def _outlives_the_pod(cls, uri: str, info: ValidationInfo) -> str:
        try:
            if parse_remote_uri(uri) is not None:
                return uri
        except StorageError as error:
            raise ValueError(f"must be a URI that mal can write: {error}") from error
        storage = info.data.get("storage")
        if storage is not None and not any(
            rules.is_below(uri, claim.mount_path) for claim in storage.claims if not claim.read_only
        ):
            raise ValueError(
                "must be s3://, minio:// or a folder on a claim that can be written, got "
                f"{uri!r}: it would be lost with the pod. Give a URI, or add the claim to "
                "job.storage.claims with read_only: false."
            )
        return uri

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values for some settings, checked again.

        Raises:
            SpecError: With all problems found.
        """
        return type(self)(**{**dict(self), **changes})


class StepSettings(TypedDict, total=False):
    """Settings that a pipeline step sets itself."""

    name: str
    namespace: str
    image: str
    outputs_uri: str
    spec: str
    overrides: tuple[str, ...]
    num_nodes: int
    owner: Owner | None


def read_job_settings(content: Mapping[str, Any], **given: Unpack[StepSettings]) -> JobSettings:
    """Build settings from nested plain values, whose keys are the settings' names.

    Args:
        content: The user's. Numbers may be floats, as Kubeflow passes every number.
        given: The step's; a user's value for one of these is an error.

    Raises:
        SpecError: With all problems found.
    """
    problems = [
        f"job.{name} must be left out, got a value: the step sets it. Leave it out."
        for name in content
        if name in given
    ]
    try:
        settings = JobSettings.model_validate({**content, **given})
    except SpecError as error:
        problems += error.problems
    if problems:
        raise SpecError(problems)
    return settings
