"""Names that several parts of a job use: labels, folders and variables."""

from __future__ import annotations

from mal.artifacts import GPUS_VARIABLE

APP_LABEL = "app.kubernetes.io/name"
APP = "mal"
COMPONENT_LABEL = "app.kubernetes.io/component"
TRAINER_COMPONENT = "trainer"
SEARCH_COMPONENT = "search"
# The accounts of manifests/base: of the steps, and of the pods that train.
LAUNCHER_ACCOUNT = "mal-launcher"
TRAINER_ACCOUNT = "mal-trainer"
INSTANCE_LABEL = "app.kubernetes.io/instance"
ISTIO_LABEL = "sidecar.istio.io/inject"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
# Katib reads what trials print only in a namespace with this label, `enabled`.
INJECTION_LABEL = "katib.kubeflow.org/metrics-collector-injection"

# A retried step finds its job by these: the run, and where the job writes.
RUN_LABEL = "mal.kubeflow.org/run-id"
OUTPUTS_LABEL = "mal.kubeflow.org/outputs"
# It continues only a job with the same settings.
SETTINGS_ANNOTATION = "mal.kubeflow.org/settings-digest"

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
OWN_VARIABLES = frozenset({SPEC_VARIABLE, DEVICES_VARIABLE, CACHE_VARIABLE, GPUS_VARIABLE})
# Set by the operator or by every launcher. Set by hand, they make nodes wait forever.
LAUNCHER_VARIABLES = frozenset(
    {"WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "NODE_RANK"}
    | {"JOB_COMPLETION_INDEX"}
)
LAUNCHER_VARIABLE_PREFIXES = ("MASTER_", "PET_")
