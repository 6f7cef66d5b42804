from __future__ import annotations

import datetime
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mal.errors import StorageError
from mal.storage import describe_images, find_image, image_folder, open_image_folder
from mal.storage.cache import fetch_object
from mal.storage.objects import StoredObject
from mal.storage.uris import RemoteUri


def put(s3: Any, **objects: bytes) -> None:
    for key, body in objects.items():
        s3.put_object(Bucket="bucket", Key=key, Body=body)


def contents_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def zip_of(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content)
    return path


def test_a_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert open_image_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        pytest.param("nowhere", "does not exist", id="nothing there"),
        pytest.param("a.rar", "must be a folder or one of", id="another archive"),
        pytest.param("", "must be given", id="no source"),
    ],
)
def test_an_unusable_source_is_named(name: str, rule: str, tmp_path: Path) -> None:
    (tmp_path / "a.rar").touch()
    with pytest.raises(StorageError, match=rule):
        open_image_folder(str(tmp_path / name) if name else "")


def test_a_bucket_folder_becomes_a_local_one(s3: Any, cache: Path) -> None:
    put(s3, **{"set/a.jpg": b"a", "set/sub/b.PNG": b"b"})
    put(s3, **{"set/train.json": b"{}", "setter/c.jpg": b"c"})
    folder = open_image_folder("s3://bucket/set/")
    assert contents_of(folder) == {"a.jpg": b"a", "sub/b.PNG": b"b"}
    assert open_image_folder("s3://bucket/set") == folder


def test_of_a_changed_bucket_folder_only_the_new_is_fetched(
    s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, **{"set/a.jpg": b"a", "set/b.jpg": b"b"})
    old = open_image_folder("s3://bucket/set")
    put(s3, **{"set/b.jpg": b"changed"})
    fetched: list[str] = []

    def fetch_and_note(stored: StoredObject, path: Path) -> None:
        fetched.append(stored.uri.key)
        fetch_object(stored, path)

    monkeypatch.setattr(image_folder, "fetch_object", fetch_and_note)
    new = open_image_folder("s3://bucket/set")
    assert fetched == ["set/b.jpg"]
    assert contents_of(new) == {"a.jpg": b"a", "b.jpg": b"changed"}
    assert contents_of(old) == {"a.jpg": b"a", "b.jpg": b"b"}


def test_a_bucket_folder_without_images_is_refused(s3: Any) -> None:
    put(s3, **{"set/train.json": b"{}"})
    with pytest.raises(StorageError, match="holds no images"):
        open_image_folder("s3://bucket/set")


def test_a_key_that_climbs_out_is_refused(cache: Path) -> None:
    uri = RemoteUri("s3", "bucket", "set/../../x.jpg")
    listed = [StoredObject(uri, 1, "etag", datetime.datetime.now(datetime.UTC))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image_folder, "list_objects", lambda _: listed)
        patch.setattr(image_folder, "fetch_object", lambda stored, path: None)
        with pytest.raises(StorageError, match="leads out of its folder"):
            open_image_folder("s3://bucket/set")


def test_a_remote_archive_is_fetched_and_unpacked(s3: Any, tmp_path: Path, cache: Path) -> None:
    archive = zip_of(tmp_path / "set.zip", {"val/a.jpg": b"a"})
    put(s3, **{"sets/set.zip": archive.read_bytes()})
    folder = open_image_folder("s3://bucket/sets/set.zip")
    found = find_image(folder, "a.jpg")
    assert found is not None
    assert found.read_bytes() == b"a"
    assert open_image_folder("s3://bucket/sets/set.zip") == folder
    assert not list(cache.rglob("set.zip"))


@pytest.mark.parametrize(
    ("files", "file_name", "expected"),
    [
        pytest.param(["a.jpg"], "a.jpg", "a.jpg", id="plain"),
        pytest.param(["sub/a.jpg", "b.jpg"], "sub/a.jpg", "sub/a.jpg", id="in a folder"),
        pytest.param(["images/a.jpg"], "a.jpg", "images/a.jpg", id="wrapped"),
        pytest.param(["images/a.jpg"], "images/a.jpg", "images/a.jpg", id="wrapped and named so"),
        pytest.param(["set/images/a.jpg"], "a.jpg", "set/images/a.jpg", id="wrapped twice"),
        pytest.param(["images/a.jpg", "b.jpg"], "a.jpg", None, id="not the only folder"),
        pytest.param(["a.jpg"], "c.jpg", None, id="missing"),
        pytest.param(["a.jpg"], "./a.jpg", "a.jpg", id="dotted"),
    ],
)
def test_an_image_is_found_by_its_coco_name(
    files: list[str], file_name: str, expected: str | None, tmp_path: Path
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_image(tmp_path, file_name)
    assert found == (tmp_path / expected if expected else None)


def test_images_of_a_folder_and_of_its_archive_are_described_alike(
    tmp_path: Path, cache: Path
) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(b"abc")
    archive = zip_of(tmp_path / "set.zip", {"images/a.jpg": b"abc"})
    of_folder = describe_images(str(tmp_path / "images"), ["a.jpg", "missing.jpg"])
    assert of_folder == describe_images(str(archive), ["a.jpg", "missing.jpg"])
    assert of_folder["a.jpg"].size == 3
    assert of_folder["a.jpg"].checksum.startswith("sha256:")
    assert list(of_folder) == ["a.jpg"]


def test_a_bucket_folder_is_described_without_being_fetched(s3: Any, cache: Path) -> None:
    put(s3, **{"set/images/a.jpg": b"abc", "set/images/b.jpg": b"b"})
    images = describe_images("s3://bucket/set", ["a.jpg", "images/b.jpg", "missing.jpg"])
    assert {name: image.size for name, image in images.items()} == {"a.jpg": 3, "images/b.jpg": 1}
    assert images["a.jpg"].checksum.startswith("etag:")
    assert not cache.exists()
