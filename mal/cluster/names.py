"""Names that the parts of a job agree on: labels, containers, folders and variables."""

from __future__ import annotations

PYTORCHJOB_API_VERSION = "kubeflow.org/v1"
PYTORCHJOB_KIND = "PyTorchJob"
PYTORCHJOB_CONTAINER = "pytorch"
PYTORCHJOB_PORT_NAME = "pytorchjob-port"

TRAINJOB_API_VERSION = "trainer.kubeflow.org/v1alpha1"
TRAINJOB_KIND = "TrainJob"
TRAINJOB_CONTAINER = "node"
TRAINJOB_REPLICATED_JOB = "node"
TRAINJOB_PATCH_MANAGER = "mal.kubeflow.org/launcher"

APP_LABEL = "app.kubernetes.io/name"
APP = "mal"
COMPONENT_LABEL = "app.kubernetes.io/component"
TRAINER_COMPONENT = "trainer"
INSTANCE_LABEL = "app.kubernetes.io/instance"
ISTIO_LABEL = "sidecar.istio.io/inject"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

# By these a retried step finds its job: the run, and where the job writes.
RUN_LABEL = "mal.kubeflow.org/run-id"
OUTPUTS_LABEL = "mal.kubeflow.org/outputs"

OWN_LABELS = frozenset({APP_LABEL, COMPONENT_LABEL, INSTANCE_LABEL, ISTIO_LABEL, QUEUE_LABEL})
OPERATOR_LABEL_PREFIXES = (
    "training.kubeflow.org/", "trainer.kubeflow.org/", "jobset.sigs.k8s.io/",
    "batch.kubernetes.io/", "kueue.x-k8s.io/",
)  # fmt: skip

SHM_DIR = "/dev/shm"
TMP_DIR = "/tmp"
CACHE_DIR = "/cache"
OWN_MOUNTS = (SHM_DIR, TMP_DIR, CACHE_DIR)

SPEC_VARIABLE = "MAL_SPEC"
DEVICES_VARIABLE = "NUM_GPU_PER_NODE"
CACHE_VARIABLE = "MAL_CACHE_DIR"
OWN_VARIABLES = frozenset({SPEC_VARIABLE, DEVICES_VARIABLE, CACHE_VARIABLE})
CONFIG_VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_REGION")
# The operators' or, for the ranks, every launcher's: set by hand, they make nodes wait forever.
LAUNCHER_VARIABLES = frozenset(
    {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"}
    | {"JOB_COMPLETION_INDEX"}
)
LAUNCHER_VARIABLE_PREFIXES = ("MASTER_", "PET_")
