"""Boxes in, masks out, with the training on several nodes: a PyTorchJob or TrainJob."""

from kfp import dsl

from mal.kfp.components._images import TRAIN_IMAGE
from mal.kfp.components.train_distributed import train_distributed

from .._step_setup import prepare, set_run_id
from .._steps import LabelOutputs, take_snapshot, use_model

PIPELINE_NAME = "auto-label-distributed"


@dsl.pipeline(name=PIPELINE_NAME)
def auto_label_distributed(  # noqa: PLR0917 - kfp calls it by position
    train_images: str,
    train_annotations: str,
    val_images: str = "",
    val_annotations: str = "",
    label_images: str = "",
    label_annotations: str = "",
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    backend: str = "pytorchjob",
    num_nodes: int = 2,
    gpus_per_node: int = 1,
    image: str = TRAIN_IMAGE,
    namespace: str = "",
    outputs_uri: str = "",
    job: dict = {},  # type: ignore[type-arg]  # noqa: B006 - kfp knows no other type of a mapping
    queue_timeout_s: int = 86400,
    start_timeout_s: int = 1800,
) -> LabelOutputs:
    """Learn masks from boxes on several nodes, measure them, label a set and export the model.

    Args:
        train_images: Folder or archive of the training images, local or s3://.
        train_annotations: COCO JSON with the training boxes, local or s3://.
        val_images: Images of the validation part; '' for none.
        val_annotations: Annotations of the validation part; '' for none.
        label_images: Images of the part to label; '' for the training part.
        label_annotations: Boxes of the part to label; '' for the training part.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        backend: pytorchjob (training operator v1) or trainjob (Trainer v2).
        num_nodes: Pods of the training job.
        gpus_per_node: GPUs of each pod, one process per GPU; 0 trains on CPUs, -1 uses `job`.
        image: Image of the training job's pods.
        namespace: Namespace of the training job; '' is that of the run.
        outputs_uri: Root URI of the results, with a folder per training; '' is the model artifact's
            URI.
        job: Other settings of the training job, see docs/operations.md.
        queue_timeout_s: Longest wait for a queue or a quota; 0 for no limit.
        start_timeout_s: Longest wait from admission until all pods run; 0 for no limit.
    """
    dataset = take_snapshot(
        train_images=train_images,
        train_annotations=train_annotations,
        val_images=val_images,
        val_annotations=val_annotations,
        label_images=label_images,
        label_annotations=label_annotations,
        pipeline_name=PIPELINE_NAME,
    )
    settings = {"spec": spec, "overrides": overrides, "dataset": dataset}
    trained = prepare(
        train_distributed(
            backend=backend,
            num_nodes=num_nodes,
            gpus_per_node=gpus_per_node,
            image=image,
            namespace=namespace,
            outputs_uri=outputs_uri,
            job=job,
            queue_timeout_s=queue_timeout_s,
            start_timeout_s=start_timeout_s,
            **settings,
        )
    )
    set_run_id(trained)
    return use_model(trained.outputs["model"], settings)
