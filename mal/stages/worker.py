"""One process of a distributed action: `mal.stages.launch` starts `python -m mal.stages.worker`."""

from __future__ import annotations

import logging
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from mal import stages
from mal.distributed.group import broadcast_from_rank0, process_group
from mal.distributed.workers import EXIT_EXPLAINED, Worker, end_with_parent
from mal.errors import MalError
from mal.runtime import Interrupted, choose_device, set_up_logging
from mal.spec import load_spec
from mal.stages.launch import WorkerFiles, result_as_json

EXIT_FAILED = 1


def main(arguments: Sequence[str]) -> int:
    """Run an action as one of its workers; return the exit code."""
    action, folder = arguments
    worker, files = Worker.current(), WorkerFiles(Path(folder))
    end_with_parent()
    # Python's own handler would run only after the process group's wait returns.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_up_logging()
    if not worker.is_rank0:
        logging.getLogger("mal").setLevel(logging.ERROR if worker.local_rank else logging.WARNING)
    try:
        _run(action, worker, files)
    except MalError as error:
        files.write_error(worker.rank, error)
        return EXIT_EXPLAINED
    except Interrupted as interrupt:
        return interrupt.exit_code
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED
    return 0


def leave(exit_code: int) -> NoReturn:
    """End the process. After an error a normal exit could wait for the process group forever."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if exit_code:
        os._exit(exit_code)
    sys.exit(0)


def _run(action: str, worker: Worker, files: WorkerFiles) -> None:
    spec = load_spec(action, files.spec_file)
    device = choose_device(spec, getattr(spec, action).gpu_ids)
    with process_group(worker, device):
        result: Any = getattr(stages, f"run_{action}")(spec)
        # Every node prints where rank 0 wrote the results.
        encoded = broadcast_from_rank0(result_as_json(result))
    if worker.local_rank == 0:
        files.write_result(encoded)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
