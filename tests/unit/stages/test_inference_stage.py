"""`mal inference` adds masks and loses nothing."""

import json
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco_mask
from tiny_sets import TinySet, Trained

from mal.labeling.label_counts import MostlyEmptyError
from mal.spec import load_spec
from mal.stages import run_inference
from mal.tao import create_inference_result_file_mal

ADDED = ("segmentation", "area", "score", "empty_reason")


def label(trained: Trained, data: TinySet, results: Path, *more: str) -> dict[str, Any]:
    overrides = [
        f"inference.checkpoint={trained.result.checkpoint}",
        f"inference.ann_path={data.annotations}",
        f"inference.img_dir={data.images}",
        f"inference.results_dir={results}",
        *more,
    ]
    spec = load_spec("inference", str(trained.result.results_dir / "experiment.yaml"), overrides)
    result = run_inference(spec)
    assert result.report.stat().st_size < 3e6
    content: dict[str, Any] = json.loads(result.labels.read_text(encoding="utf-8"))
    return content


def without_added(document: dict[str, Any]) -> dict[str, Any]:
    kept = [
        {key: value for key, value in annotation.items() if key not in ADDED}
        for annotation in document["annotations"]
    ]
    return {**document, "annotations": kept}


def test_every_other_field_stays(trained: Trained, tmp_path: Path) -> None:
    document = trained.data.document()
    document["images"].append({"id": 99, "file_name": "picture 0.png", "width": 48, "height": 48})
    document["licenses"] = [{"id": 1}]
    data = trained.data.rewritten(document, "with empty.json")
    labeled = label(trained, data, tmp_path, "inference.label_dump_path=deep/out.json")
    assert (tmp_path / "deep" / "out.json").exists()
    assert without_added(labeled) == without_added(document)
    for annotation in labeled["annotations"]:
        rle = annotation["segmentation"]
        assert rle["size"] == [48, 48]
        assert annotation["area"] == int(coco_mask.area(rle))
        assert 0 <= annotation["score"] <= 1


def test_unreadable_images_and_odd_boxes_get_their_entry_too(
    trained: Trained, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for path in trained.data.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / "picture 1.png").write_bytes(b"no picture")
    (images / "picture 2.png").unlink()
    document = trained.data.document()
    by_image = {i: [a for a in document["annotations"] if a["image_id"] == i] for i in (1, 2, 3)}
    by_image[1][0]["bbox"] = [-6, 30.5, 20, 40]
    by_image[1][1]["bbox"] = [60, 60, 5, 5]
    document["annotations"].append(
        {"id": 50, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 4]}
    )
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document))
    data = TinySet(path, images)
    labeled = label(trained, data, tmp_path / "out", "inference.allow_empty=true")
    assert without_added(labeled) == without_added(document)
    found = {annotation["id"]: annotation for annotation in labeled["annotations"]}
    for broken in [*by_image[2], *by_image[3]]:
        assert found[broken["id"]]["score"] == 0
        assert coco_mask.area(found[broken["id"]]["segmentation"]) == 0
    crossing = coco_mask.decode(found[by_image[1][0]["id"]]["segmentation"])
    assert not crossing[:30].any()
    assert not crossing[:, 14:].any()
    for odd in (by_image[1][1]["id"], 50):
        assert (found[odd]["area"], found[odd]["score"]) == (0, 0)
        assert coco_mask.decode(found[odd]["segmentation"]).shape == (48, 48)
    assert all(set(ADDED[:3]) <= annotation.keys() for annotation in labeled["annotations"])


def test_labels_do_not_depend_on_batches_or_loaders(trained: Trained, tmp_path: Path) -> None:
    first = label(trained, trained.data, tmp_path / "a", "inference.batch_size=1")
    second = label(
        trained, trained.data, tmp_path / "b", "inference.batch_size=100",
        "dataset.num_workers_per_gpu=1",
    )  # fmt: skip
    third = label(
        trained, trained.data, tmp_path / "c", "inference.batch_size=3",
        "dataset.num_workers_per_gpu=1",
    )  # fmt: skip
    for other in (second, third):
        for mine, theirs in zip(first["annotations"], other["annotations"], strict=True):
            assert abs(mine["area"] - theirs["area"]) <= 1
            assert abs(mine["score"] - theirs["score"]) < 1e-3


