from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mal.errors import StorageError
from mal.storage import ResultsFolder, fetch_results, objects, results_folder
from mal.storage.objects import upload_object
from mal.storage.uris import RemoteUri

URI = "s3://bucket/runs/7/train"


def remote_files(s3: Any) -> dict[str, bytes]:
    entries = s3.list_objects_v2(Bucket="bucket").get("Contents", ())
    return {
        e["Key"].removeprefix("runs/7/train/"): s3.get_object(Bucket="bucket", Key=e["Key"])[
            "Body"
        ].read()
        for e in entries
    }


def write_run(folder: Path, epoch: int) -> None:
    name = f"mal_model_epoch_{epoch:03d}.pth"
    (folder / name).write_bytes(f"weights {epoch}".encode())
    latest = folder / "mal_model_latest.pth"
    latest.unlink(missing_ok=True)
    latest.symlink_to(name)
    with (folder / "status.json").open("a") as status:
        status.write(f"epoch {epoch}\n")


def test_a_local_folder_is_made_and_nothing_is_uploaded(tmp_path: Path) -> None:
    folder = ResultsFolder(str(tmp_path / "runs" / "train"))
    assert folder.path.is_dir()
    assert (folder.is_remote, folder.upload(), folder.restore()) == (False, 0, [])


def test_a_local_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="results_dir must be a folder that can be written"):
        ResultsFolder(str(tmp_path / "file" / "train"))


def test_links_are_uploaded_as_copies(s3: Any) -> None:
    folder = ResultsFolder(URI)
    assert folder.path.name == "train"
    write_run(folder.path, 1)
    (folder.path / "lightning_logs").mkdir()
    (folder.path / "lightning_logs" / "events").write_bytes(b"e")
    (folder.path / ".half.part").write_bytes(b"unfinished")
    assert folder.upload() == 4
    assert remote_files(s3) == {
        "mal_model_epoch_001.pth": b"weights 1",
        "mal_model_latest.pth": b"weights 1",
        "lightning_logs/events": b"e",
        "status.json": b"epoch 1\n",
    }


def test_only_what_changed_is_uploaded_again(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ResultsFolder(URI)
    write_run(folder.path, 1)
    folder.upload()
    assert ResultsFolder(URI).upload() == 0
    write_run(folder.path, 2)
    sent: list[str] = []

    def upload_and_note(path: Path, uri: RemoteUri) -> None:
        sent.append(path.name)
        upload_object(path, uri)

    monkeypatch.setattr(results_folder, "upload_object", upload_and_note)
    assert folder.upload() == 3
    assert sent == ["mal_model_epoch_002.pth", "status.json"]
    assert remote_files(s3)["mal_model_latest.pth"] == b"weights 2"


def test_what_was_deleted_remotely_is_uploaded_again(s3: Any) -> None:
    folder = ResultsFolder(URI)
    write_run(folder.path, 1)
    folder.upload()
    s3.delete_object(Bucket="bucket", Key="runs/7/train/status.json")
    assert folder.upload() == 1
    assert "status.json" in remote_files(s3)


def test_a_run_goes_on_on_another_machine(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ResultsFolder(URI)
    write_run(first.path, 1)
    first.upload()
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "other-machine"))
    second = ResultsFolder(URI)
    restored = second.restore(["mal_model_latest.pth", "status.json", "*.jsonl"])
    assert {path.name for path in restored} == {"mal_model_latest.pth", "status.json"}
    assert (second.path / "mal_model_latest.pth").read_bytes() == b"weights 1"
    write_run(second.path, 2)
    second.upload()
    assert remote_files(s3)["status.json"] == b"epoch 1\nepoch 2\n"
    assert remote_files(s3)["mal_model_latest.pth"] == b"weights 2"
    assert remote_files(s3)["mal_model_epoch_001.pth"] == b"weights 1"


def test_what_was_just_restored_is_not_uploaded_again(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ResultsFolder(URI)
    write_run(first.path, 1)
    first.upload()
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "other-machine"))
    second = ResultsFolder(URI)
    assert len(second.restore()) == 3
    assert second.restore() == []
    assert second.upload() == 0


@pytest.mark.parametrize(
    ("local_age_s", "expected"),
    [pytest.param(3600, b"remote", id="older"), pytest.param(-3600, b"local", id="younger")],
)
def test_the_younger_of_two_files_is_kept(s3: Any, local_age_s: int, expected: bytes) -> None:
    s3.put_object(Bucket="bucket", Key="runs/7/train/status.json", Body=b"remote")
    folder = ResultsFolder(URI)
    path = folder.path / "status.json"
    path.write_bytes(b"local")
    time_s = path.stat().st_mtime - local_age_s
    os.utime(path, (time_s, time_s))
    folder.restore()
    assert path.read_bytes() == expected


def test_two_uris_have_two_local_folders(s3: Any) -> None:
    assert ResultsFolder(URI).path == ResultsFolder(f"{URI}/").path
    assert ResultsFolder(URI).path != ResultsFolder("s3://bucket/runs/8/train").path


def test_a_missing_bucket_is_named(s3: Any) -> None:
    folder = ResultsFolder("s3://no-such-bucket/train")
    write_run(folder.path, 1)
    with pytest.raises(StorageError, match="s3://no-such-bucket/train"):
        folder.upload()


