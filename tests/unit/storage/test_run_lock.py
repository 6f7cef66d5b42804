"""Who holds a results folder, and when it may be taken over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mal.errors import StorageError
from mal.storage import ResultsFolder, run_lock
from mal.storage.objects import write_object
from mal.storage.run_lock import LOCK_NAME, RemoteLock, holding_folder
from mal.storage.uris import RemoteUri

URI = "s3://bucket/runs/train"
KEY = f"runs/train/{LOCK_NAME}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of a tenth of a second; the ratios stay."""
    monkeypatch.setattr(run_lock, "BEAT_S", 0.1)
    monkeypatch.setattr(run_lock, "GONE_AFTER_S", 4.0)
    monkeypatch.setattr(run_lock, "READ_BACK_S", 0.2)
    monkeypatch.setattr(run_lock, "POLL_S", 0.1)


@pytest.fixture
def other_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ResultsFolder:
    """The same folder as another machine sees it."""
    here = os.environ["MAL_CACHE_DIR"]
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "other-machine"))
    folder = ResultsFolder(URI)
    monkeypatch.setenv("MAL_CACHE_DIR", here)
    return folder


def holder(s3: Any) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(s3.get_object(Bucket="bucket", Key=KEY)["Body"].read())
    return content


def put_holder(s3: Any, **facts: Any) -> None:
    content = {"host": "gone", "pid": 7, "started": "then", "token": "t", "beat": 3, **facts}
    s3.put_object(Bucket="bucket", Key=KEY, Body=json.dumps(content))


def keys(s3: Any) -> set[str]:
    return {entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket").get("Contents", ())}


def test_a_second_one_hears_who_holds_a_local_folder(tmp_path: Path) -> None:
    folder = ResultsFolder(str(tmp_path))
    with folder.held(), pytest.raises(StorageError) as refused, folder.held():
        pass
    assert f"process {os.getpid()} on {socket.gethostname()} since 20" in str(refused.value)
    with folder.held():
        pass
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_child_that_outlives_its_parent_holds_nothing(tmp_path: Path) -> None:
    ready, wait = os.pipe(), os.pipe()
    parent = os.fork()
    if parent == 0:
        with holding_folder(tmp_path, "x"):
            if os.fork() == 0:  # as a loader process
                os.write(ready[1], b"1")
                os.read(wait[0], 1)
                os._exit(0)
            time.sleep(600)
    os.read(ready[0], 1)
    try:
        with pytest.raises(StorageError), holding_folder(tmp_path, "x"):
            pass
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        with holding_folder(tmp_path, "x") as is_alone:
            assert is_alone
    finally:
        os.write(wait[1], b"1")


def test_a_remote_folder_is_held_by_an_object_that_goes_with_the_run(s3: Any) -> None:
    folder = ResultsFolder(URI)
    with folder.held():
        assert holder(s3)["pid"] == os.getpid()
        (folder.path / "a.txt").write_text("a")
        folder.upload()
        assert folder.restore() == []
    assert keys(s3) == {"runs/train/a.txt"}


def test_another_machine_is_told_who_holds_a_remote_folder(
    s3: Any, other_machine: ResultsFolder
) -> None:
    with (
        ResultsFolder(URI).held(),
        pytest.raises(StorageError, match=f"is held by process {os.getpid()} on"),
        other_machine.held(),
    ):
        pass
    with other_machine.held():
        pass


def test_a_holder_that_gives_no_sign_of_life_is_replaced(
    s3: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put_holder(s3)
    with caplog.at_level("INFO", "mal"), ResultsFolder(URI).held():
        assert holder(s3)["pid"] == os.getpid()
    assert "is held by process 7 on gone since then" in caplog.text
    assert "Waiting for another one" in caplog.text
    assert "taking it over" in caplog.text


def test_an_old_lock_is_taken_over_without_waiting(
    s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_holder(s3)
    monkeypatch.setattr(run_lock, "age_of_object_s", lambda _: 3600.0)
    with caplog.at_level("INFO", "mal"), ResultsFolder(URI).held():
        pass
    assert "waiting" not in caplog.text


def test_a_killed_run_of_this_machine_is_replaced_without_waiting(
    s3: Any, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ResultsFolder(URI).held():
        left = holder(s3)
    put_holder(s3, **left)
    with caplog.at_level("INFO", "mal"), ResultsFolder(URI).held():
        pass
    assert [entry.message for entry in caplog.records if entry.name.startswith("mal")] == []


def test_one_that_was_taken_for_dead_writes_nothing_more(s3: Any) -> None:
    folder = ResultsFolder(URI)
    with folder.held():
        put_holder(s3, host="successor")
        (folder.path / "a.txt").write_text("a")
        with pytest.raises(StorageError, match=r"has taken .* over: process 7 on successor"):
            folder.upload()
    assert keys(s3) == {KEY}
    assert holder(s3)["host"] == "successor"


def test_without_the_right_to_delete_the_lock_is_marked_as_given_back(
    s3: Any, other_machine: ResultsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: RemoteUri) -> None:
        raise StorageError("no right")

    with monkeypatch.context() as patch:
        patch.setattr(run_lock, "delete_object", refuse)
        with ResultsFolder(URI).held():
            pass
    assert holder(s3)["is_released"] is True
    with other_machine.held():
        pass


@pytest.fixture
def unconditional(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that lets every conditional write through."""

    def write(content: bytes, uri: RemoteUri, *, expected_etag: str) -> str:
        del expected_etag
        write_object(content, uri)
        return "written"

    monkeypatch.setattr(run_lock, "write_object_if", write)


def test_of_several_at_once_one_gets_the_lock_also_without_conditional_writes(
    s3: Any, tmp_path: Path, unconditional: None
) -> None:
    folder, ended = RemoteUri("s3", "bucket", "runs/train"), threading.Barrier(4)
    outcomes: list[bool] = []

    def take(number: int) -> None:
        staging = tmp_path / str(number)
        staging.mkdir()
        try:
            with RemoteLock(folder, staging, is_alone=True) as lock:
                ended.wait(30)
                lock.require_held()
                outcomes.append(True)
        except StorageError:
            outcomes.append(False)
            with contextlib.suppress(threading.BrokenBarrierError):
                ended.wait(30)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(outcomes) == [False, False, False, True]
