"""A set that is split, labelled shard by shard, and merged."""

from __future__ import annotations

import dataclasses
import gc
import json
import random
import resource
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.artifacts import sha256_of_file
from mal.data.annotations import load_boxes
from mal.errors import AnnotationError, ArtifactError
from mal.registry.model_fetch import FetchedModel
from mal.steps import label_shards
from mal.steps.label_shards import (
    Shard,
    batches_of,
    label_files_of,
    merge_labels,
    plan_shards,
    read_listing,
    read_shard,
    shard_spec,
    shards_of_batch,
    split_data_set,
    write_listing,
)
from mal.storage import find_images

MODEL = FetchedModel("v1", "/models/v1/mal_model_latest.pth", "a" * 64)

Document = dict[str, Any]


def document_of(boxes_per_image: Sequence[int], *, seed: int | None = None) -> Document:
    """Return a set; with a seed its annotations are in any order."""
    annotations = [
        {"id": 100 * image + n, "image_id": image, "bbox": [n, 0, 5, 5], "note": {"ü": 1.5}}
        for image, number in enumerate(boxes_per_image, 1)
        for n in range(number)
    ]
    if seed is not None:
        random.Random(seed).shuffle(annotations)
    return {
        "info": {"year": 2026},
        "annotations": annotations,
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 9, "height": 9}
            for n in range(1, len(boxes_per_image) + 1)
        ],
        "categories": [{"id": 1, "name": "cat"}],
        "ours": ["kept", 3],
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Document], Path]:
    (tmp_path / "images").mkdir()

    def write_document(document: Document) -> Path:
        for image in document["images"]:
            (tmp_path / "images" / image["file_name"]).write_text(image["file_name"])
        path = tmp_path / "boxes.json"
        path.write_text(json.dumps(document))
        return path

    return write_document


def split(
    path: Path, boxes_per_shard: int, *, model: FetchedModel = MODEL, settings: Sequence[str] = ()
) -> list[Shard]:
    return split_data_set(
        str(path),
        str(path.parent / "images"),
        work_dir=str(path.parent / "work"),
        model=model,
        boxes_per_shard=boxes_per_shard,
        settings=settings,
    )


def label(shard: Shard) -> str:
    """Label a shard as inference does: new fields, everything else as it was."""
    content = json.loads((Path(shard.uri) / "annotations.json").read_text())
    for box in content["annotations"]:
        if isinstance(box, dict):
            box["score"] = 0.5
    Path(shard.labels_uri).write_text(json.dumps(content))
    return shard.labels_uri


def merge(path: Path, labels: Sequence[str], boxes_per_shard: int) -> Document:
    output = path.with_name("merged.json")
    num_boxes = merge_labels(str(path), labels, boxes_per_shard=boxes_per_shard, output=output)
    content: Document = json.loads(output.read_text())
    assert num_boxes == len(content["annotations"])
    return content


@pytest.mark.parametrize("seed", [None, 0, 1], ids=["by image", "shuffled", "shuffled again"])
@pytest.mark.parametrize("boxes_per_shard", [1, 4, 1000])
def test_every_annotation_comes_back_once_and_in_its_place(
    boxes_per_shard: int, seed: int | None, write: Callable[[Document], Path]
) -> None:
    document = document_of([3, 0, 1, 5, 2], seed=seed)
    path = write(document)
    labels = [label(shard) for shard in split(path, boxes_per_shard)]
    merged = merge(path, labels, boxes_per_shard)
    assert [box.pop("score") for box in merged["annotations"]] == [0.5] * 11
    assert merged == document
    assert list(merged) == list(document)


def test_images_are_not_cut_and_shards_hold_about_as_many_boxes_as_asked_for(
    write: Callable[[Document], Path],
) -> None:
    shards = split(write(document_of([3, 0, 1, 5, 2])), 4)
    assert [(shard.num_images, shard.num_boxes) for shard in shards] == [(3, 4), (1, 5), (1, 2)]
    for shard in shards:
        content = json.loads((Path(shard.uri) / "annotations.json").read_text())
        images = {image["id"] for image in content["images"]}
        assert len(images) == shard.num_images
        assert {box["image_id"] for box in content["annotations"]} <= images
        assert content["categories"] == [{"id": 1, "name": "cat"}]
        assert read_shard(shard.uri) == shard


