"""On an interrupt, lets the running steps end and starts no other.

If the run ended immediately, a training step would lose its last checkpoint to a broken pipe.
"""

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_EXIT_CODE_BASE = 128
_WAITING = (
    "interrupted: the running step writes its state and ends; interrupt again to end it sooner\n"
)


class RunInterruptedError(BaseException):
    """The run was interrupted; `exit_code` is the shell's code for the signal.

    It is not an Exception: kfp treats an Exception as the failure of a step, and continues.
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


class Interrupts:
    """Records the first signal, and ends the running processes.

    Steps run in their own sessions (see `_step_guard`), so that a signal to the terminal's process
    group reaches them only once, from here.
    """

    def __init__(self) -> None:
        self._exit_code: int | None = None
        self._num_starting = 0
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.RLock()  # the handler may run while the main thread holds it

    @property
    def is_requested(self) -> bool:
        """Whether a signal was received."""
        return self._exit_code is not None

    def take(self, number: int, _frame: FrameType | None) -> None:
        """Record the signal and end the running steps.

        Raises:
            RunInterruptedError: No step is running.
        """
        with self._lock:
            is_first = self._exit_code is None
            if self._exit_code is None:
                self._exit_code = _EXIT_CODE_BASE + number
            for process in self._running:
                process.terminate()
            if not is_first:
                return
            if not self._running and not self._num_starting:
                raise RunInterruptedError(self._exit_code)
        with contextlib.suppress(OSError):
            os.write(2, _WAITING.encode())  # not sys.stderr: it may be in use below this handler

    def raise_if_any(self) -> None:
        """Raise RunInterruptedError if a signal came."""
        if self._exit_code is not None:
            raise RunInterruptedError(self._exit_code)

    @contextlib.contextmanager
    def starting(self, command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
        """Start a process that ends with the run, and wait for its end.

        Raises:
            RunInterruptedError: A signal came before it was started; it was not.
        """
        with self._lock:
            self.raise_if_any()
            self._num_starting += 1
            try:
                process = subprocess.Popen(
                    command, encoding="utf-8", errors="replace", bufsize=1, **options
                )
                self._running.add(process)
            finally:
                self._num_starting -= 1
            if self.is_requested:
                process.terminate()
        try:
            yield process
        except BaseException:
            process.terminate()
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()  # who reads no more must not block it
            process.wait()
            with self._lock:
                self._running.discard(process)


@contextlib.contextmanager
def taking_interrupts() -> Iterator[Interrupts]:
    """Take SIGINT, SIGTERM and SIGHUP until the block ends; SIGHUP not where nohup ignores it."""
    interrupts = Interrupts()
    taken = [number for number in SIGNALS if not _is_ignored_hangup(number)]
    before = {number: signal.signal(number, interrupts.take) for number in taken}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_ignored_hangup(number: int) -> bool:
    return number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN
