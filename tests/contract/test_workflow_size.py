"""The workflow object of a run stays below Argo's limits, and each argument below Linux' limit."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pytest
from argo_workflow import MAX_ARGUMENT_BYTES, Workflow, compiled_documents
from artifact_metadata import artifact_metadata

from mal.kfp.pipelines._registry import find_pipeline

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
        ("auto_label", (), 385),
        ("auto_label_distributed", (), 400),
        ("tune", (), 385),
        ("retrain", FIRST_MODEL, 730),
        ("retrain", WITH_CHAMPION, 810),
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
