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

    Args:
        dataset: Manifest of snapshot_dataset.
        model: Model folder of train.
        labels: The annotation file with segmentation (RLE), area and score for every annotation.
        report: One self-contained page with masks drawn on their images.
        summary: How many masks, of which boxes, by which model.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    from pathlib import Path

    from mal.registry import snapshot
    from mal.stages import run_inference
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries

    with steps.running_step():
        data = snapshot.read_dataset_manifest(Path(dataset.path))
        experiment = steps.inference_spec(
            data,
            model_dir=model.path,
            spec=spec,
            overrides=overrides,
            results_dir=Path(labels.path).with_name("results"),
        )
        result = run_inference(experiment)
        steps.copy_file(result.labels, labels.path)
        steps.copy_file(result.report, report.path)
        parents = lineage.parents(dataset, model) | lineage.spec_facts("inference", experiment)
        facts = lineage.labels_metadata(data, labels.path, result.num_instances)
        steps.describe(labels, parents, facts)
        steps.describe(report, parents, lineage.page_metadata("labels report", report.path))
        page = summaries.facts_markdown("Labels", labels.metadata)
        steps.write_summary(summary, page, labels=labels)
