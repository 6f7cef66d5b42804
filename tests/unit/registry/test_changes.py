"""Whether there is something to train on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_sets import TinySet, write_tiny_set

from mal.data.formats import AnnotationSource, open_annotations
from mal.errors import AnnotationError, ArtifactError, StorageError
from mal.registry.box_index import BoxChanges
from mal.registry.changes import Detection, detect_changes, read_detection
from mal.registry.model_store import ModelStore, StoreState

MULTIPART_BYTES = 5 << 20


@pytest.fixture
def data(tmp_path: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set")


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(str(tmp_path / "store"))


def detect(store: ModelStore, data: TinySet, **settings: Any) -> Detection:
    return detect_changes(
        store, train_images=str(data.images), train_annotations=str(data.annotations), **settings
    )


def train_on(store: ModelStore, found: Detection) -> None:
    """Leave what a finished training leaves."""
    training = found.training(version="v1", is_promoted=True, at="2026-11-26")
    store.write(StoreState(last_training=training, etag=store.read().etag))


def edit(data: TinySet, change: Callable[[list[dict[str, Any]]], object]) -> None:
    document = data.document()
    change(document["annotations"])
    data.annotations.write_text(json.dumps(document))


def add_boxes(number: int) -> Callable[[list[dict[str, Any]]], object]:
    return lambda boxes: boxes.extend(
        {"id": 100 + n, "image_id": 1, "category_id": 1, "bbox": [n, 1, 5, 5]}
        for n in range(number)
    )


def test_before_the_first_training_everything_is_new(store: ModelStore, data: TinySet) -> None:
    found = detect(store, data)
    assert found.is_changed
    assert found.changes == BoxChanges(6, 0, 0)
    assert found.store_etag == ""


def test_after_a_training_the_same_set_is_known(store: ModelStore, data: TinySet) -> None:
    train_on(store, detect(store, data))
    found = detect(store, data, min_new_annotations=0)
    assert not found.is_changed
    assert "that of the last training" in found.reason
    assert found.changes == BoxChanges(0, 0, 0)


def test_too_few_new_boxes_wait_and_add_up(store: ModelStore, data: TinySet) -> None:
    train_on(store, detect(store, data))
    edit(data, add_boxes(2))
    few = detect(store, data, min_new_annotations=5)
    assert (few.is_changed, few.changes.num_new) == (False, 2)
    assert "2 of 5" in few.reason
    edit(data, lambda boxes: boxes[0].update(bbox=[0, 0, 9, 9]))
    edit(data, lambda boxes: boxes.pop(1))
    edit(data, lambda boxes: boxes.extend([boxes[0] | {"id": 200, "bbox": [3, 3, 3, 3]}] * 2))
    enough = detect(store, data, min_new_annotations=5)
    assert enough.is_changed
    assert enough.changes == BoxChanges(4, 1, 1)


def test_removed_boxes_alone_start_no_training(store: ModelStore, data: TinySet) -> None:
    train_on(store, detect(store, data))
    edit(data, lambda boxes: boxes.__delitem__(slice(3, None)))
    found = detect(store, data)
    assert (found.is_changed, found.changes) == (False, BoxChanges(0, 0, 3))
    assert detect(store, data, min_new_annotations=0).is_changed


def test_another_picture_under_an_old_name_changes_the_digest(
    store: ModelStore, data: TinySet
) -> None:
    before = detect(store, data)
    train_on(store, before)
    picture = next(data.images.iterdir())
    picture.write_bytes(picture.read_bytes() + b"\0")
    assert not detect(store, data).is_changed
    after = detect(store, data, min_new_annotations=0)
    assert after.is_changed
    assert after.source_sha256 != before.source_sha256


def test_a_set_that_is_being_written_is_left_in_peace(store: ModelStore, data: TinySet) -> None:
    now_s = time.time()
    for path in (data.annotations, *data.images.iterdir()):
        os.utime(path, (now_s - 1000, now_s - 1000))
    assert detect(store, data, quiet_period_s=600, now_s=now_s).is_changed
    os.utime(next(data.images.iterdir()), (now_s - 30, now_s - 30))
    found = detect(store, data, quiet_period_s=600, now_s=now_s)
    assert not found.is_changed
    assert "written 30 s ago, and quiet_period_s is 600" in found.reason


def test_the_frozen_copy_outlives_the_file(store: ModelStore, data: TinySet) -> None:
    before = data.annotations.read_bytes()
    found = detect(store, data)
    edit(data, add_boxes(3))
    assert Path(found.train.frozen_annotations_uri).read_bytes() == before
    assert detect(store, data).train.frozen_annotations_uri != found.train.frozen_annotations_uri


def test_what_waits_is_not_frozen(store: ModelStore, data: TinySet) -> None:
    assert not detect(store, data, min_new_annotations=99).is_changed
    assert not Path(store.uri).exists()


def test_the_validation_part_belongs_to_the_digest(
    store: ModelStore, data: TinySet, tmp_path: Path
) -> None:
    val = write_tiny_set(tmp_path / "val", num_images=1, seed=1)
    parts = {"val_images": str(val.images), "val_annotations": str(val.annotations)}
    with_val = detect(store, data, **parts)
    assert with_val.source_sha256 != detect(store, data).source_sha256
    frozen = [Path(uri).read_bytes() for uri in with_val.outputs[-2:]]
    assert frozen == [data.annotations.read_bytes(), val.annotations.read_bytes()]


def test_a_detection_survives_its_file(store: ModelStore, data: TinySet, tmp_path: Path) -> None:
    found = detect(store, data)
    found.write(tmp_path / "snapshot.json")
    assert read_detection(tmp_path / "snapshot.json") == found


@pytest.mark.parametrize("text", ["", "[]", '{"format_version": 1}', '{"format_version": 9}'])
def test_another_file_is_no_detection(text: str, tmp_path: Path) -> None:
    (tmp_path / "snapshot.json").write_text(text)
    with pytest.raises(ArtifactError, match="is not an output of detect_new_annotations"):
        read_detection(tmp_path / "snapshot.json")


def test_a_file_cut_short_is_an_error_and_no_change(store: ModelStore, data: TinySet) -> None:
    data.annotations.write_bytes(data.annotations.read_bytes()[:-20])
    with pytest.raises(AnnotationError, match="as JSON"):
        detect(store, data)


def test_images_that_are_nowhere_are_an_error(store: ModelStore, data: TinySet) -> None:
    for path in data.images.iterdir():
        path.unlink()
    with pytest.raises(StorageError, match="has none of the 3 annotated images"):
        detect(store, data)


def upload(s3: Any, data: TinySet) -> TinySet:
    s3.upload_file(str(data.annotations), "bucket", "set/boxes.json")
    for path in data.images.iterdir():
        s3.upload_file(str(path), "bucket", f"set/images/{path.name}")
    return data


def detect_remote(**settings: Any) -> Detection:
    return detect_changes(
        ModelStore("s3://bucket/store"),
        train_images="s3://bucket/set/images/",
        train_annotations="s3://bucket/set/boxes.json",
        **settings,
    )


def test_a_remote_set_is_compared_without_fetching_its_images(
    s3: Any, data: TinySet, cache: Path
) -> None:
    s3.put_bucket_versioning(Bucket="bucket", VersioningConfiguration={"Status": "Enabled"})
    upload(s3, data)
    found = detect_remote()
    assert found.is_changed
    assert found.train.annotations_version
    assert not list(cache.rglob("*.png"))
    train_on(ModelStore("s3://bucket/store"), found)
    assert not detect_remote().is_changed
    edit(data, add_boxes(1))
    upload(s3, data)
    again = detect_remote()
    assert again.changes == BoxChanges(1, 0, 0)
    assert again.train.annotations_version != found.train.annotations_version
    frozen = again.train.frozen_annotations_uri.removeprefix("s3://bucket/")
    assert s3.get_object(Bucket="bucket", Key=frozen)["Body"].read() == (
        data.annotations.read_bytes()
    )
    assert not detect_remote(quiet_period_s=3600).is_changed
    for version in s3.list_object_versions(Bucket="bucket")["Versions"]:
        s3.delete_object(Bucket="bucket", Key=version["Key"], VersionId=version["VersionId"])


@pytest.mark.parametrize("min_new_annotations", [1, 99], ids=["trains", "waits"])
def test_a_file_that_is_replaced_while_it_is_read_is_an_error_and_nothing_is_kept(
    min_new_annotations: int, s3: Any, data: TinySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(s3, data)

    def open_and_lose_a_race(uri: str, **images: str) -> AnnotationSource:
        source = open_annotations(uri, **images)
        edit(data, add_boxes(1))
        upload(s3, data)
        return source

    monkeypatch.setattr("mal.registry.changes.open_annotations", open_and_lose_a_race)
    with pytest.raises(StorageError, match="changed while it was read"):
        detect_remote(min_new_annotations=min_new_annotations)
    assert "Contents" not in s3.list_objects_v2(Bucket="bucket", Prefix="store/")


def test_the_parts_in_which_a_file_was_sent_do_not_matter(s3: Any, data: TinySet) -> None:
    document = data.document() | {"info": {"padding": "x" * MULTIPART_BYTES}}
    data.annotations.write_text(json.dumps(document))
    upload(s3, data)
    whole = detect_remote()
    content = data.annotations.read_bytes()
    place = {"Bucket": "bucket", "Key": "set/boxes.json"}
    started = s3.create_multipart_upload(**place)
    parts = [
        {
            "PartNumber": number,
            "ETag": s3.upload_part(
                **place, UploadId=started["UploadId"], PartNumber=number, Body=body
            )["ETag"],
        }
        for number, body in enumerate((content[:MULTIPART_BYTES], content[MULTIPART_BYTES:]), 1)
    ]
    s3.complete_multipart_upload(
        **place, UploadId=started["UploadId"], MultipartUpload={"Parts": parts}
    )
    assert "-2" in s3.head_object(**place)["ETag"]
    assert detect_remote().source_sha256 == whole.source_sha256


def test_a_remote_archive_is_neither_fetched_nor_unpacked(
    s3: Any, data: TinySet, cache: Path
) -> None:
    upload(s3, data)
    s3.put_object(Bucket="bucket", Key="set/images.tar.gz", Body=b"packed")
    found = detect_changes(
        ModelStore("s3://bucket/store"),
        train_images="s3://bucket/set/images.tar.gz",
        train_annotations="s3://bucket/set/boxes.json",
    )
    assert found.is_changed
    assert not list(cache.rglob("images*"))
