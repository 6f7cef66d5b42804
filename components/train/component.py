"""Learn masks from boxes."""

from kfp import dsl

from .._images import COMPONENT_IMAGE


@dsl.component(base_image=COMPONENT_IMAGE, packages_to_install=[], install_kfp_package=False)
def train(
    *,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    summary: dsl.Output[dsl.Markdown],
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
) -> None:
    """Learn masks from the boxes of a data set.

    A retry that finds the model folder of the first try resumes from the latest checkpoint.

    Args:
        dataset: Manifest of snapshot_dataset.
        model: Folder with mal_model_latest.pth, mal_model_best.pth, experiment.yaml, metrics.jsonl
            and status.json.
        metrics: Metrics of the last validation and of the run.
        summary: The model, its metrics and its origin.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
    """
    from mal.stages import run_train
    from mal.steps import Step, metadata, summaries

    with Step(dataset=dataset) as step:
        experiment = step.experiment(
            "train", spec=spec, overrides=overrides, results_dir=model.path
        )
        result = run_train(experiment)
        described = metadata.model_metadata(experiment, model.path, result.metrics, uri=model.uri)
        step.write_artifact(model, described)
        step.log_metrics(metrics, result.metrics)
        step.write_summary(summary, summaries.model_markdown(model.metadata), model=model)
