"""Measure a model against true masks."""

from kfp import dsl

from .._images import COMPONENT_IMAGE


@dsl.component(base_image=COMPONENT_IMAGE, packages_to_install=[], install_kfp_package=False)
def evaluate(
    *,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
    report: dsl.Output[dsl.HTML],
    summary: dsl.Output[dsl.Markdown],
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
) -> None:
    """Measure a model's masks against true masks and draw them.

    Without a validation part the training part is measured; without true masks there are no
    figures of masks, and the report shows the predictions.

    Args:
        dataset: Manifest of snapshot_dataset.
        model: Model folder of train.
        metrics: mIoU overall, by size and by category, AP and the IoU of the plain boxes.
        report: One self-contained page: figures, IoU distribution, best and worst masks.
        summary: IoU overall and by category, beside that of the plain boxes.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    from pathlib import Path

    from mal.registry import snapshot
    from mal.stages import run_evaluate
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries

    with steps.running_step():
        data = snapshot.read_dataset_manifest(Path(dataset.path))
        steps.tell(f"measuring on the {data.evaluated_part}")
        experiment = steps.evaluate_spec(
            data,
            model_dir=model.path,
            spec=spec,
            overrides=overrides,
            results_dir=Path(report.path).with_name("results"),
        )
        result = run_evaluate(experiment)
        steps.copy_file(result.report, report.path)
        steps.copy_file(result.results_dir / "metrics.json", metrics.path)
        figures = lineage.figures(result.metrics)
        page = summaries.evaluation_markdown(data, result.metrics)
        facts = lineage.report_metadata(data, report.path, figures)
        facts |= lineage.spec_facts("evaluate", experiment)
        steps.describe(report, lineage.parents(dataset, model), facts)
        steps.publish(metrics, figures, summary, page, report=report)
