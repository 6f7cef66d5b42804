"""`mal pipelines logs`: the logs of a run's steps, also after its pods are gone.

KFP's launcher uploads each step's log as the artifact `executor-logs`; since 2.17 it is
`executor-logs-N`, with the number of the try.
"""

import argparse
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from mal.errors import ArtifactError
from mal.storage import child_uri, fetch_file, list_files, redact_uri

from ._runs import add_run_options, read_run, run_folder

_LOG = re.compile(r"(?P<step>[^/]+)/(?P<salt>[^/]+)/executor-logs(-(?P<attempt>\d+))?$")


@dataclass(frozen=True, order=True)
class StepLog:
    """The log of one try of a step."""

    step: str
    attempt: int
    name: str


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser("logs", help="print the logs of a run's steps")
    parser.add_argument("run_id", metavar="RUN_ID")
    parser.add_argument("--step", default="", metavar="NAME", help="default: every step")
    add_run_options(parser)
    parser.set_defaults(command=_logs)


def _logs(options: argparse.Namespace) -> int:
    folder = run_folder(options, read_run(options, options.run_id))
    for log in find_logs(folder, options.step):
        sys.stdout.write(f"== {log.step}, try {log.attempt + 1}\n")
        text = fetch_file(child_uri(folder, log.name)).read_text("utf-8", errors="replace")
        sys.stdout.write(text if text.endswith("\n") else f"{text}\n")
    return 0


def find_logs(folder: str, step: str = "") -> list[StepLog]:
    """Return the logs in a run's folder, by step and try.

    Raises:
        ArtifactError: There is none.
        StorageError: The store cannot be read.
    """
    found = list(_logs_in(folder))
    chosen = sorted(log for log in found if not step or log.step == step)
    if not chosen:
        steps = ", ".join(sorted({log.step for log in found}))
        raise ArtifactError(
            f"{redact_uri(folder)} has no log{f' of {step}' if step else ''}. "
            + (f"There are logs of {steps}." if steps else "Did a step end? Is this the root?")
        )
    return chosen


def _logs_in(folder: str) -> Iterator[StepLog]:
    for name in list_files(folder):
        match = _LOG.search(name)
        if match:
            yield StepLog(match["step"], int(match["attempt"] or 0), name)
