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
    """Export a model to ONNX and compare its predictions with those of PyTorch.

    Args:
        dataset: Manifest of snapshot_dataset; recorded as the origin of the model.
        model: Model folder of train.
        onnx: Folder with mal_model.onnx and mal_model.json, and for points mal_encoder.onnx and
            mal_decoder.onnx.
        summary: The exported model, and its largest difference from PyTorch.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
    """
    from mal.stages import run_export
    from mal.steps import Step, metadata, summaries

    with Step(dataset=dataset, model=model) as step:
        experiment = step.experiment(
            "export", spec=spec, overrides=overrides, results_dir=onnx.path
        )
        result = run_export(experiment)
        step.write_artifact(
            onnx, metadata.onnx_metadata(experiment, onnx.path, result.max_abs_diff)
        )
        step.write_summary(summary, summaries.onnx_markdown(onnx.metadata), onnx=onnx)
