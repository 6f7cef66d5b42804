"""The components of label_only, one after the other, on a trained model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import TinySet, Trained

from mal.spec import load_spec
from mal.stages import run_inference
from mal.steps import label_shards

pytest.importorskip("kfp")


@pytest.fixture(scope="module")
def odd_set(trained: Trained) -> TinySet:
    """The set with boxes that cannot be predicted."""
    document = trained.data.document()
    first = document["annotations"][0]
    document["annotations"] += [
        first | {"id": 50, "bbox": [60, 60, 5, 5]},
        first | {"id": 51, "image_id": 99},
    ]
    return trained.data.rewritten(document, "with odd boxes.json")


@pytest.fixture(scope="module")
def whole(trained: Trained, odd_set: TinySet, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The labels of one pass over the whole set."""
    folder = tmp_path_factory.mktemp("whole")
    overrides = [
        f"inference.checkpoint={trained.result.checkpoint}",
        f"inference.ann_path={odd_set.annotations}",
        f"inference.img_dir={odd_set.images}",
        f"inference.results_dir={folder}",
    ]
    spec = load_spec("inference", str(trained.result.results_dir / "experiment.yaml"), overrides)
    return json.loads(run_inference(spec).labels.read_text())


@pytest.mark.parametrize("allow_empty", [False, True])
def test_a_set_whose_masks_are_mostly_empty_fails_at_the_merge_with_all_labels_kept(
    allow_empty: bool, trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kfp import dsl

    from mal.kfp.components.label_shard import label_shard
    from mal.kfp.components.merge_labels import merge_labels
    from mal.kfp.components.split_boxes import split_boxes

    document = trained.data.document()
    for annotation in document["annotations"][1:]:
        annotation["bbox"] = [60, 60, 5, 5]
    data = trained.data.rewritten(document, f"outside {allow_empty}.json")
    overrides = ["inference.allow_empty=true"] if allow_empty else []
    listing = dsl.Artifact(uri=str(tmp_path / "listing"))
    batches = split_boxes.python_func(
        shards=listing,
        images=str(data.images),
        annotations=str(data.annotations),
        model=str(trained.result.results_dir),
        work_dir=str(tmp_path / "work"),
        boxes_per_shard=5,
        overrides=overrides,
    )
    for number, batch in enumerate(batches):
        page = dsl.HTML(uri=str(tmp_path / f"page{number}"))
        label_shard.python_func(shard=batch, report=page, overrides=overrides)
    outputs = {
        "labels": dsl.Artifact(uri=str(tmp_path / "labels")),
        "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
        "summary": dsl.Markdown(uri=str(tmp_path / "summary")),
    }

    def merge() -> None:
        merge_labels.python_func(
            **outputs,
            annotations=str(data.annotations),
            shards=listing,
            num_labelled=[len(document["annotations"])],
            boxes_per_shard=5,
        )

    num_empty = len(document["annotations"]) - 1
    if allow_empty:
        merge()
    else:
        with pytest.raises(SystemExit, match="2"):
            merge()
        assert f"{num_empty} outside the image" in capsys.readouterr().err
    page = (tmp_path / "summary").read_text()
    assert f"{num_empty} empty: {num_empty} outside the image" in page
    assert "fix the boxes or images" in page
    assert outputs["metrics"].metadata["num_empty"] == num_empty
    assert outputs["labels"].metadata["num_masks"] == 1


def test_shards_give_the_labels_of_one_pass(
    trained: Trained,
    odd_set: TinySet,
    whole: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from kfp import dsl

    from mal.kfp.components.label_shard import label_shard
    from mal.kfp.components.merge_labels import merge_labels
    from mal.kfp.components.split_boxes import split_boxes

    monkeypatch.setattr(label_shards, "MAX_PARALLEL_BATCHES", 1)

    def label_all() -> list[str]:
        listing = dsl.Artifact(uri=str(tmp_path / "listing"))
        batches: list[str] = split_boxes.python_func(
            shards=listing,
            images=str(odd_set.images),
            annotations=str(odd_set.annotations),
            model=str(trained.result.results_dir),
            work_dir=str(tmp_path / "work"),
            boxes_per_shard=5,
        )
        pages = [dsl.HTML(uri=str(tmp_path / f"page{n}")) for n, _ in enumerate(batches)]
        num_labelled = [
            label_shard.python_func(shard=batch, report=page)[1]
            for batch, page in zip(batches, pages, strict=True)
        ]
        assert sum(num_labelled) == len(whole["annotations"])
        assert all(page.metadata["model_sha256"] for page in pages)
        outputs = {
            "labels": dsl.Artifact(uri=str(tmp_path / "labels")),
            "metrics": dsl.Metrics(uri=str(tmp_path / "metrics")),
            "summary": dsl.Markdown(uri=str(tmp_path / "summary")),
        }
        merge_labels.python_func(
            **outputs,
            annotations=str(odd_set.annotations),
            shards=listing,
            num_labelled=num_labelled,
            boxes_per_shard=5,
        )
        facts = outputs["labels"].metadata
        assert facts["num_instances"] == len(whole["annotations"])
        assert {type(value) for value in facts.values()} <= {str, float}
        return batches

    shards = label_all()
    assert [batch.rpartition("/")[2] for batch in shards] == ["shard-00000-to-00001"]
    assert [label["area"] for label in whole["annotations"][-2:]] == [0, 0]
    assert json.loads((tmp_path / "labels").read_text()) == whole

    def refuse(*_: Any) -> None:
        raise AssertionError("a labelled shard is not labelled again")

    monkeypatch.setattr("mal.stages.run_inference", refuse)
    assert label_all() == shards
    assert json.loads((tmp_path / "labels").read_text()) == whole
