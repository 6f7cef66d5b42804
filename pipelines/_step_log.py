"""The output of a local run: the lines of the steps, without kfp's own messages.

kfp.local writes its log and the output of every step to stdout. Its own lines start with a time.
Parallel steps are distinguished by kfp's thread, which writes both the step's output and the
messages about its start and end. Every line is also written to the log of the run.
"""

import contextlib
import io
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TextIO
from unittest import mock

_MAX_KEPT_LINES = 500
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RUNNER_LINE = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} - (?P<level>[A-Z]+) - (?P<message>.*)$")
_STARTED = re.compile(r"^Executing task '(?P<step>[^']+)'")
_ENDED = re.compile(r"^Task '(?P<step>[^']+)' finished with status (?P<status>\w+)")
_EXECUTOR_LINE = re.compile(r"^\[KFP Executor [^]]+\]: ")


@dataclass
class StepRecord:
    """One step of a run, with its last output lines."""

    name: str
    started_s: float
    duration_s: float = 0.0
    status: str = "RUNNING"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT_LINES))


@dataclass
class _Writer:
    """A writing thread: its unfinished line and its step."""

    pending: str = ""
    number: int = 0
    step: StepRecord | None = None
    is_in_executor_input: bool = False


class StepLog(io.TextIOBase):
    """Replaces stdout during a run of kfp.local.

    Args:
        shown: The stream for people; the run continues if it is closed.
        num_steps: Number of steps; 0 if unknown.
        kept: Gets everything that is written, without colours.
        is_stopping: While it returns true, kfp's messages about started steps are ignored.
        clock: Returns seconds.

    Attributes:
        steps: The started steps, in order.
    """

    def __init__(
        self,
        shown: TextIO,
        *,
        num_steps: int,
        kept: TextIO | None = None,
        is_stopping: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.steps: list[StepRecord] = []
        self._shown: TextIO | None = shown
        self._kept = kept
        self._is_stopping = is_stopping
        self._num_steps = num_steps
        self._clock = clock
        self._writers: dict[int, _Writer] = {}
        self._lock = threading.Lock()

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        with self._lock:
            writer = self._writers.setdefault(threading.get_ident(), _Writer())
            *lines, writer.pending = (writer.pending + text).split("\n")
            for line in lines:
                self._take(_ANSI.sub("", line), writer)
        return len(text)

    def flush(self) -> None:
        """Do nothing: every line is flushed as it is shown."""

    def _take(self, line: str, writer: _Writer) -> None:
        if self._kept is not None:
            try:
                self._kept.write(f"{line}\n")
                self._kept.flush()
            except OSError:  # a full disk must not end steps that write nothing
                self._kept = None
        runner_line = _RUNNER_LINE.match(line)
        if runner_line:
            self._take_runner_line(runner_line["level"], runner_line["message"], writer)
        elif writer.step is not None and line.strip():
            self._take_step_line(line, writer.step, writer)

    def _take_runner_line(self, level: str, message: str, writer: _Writer) -> None:
        if started := _STARTED.match(message):
            if self._is_stopping():
                return
            writer.step = StepRecord(started["step"], self._clock())
            writer.is_in_executor_input = False
            self.steps.append(writer.step)
            writer.number = len(self.steps)
            total = f" of {self._num_steps}" if self._num_steps else ""
            self._show(f"\nstep {writer.number}{total}: {started['step']}")
        elif (ended := _ENDED.match(message)) and writer.step is not None:
            writer.step.status = ended["status"]
            writer.step.duration_s = self._clock() - writer.step.started_s
            writer.step = None
        elif level in ("WARNING", "ERROR"):
            self._show(message)

    def _take_step_line(self, line: str, step: StepRecord, writer: _Writer) -> None:
        if _EXECUTOR_LINE.match(line):
            writer.is_in_executor_input = line.endswith("Got executor_input:")
        elif writer.is_in_executor_input:
            writer.is_in_executor_input = line != "}"
        else:
            step.lines.append(line)
            is_alone = sum(step.status == "RUNNING" for step in self.steps) == 1
            self._show(f"  {line}" if is_alone else f"  {writer.number}: {line}")

    def _show(self, line: str) -> None:
        if self._shown is None:
            return
        try:
            self._shown.write(f"{line}\n")
            self._shown.flush()
        except OSError:
            self._shown = None


@contextlib.contextmanager
def writing_to(log: StepLog) -> Iterator[None]:
    """Send everything that kfp.local prints and logs to `log`.

    For each step kfp replaces `print` and the handlers of the root logger and restores them
    afterwards, which is wrong for parallel steps. So its handler is set up once, and lines are not
    indented.
    """
    from kfp.local import logging_utils

    with (
        contextlib.redirect_stdout(log),
        logging_utils.local_logger_context(),
        mock.patch.multiple(
            logging_utils,
            local_logger_context=contextlib.nullcontext,
            indented_print=contextlib.nullcontext,
        ),
    ):
        yield
