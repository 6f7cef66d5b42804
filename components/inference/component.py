"""Label boxes with masks."""

from kfp import dsl

from .._images import COMPONENT_IMAGE


@dsl.component(base_image=COMPONENT_IMAGE, packages_to_install=[], install_kfp_package=False)
def inference(
    *,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    labels: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
) -> None:
    """Write a mask for every box of the part to label.

    The step fails if more than half of the boxes get an empty mask, unless inference.allow_empty
    is set.

    Args:
        dataset: Manifest of snapshot_dataset.
        model: Model folder of train.
        labels: The annotation file with segmentation (RLE), area and score for every annotation.
        report: One self-contained page with masks drawn on their images.
        summary: The labels, their boxes and their model.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    from pathlib import Path

    from mal.stages import run_inference
    from mal.steps import Step, metadata, summaries

    with Step(dataset=dataset, model=model) as step:
        results_dir = Path(labels.path).with_name("results")
        experiment = step.experiment(
            "inference", spec=spec, overrides=overrides, results_dir=results_dir
        )
        result = run_inference(experiment)
        described = metadata.labels_metadata(step.data, result.labels, result.counts)
        step.write_artifact(labels, described, file=result.labels)
        step.write_artifact(report, {"display_name": "labels report"}, file=result.report)
        page = summaries.labels_markdown(labels.metadata, result.report)
        step.write_summary(summary, page, labels=labels)
