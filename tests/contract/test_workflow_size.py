"""The workflow object of a run stays below Argo's limits, and each argument below Linux' limit."""

from collections.abc import Collection, Mapping
from typing import Any

import pytest
from argo_workflow import (
    MAX_ARGUMENT_BYTES,
    MAX_WORKFLOW_BYTES,
    Workflow,
    compiled_documents,
)
from artifact_metadata import artifact_metadata

from mal.kfp.pipelines._registry import find_pipeline
from mal.steps.label_shards import Shard, batches_of

DATA = {
    "train_images": "s3://mlpipeline/data/nuclei/train/images/",
    "train_annotations": "s3://mlpipeline/data/nuclei/train/annotations.json",
    "val_images": "s3://mlpipeline/data/nuclei/val/images/",
    "val_annotations": "s3://mlpipeline/data/nuclei/val/annotations.json",
    "spec": "recipe:small_set",
}
FIRST_MODEL = ("condition-3", "condition-6")
WITH_CHAMPION = ("condition-4", "condition-6")


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Mapping[str, Any]]:
    return artifact_metadata(tmp_path_factory.mktemp("artifacts"))


def workflow_of(
    name: str, known: Mapping[str, Mapping[str, Any]], skipped: Collection[str] = ()
) -> Workflow:
    document, platform = compiled_documents(find_pipeline(name).compiled())
    return Workflow(document, platform, DATA, lambda _, output: known[output], skipped=skipped)


@pytest.mark.parametrize(
    ("name", "skipped", "max_kb"),
    [
        ("auto_label", (), 345),
        ("auto_label_distributed", (), 365),
        ("tune", (), 350),
        ("retrain", FIRST_MODEL, 675),
        ("retrain", WITH_CHAMPION, 745),
    ],
    ids=["auto_label", "auto_label_distributed", "tune", "retrain-first", "retrain-champion"],
)
def test_the_workflow_object_leaves_room_below_one_mebibyte(
    name: str,
    skipped: Collection[str],
    max_kb: int,
    known: Mapping[str, Mapping[str, Any]],
) -> None:
    """0.1.0 had 610 KB and, on the path of a champion, more than 1 MiB."""
    workflow = workflow_of(name, known, skipped)
    assert workflow.num_bytes / 1000 < max_kb
    for executor_input in workflow.executor_inputs.values():
        assert len(executor_input) < MAX_ARGUMENT_BYTES / 10


def label_only_of(num_shards: int) -> Workflow:
    """Return the run of `label_only` on so many shards, with URIs as long as people's."""
    folder = "s3://team-scratch-bucket/labels/microscopy/2026-11/0123456789abcdef"
    shards = [
        Shard(f"{folder}/shard-{n:05d}", "i", "m", "v", "a" * 64, 100, 20000)
        for n in range(num_shards)
    ]
    batches = batches_of(shards)
    values = {
        ("split-boxes", "Output"): batches,
        ("for-loop-1", "pipelinechannel--label-shard-num_boxes"): [200000.0] * len(batches),
    }
    document, platform = compiled_documents(find_pipeline("label_only").compiled())
    arguments = {
        "images": "s3://team-data-bucket/microscopy/2026-11/images/",
        "annotations": "s3://team-data-bucket/microscopy/2026-11/boxes.json",
        "model": "s3://team-models/nuclei",
        "work_dir": "s3://team-scratch-bucket/labels/microscopy/2026-11",
    }
    metadata = {"display_name": "2000 shards", "pipeline_name": "label-only", "sha256": "a" * 64}
    return Workflow(
        document, platform, arguments, lambda *_: metadata, values, num_items=len(batches),
        item=batches[-1],
    )  # fmt: skip


@pytest.mark.parametrize("num_shards", [5, 17, 420, 2000])
def test_label_only_fits_into_argos_object_and_linux_arguments(num_shards: int) -> None:
    workflow = label_only_of(num_shards)
    assert workflow.num_stored_bytes < 0.9 * MAX_WORKFLOW_BYTES
    longest = max(map(len, workflow.executor_inputs.values()))
    assert longest < MAX_ARGUMENT_BYTES / 20
    num_items_pods = workflow.num_pods - 8  # the root driver, two steps of two, the loop's driver
    assert num_shards <= 16 or num_items_pods <= 2 * num_shards
