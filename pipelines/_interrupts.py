"""Let the running step end by itself when the run is interrupted.

Leaving the run at once would close the step's output under it, and a training step would lose its
last checkpoint to a broken pipe.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

_EXIT_CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


class RunInterruptedError(BaseException):
    """The run was asked to end; `exit_code` is the shell's for the signal."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Interrupts:
    """Which signal came, if any."""

    def __init__(self) -> None:
        self._exit_code: int | None = None

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Note the signal; pass SIGTERM on to the step. The terminal sends SIGINT to it itself.

        Raises:
            RunInterruptedError: No step is running, or this is the second signal.
        """
        steps = descendants_of(os.getpid())
        is_repeated = self._exit_code is not None
        self._exit_code = _EXIT_CODES[signal.Signals(number)]
        if number == signal.SIGTERM or is_repeated:
            for pid in steps:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
        if is_repeated or not steps:
            raise RunInterruptedError(self._exit_code)

    def raise_if_any(self) -> None:
        """Raise RunInterruptedError if a signal came."""
        if self._exit_code is not None:
            raise RunInterruptedError(self._exit_code)


@contextlib.contextmanager
def waiting_for_the_step() -> Iterator[Interrupts]:
    """Take SIGINT and SIGTERM until the block ends."""
    interrupts = Interrupts()
    before = {number: signal.signal(number, interrupts.take) for number in _EXIT_CODES}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def descendants_of(pid: int) -> list[int]:
    """Return the processes below one, from /proc; none where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may hold anything: the fields count from its last bracket.
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    found: list[int] = []
    pending = [pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found
