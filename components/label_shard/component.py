"""Label one shard of a set."""

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
    """Write a mask for every box of a shard, unless an earlier run has.

    Args:
        shard: uri of a shard of split_boxes.
        report: One self-contained page with masks drawn on their images.
        labels_uri: The shard's labels, beside its boxes.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    import tempfile
    from pathlib import Path

    from mal.stages import run_inference
    from mal.steps import label_job
    from mal.steps import metadata as lineage
    from mal.steps import step as steps

    with steps.running_step(), tempfile.TemporaryDirectory() as scratch:
        part, spec_facts = label_job.read_shard(shard), {}
        if part.is_labelled:
            steps.tell(f"{shard} was labelled by an earlier run")
            steps.write_page(report.path, "This shard was labelled by an earlier run.")
        else:
            experiment = label_job.shard_spec(part, Path(scratch), spec=spec, overrides=overrides)
            spec_facts = lineage.spec_facts("inference", experiment)
            result = run_inference(experiment)
            steps.copy_file(result.report, report.path)
            label_job.keep_labels(part, result.labels)
        facts = lineage.shard_report_metadata(part, report.path, pipeline_name)
        steps.describe(report, facts, spec_facts)
    return (part.labels_uri,)
