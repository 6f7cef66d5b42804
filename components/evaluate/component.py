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

    Without a validation part, the training part is measured. Without true masks there are no
    metrics of masks, and the report shows the predictions.

    Args:
        dataset: Manifest of snapshot_dataset.
        model: Model folder of train.
        metrics: mIoU overall, by size and by category, AP and the IoU of the plain boxes.
        report: One self-contained page: metrics, IoU distribution, best and worst masks.
        summary: IoU overall and by category, beside that of the plain boxes.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    from pathlib import Path

    from mal.stages import run_evaluate
    from mal.steps import Step, metadata, summaries

    with Step(dataset=dataset, model=model) as step:
        step.log(f"measuring on the {step.data.evaluated_part}")
        results_dir = Path(report.path).with_name("results")
        experiment = step.experiment(
            "evaluate", spec=spec, overrides=overrides, results_dir=results_dir
        )
        result = run_evaluate(experiment)
        step.log_metrics(metrics, result.metrics, file=result.results_dir / "metrics.json")
        step.write_artifact(
            report, metadata.report_metadata(step.data, result.metrics), file=result.report
        )
        page = summaries.evaluation_markdown(step.data, result.metrics, result.report)
        step.write_summary(summary, page, report=report)
