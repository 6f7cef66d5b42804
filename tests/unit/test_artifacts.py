from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mal import artifacts
from mal.artifacts import (
    checkpoint_name,
    made_by,
    sha256_of_file,
    write_json,
    write_manifest,
    write_text,
    writing_atomically,
    writing_together,
)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_appears_whole_and_readable_for_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with writing_atomically(path) as temporary:
        temporary.write_text("half")
        assert not path.exists()
        assert temporary.parent == path.parent  # a rename across disks would copy
    assert path.read_text() == "half"
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()]
)
@pytest.mark.parametrize("old", [None, "old"])
def test_a_failure_leaves_what_was_there(
    error: BaseException, old: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    if old is not None:
        path.write_text(old)

    def fail() -> None:
        with writing_atomically(path) as temporary:
            temporary.write_text("half of it")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == (
        [] if old is None else [("a.txt", old)]
    )


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_a_full_disk_leaves_nothing_under_the_final_name(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if call == "write":
        monkeypatch.setattr(Path, "write_text", full_disk)
    else:
        monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a.txt", "text")
    assert list(tmp_path.iterdir()) == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from mal.artifacts import writing_together
with writing_together([Path("a"), Path("b")]) as (a, b):
    a.write_text("new")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_files_of_a_set_appear_together(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a", "b")]
    paths[0].write_text("old")
    with writing_together(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("new")
        assert paths[0].read_text() == "old"
        assert not paths[1].exists()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "new", "b": "new"}


@pytest.mark.parametrize(
    ("blocked", "error"),
    [("", ZeroDivisionError), ("b", IsADirectoryError)],
    ids=["an error between the files", "a folder of the last name"],
)
def test_a_set_that_is_not_finished_leaves_the_earlier_one(
    blocked: str, error: type[Exception], tmp_path: Path
) -> None:
    (tmp_path / "a").write_text("old")
    if blocked:
        (tmp_path / blocked).mkdir()

    def fail() -> None:
        with writing_together([tmp_path / "a", tmp_path / "b"]) as (first, second):
            first.write_text("new")
            second.write_text("new")
            if not blocked:
                raise ZeroDivisionError

    with pytest.raises(error):
        fail()
    assert {path.name for path in tmp_path.iterdir()} == {"a", *blocked}
    assert (tmp_path / "a").read_text() == "old"


def test_a_killed_writer_of_a_set_leaves_the_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    root = Path(__file__).parents[2]
    process = subprocess.run(
        [sys.executable, "-c", KILLED_WRITER],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert process.returncode == -signal.SIGKILL
    assert (tmp_path / "a").read_text() == "old"
    assert not (tmp_path / "b").exists()


def test_a_device_without_room_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")

    def fill() -> None:
        with writing_atomically(tmp_path / "a") as temporary:
            temporary.unlink()
            temporary.symlink_to("/dev/full")
            temporary.write_text("x" * 10_000)

    with pytest.raises(OSError, match="No space left"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_json_ends_with_a_newline_and_holds_no_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "b.json", float("nan"))
    assert not (tmp_path / "b.json").exists()


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1])
def test_the_hash_is_sha256_of_the_content(size: int, tmp_path: Path) -> None:
    content = b"a" * size
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_checkpoint_names_sort_by_step() -> None:
    names = [checkpoint_name(1, 90), checkpoint_name(2, 180), checkpoint_name(10, 900)]
    assert names[0] == "mal_model_epoch_001_step_00090.pth"
    assert names == sorted(names)


def test_the_manifest_describes_outputs_and_inputs(tmp_path: Path) -> None:
    results, labels = tmp_path / "results", tmp_path / "labels.json"
    labels.write_text("{}")
    (results / "lightning_logs").mkdir(parents=True)
    (results / "lightning_logs" / "events").write_text("abc")
    (results / "mal_model_1.pth").write_text("weights")
    (results / "mal_model_latest.pth").symlink_to("mal_model_1.pth")
    (results / "mal_model_best.pth").symlink_to("gone.pth")
    (results / "status.json").write_text("{}\n")
    (results / ".a.pth.x1.part").write_text("left by a kill")
    inputs = {"dataset.train_ann_path": {"uri": "boxes.json", "sha256": "5e"}}
    outside = [labels, results / "mal_model_1.pth", tmp_path / "gone"]
    path = write_manifest(results, action="train", inputs=inputs, outside=outside)
    assert path == results / "manifest.json"
    write_manifest(results, action="train", inputs=inputs, outside=outside)  # without itself
    manifest = json.loads(path.read_text())
    weights = {"size": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert manifest["action"] == "train"
    assert manifest["outputs"] == {
        "lightning_logs/events": {"size": 3, "sha256": hashlib.sha256(b"abc").hexdigest()},
        "mal_model_1.pth": weights,
        "mal_model_latest.pth": weights,
        str(labels): {"size": 2, "sha256": hashlib.sha256(b"{}").hexdigest()},
    }
    assert manifest["inputs"] == inputs
    assert {"python", "torch", "numpy"} <= set(manifest["versions"])


@pytest.mark.parametrize("failure", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 5)])
def test_the_manifest_needs_no_git(
    failure: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise failure

    monkeypatch.setattr(subprocess, "run", fail)
    manifest = json.loads(write_manifest(tmp_path, action="export", inputs={}).read_text())
    assert manifest["git_commit"] is None
    assert manifest["outputs"] == {}


def test_an_image_tells_its_commit_and_digest_and_a_checkout_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "site-packages"
    root.mkdir()
    installed = root / "mal" / "artifacts.py"
    monkeypatch.setattr(artifacts, "__file__", str(installed))
    monkeypatch.setenv("MAL_GIT_COMMIT", "0123abc")
    monkeypatch.setenv("MAL_IMAGE_DIGEST", "sha256:12ab")
    assert made_by() == {"git_commit": "0123abc", "image_digest": "sha256:12ab"}
    for name in ("MAL_GIT_COMMIT", "MAL_IMAGE_DIGEST"):
        monkeypatch.setenv(name, "")  # as an image has them that was built without git
    assert made_by() == {"git_commit": None, "image_digest": None}
    commands = (
        ("init", "--quiet"),
        ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "--allow-empty", "--message=a"),
    )
    for command in commands:
        subprocess.run(["git", "-C", root, *command], capture_output=True, check=True)
    head = next((root / ".git" / "refs" / "heads").iterdir()).read_text().strip()
    assert made_by()["git_commit"] == head
