"""An absent store is waited for; what it refuses is not."""

import http.server
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mal.errors import StorageError, StoreAwayError
from mal.storage import (
    BackgroundUpload,
    ResultsFolder,
    background,
    impatient,
    objects,
    patience,
    patient,
    results_folder,
)
from mal.storage.patience import asking_again
from mal.storage.uris import RemoteUri, parse_remote_uri

WAIT_S = 60


@pytest.fixture(autouse=True)
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let no pause take time; yields how long each was."""
    clock_s = [0.0]
    found: list[float] = []

    def sleep(pause_s: float) -> None:
        found.append(pause_s)
        clock_s[0] += pause_s

    clock = SimpleNamespace(sleep=sleep, monotonic=lambda: 1 + clock_s[0])
    monkeypatch.setattr(patience, "time", clock)
    return found


def failing(num: int, error: type[StorageError] = StoreAwayError) -> Callable[[], str]:
    left = [num]

    def ask() -> str:
        if left[0]:
            left[0] -= 1
            raise error("Cannot read it.")
        return "answer"

    return ask


def test_an_absent_store_is_asked_again_with_growing_pauses(pauses: list[float]) -> None:
    with patient(600):
        assert asking_again(failing(6), "s3://bucket") == "answer"
    assert pauses == [1, 2, 4, 8, 15, 15]


def test_after_the_limit_the_error_names_the_key(pauses: list[float]) -> None:
    with patient(20), pytest.raises(StoreAwayError, match=r"for 20 s \(storage\.retry_s\)"):
        asking_again(failing(99), "s3://bucket")
    assert sum(pauses) == 20


def test_what_the_store_refuses_is_not_asked_again(pauses: list[float]) -> None:
    with patient(600), pytest.raises(StorageError):
        asking_again(failing(1, StorageError), "s3://bucket")
    assert pauses == []


def test_without_patience_or_in_an_impatient_thread_nothing_is_asked_again(
    pauses: list[float],
) -> None:
    with pytest.raises(StoreAwayError, match=r"^Cannot read it\.$"):
        asking_again(failing(1), "s3://bucket")
    with patient(600), impatient(), pytest.raises(StoreAwayError):
        asking_again(failing(1), "s3://bucket")
    assert pauses == []


def test_an_endless_wait_ends_with_the_outage(pauses: list[float]) -> None:
    with patient(float("inf")):
        assert asking_again(failing(100), "s3://bucket") == "answer"
    assert sum(pauses) > 1000


@pytest.fixture
def uploads(s3: Any, monkeypatch: pytest.MonkeyPatch) -> "Uploads":
    return Uploads(monkeypatch)


class Uploads:
    """A remote results folder whose uploads can be made to fail, and be waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.results = ResultsFolder("s3://bucket/run")
        self.error: StorageError | None = None
        self.ended = threading.Semaphore(0)
        upload = self.results.upload

        def upload_or_fail() -> int:
            try:
                if self.error is not None:
                    raise self.error
                return upload()
            finally:
                self.ended.release()

        monkeypatch.setattr(self.results, "upload", upload_or_fail)

    def wait(self) -> None:
        assert self.ended.acquire(timeout=WAIT_S)


def test_an_upload_that_failed_is_made_up_for_without_a_request(
    uploads: Uploads, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "RETRY_INTERVAL_S", 0.01)
    uploader = BackgroundUpload(uploads.results, interval_s=1e6)
    (uploads.results.path / "status.json").write_text("{}")
    uploads.error = StoreAwayError("away")
    uploader.start()
    uploader.request()
    uploads.wait()
    uploads.error = None
    while "Contents" not in s3.list_objects_v2(Bucket="bucket"):
        uploads.wait()
    uploader.close()
    uploader.request()
    assert s3.get_object(Bucket="bucket", Key="run/status.json")["Body"].read() == b"{}"


def test_records_are_uploaded_at_the_interval_without_a_request(uploads: Uploads) -> None:
    uploader = BackgroundUpload(uploads.results, interval_s=0.01)
    uploader.start()
    uploads.wait()
    uploads.wait()
    uploader.close()


def test_what_the_store_refuses_is_raised_where_the_work_is_done(uploads: Uploads) -> None:
    uploader = BackgroundUpload(uploads.results, interval_s=1e6)
    uploads.error = StorageError("denied")
    uploader.start()
    uploader.request()
    uploads.wait()
    uploader.close()
    with pytest.raises(StorageError, match="denied"):
        uploader.request()


