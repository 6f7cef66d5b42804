"""Run a pipeline on this machine with kfp.local: no cluster, no container, every step a process."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from mal.errors import MalError
from mal.steps.step import ERROR_PREFIX

from ._interrupts import taking_interrupts
from ._registry import Pipeline
from ._run_folder import RunFolder, making_run_folder
from ._step_log import StepLog, StepRecord, writing_to
from ._step_process import StepRunner, ignoring_retries, repeatable_steps

LATEST_LINK = "latest"
_TRACEBACK = "Traceback (most recent call last):"
_EXTENSIONS = {"system.HTML": ".html", "system.Markdown": ".md"}


class StepFailedError(MalError):
    """A step failed with a user error; the message is the step's."""


class StepCrashedError(RuntimeError):
    """A step failed with an unexpected exception, whose traceback was printed as it ran."""


@dataclass(frozen=True)
class LocalRun:
    """A finished run.

    Attributes:
        folder: `<output>/<pipeline>-<time>`, with a folder per step and links to the outputs.
        steps: The steps in the order of their start.
        outputs: Path of each output of the pipeline, by name.
    """

    folder: Path
    steps: Sequence[StepRecord]
    outputs: Mapping[str, Path]


def run_locally(
    pipeline: Pipeline,
    arguments: Mapping[str, Any],
    *,
    output_dir: Path,
    shown: TextIO,
    is_fresh: bool = False,
) -> LocalRun:
    """Run a pipeline and link its outputs.

    Args:
        pipeline: The pipeline.
        arguments: Its typed arguments.
        output_dir: The folder in which the run's folder is created.
        shown: The stream for the lines of the steps.
        is_fresh: Reuse nothing of earlier runs in `output_dir`.

    Raises:
        StepFailedError: A step failed with a user error.
        StepCrashedError: A step failed with an unexpected exception.
        RunInterruptedError: SIGINT, SIGTERM or SIGHUP was received; the running steps have ended.
    """
    with (
        taking_interrupts() as interrupts,
        making_run_folder(pipeline.kfp_name, output_dir) as run,
        run.log_file.open("a", encoding="utf-8") as kept,
    ):
        repeatable = repeatable_steps(pipeline.function.pipeline_spec)
        runner = StepRunner(run, interrupts, repeatable, is_fresh=is_fresh)
        log = StepLog(
            shown,
            num_steps=pipeline.num_steps,
            kept=kept,
            is_stopping=lambda: interrupts.is_requested,
        )
        try:
            artifacts = _execute(pipeline, arguments, runner, log)
        except RuntimeError as error:
            interrupts.raise_if_any()
            raise _step_error(log, error, run) from error
        interrupts.raise_if_any()
        outputs = _link_outputs({n: artifacts[n] for n in pipeline.output_names}, run.path)
        _link(output_dir / LATEST_LINK, run.path)
    return LocalRun(run.path, log.steps, outputs)


def _execute(
    pipeline: Pipeline, arguments: Mapping[str, Any], runner: StepRunner, log: StepLog
) -> Mapping[str, Any]:
    """Return the pipeline's output artifacts by name."""
    from kfp import local

    function = pipeline.function
    with (
        # kfp deletes the workspace after the run: never let it be a folder with data.
        tempfile.TemporaryDirectory(prefix="mal-workspace-", ignore_cleanup_errors=True) as scratch,
        # Temporary files of steps are deleted with the run; /tmp may not be writable.
        _environment(PYTHONUNBUFFERED="1", TMPDIR=scratch),
        warnings.catch_warnings(),
        writing_to(log),
        runner.running_steps_of_kfp(),
        ignoring_retries(),
    ):
        warnings.filterwarnings("ignore", message=".*non-Python base image.*")
        warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(runner.run.path.parent),
            workspace_root=str(Path(scratch) / "workspace"),
        )
        outputs: Mapping[str, Any] = function(**arguments).outputs
        return outputs


@contextlib.contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set variables for the steps' processes."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _step_error(log: StepLog, error: RuntimeError, run: RunFolder) -> Exception:
    failed = next((step for step in log.steps if step.status != "SUCCESS"), None)
    if failed is None:
        return error
    lines = list(failed.lines)
    starts = [i for i, line in enumerate(lines) if line.startswith(ERROR_PREFIX)]
    if starts and _TRACEBACK not in lines[starts[-1] :]:
        message = "\n".join(lines[starts[-1] :]).removeprefix(ERROR_PREFIX)
        return StepFailedError(f"step {failed.name} failed: {message}")
    last = lines[-1] if lines else "it ended before it printed a line"
    return StepCrashedError(
        f"step {failed.name} failed unexpectedly: {last}. The whole log is {run.log_file}."
    )


def _link_outputs(artifacts: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Link the outputs under their names; returns the path of each."""
    links = {}
    for name, artifact in artifacts.items():
        path = Path(artifact.path)
        if not path.exists():
            continue
        extension = "" if path.is_dir() else _EXTENSIONS.get(artifact.schema_title, ".json")
        links[name] = folder / f"{name}{extension}"
        _link(links[name], path)
    return links


def _link(link: Path, target: Path) -> None:
    """Create or replace a relative symbolic link atomically: another run may do the same."""
    if link.exists() and not link.is_symlink():
        return
    temporary = link.with_name(f".{link.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, link.parent), target_is_directory=target.is_dir())
    temporary.replace(link)
