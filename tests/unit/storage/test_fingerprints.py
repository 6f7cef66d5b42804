"""What a manifest says of an input."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import pytest

from mal.storage import describe_input, fetch_file, open_image_folder


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def put(s3: Any, key: str, body: bytes) -> str:
    s3.put_object(Bucket="bucket", Key=key, Body=body)
    return f"s3://bucket/{key}"


def zip_bytes(**files: bytes) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_a_local_file_is_told_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "boxes.json"
    path.write_bytes(b"{}")
    assert describe_input(str(path)) == {"uri": str(path), "sha256": sha256(b"{}")}


def test_a_fetched_object_is_told_by_the_content_that_was_fetched(s3: Any, cache: Path) -> None:
    uri = put(s3, "boxes.json", b"{}")
    fetch_file(uri)
    assert describe_input(uri) == {"uri": uri, "sha256": sha256(b"{}")}


def test_an_object_that_changed_since_it_was_fetched_has_no_hash(s3: Any, cache: Path) -> None:
    uri = put(s3, "boxes.json", b"old")
    fetch_file(uri)
    put(s3, "boxes.json", b"new")
    assert describe_input(uri) == {"uri": uri}


def test_a_fetched_archive_is_told_by_its_content_though_it_is_gone(s3: Any, cache: Path) -> None:
    content = zip_bytes(a=b"a")
    uri = put(s3, "images.zip", content)
    open_image_folder(uri)
    assert not list(cache.rglob("images.zip"))
    assert describe_input(uri) == {"uri": uri, "sha256": sha256(content)}


def test_folders_are_told_by_names_and_sizes_wherever_they_lie(
    s3: Any, cache: Path, tmp_path: Path
) -> None:
    for name, content in {"a.png": b"a", "sub/b.JPG": b"bb"}.items():
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        put(s3, f"set/{name}", content)
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    local, remote = describe_input(str(tmp_path / "images")), describe_input("s3://bucket/set")
    assert set(local) == set(remote) == {"uri", "sha256_of_listing"}
    assert local["sha256_of_listing"] == remote["sha256_of_listing"]
    (tmp_path / "images" / "a.png").write_bytes(b"aaa")
    assert describe_input(str(tmp_path / "images")) != local


@pytest.mark.parametrize("uri", ["timm:vit_base", "/absent/a.pth", "s3://bucket/gone/"])
def test_what_is_not_there_has_no_hash(uri: str, s3: Any, cache: Path) -> None:
    assert describe_input(uri) == {"uri": uri}
