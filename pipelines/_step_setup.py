"""What every step gets on a cluster; on one machine kfp leaves it out."""

from kfp import dsl, kubernetes

CONFIG_MAP = "mal-config"
CONFIGURED = ("AWS_ENDPOINT_URL_S3", "AWS_REGION")
S3_SECRET = "mal-s3"
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")

RUN_ID_VARIABLE = "KFP_RUN_ID"


def prepare(step: dsl.PipelineTask, *, is_cached: bool = True) -> dsl.PipelineTask:
    """Let a step read the object store, run in `restricted` namespaces, and be cached or not.

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
    return step


def know_its_run(step: dsl.PipelineTask) -> None:
    """Tell a step the run's id; as a parameter it would be in the cache's key."""
    kubernetes.use_field_path_as_env(step, RUN_ID_VARIABLE, "metadata.labels['pipeline/runid']")
