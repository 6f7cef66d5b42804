from __future__ import annotations

import builtins
import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mal.errors import MissingExtraError, StorageError
from mal.storage import cache as cache_module
from mal.storage import fetch_file, objects
from mal.storage.stores import store_of
from mal.storage.uris import RemoteUri


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_local_file_is_returned_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("{}")
    assert fetch_file(str(path)) == path


@pytest.mark.parametrize("name", ["", "missing.json"], ids=["a folder", "nothing"])
def test_a_local_path_that_is_no_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="Cannot read the file"):
        fetch_file(str(tmp_path / name))


def test_an_object_is_fetched_once(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="bucket", Key="sets/train.json", Body=b"boxes")
    path = fetch_file("s3://bucket/sets/train.json")
    assert path.read_bytes() == b"boxes"
    assert path.name == "train.json"

    def refuse(*_: object) -> None:
        raise AssertionError("fetched twice")

    monkeypatch.setattr(cache_module, "download_object", refuse)
    assert fetch_file("s3://bucket/sets/train.json") == path


def test_a_changed_object_is_fetched_again(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"old")
    old = fetch_file("s3://bucket/a")
    s3.put_object(Bucket="bucket", Key="a", Body=b"new")
    new = fetch_file("s3://bucket/a")
    assert (old.read_bytes(), new.read_bytes()) == (b"old", b"new")


def test_a_damaged_cached_file_is_fetched_again(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"whole")
    fetch_file("s3://bucket/a").write_bytes(b"who")
    assert fetch_file("s3://bucket/a").read_bytes() == b"whole"


def test_minio_goes_to_the_endpoint_of_the_aws_variables(s3: Any) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"x")
    assert fetch_file("minio://bucket/a").read_bytes() == b"x"


@pytest.mark.parametrize("uri", ["s3://bucket/none.json", "s3://no-such-bucket/a"])
def test_a_missing_object_is_named(s3: Any, uri: str) -> None:
    with pytest.raises(StorageError, match=f"Cannot read {uri}: it does not exist"):
        fetch_file(uri)


def test_a_bucket_is_no_file(s3: Any) -> None:
    with pytest.raises(StorageError, match=r"it is a folder\. Give the key of one object"):
        fetch_file("s3://bucket/folder/")


def test_refused_credentials_are_named_but_not_repeated(s3: Any) -> None:
    from moto.core import set_initial_no_auth_action_count

    s3.put_object(Bucket="bucket", Key="a", Body=b"x")
    with pytest.raises(StorageError, match="the object store denied access") as caught:
        set_initial_no_auth_action_count(0)(fetch_file)("s3://bucket/a")
    assert "tester-secret" not in str(caught.value)


def test_no_credentials_at_all_are_named(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    objects._client_of_process.cache_clear()
    with pytest.raises(StorageError, match="no complete credentials are set"):
        fetch_file("s3://bucket/a")


def test_an_endpoint_out_of_reach_is_named_without_its_password(
    s3_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hush@127.0.0.1:9")
    monkeypatch.setattr(objects, "_MAX_ATTEMPTS", 1)
    with pytest.raises(StorageError, match=r"Could not connect .*AWS_ENDPOINT_URL") as caught:
        fetch_file("s3://bucket/a")
    assert "127.0.0.1:9" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_without_boto3_the_extra_is_named(
    s3_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_import = builtins.__import__

    def without_boto3(name: str, *rest: Any, **named: Any) -> Any:
        if name.partition(".")[0] in ("boto3", "botocore"):
            raise ModuleNotFoundError(name)
        return real_import(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_boto3)
    with pytest.raises(MissingExtraError, match=r"mal\[s3\]"):
        fetch_file("s3://bucket/a")


def test_a_short_download_is_an_error_and_leaves_nothing(
    s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"12345")
    client = objects._client_of(store_of(RemoteUri("s3", "bucket", "a")))
    monkeypatch.setattr(
        client, "download_file", lambda bucket, key, path, **_: Path(path).write_bytes(b"12")
    )
    with pytest.raises(StorageError, match="2 of 5 bytes arrived"):
        fetch_file("s3://bucket/a")
    assert files_below(cache) == []


def test_a_full_disk_leaves_nothing(s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"12345")

    def write_half(bucket: str, key: str, path: str, **_: object) -> None:
        Path(path).write_bytes(b"12")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        objects._client_of(store_of(RemoteUri("s3", "bucket", "a"))), "download_file", write_half
    )
    with pytest.raises(StorageError, match="No space left"):
        fetch_file("s3://bucket/a")
    assert files_below(cache) == []


def test_what_does_not_fit_is_refused_before_it_is_fetched(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"12345")
    usage = shutil.disk_usage(tmp_path)._replace(total=9, free=4)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="has no room for"):
        fetch_file("s3://bucket/a")


def test_a_cache_that_cannot_be_written_is_named(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"12345")
    (tmp_path / "a-file").touch()
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "a-file"))
    with pytest.raises(StorageError, match=r"cache folder .*a-file"):
        fetch_file("s3://bucket/a")


FETCHING_PROCESS = """
import sys, time
from pathlib import Path
from mal.storage import cache, fetch_file

download = cache.download_object
def slow_download(stored, path):
    with open(sys.argv[1], "a") as log:
        log.write("download\\n")
    time.sleep(0.5)
    download(stored, path)
cache.download_object = slow_download
print(fetch_file("s3://bucket/weights.pth").read_bytes().decode())
"""


def test_several_processes_fetch_an_object_once(s3: Any, cache: Path, tmp_path: Path) -> None:
    s3.put_object(Bucket="bucket", Key="weights.pth", Body=b"weights")
    log = tmp_path / "downloads.log"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", FETCHING_PROCESS, str(log)], stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert answers == ["weights"] * 3
    assert log.read_text().splitlines() == ["download"]
    assert [path.name for path in files_below(cache)] == ["weights.pth"]


def test_what_a_killed_process_left_is_removed(s3: Any, cache: Path) -> None:
    s3.put_object(Bucket="bucket", Key="a", Body=b"12345")
    path = fetch_file("s3://bucket/a")
    leftover = path.parent / ".a.xyz.part"
    leftover.write_bytes(b"123")
    fetch_file("s3://bucket/a")
    assert not leftover.exists()