@pytest.mark.parametrize("is_remote", [True, False])
def test_finished_results_are_fetched_by_pattern(s3: Any, tmp_path: Path, is_remote: bool) -> None:
    folder = ResultsFolder(URI if is_remote else str(tmp_path / "run"))
    write_run(folder.path, 1)
    (folder.path / "logs").mkdir()
    (folder.path / "logs" / "events").touch()
    folder.upload()
    small = fetch_results(folder.uri, tmp_path / "small", ["status.json", "manifest.json"])
    assert small == {"status.json"}
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["status.json"]
    names = fetch_results(folder.uri, tmp_path / "all")
    assert names == {
        "logs/events",
        "mal_model_epoch_001.pth",
        "mal_model_latest.pth",
        "status.json",
    }
    assert (tmp_path / "all" / "mal_model_latest.pth").read_bytes() == b"weights 1"


def test_results_that_would_leave_the_folder_are_refused(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "evil").write_text("x")
    upload_object(tmp_path / "evil", RemoteUri("s3", "bucket", "runs/7/train/../../evil"))
    with pytest.raises(StorageError):
        fetch_results(URI, tmp_path / "a" / "b" / "all")
    assert not (tmp_path / "a" / "evil").exists()


def write_marked_run(folder: Path, run_id: str, epoch: int) -> None:
    write_run(folder, epoch)
    (folder / "run.json").write_text(f'{{"run_id": "{run_id}"}}')


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def set_aside(folder: ResultsFolder) -> set[str]:
    return {p.name for p in folder.path.parent.glob("set-aside-*/*")}


def delete_all(s3: Any) -> None:
    for entry in s3.list_objects_v2(Bucket="bucket").get("Contents", ()):
        s3.delete_object(Bucket="bucket", Key=entry["Key"])


def test_a_run_whose_remote_folder_was_deleted_is_gone_here_too(s3: Any) -> None:
    folder = ResultsFolder(URI)
    write_marked_run(folder.path, "a", 1)
    folder.upload()
    delete_all(s3)
    again = ResultsFolder(URI)
    again.adopt_remote_state()
    assert again.path == folder.path
    assert (names_in(again.path), set_aside(again)) == (set(), set())
    assert again.upload() == 0


def test_a_finished_run_that_could_never_be_uploaded_stays(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ResultsFolder(URI)
    write_marked_run(folder.path, "a", 1)

    def refuse(path: Path, uri: RemoteUri) -> None:
        raise StorageError(f"{uri}: 503")

    with monkeypatch.context() as patch:
        patch.setattr(results_folder, "upload_object", refuse)
        with pytest.raises(StorageError, match="503"):
            folder.upload()
    again = ResultsFolder(URI)
    again.adopt_remote_state()
    assert again.upload() == 4
    assert remote_files(s3)["mal_model_latest.pth"] == b"weights 1"


def test_what_was_not_uploaded_of_a_deleted_run_is_kept_out_of_the_way(
    s3: Any, caplog: pytest.LogCaptureFixture
) -> None:
    folder = ResultsFolder(URI)
    write_marked_run(folder.path, "a", 1)
    folder.upload()
    (folder.path / "mal_model_epoch_002.pth").write_bytes(b"weights 2")
    delete_all(s3)
    again = ResultsFolder(URI)
    with caplog.at_level("WARNING", "mal"):
        again.adopt_remote_state()
    assert names_in(again.path) == set()
    assert set_aside(again) == {"mal_model_epoch_002.pth"}
    assert "set-aside-" in caplog.text


def test_a_file_that_was_deleted_remotely_is_deleted_here_and_the_others_stay(s3: Any) -> None:
    folder = ResultsFolder(URI)
    write_marked_run(folder.path, "a", 1)
    write_marked_run(folder.path, "a", 2)
    folder.upload()
    s3.delete_object(Bucket="bucket", Key="runs/7/train/mal_model_epoch_001.pth")
    again = ResultsFolder(URI)
    again.adopt_remote_state()
    assert "mal_model_epoch_001.pth" not in names_in(again.path)
    assert again.upload() == 0
    assert (again.path / "mal_model_latest.pth").read_bytes() == b"weights 2"


def test_another_run_in_the_remote_folder_takes_the_place_of_the_one_here(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = ResultsFolder(URI)
    write_marked_run(here.path, "a", 1)
    here.upload()
    late = here.path / "mal_model_epoch_001.pth"
    os.utime(late, (late.stat().st_mtime + 9e5,) * 2)  # this machine's clock is ahead
    with monkeypatch.context() as patch:
        patch.setenv("MAL_CACHE_DIR", str(tmp_path / "other-machine"))
        there = ResultsFolder(URI)
        there.restore()
        there.remove(["*"])
        (there.path / "mal_model_epoch_001.pth").write_bytes(b"of b")
        (there.path / "run.json").write_text('{"run_id": "b"}')
        there.upload()
    again = ResultsFolder(URI)
    again.adopt_remote_state()
    again.restore()
    assert names_in(again.path) == {"run.json", "mal_model_epoch_001.pth"}
    assert late.read_bytes() == b"of b"


def test_removing_names_what_goes_and_touches_nothing_else(s3: Any) -> None:
    folder = ResultsFolder(URI)
    write_marked_run(folder.path, "a", 1)
    (folder.path / "notes.txt").write_text("mine")
    folder.upload()
    s3.put_object(Bucket="bucket", Key="runs/7/train/mal_model_epoch_000.pth", Body=b"elsewhere")
    folder.remove(["mal_model_*", "run.json", "status.json"])
    assert names_in(folder.path) == {"notes.txt"}
    assert set(remote_files(s3)) == {"notes.txt"}


def test_two_stores_with_a_bucket_of_the_same_name_have_two_local_folders(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ResultsFolder(URI).path
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    objects._client_of_process.cache_clear()
    assert ResultsFolder(URI).path != first