def test_boxes_that_belong_nowhere_are_kept(write: Callable[[Document], Path]) -> None:
    document = document_of([2, 2])
    odd = [{"id": 7, "image_id": 99}, {"id": 8}, "no box", {"id": 9, "image_id": [1]}]
    document["annotations"] += odd
    path = write(document)
    merged = merge(path, [label(shard) for shard in split(path, 2)], 2)
    assert [box for box in merged["annotations"] if box == "no box"] == ["no box"]
    assert [box["id"] for box in merged["annotations"][4:] if isinstance(box, dict)] == [7, 8, 9]


def test_a_run_with_the_same_inputs_finds_its_shards_and_their_labels(
    write: Callable[[Document], Path],
) -> None:
    path = write(document_of([2, 2, 2]))
    first = split(path, 2)
    label(first[1])
    again = split(path, 2)
    assert again == first
    assert [shard.is_labelled for shard in again] == [False, True, False]


@pytest.mark.parametrize("changed", ["boxes", "image", "size", "settings", "spec", "mal"])
def test_a_run_with_other_inputs_starts_anew(
    changed: str, write: Callable[[Document], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(document_of([2, 2, 2]))
    first = split(path, 2)
    if changed == "boxes":
        path = write(document_of([2, 2, 3]))
    elif changed == "image":
        (path.parent / "images" / "2.png").write_text("3.png")
    elif changed == "mal":
        monkeypatch.setattr(label_shards, "__version__", "9.9")
    other = split(
        path,
        3 if changed == "size" else 2,
        model=dataclasses.replace(MODEL, spec_sha256="b" * 64) if changed == "spec" else MODEL,
        settings=["inference.use_flip_test=true"] if changed == "settings" else [],
    )
    assert {shard.uri for shard in other}.isdisjoint(shard.uri for shard in first)


def test_an_image_that_is_overwritten_in_a_bucket_is_labelled_anew(
    s3: Any, write: Callable[[Document], Path], tmp_path: Path
) -> None:
    annotations = write(document_of([2, 2]))

    def split_bucket() -> list[Shard]:
        return split_data_set(
            str(annotations),
            "s3://bucket/images",
            work_dir=str(tmp_path / "work"),
            model=MODEL,
            boxes_per_shard=2,
            settings=[],
        )

    for name in ("1.png", "2.png", "no-image-of-the-set.png"):
        s3.put_object(Bucket="bucket", Key=f"images/{name}", Body=name.encode())
    first = split_bucket()
    for shard in first:
        label(shard)
    s3.put_object(Bucket="bucket", Key="images/no-image-of-the-set.png", Body=b"other")
    assert all(shard.is_labelled for shard in split_bucket())
    s3.put_object(Bucket="bucket", Key="images/2.png", Body=b"other")
    assert not any(shard.is_labelled for shard in split_bucket())


def test_the_same_weights_at_another_place_go_on_from_there(
    write: Callable[[Document], Path],
) -> None:
    path = write(document_of([2, 2, 2]))
    label(split(path, 2)[0])
    moved = dataclasses.replace(MODEL, checkpoint_uri="/moved/mal_model_latest.pth")
    shards = split(path, 2, model=moved)
    assert [shard.is_labelled for shard in shards] == [True, False, False]
    assert [read_shard(shard.uri) for shard in shards] == shards
    assert {shard.model_uri for shard in shards} == {"/moved"}


def test_a_split_that_was_cut_short_is_finished(write: Callable[[Document], Path]) -> None:
    path = write(document_of([2, 2, 2]))
    first = split(path, 2)
    (Path(first[2].uri) / "shard.json").unlink()
    assert split(path, 2) == first
    assert read_shard(first[2].uri) == first[2]


def some_shards(count: int) -> list[Shard]:
    return [Shard(f"s3://b/w/shard-{n:05d}", "i", "m", "", "a", 1, 2) for n in range(count)]


@pytest.mark.parametrize(
    ("count", "num_batches", "largest"),
    [(1, 1, 1), (16, 16, 1), (17, 9, 2), (400, 200, 2), (2000, 200, 10), (401, 134, 3)],
)
def test_a_batch_has_more_shards_where_more_pods_would_not_run_or_not_fit(
    count: int, num_batches: int, largest: int
) -> None:
    shards = some_shards(count)
    batches = batches_of(shards)
    listed = [shards_of_batch(batch) for batch in batches]
    assert (len(batches), max(map(len, listed))) == (num_batches, largest)
    assert [uri for batch in listed for uri in batch] == [shard.uri for shard in shards]
    pods = 3 * len(batches)  # the driver of the iteration, the driver of the step, the step
    assert count <= 16 or pods <= 2 * count


def test_a_listing_is_read_as_it_was_written(tmp_path: Path) -> None:
    shards = some_shards(3)
    write_listing(shards, tmp_path / "listing")
    uris = read_listing(tmp_path / "listing")
    assert uris == [shard.uri for shard in shards]
    assert label_files_of(uris) == [shard.labels_uri for shard in shards]
    (tmp_path / "listing").write_text("[]")
    with pytest.raises(ArtifactError, match="Cannot read the listing of the shards"):
        read_listing(tmp_path / "listing")


def test_a_merge_of_more_shards_than_the_limit_of_open_files(
    write: Callable[[Document], Path],
) -> None:
    path = write(document_of([1] * 80))
    labels = [label(shard) for shard in split(path, 1)]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        assert len(merge(path, labels, 1)["annotations"]) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def drop_a_label(labels: list[str]) -> None:
    content = json.loads(Path(labels[1]).read_text())
    content["annotations"].pop()
    Path(labels[1]).write_text(json.dumps(content))


def double_a_label(labels: list[str]) -> None:
    content = json.loads(Path(labels[0]).read_text())
    content["annotations"].append(content["annotations"][-1])
    Path(labels[0]).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        pytest.param(
            lambda labels: labels.pop(),
            "of 2 shards: the annotations have 3 shards",
            id="one missing",
        ),
        pytest.param(
            lambda labels: labels.reverse(), "does not match the annotations", id="wrong order"
        ),
        pytest.param(drop_a_label, r"it has null instead of \[201, 2\]", id="one too few"),
        pytest.param(double_a_label, "it has more labels than boxes", id="one too many"),
    ],
)
def test_labels_that_are_not_those_of_the_set_are_refused_and_nothing_is_written(
    spoil: Callable[[list[str]], object], message: str, write: Callable[[Document], Path]
) -> None:
    path = write(document_of([2, 2, 2]))
    labels = [label(shard) for shard in split(path, 2)]
    spoil(labels)
    with pytest.raises(ArtifactError, match=message):
        merge(path, labels, 2)
    assert not path.with_name("merged.json").exists()


