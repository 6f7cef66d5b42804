"""Label some shards of a data set."""

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
) -> NamedTuple("Outputs", [("labels_uri", str), ("num_boxes", int)]):  # type: ignore[valid-type]
    """Write a mask for every box of some shards, unless an earlier run has done so.

    Args:
        shard: An item of split_boxes: the URI of a shard, or of the first of several shards with
            -to- and the number of the last one.
        report: One self-contained page with masks drawn on their images, of one shard.
        labels_uri: URI of the last shard's label file, beside its boxes.
        num_boxes: Number of boxes of these shards.
        spec: Experiment spec as YAML text or recipe:NAME, over the one the model was trained with.
        overrides: dotted.key=value settings that win over the spec.
        pipeline_name: Name that the artifacts of this run are grouped under.
    """
    from mal.steps import Step
    from mal.steps.label_batch import label_batch

    with Step(pipeline_name=pipeline_name) as step:
        labelled = label_batch(step, shard, report, spec=spec, overrides=overrides)
    return labelled.labels_uri, labelled.num_boxes
