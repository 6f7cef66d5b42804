"""A few lines of Python in two real processes that have joined each other."""

from __future__ import annotations

import sys
from pathlib import Path

from mal.distributed import NodeTopology
from mal.distributed.nodes import coordinated
from mal.distributed.workers import run_workers

JOINS = """
import json, os, pathlib, sys
import torch
from mal.distributed.group import broadcast_file_from_rank0, gather_values, max_of_ranks
from mal.distributed.group import process_group, broadcast_from_rank0
from mal.distributed.workers import Worker
from mal.errors import MalError
worker = Worker.current()
try:
    with process_group(worker, torch.device("cpu")):
        {work}
except MalError as error:
    pathlib.Path(sys.argv[1], f"error {{worker.rank}}").write_text(str(error))
    sys.exit(2)
"""


def run_ranks(work: str, folder: Path) -> None:
    """Run code that sees `worker`; `sys.argv[1]` is the folder, where errors are left as well."""
    code = JOINS.format(work=work.replace("\n", "\n        "))
    with coordinated(NodeTopology(devices_per_node=2)) as nodes:
        run_workers(nodes.topology, [sys.executable, "-c", code, str(folder)])
