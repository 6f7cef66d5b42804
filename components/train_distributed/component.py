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
    queue_timeout_s: int = 86400,
    start_timeout_s: int = 1800,
) -> None:
    """Learn masks from boxes in a PyTorchJob or TrainJob; the same outputs as `train`.

    The step creates the training job, logs its pending reason and the log of rank 0, and succeeds
    or fails with the job. A retry watches the job of the first try; a cancelled step deletes it.

    Args:
        dataset: Manifest of snapshot_dataset; its data must be s3://, minio:// or on a claim.
        model: Folder with mal_model_latest.pth, mal_model_best.pth, experiment.yaml, metrics.jsonl
            and status.json, written by rank 0 of the job.
        metrics: Metrics of the last validation and of the run.
        summary: The model, its metrics and its origin.
        image: Image of the job's pods, with mal and torch.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
        backend: pytorchjob (training operator v1) or trainjob (Trainer v2).
        num_nodes: Number of pods of the job.
        gpus_per_node: GPUs of each pod, one process a GPU; 0 trains on CPUs, -1: see `job`.
        namespace: Namespace of the job; '' is that of the step.
        outputs_uri: Parent folder of the job's results; '' is the URI of the model artifact.
        job: All other settings of the job, listed in docs/operations.md.
        queue_timeout_s: Longest wait for a queue or a quota; 0 waits without end.
        start_timeout_s: Longest wait from admission until all pods run; 0 waits without end.
    """
    from mal.cluster import WaitLimits
    from mal.steps import Step, metadata, summaries
    from mal.steps.training_job import train_as_job

    with Step(dataset=dataset) as step:
        limits = WaitLimits(queue_timeout_s=queue_timeout_s, start_timeout_s=start_timeout_s)
        trained = train_as_job(
            step.data, model, spec=spec, overrides=overrides, backend=backend,
            num_nodes=num_nodes, gpus_per_node=gpus_per_node, image=image, namespace=namespace,
            outputs_uri=outputs_uri, job=job, limits=limits,
        )  # fmt: skip
        step.write_artifact(model, trained.metadata | metadata.image_metadata(image))
        step.log_metrics(metrics, trained.metrics)
        step.write_summary(summary, summaries.model_markdown(model.metadata), model=model)
