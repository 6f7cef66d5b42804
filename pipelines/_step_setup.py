"""Settings of every step on a cluster; kfp.local ignores them."""

from kfp import dsl, kubernetes

from mal.artifacts import GPUS_VARIABLE, IMAGE_DIGEST_VARIABLE
from mal.kfp.components._images import COMPONENT_IMAGE
from mal.storage.kfp_launcher import LAUNCHER_CONFIG_MAP, LAUNCHER_KEYS
from mal.storage.stores import CONFIG_MAP, CONFIG_VARIABLES, S3_SECRET, SECRET_VARIABLES

from ._cluster import RUN_LABEL
from ._target import StepResources, current_target

RUN_ID_VARIABLE = "KFP_RUN_ID"
SHARED_MEMORY = "/dev/shm"

KEEP_ON_NODE = {
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}
NUM_RETRIES = 2
LONGEST_STEP = "2592000s"  # 30 days


def prepare(
    step: dsl.PipelineTask, *, is_cached: bool = True, uses_gpus: bool = True
) -> dsl.PipelineTask:
    """Give a step the object store's settings, a restricted security context and its resources.

    The step gets the digest of its image if it is known. Steps on the `component` image get the
    resources that the pipeline is compiled for. ConfigMap and Secret are optional: without them the
    store of Kubeflow itself is used, with the rights of the step's service account.

    Args:
        step: The task of the step.
        is_cached: Whether Kubeflow may reuse an earlier result for equal inputs.
        uses_gpus: False for a step that has no use for GPUs.
    """
    # Names of our own: KFP's launcher runs in the same container and reads AWS_*.
    kubernetes.use_config_map_as_env(
        step, CONFIG_MAP, {name: name for name in CONFIG_VARIABLES}, optional=True
    )
    kubernetes.use_config_map_as_env(
        step,
        LAUNCHER_CONFIG_MAP,
        {key: variable for variable, key in LAUNCHER_KEYS.items()},
        optional=True,
    )
    kubernetes.use_secret_as_env(
        step, S3_SECRET, {name: name for name in SECRET_VARIABLES}, optional=True
    )
    kubernetes.set_security_context(step, run_as_non_root=True)
    survive_disruptions(step)
    step.set_caching_options(is_cached)
    target = current_target()
    image = step.container_spec.image
    if digest := target.images.digest_of(image):
        step.set_env_variable(IMAGE_DIGEST_VARIABLE, digest)
    if image == COMPONENT_IMAGE:
        _set_resources(step, target.resources, uses_gpus=uses_gpus)
    return step


def survive_disruptions(step: dsl.PipelineTask) -> None:
    """Ask autoscalers to leave the step's pod alone, and let Kubeflow try a lost pod again.

    Kubeflow Pipelines 2.17 merges its default `retryPolicy: OnError` into this: a pod that was
    deleted is tried again, a program that ended with 1 or 2 is not. kfp cannot set the policy. Its
    default for the longest time of all tries, an hour, would kill a long training.
    """
    for annotation, value in KEEP_ON_NODE.items():
        kubernetes.add_pod_annotation(step, annotation, value)
    step.set_retry(
        NUM_RETRIES,
        backoff_duration="10s",
        backoff_factor=2.0,
        backoff_max_duration=LONGEST_STEP,
    )


def _set_resources(step: dsl.PipelineTask, resources: StepResources, *, uses_gpus: bool) -> None:
    """Set a step's resources, and mount /dev/shm, by which loader processes pass batches.

    A container's default /dev/shm has 64 MB. The volume may grow to the memory limit, or to the
    node's memory without one; it uses only what is written to it.
    """
    kubernetes.empty_dir_mount(step, "shm", SHARED_MEMORY, medium="Memory")
    if resources.memory:
        step.set_memory_limit(resources.memory)
    if resources.cpu:
        step.set_cpu_limit(resources.cpu)
    if resources.gpus and uses_gpus:
        step.set_accelerator_type(resources.gpu_resource)
        step.set_accelerator_limit(resources.gpus)
        step.set_env_variable(GPUS_VARIABLE, str(resources.gpus))


def set_run_id(step: dsl.PipelineTask) -> None:
    """Give a step the run's id; as a parameter it would be part of the cache key."""
    kubernetes.use_field_path_as_env(step, RUN_ID_VARIABLE, f"metadata.labels['{RUN_LABEL}']")
