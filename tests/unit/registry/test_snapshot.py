from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mal.errors import AnnotationError, ArtifactError, StorageError
from mal.registry.snapshot import DatasetManifest, read_dataset_manifest, snapshot_dataset

PREVIEWED_BYTES = 255


def write_set(folder: Path, *, num_images: int = 2, **fields: Any) -> tuple[str, str]:
    """Write images of one box each; return their folder and the JSON."""
    images = folder / "images"
    images.mkdir(parents=True)
    for number in range(num_images):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(images / f"{number}.png")
    document = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": 8, "height": 8} for n in range(num_images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [1, 1, 4, 4]} | fields
            for n in range(num_images)
        ],
    }
    (folder / "set.json").write_text(json.dumps(document))
    return str(images), str(folder / "set.json")


def take(images: str, annotations: str, **more: str) -> DatasetManifest:
    return snapshot_dataset(train_images=images, train_annotations=annotations, **more)


def test_a_set_is_counted(tmp_path: Path) -> None:
    images, annotations = write_set(tmp_path, num_images=3, segmentation=[[1, 1, 5, 1, 5, 5]])
    (tmp_path / "images" / "2.png").unlink()
    train = take(images, annotations).train
    assert (train.num_images, train.num_missing_images, train.num_boxes) == (3, 1, 3)
    assert (train.num_crowds, train.num_categories, train.has_masks) == (0, 1, True)
    assert train.image_bytes == sum(p.stat().st_size for p in (tmp_path / "images").iterdir())
    assert (train.images_uri, train.annotations_uri) == (images, annotations)


def test_an_unnamed_label_set_is_the_training_set(tmp_path: Path) -> None:
    manifest = take(*write_set(tmp_path))
    assert manifest.label == manifest.train
    assert manifest.val is None


def test_a_manifest_survives_its_file(tmp_path: Path) -> None:
    val_images, val_annotations = write_set(tmp_path / "val", num_images=1)
    label_images, label_annotations = write_set(tmp_path / "label", num_images=3)
    manifest = take(
        *write_set(tmp_path / "train"),
        val_images=val_images,
        val_annotations=val_annotations,
        label_images=label_images,
        label_annotations=label_annotations,
    )
    manifest.write(tmp_path / "manifest.json")
    assert read_dataset_manifest(tmp_path / "manifest.json") == manifest


def test_the_preview_of_a_manifest_tells_what_it_is(tmp_path: Path) -> None:
    take(*write_set(tmp_path)).write(tmp_path / "manifest.json")
    preview = (tmp_path / "manifest.json").read_bytes()[:PREVIEWED_BYTES].decode()
    assert '"summary": "train: 2 images, 2 boxes; label: train"' in preview
    assert "dataset_sha256" in preview


def test_the_digest_is_of_content_not_of_place_or_time(tmp_path: Path) -> None:
    first = take(*write_set(tmp_path / "here"))
    second = take(*write_set(tmp_path / "there"))
    assert first.dataset_sha256 == second.dataset_sha256


def test_a_folder_and_its_archive_have_one_digest(tmp_path: Path, cache: Path) -> None:
    images, annotations = write_set(tmp_path)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as packed:
        for path in Path(images).iterdir():
            packed.write(path, f"images/{path.name}")
    archived = take(str(tmp_path / "images.zip"), annotations)
    assert archived.dataset_sha256 == take(images, annotations).dataset_sha256


@pytest.mark.parametrize("changed", ["an image", "an annotation", "a missing image"])
def test_the_digest_changes_with(changed: str, tmp_path: Path) -> None:
    images, annotations = write_set(tmp_path)
    before = take(images, annotations).dataset_sha256
    if changed == "an image":
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "images" / "0.png")
    elif changed == "an annotation":
        text = Path(annotations).read_text()
        Path(annotations).write_text(text.replace("[1, 1, 4, 4]", "[1, 1, 4, 5]", 1))
    else:
        (tmp_path / "images" / "0.png").unlink()
    assert take(images, annotations).dataset_sha256 != before


def test_a_remote_set_is_pinned_without_fetching_its_images(
    s3: Any, tmp_path: Path, cache: Path
) -> None:
    images, annotations = write_set(tmp_path)
    s3.upload_file(annotations, "bucket", "set/train.json")
    for path in Path(images).iterdir():
        s3.upload_file(str(path), "bucket", f"set/images/{path.name}")
    remote = take("s3://bucket/set/images/", "s3://bucket/set/train.json")
    assert remote.train.image_bytes == take(images, annotations).train.image_bytes
    assert remote.train.num_missing_images == 0
    assert not list(cache.rglob("*.png"))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / "new.png")
    s3.upload_file(str(tmp_path / "new.png"), "bucket", "set/images/0.png")
    changed = take("s3://bucket/set/images/", "s3://bucket/set/train.json")
    assert changed.dataset_sha256 != remote.dataset_sha256


@pytest.mark.parametrize(
    ("fields", "rule"),
    [
        pytest.param(
            {"bbox": [1, 1, 0, 0]}, "train_annotations must have usable boxes", id="no boxes"
        ),
        pytest.param({"iscrowd": 1}, "train_annotations must have usable boxes", id="crowds only"),
    ],
)
def test_a_set_without_boxes_is_refused(fields: dict[str, Any], rule: str, tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=rule):
        take(*write_set(tmp_path, **fields))


def test_a_set_whose_images_are_all_missing_is_refused(tmp_path: Path) -> None:
    _, annotations = write_set(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(AnnotationError, match=r"train_images must hold .* none of 2 .*0\.png"):
        take(str(tmp_path / "empty"), annotations)


@pytest.mark.parametrize("given", ["val_images", "label_annotations"])
def test_half_a_part_is_refused(given: str, tmp_path: Path) -> None:
    part = given.partition("_")[0]
    with pytest.raises(AnnotationError, match=f"{part}_\\w+ must be set"):
        take(*write_set(tmp_path), **{given: str(tmp_path)})


def test_a_place_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="Cannot read the file"):
        take(str(tmp_path), str(tmp_path / "nowhere.json"))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"format_version": 2}', '{"format_version": 1, "splits": {"train": {}}}'],
)
def test_another_file_is_no_manifest(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"Run (that step|snapshot_dataset) again"):
        read_dataset_manifest(tmp_path / "manifest.json")
