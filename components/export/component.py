"""Export a model to ONNX."""

from kfp import dsl

from .._images import COMPONENT_IMAGE


@dsl.component(base_image=COMPONENT_IMAGE, packages_to_install=[], install_kfp_package=False)
def export(
    *,
    dataset: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    onnx: dsl.Output[dsl.Model],
    summary: dsl.Output[dsl.Markdown],
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
) -> None:
    """Export a model to ONNX and check that it predicts what PyTorch predicts.

    Args:
        dataset: Manifest of snapshot_dataset; recorded as what the model came from.
        model: Model folder of train.
        onnx: Folder with mal_model.onnx and mal_model.json, and for points mal_encoder.onnx and
            mal_decoder.onnx.
        summary: The exported model, and how closely it agrees with PyTorch.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    from mal.stages import run_export
    from mal.steps import metadata as lineage
    from mal.steps import step as steps
    from mal.steps import summaries

    with steps.running_step():
        experiment = steps.export_spec(
            model_dir=model.path, spec=spec, overrides=overrides, results_dir=onnx.path
        )
        result = run_export(experiment)
        steps.describe(
            onnx,
            lineage.parents(dataset, model),
            lineage.onnx_metadata(experiment, onnx.path, result.max_abs_diff),
            lineage.spec_facts("export", experiment),
        )
        page = summaries.facts_markdown("ONNX", onnx.metadata)
        steps.write_summary(summary, page, onnx=onnx)
