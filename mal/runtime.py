"""What every action needs of the process: logging, devices, and stop signals."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mal.distributed.gpus import require_gpus_asked_for
from mal.distributed.group import max_of_ranks
from mal.distributed.workers import Worker
from mal.errors import SpecError
from mal.shown import printable

if TYPE_CHECKING:
    import torch

    from mal.spec.experiment import ExperimentSpec

SIGNAL_EXIT_BASE = 128
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


_requests: list[StopRequest] = []


class Interrupted(BaseException):
    """The process, or another process of its run, got a stop signal; `exit_code` is 130 or 143."""

    def __init__(self, signal_number: int) -> None:
        self.signal_number = signal_number
        self.exit_code = SIGNAL_EXIT_BASE + signal_number
        super().__init__(f"stopped by {signal.Signals(signal_number).name}")


class StopRequest:
    """Raises `Interrupted` on SIGINT and SIGTERM, immediately or after the current step.

    Attributes:
        is_deferred: If true, a first signal is only recorded, for the training loop to handle after
            its step; a second signal interrupts immediately.
        received: The recorded signal, of this process or of another process of its run.
    """

    def __init__(self) -> None:
        self.is_deferred = False
        self.received: int | None = None
        self._notice = ""
        self._num_own = 0

    def handle(self, signal_number: int, _frame: Any) -> None:
        """Record the signal, or interrupt."""
        self._num_own += 1
        if self.is_deferred and self._num_own == 1:
            self.received = self.received or signal_number
            os.write(2, self._notice.encode())  # a signal handler must not use buffered streams
            return
        raise Interrupted(signal_number)

    @contextmanager
    def deferring(self, notice: str = "") -> Iterator[None]:
        """Only record signals inside the block; write `notice` to stderr at the first one."""
        self.is_deferred, self._notice = True, notice
        try:
            yield
        finally:
            self.is_deferred, self._notice = False, ""

    def agree(self) -> bool:
        """Share a signal that any rank recorded with all ranks; returns whether there is one.

        A collective operation: all ranks must call it.
        """
        return self.agree_with(is_due=False)[0]

    def agree_with(self, *, is_due: bool) -> tuple[bool, bool]:
        """Share a signal, and whether something is due on any rank, in one operation.

        Returns:
            Whether there is a signal; whether it is due. A signal may hide what is due.
        """
        number, due = divmod(max_of_ranks(2 * (self.received or 0) + is_due), 2)
        if number and self.received is None:
            self.received = number
        return bool(number), bool(due)

    def take_signals(self) -> None:
        """Install the handlers (in a main thread), replacing those of libraries."""
        with contextlib.suppress(ValueError):
            for number in STOP_SIGNALS:
                signal.signal(number, self.handle)

    def raise_if_received(self) -> None:
        """Interrupt if a signal was recorded."""
        if self.received is not None:
            raise Interrupted(self.received)


@contextmanager
def handling_stop_signals() -> Iterator[StopRequest]:
    """Handle SIGINT and SIGTERM inside the block; only in a main thread."""
    request = StopRequest()
    _requests.append(request)
    previous = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    request.take_signals()
    try:
        yield request
    finally:
        _requests.remove(request)
        with contextlib.suppress(ValueError):
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def finishing(notice: str) -> Iterator[None]:
    """Let a first stop signal of the running action wait for the end of the block.

    Args:
        notice: Says on stderr what is waited for, when the signal arrives.
    """
    with _requests[-1].deferring(notice) if _requests else contextlib.nullcontext():
        yield


def choose_device(spec: ExperimentSpec, gpu_ids: list[int]) -> torch.device:
    """Return the device of this process; see `node_devices`."""
    return node_devices(spec, gpu_ids)[Worker.current().local_rank]


def node_devices(spec: ExperimentSpec, gpu_ids: list[int]) -> list[torch.device]:
    """Return the device of each process of this node.

    Args:
        spec: The experiment.
        gpu_ids: CUDA devices to use; if they are too few, the first devices of the node are used.

    Raises:
        SpecError: CUDA or one of the devices is not available, or the GPUs that the pod asked for.
    """
    import torch

    has_cuda = torch.cuda.is_available()
    if spec.device != "cpu" and not has_cuda:
        require_gpus_asked_for()
    if spec.device == "cuda" and not has_cuda:
        raise SpecError("device must be cpu without CUDA, got cuda. Set device=auto.")
    num_wanted = Worker.current().topology.devices_per_node
    if spec.device == "cpu" or not has_cuda:
        return [torch.device("cpu")] * num_wanted
    chosen = gpu_ids[:num_wanted] if len(gpu_ids) >= num_wanted else list(range(num_wanted))
    num_present = torch.cuda.device_count()
    if len(set(chosen)) < num_wanted or not all(0 <= index < num_present for index in chosen):
        raise SpecError(
            f"gpu_ids must name {num_wanted} devices from 0 to {num_present - 1}, got {chosen}. "
            "Set gpu_ids, or num_gpus (NUM_GPU_PER_NODE) to what the node has."
        )
    return [torch.device("cuda", index) for index in chosen]


class _PrintableFormatter(logging.Formatter):
    """Escapes control characters and removes secrets: names and values of files are logged."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def set_up_logging() -> None:
    """Log mal's messages as plain lines on stderr; silence messages of libraries."""
    root = logging.getLogger("mal")
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_PrintableFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
        root.addHandler(handler)
        root.setLevel(logging.INFO)
        root.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="PIL")  # of EXIF and size: images are read or named
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # of a class token