def test_too_many_shards_are_refused_with_a_size_that_fits(
    write: Callable[[Document], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_shards, "MAX_SHARDS", 3)
    path = write(document_of([2] * 8))
    with pytest.raises(AnnotationError, match=r"at most 3 shards, got 8\. Set it to 6 or more"):
        plan_shards(path, 2)
    assert len(plan_shards(path, 6).num_boxes) == 3


def test_a_file_without_images_is_refused(write: Callable[[Document], Path]) -> None:
    with pytest.raises(AnnotationError, match="must list images"):
        plan_shards(write({"images": [], "annotations": []}), 2)


def test_memory_of_split_and_merge_does_not_grow_with_the_boxes(
    write: Callable[[Document], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_shards, "_MAX_BUFFERED", 500)

    def peak_of(boxes_per_image: int) -> int:
        path = write(document_of([boxes_per_image] * 10, seed=0))
        gc.collect()  # when Python collects depends on what ran in this process before
        tracemalloc.start()
        merge_labels(
            str(path),
            [label_by_line(shard) for shard in split(path, boxes_per_image)],
            boxes_per_shard=boxes_per_image,
            output=path.with_name("merged.json"),
        )
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def label_by_line(shard: Shard) -> str:
        Path(shard.labels_uri).write_bytes((Path(shard.uri) / "annotations.json").read_bytes())
        return shard.labels_uri

    peak_of(10)  # what is imported and compiled at the first time
    assert peak_of(2000) < 2 * peak_of(400)


def test_a_bucket_folder_is_fetched_only_for_the_images_of_the_shard(
    s3: Any, write: Callable[[Document], Path], tmp_path: Path
) -> None:
    for name in ("1.png", "2.png", "3.png"):
        s3.put_object(Bucket="bucket", Key=f"images/{name}", Body=name.encode())
    model = tmp_path / "model"
    model.mkdir()
    (model / "mal_model_latest.pth").write_text("weights")
    sha256 = sha256_of_file(model / "mal_model_latest.pth")
    shards = split_data_set(
        str(write(document_of([2, 2, 2]))),
        "s3://bucket/images/",
        work_dir="s3://bucket/work",
        model=FetchedModel("", str(model / "mal_model_latest.pth"), sha256),
        boxes_per_shard=2,
        settings=[],
    )
    work = shard_spec(read_shard(shards[1].uri), tmp_path / "scratch", spec="", overrides=[])
    assert [path.name for path in Path(work.inference.img_dir).iterdir()] == ["2.png"]
    assert Path(work.inference.checkpoint).read_text() == "weights"
    (model / "mal_model_latest.pth").write_text("others")
    with pytest.raises(ArtifactError, match="has changed since split_boxes ran"):
        shard_spec(read_shard(shards[2].uri), tmp_path / "another", spec="", overrides=[])


image_ids = st.sampled_from([1, 2, 3, "1", "2", "02", "1.0", "img_1", "1_2", 1.0, 2.5, None, True])


@given(st.lists(image_ids, min_size=1, max_size=6), st.lists(image_ids, max_size=8))
def test_a_box_is_on_the_same_image_in_its_shard_as_in_the_whole_set(
    tmp_path_factory: pytest.TempPathFactory, images: list[Any], wanted: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("set")
    document = document_of([0])
    document["images"] = [
        {"id": one, "file_name": f"{n}.png", "width": 9, "height": 9}
        for n, one in enumerate(images)
    ]
    document["annotations"] = [
        {"id": n, "image_id": one, "bbox": [1, 1, 5, 5]} for n, one in enumerate(wanted)
    ]
    path = folder / "boxes.json"
    path.write_text(json.dumps(document))
    plan = plan_shards(path, 1)
    label_shards._write_shards(path, plan, folder, ())
    parts = [folder / str(number) / "annotations.json" for number in range(len(plan.num_boxes))]
    in_shards: dict[int, str] = {}
    for part in parts:
        in_shards |= file_names_of_boxes(part)
    assert in_shards == file_names_of_boxes(path)


def file_names_of_boxes(path: Path) -> dict[int, str]:
    try:
        boxes = load_boxes(path, with_masks=False)
    except AnnotationError:  # no image of it is usable
        return {}
    return {
        int(boxes.annotation_id_N[row]): boxes.image_of(row).file_name for row in range(len(boxes))
    }


def test_a_file_that_two_images_of_the_set_fit_is_used_in_no_shard(
    write: Callable[[Document], Path],
) -> None:
    path = write(document_of([2, 2]))
    document = json.loads(path.read_text())
    for image in document["images"]:
        image["file_name"] = f"/machine-{image['id']}/1.png"
    path.write_text(json.dumps(document))
    for shard in split(path, 2):
        boxes = load_boxes(Path(shard.uri) / "annotations.json", with_masks=False)
        found = find_images(path.parent / "images", [image.file_name for image in boxes.images])
        assert found.missing == {0}


def test_labels_of_ids_that_are_no_number_are_merged(write: Callable[[Document], Path]) -> None:
    document = document_of([1, 1])
    document["annotations"][0] |= {"id": float("nan")}
    document["annotations"][1] |= {"image_id": float("nan")}
    path = write(document)
    merged = merge(path, [label(shard) for shard in split(path, 1)], 1)
    assert [box["bbox"] for box in merged["annotations"]] == [
        box["bbox"] for box in document["annotations"]
    ]
