"""One process of an action that runs on several devices: `python -m mal.stages.worker`.

Started by `mal.stages.launch`, never by a person.
"""

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
from mal.distributed.group import joining, value_of_first
from mal.distributed.workers import EXIT_EXPLAINED, Worker, end_with_parent
from mal.errors import MalError
from mal.runtime import Interrupted, choose_device, set_up_logging
from mal.spec import load_spec
from mal.stages.launch import Exchange, result_as_json

EXIT_FAILED = 1


def main(arguments: Sequence[str]) -> int:
    """Run an action as one of its workers; returns the exit code."""
    action, folder = arguments
    worker, exchange = Worker.current(), Exchange(Path(folder))
    end_with_parent()
    # Python's own handler would wait for the end of whatever the process group waits for.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    set_up_logging()
    if not worker.is_first:
        logging.getLogger("mal").setLevel(logging.ERROR if worker.local_rank else logging.WARNING)
    try:
        _run(action, worker, exchange)
    except MalError as error:
        exchange.write_error(worker.rank, error)
        return EXIT_EXPLAINED
    except Interrupted as interrupt:
        return interrupt.exit_code
    except Exception:
        traceback.print_exc()
        return EXIT_FAILED
    return 0


def leave(exit_code: int) -> NoReturn:
    """End the process; after an error the process group might keep a usual end waiting."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if exit_code:
        os._exit(exit_code)
    sys.exit(0)


def _run(action: str, worker: Worker, exchange: Exchange) -> None:
    spec = load_spec(action, exchange.spec_file)
    device = choose_device(spec, getattr(spec, action).gpu_ids)
    with joining(worker, device):
        result: Any = getattr(stages, f"run_{action}")(spec)
        # Every node tells where the first one left the results.
        encoded = value_of_first(result_as_json(result))
    if worker.local_rank == 0:
        exchange.write_result(encoded)


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
