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
from mal.lifecycle.steps import ERROR_PREFIX
from pipelines._interrupts import waiting_for_the_step
from pipelines._registry import Pipeline
from pipelines._step_log import StepLog, StepRecord, writing_to

LATEST_LINK = "latest"
RUN_LOG = "run.log"
_TRACEBACK = "Traceback (most recent call last):"
_EXTENSIONS = {"system.HTML": ".html", "system.Markdown": ".md"}


class StepFailedError(MalError):
    """A step ended with an error that the user can mend; the message is the step's."""


class StepCrashedError(RuntimeError):
    """A step ended with an unexpected exception; its traceback was shown as it ran."""


@dataclass(frozen=True)
class LocalRun:
    """A finished run.

    Attributes:
        folder: `<output>/<pipeline>-<time>`: a folder a step, and the outputs under plain names.
        steps: What ran, in order.
        outputs: Path of each output of the pipeline, by its name.
    """

    folder: Path
    steps: Sequence[StepRecord]
    outputs: Mapping[str, Path]


def run_locally(
    pipeline: Pipeline, arguments: Mapping[str, Any], *, output_dir: Path, shown: TextIO
) -> LocalRun:
    """Run a pipeline and gather its outputs.

    Args:
        pipeline: What to run.
        arguments: Its typed arguments.
        output_dir: Where the run's folder is made.
        shown: Where the steps' lines go.

    Raises:
        StepFailedError: A step said what the user can mend.
        StepCrashedError: A step ended otherwise.
        RunInterruptedError: SIGINT or SIGTERM came; the running step has ended.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    earlier = set(output_dir.iterdir())
    log = StepLog(shown, num_steps=pipeline.num_steps)
    try:
        with waiting_for_the_step() as interrupts:
            try:
                artifacts = _execute(pipeline, arguments, output_dir, log)
            finally:
                interrupts.raise_if_any()
    except RuntimeError as error:
        raise _step_error(log, error, _run_folder(pipeline, output_dir, earlier)) from error
    finally:
        folder = _run_folder(pipeline, output_dir, earlier)
        if folder is not None:
            (folder / RUN_LOG).write_text(log.text, encoding="utf-8")
    assert folder is not None, "kfp.local makes a folder a run"
    outputs = _link_outputs({name: artifacts[name] for name in pipeline.output_names}, folder)
    _link(output_dir / LATEST_LINK, folder)
    return LocalRun(folder, log.steps, outputs)


def _execute(
    pipeline: Pipeline, arguments: Mapping[str, Any], output_dir: Path, log: StepLog
) -> Mapping[str, Any]:
    """Return the pipeline's output artifacts by name."""
    from kfp import local

    function = pipeline.function
    with (
        # kfp deletes the workspace after the run: never let it be a folder with data.
        tempfile.TemporaryDirectory(prefix="mal-workspace-", ignore_cleanup_errors=True) as scratch,
        # What a step leaves there goes with the run, and /tmp may be closed to us.
        _environment(PYTHONUNBUFFERED="1", TMPDIR=scratch),
        warnings.catch_warnings(),
        writing_to(log),
    ):
        warnings.filterwarnings("ignore", message=".*non-Python base image.*")
        warnings.filterwarnings("ignore", message=".*have no effect in the current local runner.*")
        local.init(
            runner=local.SubprocessRunner(use_venv=False),
            pipeline_root=str(output_dir),
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


def _run_folder(pipeline: Pipeline, output_dir: Path, earlier: set[Path]) -> Path | None:
    made = sorted(set(output_dir.glob(f"{pipeline.kfp_name}-*")) - earlier)
    return made[-1] if made else None


def _step_error(log: StepLog, error: RuntimeError, folder: Path | None) -> Exception:
    failed = next((step for step in log.steps if step.status != "SUCCESS"), None)
    if failed is None:
        return error
    place = f" The whole log is {folder / RUN_LOG}." if folder else ""
    lines = list(failed.lines)
    starts = [i for i, line in enumerate(lines) if line.startswith(ERROR_PREFIX)]
    if starts and _TRACEBACK not in lines[starts[-1] :]:
        message = "\n".join(lines[starts[-1] :]).removeprefix(ERROR_PREFIX)
        return StepFailedError(f"step {failed.name} failed: {message}")
    last = lines[-1] if lines else "it was ended before it wrote a line"
    return StepCrashedError(f"step {failed.name} failed unexpectedly: {last}.{place}")


def _link_outputs(artifacts: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Give the outputs names that a person looks for; return where each is."""
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
    """Make or replace a relative symbolic link."""
    if link.is_symlink():
        link.unlink()
    if not link.exists():
        link.symlink_to(os.path.relpath(target, link.parent), target_is_directory=target.is_dir())
