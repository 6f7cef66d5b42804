"""Learn masks from boxes on several nodes of the cluster."""

from kfp import dsl

from .._images import CONTROL_IMAGE


@dsl.component(base_image=CONTROL_IMAGE, packages_to_install=[], install_kfp_package=False)
def train_distributed(
    *,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    image: str,
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    backend: str = "pytorchjob",
    num_nodes: int = 2,
    gpus_per_node: int = 1,
    namespace: str = "",
    outputs_uri: str = "",
    job: dict = {},  # type: ignore[type-arg]  # noqa: B006 - kfp knows no other type of a mapping
    queue_timeout_s: int = 0,
    start_timeout_s: int = 1800,
) -> None:
    """Learn masks from boxes in a PyTorchJob or TrainJob; the same outputs as `train`.

    The step makes the job, says why it waits, repeats the log of its first rank, and ends as the
    job does. A retry finds the job of its earlier try; a cancelled step deletes it.

    Args:
        dataset: Manifest of snapshot_dataset; its data must be s3://, minio:// or on a claim.
        model: Folder with mal_model_latest.pth, mal_model_best.pth, experiment.yaml, metrics.jsonl
            and status.json, written by the job's first rank.
        metrics: Figures of the last validation and of the run.
        summary: The model's facts and figures.
        image: Of the job's pods, with mal and torch.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        backend: pytorchjob (training operator v1) or trainjob (Trainer v2).
        num_nodes: Pods of the job.
        gpus_per_node: GPUs of each, one process a GPU; 0 trains on CPUs, -1 leaves it to `job`.
        namespace: Of the job; '' is the step's own.
        outputs_uri: Below it each training has a folder of its own; '' is the model artifact's uri.
        job: Every other setting of the job, as docs/operations.md lists them.
        queue_timeout_s: Longest wait for a queue or a quota; 0 waits without end.
        start_timeout_s: Longest wait from admission until all pods run; 0 waits without end.
    """
    from pathlib import Path

    from mal.cluster import WaitLimits
    from mal.registry.snapshot import read_dataset_manifest
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries, training_job

    with steps.running_step():
        limits = WaitLimits(queue_timeout_s=queue_timeout_s, start_timeout_s=start_timeout_s)
        trained = training_job.train_as_job(
            read_dataset_manifest(Path(dataset.path)), model,
            spec=spec, overrides=overrides, backend=backend, num_nodes=num_nodes,
            gpus_per_node=gpus_per_node, image=image, namespace=namespace,
            outputs_uri=outputs_uri, job=job, limits=limits,
        )  # fmt: skip
        image_facts = lineage.image_facts(image)
        steps.describe(model, lineage.parents(dataset), trained.facts, image_facts)
        steps.publish(
            metrics,
            trained.figures,
            summary,
            summaries.facts_markdown("Model", model.metadata),
            model=model,
        )
