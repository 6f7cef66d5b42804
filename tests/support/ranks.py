"""A few lines of Python in two real processes that have joined each other."""

from __future__ import annotations

import sys
from pathlib import Path

from mal.distributed import NodeTopology
from mal.distributed.nodes import meeting
from mal.distributed.workers import run_workers

JOINS = """
import json, os, pathlib, sys
import torch
from mal.distributed.group import file_of_first, gather_values, highest_of_ranks
from mal.distributed.group import joining, value_of_first
from mal.distributed.workers import Worker
from mal.errors import MalError
worker = Worker.current()
try:
    with joining(worker, torch.device("cpu")):
        {work}
except MalError as error:
    pathlib.Path(sys.argv[1], f"error {{worker.rank}}").write_text(str(error))
    sys.exit(2)
"""


def run_ranks(work: str, folder: Path) -> None:
    """Run code that sees `worker`; `sys.argv[1]` is the folder, where errors are left as well."""
    code = JOINS.format(work=work.replace("\n", "\n        "))
    with meeting(NodeTopology(devices_per_node=2)) as board:
        run_workers(board.topology, [sys.executable, "-c", code, str(folder)])
