"""The folder of a local run, and the folders of other runs of its pipeline."""

import contextlib
import datetime
import fcntl
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RUN_LOG = "run.log"
_RUN_LOCK = ".run.lock"
_TIME_FORMAT = "%Y-%m-%d-%H-%M-%S-%f"
_TIME_PATTERN = r"\d{4}(?:-\d\d){5}-\d{6}"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run, `<output>/<pipeline>-<time>`; `pipeline_name` is kfp's."""

    path: Path
    pipeline_name: str

    @property
    def log_file(self) -> Path:
        """Everything that the run prints."""
        return self.path / RUN_LOG

    def earlier(self) -> list[Path]:
        """Return the folders of the other runs of this pipeline in this output, newest first."""
        name = re.compile(f"{re.escape(self.pipeline_name)}-{_TIME_PATTERN}")
        beside = (each for each in self.path.parent.iterdir() if name.fullmatch(each.name))
        return sorted((each for each in beside if each != self.path), reverse=True)

    def without_run_folders(self, content: bytes) -> bytes:
        """Replace the paths of run folders by one word, for comparisons between runs."""
        prefix = re.escape(f"{self.path.parent}/{self.pipeline_name}-")
        return re.sub(f"{prefix}{_TIME_PATTERN}".encode(), b"<run>", content)


@contextlib.contextmanager
def making_run_folder(pipeline_name: str, output_dir: Path) -> Iterator[RunFolder]:
    """Create a folder with a unique name, and hold its lock."""
    output_dir.mkdir(parents=True, exist_ok=True)
    while True:
        time = datetime.datetime.now().strftime(_TIME_FORMAT)
        path = output_dir / f"{pipeline_name}-{time}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            break
    lock = open_lock(path / _RUN_LOCK)
    try:
        yield RunFolder(path, pipeline_name)
    finally:
        if lock is not None:
            os.close(lock)


def is_run_alive(folder: Path) -> bool:
    """Whether the process of a run exists."""
    if not (folder / _RUN_LOCK).exists():
        return False
    lock = open_lock(folder / _RUN_LOCK)
    if lock is None:
        return True
    os.close(lock)
    return False


def open_lock(path: Path) -> int | None:
    """Lock a file; returns its descriptor, or None if another process holds the lock.

    The kernel releases the lock when the last process with the descriptor ends, for whatever
    reason. A file system without locks counts as locked, so that runs share nothing there.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor
