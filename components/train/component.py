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

    A retry that finds the model folder of its earlier try goes on from the latest checkpoint.

    Args:
        dataset: Manifest of snapshot_dataset.
        model: Folder with mal_model_latest.pth, mal_model_best.pth, experiment.yaml, metrics.jsonl
            and status.json.
        metrics: Figures of the last validation and of the run.
        summary: The model, its figures and what it came from.
        spec: Experiment spec as YAML text, recipe:NAME, or '' for the defaults.
        overrides: dotted.key=value settings that win over the spec.
    """
    from pathlib import Path

    from mal.registry.snapshot import read_dataset_manifest
    from mal.stages import run_train
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries

    with steps.running_step():
        data = read_dataset_manifest(Path(dataset.path))
        experiment = steps.train_spec(data, spec=spec, overrides=overrides, results_dir=model.path)
        result = run_train(experiment)
        steps.replace_links_by_files(model.path)
        figures = lineage.figures(result.metrics)
        facts = lineage.model_metadata(experiment, model.path, figures)
        steps.describe(model, lineage.parents(dataset), facts)
        steps.publish(
            metrics,
            figures,
            summary,
            summaries.facts_markdown("Model", model.metadata),
            model=model,
        )
