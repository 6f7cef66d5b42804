"""A local run as a process that a test watches, signals and kills."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mal.kfp.pipelines._step_guard import descendants_of

REPOSITORY = Path(__file__).parents[2]
SMALL_PIPELINES = str(Path(__file__).with_name("small_pipelines.py"))
# Longer than anything takes on a busy machine: what is waited for comes, or the test is wrong.
PATIENCE_S = 240.0


def wait_until(is_so: Callable[[], bool], what: str) -> None:
    """Wait for something that another process does."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    """Whether a process is there, and is not one that its init has yet to reap."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclass
class RunningRun:
    """A run of a pipeline, in a process group of its own as a terminal gives it.

    Attributes:
        process: Of the run.
        output: What it prints, both streams.
    """

    process: subprocess.Popen[bytes]
    output: Path

    @property
    def printed(self) -> str:
        """What it has printed so far."""
        return self.output.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until it prints something."""
        wait_until(
            lambda: text in self.printed or self.process.poll() is not None, f"{text} is printed"
        )
        assert text in self.printed, self.printed

    def send(self, number: int, *, to_group: bool) -> None:
        """Signal the run alone, or all that a terminal would."""
        (os.killpg if to_group else os.kill)(self.process.pid, number)

    def end(self) -> int:
        """Wait for its end; returns its exit code."""
        return self.process.wait(PATIENCE_S)

    def descendants(self) -> list[int]:
        """Return the processes of the run that are there now."""
        return descendants_of(self.process.pid)


@contextlib.contextmanager
def start_run(
    command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> Iterator[RunningRun]:
    """Start `python <command>` in the repository; it is killed if the test leaves it running."""
    with output.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=REPOSITORY,
            env={
                **os.environ,
                "PYTHONPATH": str(REPOSITORY),
                "COLUMNS": "100",
                **(environment or {}),
            },
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    running = RunningRun(process, output)
    try:
        yield running
    finally:
        left = [] if process.poll() is not None else [process.pid, *running.descendants()]
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def run_to_end(
    command: Sequence[str], output: Path, environment: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Run `python <command>`; returns exit code and what it printed."""
    with start_run(command, output, environment) as running:
        return running.end(), running.printed
