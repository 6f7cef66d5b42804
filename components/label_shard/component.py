"""Label one shard of a data set."""

from typing import NamedTuple

from kfp import dsl

from .._images import COMPONENT_IMAGE


@dsl.component(base_image=COMPONENT_IMAGE, packages_to_install=[], install_kfp_package=False)
def label_shard(
    *,
    shard: str,
    report: dsl.Output[dsl.HTML],
    spec: str = "",
    overrides: list[str] = [],  # noqa: B006 - kfp compiles the literal
    pipeline_name: str = "mal",
) -> NamedTuple("Outputs", [("labels_uri", str)]):  # type: ignore[valid-type]
    """Write a mask for every box of a shard, unless an earlier run has done so.

    Args:
        shard: URI of a shard of split_boxes.
        report: One self-contained page with masks drawn on their images.
        labels_uri: URI of the shard's label file, beside its boxes.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    import tempfile
    from pathlib import Path

    from mal.stages import run_inference
    from mal.steps import Step, metadata
    from mal.steps.label_shards import keep_labels, read_shard, shard_spec

    with Step(pipeline_name=pipeline_name) as step, tempfile.TemporaryDirectory() as scratch:
        part = read_shard(shard)
        described = metadata.shard_report_metadata(part)
        if part.is_labelled:
            step.log(f"{shard} was labelled by an earlier run")
            page = "<!doctype html><p>This shard was labelled by an earlier run.</p>\n"
            step.write_artifact(report, described, text=page)
        else:
            experiment = shard_spec(part, Path(scratch), spec=spec, overrides=overrides)
            result = run_inference(experiment)
            described |= keep_labels(part, result.labels, result.results_dir / "experiment.yaml")
            step.write_artifact(report, described, file=result.report)
    return (part.labels_uri,)
