"""What every step gets on a cluster; on one machine kfp leaves it out."""

from kfp import dsl, kubernetes

from mal.artifacts import IMAGE_DIGEST_VARIABLE
from mal.kfp.components._images import COMPONENT_IMAGE

from ._target import StepResources, current_target

CONFIG_MAP = "mal-config"
CONFIGURED = ("AWS_ENDPOINT_URL_S3", "AWS_REGION")
S3_SECRET = "mal-s3"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

RUN_ID_VARIABLE = "KFP_RUN_ID"
SHARED_MEMORY = "/dev/shm"


def prepare(
    step: dsl.PipelineTask, *, is_cached: bool = True, uses_gpus: bool = True
) -> dsl.PipelineTask:
    """Let a step read the object store, run in `restricted` namespaces, and be cached or not.

    It learns the digest of its image where that is known. Steps of the image that computes get the
    resources that the pipeline is compiled for, GPUs unless they have no use for them.

    Where manifests/ has made neither ConfigMap nor Secret the step finds credentials by itself,
    such as those of its service account.
    """
    kubernetes.use_config_map_as_env(
        step, CONFIG_MAP, {name: name for name in CONFIGURED}, optional=True
    )
    kubernetes.use_secret_as_env(
        step, S3_SECRET, {name: name for name in CREDENTIALS}, optional=True
    )
    kubernetes.set_security_context(step, run_as_non_root=True)
    step.set_caching_options(is_cached)
    target = current_target()
    image = step.container_spec.image
    if digest := target.images.digest_of(image):
        step.set_env_variable(IMAGE_DIGEST_VARIABLE, digest)
    if image == COMPONENT_IMAGE:
        _give(step, target.resources, uses_gpus=uses_gpus)
    return step


def _give(step: dsl.PipelineTask, resources: StepResources, *, uses_gpus: bool) -> None:
    """Give a step resources, and room for its loader processes to hand over batches.

    A container's own /dev/shm has 64 MB. The volume is as large as the memory limit, else as the
    node's memory, and only takes what is written to it.
    """
    kubernetes.empty_dir_mount(step, "shm", SHARED_MEMORY, medium="Memory")
    if resources.memory:
        step.set_memory_limit(resources.memory)
    if resources.cpu:
        step.set_cpu_limit(resources.cpu)
    if resources.gpus and uses_gpus:
        step.set_accelerator_type(resources.gpu_resource)
        step.set_accelerator_limit(resources.gpus)


def know_its_run(step: dsl.PipelineTask) -> None:
    """Tell a step the run's id; as a parameter it would be in the cache's key."""
    kubernetes.use_field_path_as_env(step, RUN_ID_VARIABLE, "metadata.labels['pipeline/runid']")
