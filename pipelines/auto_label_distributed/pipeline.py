"""Boxes in, masks out, with the training on several nodes: a PyTorchJob or TrainJob."""

from kfp import dsl

from mal.kfp.components._images import TRAIN_IMAGE
from mal.kfp.components.train_distributed import train_distributed

from .._step_setup import know_its_run, prepare
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
    queue_timeout_s: int = 0,
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
        num_nodes: Pods of the job.
        gpus_per_node: GPUs of each, one process a GPU; 0 trains on CPUs, -1 leaves it to `job`.
        image: Of the job's pods.
        namespace: Of the job; '' is the run's own.
        outputs_uri: Below it each training has a folder of its own; '' is the model artifact's uri.
        job: Every other setting of the job, as docs/operations.md lists them.
        queue_timeout_s: Longest wait for a queue or a quota; 0 waits without end.
        start_timeout_s: Longest wait from admission until all pods run; 0 waits without end.
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
    know_its_run(trained)
    return use_model(trained.outputs["model"], settings)
