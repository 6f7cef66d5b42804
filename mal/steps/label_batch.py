"""Label the shards of a batch, one after the other, in one pod."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mal import stages
from mal.artifacts import EXPERIMENT_FILE
from mal.steps.label_shards import keep_labels, read_shard, shard_spec, shards_of_batch
from mal.steps.metadata import Metadata, StepArtifact, shard_report_metadata
from mal.steps.step import Step

_LABELLED_BEFORE = "<!doctype html><p>These boxes were labelled by an earlier run.</p>\n"


@dataclass(frozen=True)
class LabelledBatch:
    """The labels of a batch.

    Attributes:
        labels_uri: Label file of the last shard.
        num_boxes: Boxes of all shards.
    """

    labels_uri: str
    num_boxes: int


def label_batch(
    step: Step, batch: str, report: StepArtifact, *, spec: str, overrides: Sequence[str]
) -> LabelledBatch:
    """Label every shard of a batch that has no labels yet, and write a report on one of them.

    A retry continues with the first shard without labels.

    Args:
        step: Writes the report.
        batch: An entry of `batches_of`.
        report: Gets the report on the last shard that is labelled here.
        spec: YAML text or `recipe:NAME`, over the spec of the model's training.
        overrides: `dotted.key=value`.

    Raises:
        MalError: A shard cannot be read or labelled.
    """
    shards = [read_shard(uri) for uri in shards_of_batch(batch)]
    described: Metadata = shard_report_metadata(shards[-1])
    described["num_instances"] = float(sum(shard.num_boxes for shard in shards))
    page = _LABELLED_BEFORE
    for shard in shards:
        if shard.is_labelled:
            step.log(f"{shard.uri} was labelled by an earlier run")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            experiment = shard_spec(shard, Path(scratch), spec=spec, overrides=overrides)
            # A shard may have all the boxes of a folder that is missing: the merge judges the set.
            section = dataclasses.replace(experiment.inference, allow_empty=True)
            result = stages.run_inference(dataclasses.replace(experiment, inference=section))
            step.log(f"{shard.uri}: {result.counts.line()}")
            described |= keep_labels(shard, result.labels, result.results_dir / EXPERIMENT_FILE)
            page = result.report.read_text(encoding="utf-8")
    step.write_artifact(report, described, text=page)
    return LabelledBatch(shards[-1].labels_uri, sum(shard.num_boxes for shard in shards))
