"""What a person sees of a local run: the lines of the steps, without the chatter of kfp.

kfp.local writes its own log and the output of every step to stdout. The two are told apart by form:
kfp's lines carry a clock, a step's are indented. Nothing is lost: `text` keeps every line.
"""

import io
import re
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

_MAX_KEPT_LINES = 500
_INDENT = "    "
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_RUNNER_LINE = re.compile(r"^\d\d:\d\d:\d\d\.\d{3} - (?P<level>[A-Z]+) - (?P<message>.*)$")
_STARTED = re.compile(r"^Executing task '(?P<step>[^']+)'")
_ENDED = re.compile(r"^Task '(?P<step>[^']+)' finished with status (?P<status>\w+)")
_EXECUTOR_LINE = re.compile(r"^\[KFP Executor [^]]+\]: ")


@dataclass
class StepRecord:
    """One step of a run; `lines` are the last ones that it wrote."""

    name: str
    started_s: float
    duration_s: float = 0.0
    status: str = "RUNNING"
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MAX_KEPT_LINES))


class StepLog(io.TextIOBase):
    """A stand-in for stdout during a run of kfp.local.

    Attributes:
        steps: Every step that was started, in order.
    """

    def __init__(
        self, shown: TextIO, *, num_steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps: list[StepRecord] = []
        self._shown = shown
        self._num_steps = num_steps
        self._clock = clock
        self._pending = ""
        self._everything: list[str] = []
        self._is_in_executor_input = False

    @property
    def text(self) -> str:
        """Everything that was written, without colours."""
        return "".join(f"{line}\n" for line in self._everything)

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._pending = (self._pending + text).split("\n")
        for line in lines:
            self._take(_ANSI.sub("", line))
        return len(text)

    def flush(self) -> None:
        self._shown.flush()

    def _take(self, line: str) -> None:
        self._everything.append(line)
        runner_line = _RUNNER_LINE.match(line)
        if runner_line:
            self._take_runner_line(runner_line["level"], runner_line["message"])
        elif self._running_step() is not None and line.startswith(_INDENT) and line.strip():
            self._take_step_line(line.removeprefix(_INDENT))

    def _take_runner_line(self, level: str, message: str) -> None:
        if started := _STARTED.match(message):
            self.steps.append(StepRecord(started["step"], self._clock()))
            self._is_in_executor_input = False
            total = f" of {self._num_steps}" if self._num_steps else ""
            self._show(f"\nstep {len(self.steps)}{total}: {started['step']}")
        elif ended := _ENDED.match(message):
            self._end_step(ended["step"], ended["status"])
        elif level in ("WARNING", "ERROR"):
            self._show(message)

    def _end_step(self, name: str, status: str) -> None:
        for step in reversed(self.steps):
            if step.name == name and step.status == "RUNNING":
                step.status = status
                step.duration_s = self._clock() - step.started_s
                return

    def _take_step_line(self, line: str) -> None:
        if _EXECUTOR_LINE.match(line):
            self._is_in_executor_input = line.endswith("Got executor_input:")
        elif self._is_in_executor_input:
            self._is_in_executor_input = line != "}"
        else:
            self.steps[-1].lines.append(line)
            self._show(f"  {line}")

    def _running_step(self) -> StepRecord | None:
        return self.steps[-1] if self.steps and self.steps[-1].status == "RUNNING" else None

    def _show(self, line: str) -> None:
        self._shown.write(f"{line}\n")
        self._shown.flush()
