"""Runs a step of a compiled pipeline: `python -m mal.kfp.components._run_step`.

It does what `kfp.dsl.executor_main` does, with the component of the image in place of a program in
the pipeline (`pipelines/_compact.py` says why).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import sys
from collections.abc import Sequence
from typing import Any

_MODULE = "mal.kfp.components._run_step"
_DIGEST_CHARS = 12

log = logging.getLogger(__name__)


def command_of(command: Sequence[str], arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return command and arguments of a step in place of kfp's own, which contain the program.

    The digest of the program keeps what kfp's command did for Kubeflow's cache: another program is
    another step.
    """
    digest = _digest(command[-1])
    return ["python3", "-m", _MODULE], [*arguments, "--program_digest", digest]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the step; return the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description=__doc__)
    parser.add_argument("--executor_input", required=True, help="JSON of Kubeflow Pipelines")
    parser.add_argument("--function_to_execute", required=True, help="name of the component")
    parser.add_argument("--program_digest", required=True, help="of the pipeline's component")
    options = parser.parse_args(arguments)

    from kfp.dsl.executor import Executor

    name = options.function_to_execute
    component = getattr(importlib.import_module(f".{name}.component", __package__), name)
    if _digest(_program_of(component)) != options.program_digest:
        log.warning(
            "the pipeline was compiled by another version of mal than that of the image, whose "
            "component %s runs; name the images of one version when you compile", name,
        )  # fmt: skip
    Executor(
        executor_input=json.loads(options.executor_input), function_to_execute=component
    ).execute()
    return 0


def _program_of(component: Any) -> str:
    program: str = component.component_spec.implementation.container.command[-1]
    return program


def _digest(program: str) -> str:
    return hashlib.sha256(program.encode()).hexdigest()[:_DIGEST_CHARS]


if __name__ == "__main__":
    sys.exit(main())