def test_an_empty_file_gives_an_empty_file(trained: Trained, tmp_path: Path) -> None:
    document = {**trained.data.document(), "annotations": []}
    data = trained.data.rewritten(document, "empty.json")
    assert label(trained, data, tmp_path) == document


@pytest.mark.parametrize("root", ["local", "s3://bucket/job"])
def test_the_path_that_job_inference_gives_lies_in_the_result_folder(
    trained: Trained, tmp_path: Path, s3: Any, root: str
) -> None:
    results_dir = str(tmp_path / root) if root == "local" else root
    path = create_inference_result_file_mal(results_dir, "labels.json")
    label(
        trained, trained.data, Path("unused"),
        f"results_dir={results_dir}", "inference.results_dir=", f"inference.label_dump_path={path}",
    )  # fmt: skip
    if root == "local":
        assert Path(path).is_file()
    else:
        assert s3.head_object(Bucket="bucket", Key="job/inference/labels.json")


def test_labels_outside_the_result_folder_are_outputs_too(trained: Trained, tmp_path: Path) -> None:
    labels = tmp_path / "elsewhere" / "labels.json"
    label(trained, trained.data, tmp_path / "out", f"inference.label_dump_path={labels}")
    outputs = json.loads((tmp_path / "out" / "manifest.json").read_text())["outputs"]
    assert outputs[str(labels)]["size"] == labels.stat().st_size


@pytest.mark.parametrize("allow_empty", [False, True])
def test_mostly_empty_labels_are_written_and_the_run_fails_unless_that_is_allowed(
    allow_empty: bool, trained: Trained, tmp_path: Path
) -> None:
    document = trained.data.document()
    for annotation in document["annotations"][1:]:
        annotation["bbox"] = [60, 60, 5, 5]
    data = trained.data.rewritten(document, "outside.json")
    results = tmp_path / "out"
    num_empty = len(document["annotations"]) - 1
    if allow_empty:
        label(trained, data, results, "inference.allow_empty=true")
    else:
        with pytest.raises(MostlyEmptyError, match=f"{num_empty} outside the image"):
            label(trained, data, results)
    (labels,) = results.glob("instances*.json")
    reasons = [a.get("empty_reason") for a in json.loads(labels.read_text())["annotations"]]
    assert reasons == [None] + ["outside the image"] * num_empty
    lines = [json.loads(line) for line in (results / "status.json").read_text().splitlines()]
    assert lines[-1]["status"] == ("SUCCESS" if allow_empty else "FAILURE")
    kpi = lines[-2]["kpi"]
    assert (kpi["num_masks"], kpi["num_empty_outside_the_image"]) == (1, num_empty)
    assert labels.name in json.loads((results / "manifest.json").read_text())["outputs"]


def test_every_empty_mask_says_why(trained: Trained, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    document = trained.data.document()
    for path in trained.data.images.iterdir():
        (images / path.name).write_bytes(path.read_bytes())
    (images / document["images"][1]["file_name"]).write_bytes(b"no picture")
    (images / document["images"][2]["file_name"]).unlink()
    first = document["annotations"][0]
    by_image = {a["image_id"]: a for a in document["annotations"]}
    document["annotations"] = [
        first,
        {**first, "id": 90, "bbox": [5.1, 5.1, 0.2, 0.2]},
        {**first, "id": 91, "bbox": [1, 1, 0, 4]},
        {**by_image[2], "id": 92},
        {**by_image[3], "id": 93},
        {**first, "id": 94, "bbox": [60, 1, 4, 4]},
    ]
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document))
    labeled = label(
        trained, TinySet(path, images), tmp_path / "out", "inference.allow_empty=true",
        "train.mask_thres=[0]",
    )  # fmt: skip
    assert [a.get("empty_reason") for a in labeled["annotations"]] == [
        None, "no pixel in the box", "left out", "image unreadable", "image missing",
        "outside the image",
    ]  # fmt: skip


def test_a_kept_mask_is_not_predicted(trained: Trained, tmp_path: Path) -> None:
    labeled = label(trained, trained.data, tmp_path, "inference.keep=masks")
    given = trained.data.document()["annotations"]
    for mine, theirs in zip(labeled["annotations"], given, strict=True):
        assert mine["segmentation"] == theirs["segmentation"]
        assert mine["mask_source"] == "input"