def test_a_local_folder_has_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    uploader = BackgroundUpload(ResultsFolder(str(tmp_path)), interval_s=0.01)
    uploader.start()
    uploader.request()
    assert threading.active_count() == before
    uploader.close()


def test_a_retired_file_goes_from_the_store_after_its_successor_came(s3: Any, cache: Path) -> None:
    folder = ResultsFolder("s3://bucket/run")
    old, new, link = (folder.path / name for name in ("a.pth", "b.pth", "latest.pth"))
    old.write_text("old")
    link.symlink_to("a.pth")
    folder.upload()
    new.write_text("new")
    link.unlink()
    link.symlink_to("b.pth")
    folder.retire(old)
    assert not old.exists()
    folder.upload()
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket="bucket")["Contents"]]
    assert keys == ["run/b.pth", "run/latest.pth"]
    assert s3.get_object(Bucket="bucket", Key="run/latest.pth")["Body"].read() == b"new"


def test_a_store_slower_than_the_checkpoints_still_gets_one(
    s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ResultsFolder("s3://bucket/run")
    old, new, link = (folder.path / name for name in ("a.pth", "b.pth", "latest.pth"))
    old.write_text("old")
    link.symlink_to("a.pth")
    upload_object = objects.upload_object

    def upload_slowly(path: Path, uri: RemoteUri) -> None:
        if path == old:  # the next checkpoint is written meanwhile
            new.write_text("new")
            link.unlink()
            link.symlink_to("b.pth")
            folder.retire(old)
        upload_object(path, uri)

    def stored() -> dict[str, bytes]:
        listed = s3.list_objects_v2(Bucket="bucket")["Contents"]
        keys = [entry["Key"] for entry in listed]
        return {key: s3.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys}

    monkeypatch.setattr(results_folder, "upload_object", upload_slowly)
    folder.upload()
    assert stored() == {"run/a.pth": b"old", "run/latest.pth": b"old"}
    assert not old.exists()
    folder.upload()
    assert stored() == {"run/b.pth": b"new", "run/latest.pth": b"new"}


def test_a_folder_that_goes_while_it_is_listed_is_no_error(s3: Any, cache: Path) -> None:
    folder = ResultsFolder("s3://bucket/run")
    (folder.path / "kept.json").write_text("{}")
    is_over = threading.Event()

    def make_and_delete() -> None:
        while not is_over.is_set():
            (folder.path / "first" / "inner").mkdir(parents=True, exist_ok=True)
            shutil.rmtree(folder.path / "first")

    thread = threading.Thread(target=make_and_delete)
    thread.start()
    try:
        for _ in range(500):
            assert [path.name for path in folder._local_files()] == ["kept.json"]
    finally:
        is_over.set()
        thread.join()


def test_a_file_that_goes_while_it_is_uploaded_is_no_error(
    s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ResultsFolder("s3://bucket/run")
    (folder.path / "a.pth").write_text("a")
    listed = folder._local_files()
    folder.retire(folder.path / "a.pth")
    monkeypatch.setattr(folder, "_local_files", lambda: listed)
    assert folder.upload() == 0


class BrokenBody(http.server.BaseHTTPRequestHandler):
    """Announces an object of a mebibyte, and breaks the connection after a thousand bytes."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(1 << 20))
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")
        self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"x" * 1000)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_a_download_that_breaks_is_an_absent_store_and_no_local_fault(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("boto3")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), BrokenBody) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        uri = parse_remote_uri("s3://bucket/key")
        assert uri is not None
        with pytest.raises(StoreAwayError, match="Check that the store runs"):
            objects.download_object(objects.head_object(uri), tmp_path / "file")
        server.shutdown()


@pytest.mark.parametrize(
    ("status", "code", "is_busy"),
    [
        (503, "SlowDown", True),
        (400, "RequestTimeout", True),
        (400, "Throttling", True),
        (400, "InvalidArgument", False),
        (403, "AccessDenied", False),
    ],
)
def test_a_store_that_asks_to_come_back_is_not_a_refusal(
    status: int, code: str, is_busy: bool
) -> None:
    answer = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}
    assert objects._is_overloaded(answer) is is_busy
