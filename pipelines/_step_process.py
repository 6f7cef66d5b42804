"""Runs the steps of kfp.local; the only module that patches kfp.

kfp 2.17 cannot name a run's folder, stop a run, or use another task handler: `task_dispatcher`
finds its handlers by the exact type of two runners. It treats an interrupted step as a failed one,
and then starts exit handlers and the other iterations of a loop. Its cache compares URIs, not
content (see `_step_inputs`).
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ._earlier_steps import EarlierStep, EarlierSteps, lock_step, write_finished
from ._interrupts import Interrupts
from ._run_folder import RunFolder
from ._step_inputs import digest_inputs, executor_input_of, outputs_of

_GUARD = Path(__file__).with_name("_step_guard.py")
_COMPONENT_PREFIX = "comp-"


@dataclass(frozen=True)
class StepRunner:
    """Runs the steps of a run.

    Attributes:
        run: The folder that they write to.
        interrupts: Stops them.
        repeatable: Names of the steps whose result depends only on their inputs.
        is_fresh: Whether nothing of earlier runs is reused.
    """

    run: RunFolder
    interrupts: Interrupts
    repeatable: frozenset[str]
    is_fresh: bool = False

    @contextlib.contextmanager
    def running_steps_of_kfp(self) -> Iterator[None]:
        """Make kfp.local run its steps by this runner, in this run's folder."""
        from kfp.local import executor_input_utils, subprocess_task_handler

        original = subprocess_task_handler.SubprocessTaskHandler

        def handler_of(**arguments: Any) -> _StepProcess:
            original(**arguments)  # raises for what cannot run without a container
            return _StepProcess(self, arguments["full_command"], arguments["env_vars"] or {})

        with (
            mock.patch.object(subprocess_task_handler, "SubprocessTaskHandler", handler_of),
            mock.patch.object(
                executor_input_utils,
                "get_local_pipeline_resource_name",
                return_value=self.run.path.name,
            ),
        ):
            yield


class _StepProcess:
    """A task handler of kfp.local, for one attempt of one step."""

    def __init__(
        self, runner: StepRunner, command: Sequence[str], variables: Mapping[str, str]
    ) -> None:
        self._runner = runner
        self._command = command
        self._variables = variables
        self._outputs = outputs_of(executor_input_of(command))

    def run(self) -> Any:
        """Run the step, or reuse the result of an earlier run; returns kfp's status.

        Raises:
            RunInterruptedError: The run was interrupted.
        """
        from kfp.local.status import Status

        self._runner.interrupts.raise_if_any()
        if self._outputs.folder.name not in self._runner.repeatable:
            is_done = self._run_process() == 0
        else:
            is_done = self._run_or_reuse()
        self._runner.interrupts.raise_if_any()
        return Status.SUCCESS if is_done else Status.FAILURE

    def _run_or_reuse(self) -> bool:
        run = self._runner.run
        folder = self._outputs.folder
        inputs = digest_inputs(self._command, self._variables, run)
        lock = None
        if not self._runner.is_fresh:
            earlier = EarlierSteps(run, self._outputs, inputs)
            if (taken := earlier.take_finished()) is not None:
                _show(f"unchanged, reused from {taken}")
                return True
            stopped = earlier.take_stopped(self._runner.interrupts.raise_if_any)
            if stopped is not None:
                stopped_folder, lock = stopped
                _show(f"resuming {stopped_folder}")
            elif (other := earlier.difference()) is not None:
                _show(f"not reused from {other[0]}, {other[1]}")
        if lock is None:
            lock = lock_step(folder)  # before the record, or another run would see a stopped step
        EarlierStep(folder, inputs).write()
        try:
            is_done = self._run_process(lock) == 0
            if is_done:
                write_finished(folder, inputs, self._outputs.record)
        finally:
            if lock is not None:
                os.close(lock)
        return is_done

    def _run_process(self, lock: int | None = None) -> int:
        """Run the step under a guard process, which holds the lock until the step ends."""
        from kfp.local.subprocess_task_handler import replace_python_executable

        command = replace_python_executable(self._command, sys.executable)
        guard = [sys.executable, "-I", "-S", str(_GUARD), f"--run-pid={os.getpid()}"]
        with self._runner.interrupts.starting(
            [*guard, f"--log-file={self._runner.run.log_file}", "--", *command],
            env={**os.environ, **self._variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if lock is None else (lock,),
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                sys.stdout.write(line)
        _show("")  # kfp's own lines start on a new line
        return process.returncode


def _show(line: str) -> None:
    sys.stdout.write(f"{line}\n")


@contextlib.contextmanager
def ignoring_retries() -> Iterator[None]:
    """Make kfp.local run each step once: it would try one with a wrong setting three times.

    The retries are for pods that a cluster loses.
    """
    from kfp.local.orchestrator import task_executor

    original = task_executor.execute_single_task

    def execute_once(task_name: str, task_spec: Any, *arguments: Any, **named: Any) -> Any:
        once = type(task_spec)()
        once.CopyFrom(task_spec)
        once.ClearField("retry_policy")
        return original(task_name, once, *arguments, **named)

    with mock.patch.object(task_executor, "execute_single_task", execute_once):
        yield


def repeatable_steps(pipeline_spec: Any) -> frozenset[str]:
    """Return the cached steps of a pipeline, by the name of their folder.

    The others read data that may change at the same URI, or change something outside.
    """
    graphs = [pipeline_spec.root, *pipeline_spec.components.values()]
    tasks = [task for graph in graphs for task in graph.dag.tasks.values()]
    uncached = {t.component_ref.name for t in tasks if not t.caching_options.enable_cache}
    names = {task.component_ref.name for task in tasks} - uncached
    return frozenset(name.removeprefix(_COMPONENT_PREFIX) for name in names)
