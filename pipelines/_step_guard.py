"""A process between a local run and one of its steps, which ends the step when the run is gone.

It runs in its own session, so that signals to the run's process group do not reach it. It forwards
a signal only to the process that computes: a shell in between would die and leave it behind, and a
DataLoader worker that dies ends its training. When the run is gone, it sends SIGTERM to the step
and continues to read its output: otherwise a broken pipe would cost the step its checkpoint.

Stdlib only, run as a file with `python -I -S`: it costs a step 20 ms.
"""

import argparse
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from types import FrameType

EXECUTOR_ARGUMENT = "kfp.dsl.executor_main"
POLL_INTERVAL_S = 0.2
ORPHAN_GRACE_S = 120.0
_MAX_POLITE_SIGNALS = 2
_CHUNK_BYTES = 1 << 16
_SHELL_SIGNAL_BASE = 128


class Guard:
    """Runs and ends the process of a step.

    Args:
        run_pid: The process of the run.
        log_file: Gets the output of the step after the run has ended.
    """

    def __init__(self, run_pid: int, log_file: Path) -> None:
        self._run_pid = run_pid
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._num_signals = 0
        self._kill_at_s: float | None = None
        self._output: int | None = sys.stdout.fileno()

    def take(self, _number: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Send SIGTERM to the step; from the third call on, kill it."""
        self._num_signals += 1
        if self._process is None:
            return
        if self._num_signals > _MAX_POLITE_SIGNALS:
            self._end_session(signal.SIGKILL)
            return
        for pid in computing_processes(self._process.pid):
            _send(pid, signal.SIGTERM)

    def run(self, command: list[str]) -> int:
        """Run the step to its end; returns its exit code as a shell does."""
        signal.signal(signal.SIGTERM, self.take)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)  # the step would inherit SIG_IGN
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        if self._num_signals:
            self.take()
        self._pass_output_on(self._process)
        code = self._process.wait()
        self._end_session(signal.SIGKILL)
        return _SHELL_SIGNAL_BASE - code if code < 0 else code

    def _pass_output_on(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        pipe: int | None = process.stdout.fileno()
        while True:
            self._check_run()
            ready = select.select([pipe], [], [], POLL_INTERVAL_S)[0] if pipe is not None else []
            if ready and pipe is not None:
                chunk = os.read(pipe, _CHUNK_BYTES)
                self._write(chunk)
                if not chunk:
                    pipe = None
            elif process.poll() is not None:  # a process that the step left may hold the pipe
                return
            elif pipe is None:
                time.sleep(POLL_INTERVAL_S)

    def _check_run(self) -> None:
        if os.getppid() == self._run_pid:
            return
        if self._kill_at_s is None:
            self._kill_at_s = time.monotonic() + ORPHAN_GRACE_S
            self._output = None
            self._write(b"the run has ended: the step writes its state and ends\n")
            self.take()
        elif time.monotonic() > self._kill_at_s:
            self._end_session(signal.SIGKILL)

    def _write(self, chunk: bytes) -> None:
        if self._output is not None:
            try:
                while chunk:
                    chunk = chunk[os.write(self._output, chunk) :]
                return
            except OSError:  # the run has ended
                self._output = None
        with contextlib.suppress(OSError), self._log_file.open("ab") as log:
            log.write(chunk)

    def _end_session(self, number: int) -> None:
        """Signal every process of the step's session."""
        own = os.getpid()
        for pid in _processes():
            with contextlib.suppress(OSError):
                if pid != own and os.getsid(pid) == own:
                    _send(pid, number)
        if self._process is not None and self._process.poll() is None:
            _send(self._process.pid, number)


def computing_processes(pid: int) -> list[int]:
    """Return the executor that a step's shell has started; without one, the shell and its children.

    Forked children of the executor have the same arguments: the topmost process is returned.
    """
    everyone = [pid, *descendants_of(pid)]
    executor = next((each for each in everyone if EXECUTOR_ARGUMENT in _arguments_of(each)), None)
    return everyone if executor is None else [executor]


def descendants_of(pid: int) -> list[int]:
    """Return the descendants of a process, parents first, from /proc; empty without /proc."""
    children: dict[int, list[int]] = {}
    for each in _processes():
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{each}/stat").read_text(errors="replace")
            # The name in brackets may contain brackets: the other fields follow the last one.
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(each)
    found: list[int] = []
    pending = [pid]
    while pending:
        below = children.get(pending.pop(0), [])
        found += below
        pending += below
    return found


def _processes() -> Iterable[int]:
    return (int(path.name) for path in Path("/proc").glob("[0-9]*"))


def _arguments_of(pid: int) -> list[str]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
    return []


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def main(arguments: list[str]) -> int:
    """Guard one step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--run-pid", type=int, required=True)
    parser.add_argument("--log-file", type=Path, required=True)
    parser.add_argument("command", nargs="+")
    options = parser.parse_args(arguments)
    return Guard(options.run_pid, options.log_file).run(options.command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
