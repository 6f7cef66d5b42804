"""Cached folders below a size limit: the longest unused goes, never one in use."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from mal.errors import StorageError
from mal.storage.limited import limited_folder


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache" / "features"


def use(key: str, *, num_bytes: int = 40, limit_bytes: int = 100) -> int:
    """Use a folder once; returns how often it was filled."""
    fills: list[Path] = []

    def fill(folder: Path) -> None:
        fills.append(folder)
        (folder / "a.npy").write_bytes(bytes(num_bytes))

    with limited_folder(key, fill, num_bytes=num_bytes, limit_bytes=limit_bytes) as folder:
        assert (folder / "a.npy").stat().st_size == num_bytes
    time.sleep(0.01)  # the order of use is told by the clock of the file system
    return len(fills)


def kept(cache_folder: Path) -> set[str]:
    return {path.name for path in cache_folder.iterdir() if path.is_dir()}


def test_a_folder_is_filled_once() -> None:
    assert [use("a"), use("a")] == [1, 0]


def test_the_longest_unused_make_room(cache_folder: Path) -> None:
    use("a")
    use("b")
    use("a")
    use("c")
    assert kept(cache_folder) == {"a", "c"}
    assert use("b") == 1
    assert kept(cache_folder) == {"b", "c"}


def test_several_go_for_a_large_one(cache_folder: Path) -> None:
    use("a")
    use("b")
    use("c", num_bytes=90)
    assert kept(cache_folder) == {"c"}


def test_a_failed_filling_leaves_nothing(cache_folder: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "a.npy").write_bytes(b"half")
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        limited_folder("a", fail, num_bytes=40, limit_bytes=100),
    ):
        pass
    assert list(cache_folder.iterdir()) == []
    assert use("a") == 1


def test_one_in_use_is_never_removed(cache_folder: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "a.npy").write_bytes(bytes(60))

    with limited_folder("held", fill, num_bytes=60, limit_bytes=100) as folder:
        with pytest.raises(StorageError, match=r"in use leave .* raise the limit"):
            use("b", num_bytes=60)
        assert use("small") == 1
        assert (folder / "a.npy").exists()
    assert use("b", num_bytes=60) == 1
    assert "held" not in kept(cache_folder)


def test_a_full_disk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="has no room for"):
        use("a", num_bytes=1 << 60, limit_bytes=1 << 61)


USING_PROCESS = """
import sys, time
from pathlib import Path
from mal.storage.limited import limited_folder

key, log, seconds = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])

def fill(folder):
    with log.open("a") as file:
        file.write(f"fill {key}\\n")
    time.sleep(0.3)
    (folder / "a.npy").write_bytes(bytes(60))

with limited_folder(key, fill, num_bytes=60, limit_bytes=100) as folder:
    print("ready", flush=True)
    time.sleep(seconds)
    assert (folder / "a.npy").stat().st_size == 60
"""


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.communicate()


def start(key: str, log: Path, seconds: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", USING_PROCESS, key, str(log), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"


def test_processes_that_start_together_fill_once(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    log = tmp_path / "log"
    processes += [start("same", log, 0) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert log.read_text() == "fill same\n"


def test_another_process_keeps_what_it_uses_until_it_ends_or_is_killed(
    tmp_path: Path, cache_folder: Path, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(start("theirs", tmp_path / "log", 600))
    wait_until_ready(processes[0])
    with pytest.raises(StorageError, match="in use"):
        use("mine", num_bytes=60)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait(60)
    assert use("mine", num_bytes=60) == 1
    assert kept(cache_folder) == {"mine"}


def test_what_a_killed_process_was_writing_is_removed(
    tmp_path: Path, cache_folder: Path, processes: list[subprocess.Popen[str]]
) -> None:
    log = tmp_path / "log"
    processes.append(start("theirs", log, 0))
    end_s = time.monotonic() + 60
    while not log.exists():
        assert time.monotonic() < end_s
        time.sleep(0.01)
    processes[0].send_signal(signal.SIGKILL)
    processes[0].wait(60)
    assert (cache_folder / "theirs.part").exists()
    assert use("mine", num_bytes=60) == 1
    assert {path.stem for path in cache_folder.iterdir()} == {"mine"}
