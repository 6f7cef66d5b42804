"""Every setting of a training job on a cluster, whatever operator runs it.

`JobSettings` checks itself: what exists can be built. Its groups follow the questions of those who
set them: how large (`Resources`), on which nodes (`Placement`), with what data (`Storage`) and
variables (`Environment`), under which rights (`Security`), and for how long (`Lifetime`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from mal.cluster.rules import job_problems
from mal.errors import SpecError

CLUSTER_RUNTIME_KIND = "ClusterTrainingRuntime"
NAMESPACED_RUNTIME_KIND = "TrainingRuntime"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What one node of the job gets; requests equal limits, so that no pod is evicted for more.

    Attributes:
        gpus_per_node: 0 trains on CPUs.
        processes_per_node: On CPUs; 0 is one. A node with GPUs runs one process a GPU.
        cpu: Cores, such as 8 or 500m.
        memory: With its unit, such as 64Gi; `shm_size` counts against it.
        shm_size: Of /dev/shm, through which loader processes hand over batches.
        gpu_resource: Name under which the nodes offer their GPUs.
    """

    gpus_per_node: int = 1
    processes_per_node: int = 0
    cpu: str = "8"
    memory: str = "32Gi"
    shm_size: str = "8Gi"
    gpu_resource: str = "nvidia.com/gpu"

    @property
    def devices_per_node(self) -> int:
        """Training processes of a node."""
        return self.gpus_per_node or self.processes_per_node or 1


@dataclass(frozen=True, kw_only=True)
class Toleration:
    """A taint that the pods put up with.

    Attributes:
        key: Of the taint; '' with operator Exists is every taint.
        operator: Exists or Equal.
        value: With operator Equal.
        effect: NoSchedule, PreferNoSchedule, NoExecute, or '' for all.
    """

    key: str = ""
    operator: str = "Exists"
    value: str = ""
    effect: str = ""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and when the pods are scheduled.

    Attributes:
        node_selector: Labels that a node must have.
        tolerations: Taints that a node may have.
        queue_name: Kueue's LocalQueue; '' starts without a queue.
        priority_class: PriorityClass of the pods; '' is the cluster's default.
    """

    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    queue_name: str = ""
    priority_class: str = ""


@dataclass(frozen=True, kw_only=True)
class VolumeClaim:
    """A PersistentVolumeClaim in the pods.

    Attributes:
        claim: Its name, in the job's namespace.
        mount_path: Absolute folder in the pods.
        read_only: False needs a claim that all nodes may write (ReadWriteMany).
    """

    claim: str
    mount_path: str
    read_only: bool = True


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Volumes of the pods.

    Attributes:
        claims: Mounted volumes.
        cache_size: Largest size of the folder into which remote data sets are fetched.
        cache_claim: PersistentVolumeClaim for that folder, kept between jobs; '' is a disk of
            the node, for this job alone.
        tmp_size: Largest size of /tmp, the only other place that can be written.
    """

    claims: tuple[VolumeClaim, ...] = ()
    cache_size: str = "100Gi"
    cache_claim: str = ""
    tmp_size: str = "10Gi"


@dataclass(frozen=True, kw_only=True)
class SecretKey:
    """Where in the cluster a secret value lies; the value itself is nowhere in a job.

    Attributes:
        secret: Name of the Secret, in the job's namespace.
        key: Of its data.
    """

    secret: str
    key: str


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Variables of the training processes.

    Attributes:
        values: Plain, readable by all who may read the job; taken literally, `$(NAME)` included.
        secrets: By reference.
        config_map: ConfigMap that says where the object store is (AWS_ENDPOINT_URL_S3, AWS_REGION),
            unless the others do; '' for none.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, SecretKey] = field(default_factory=dict)
    config_map: str = ""


@dataclass(frozen=True, kw_only=True)
class Security:
    """The rights of the pods; they satisfy the `restricted` pod standard with every value.

    Attributes:
        service_account: Its token is not mounted.
        run_as_user: Numeric user of the processes.
        fs_group: Group that owns the volumes.
        read_only_root: Nothing but volumes can be written.
        image_pull_secrets: Names of Secrets.
        istio_sidecar: A sidecar keeps the pods from ending and the nodes from meeting.
    """

    service_account: str = "mal-trainer"
    run_as_user: int = 1000
    fs_group: int = 1000
    read_only_root: bool = True
    image_pull_secrets: tuple[str, ...] = ()
    istio_sidecar: bool = False


@dataclass(frozen=True, kw_only=True)
class Lifetime:
    """How long the job and its pods stay, and what follows a failure.

    Attributes:
        active_deadline_s: The job fails after this time; what a lost launcher left ends by it.
        ttl_after_finished_s: The finished job is deleted after this time.
        termination_grace_s: From SIGTERM to SIGKILL, for writing a checkpoint.
        restart_policy: Never, OnFailure or ExitCode (restarts on 128 and above).
        backoff_limit: Restarts in all; 0 with Never.
        clean_pod_policy: Which pods go when the job ends: Running, All or None. With Running the
            survivors of a failure free their GPUs and the failed pod keeps its log.
    """

    active_deadline_s: int = 7 * 24 * 3600
    ttl_after_finished_s: int = 24 * 3600
    termination_grace_s: int = 120
    restart_policy: str = "Never"
    backoff_limit: int = 0
    clean_pod_policy: str = "Running"


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The object with which the job is deleted, in the job's namespace.

    Attributes:
        name: Of the owner.
        uid: Of the owner.
        kind: Of the owner; the pod of a pipeline step (KFP_POD_NAME, KFP_POD_UID) by default.
        api_version: Of this kind.
    """

    name: str
    uid: str
    kind: str = "Pod"
    api_version: str = "v1"


@dataclass(frozen=True, kw_only=True)
class TrainingRuntime:
    """Trainer v2's template that a TrainJob starts from; a PyTorchJob has none.

    Attributes:
        name: Of the runtime.
        kind: ClusterTrainingRuntime, or TrainingRuntime of the job's namespace.
    """

    name: str = "torch-distributed"
    kind: str = CLUSTER_RUNTIME_KIND


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """One `mal train` over some nodes of a cluster.

    Attributes:
        name: Of the job: a DNS-1035 label of at most 50 characters.
        namespace: Of the job and all that it refers to.
        image: With `mal` and torch.
        outputs_uri: Folder of the results: s3://, minio://, or on a claim that can be written.
        spec: YAML text, `recipe:NAME`, or '' for the defaults.
        overrides: `dotted.key=value`; they win over `spec`.
        num_nodes: Pods of the job.
        image_pull_policy: Always, IfNotPresent, Never, or '' for Kubernetes' own choice.
        master_port: On which the nodes meet; 0 is the operator's own.
        labels: Of the job and its pods, such as those of the run.
        annotations: Of the job and its pods.
        owner: None for a job that stands alone.

    Raises:
        SpecError: With all problems found.
    """

    name: str
    namespace: str
    image: str
    outputs_uri: str
    spec: str = ""
    overrides: tuple[str, ...] = ()
    num_nodes: int = 1
    image_pull_policy: str = ""
    master_port: int = 0
    resources: Resources = Resources()
    placement: Placement = Placement()
    storage: Storage = Storage()
    environment: Environment = Environment()
    security: Security = Security()
    lifetime: Lifetime = Lifetime()
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    owner: Owner | None = None
    training_runtime: TrainingRuntime = TrainingRuntime()

    def __post_init__(self) -> None:
        problems = job_problems(self)
        if problems:
            raise SpecError(problems)
