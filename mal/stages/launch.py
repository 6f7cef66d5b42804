"""Runs an action on every device of every node: `run_<action>(spec)` in several processes.

mal train, once a node                one process a device
run_train(spec) -> run_workers  ->    mal.stages.worker: joins the process group, run_train(spec)
                <- result.json, error-<rank>.json
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import os
import sys
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from mal.artifacts import write_text
from mal.distributed import NodeTopology
from mal.distributed.nodes import CAUSE_WAIT_S, NodeCoordinator, coordinated
from mal.distributed.workers import is_worker, run_workers
from mal.errors import (
    AnnotationError,
    ArtifactError,
    ConnectionLostError,
    MalError,
    MemoryShortageError,
    SpecError,
    StorageError,
    WorkerError,
)
from mal.labeling.label_counts import LabelCounts, MostlyEmptyError
from mal.runtime import Interrupted, StopRequest, handling_stop_signals
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import write_experiment_yaml
from mal.stages.results import EvaluateResult, InferenceResult, TrainResult

log = logging.getLogger(__name__)

Result = TypeVar("Result")
Run = Callable[[ExperimentSpec], Result]

RESULT_TYPES: Mapping[str, Any] = {
    "train": TrainResult,
    "evaluate": EvaluateResult,
    "inference": InferenceResult,
}
_RAISED_AGAIN: Mapping[str, Callable[[str], MalError]] = {
    error_type.__name__: error_type
    for error_type in (
        AnnotationError, ArtifactError, ConnectionLostError, MemoryShortageError, MostlyEmptyError,
        SpecError, StorageError, WorkerError,
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class WorkerFiles:
    """Files between a node's workers and the process that started them."""

    folder: Path

    @property
    def spec_file(self) -> Path:
        """Spec of the workers."""
        return self.folder / "spec.yaml"

    def write_result(self, encoded: Mapping[str, Any]) -> None:
        """Write the action's result, see `result_as_json`."""
        write_text(self.folder / "result.json", json.dumps(encoded))

    def read_result(self, action: str) -> Any:
        """Read the result of `write_result`."""
        encoded = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return _result_from_json(RESULT_TYPES[action], encoded)

    def write_error(self, rank: int, error: MalError) -> None:
        """Write the error that ended a worker."""
        content = {"type": type(error).__name__, "message": str(error)}
        write_text(self.folder / f"error-{rank}.json", json.dumps(content))

    def read_error(self) -> MalError | None:
        """Return the error that ended the workers, before any lost connection."""
        found = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(self.folder.glob("error-*.json"))
        ]
        found.sort(key=lambda error: error["type"] == ConnectionLostError.__name__)
        if not found:
            return None
        return _RAISED_AGAIN.get(found[0]["type"], MalError)(found[0]["message"])


def result_as_json(result: Any) -> dict[str, Any]:
    """Return a stage's result as JSON values, paths as text."""
    encoded: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(result), default=str))
    return encoded


def _result_from_json(result_type: Any, encoded: Mapping[str, Any]) -> Any:
    hints = typing.get_type_hints(result_type)
    return result_type(
        **{name: _value_from_json(hints[name], value) for name, value in encoded.items()}
    )


def _value_from_json(hint: Any, value: Any) -> Any:
    if hint is Path:
        return Path(value)
    return LabelCounts(**value) if hint is LabelCounts else value


def distributed(action: str) -> Callable[[Run[Result]], Run[Result]]:
    """Make `run_<action>` start workers when the environment or the spec sets several devices.

    It is called once a node. In a worker, and for one device on one node, the function runs itself.
    """

    def decorate(run: Run[Result]) -> Run[Result]:
        @functools.wraps(run)
        def run_or_launch(spec: ExperimentSpec) -> Result:
            if is_worker():
                return run(spec)
            section = getattr(spec, action)
            topology = NodeTopology.from_env(os.environ, section.num_nodes, section.num_gpus)
            if topology.world_size == 1:
                return run(spec)
            result: Result = _launch(action, spec, topology)
            return result

        return run_or_launch

    return decorate


def _launch(action: str, spec: ExperimentSpec, topology: NodeTopology) -> Any:
    """Run the action in workers and return rank 0's result.

    Raises:
        MalError: The error of a worker.
        Interrupted: This node or another one received a stop signal.
        WorkerError: A worker was lost, here or on another node.
    """
    with (
        handling_stop_signals() as stop,
        coordinated(topology) as nodes,
        tempfile.TemporaryDirectory(prefix="mal-node-") as folder,
    ):
        files = WorkerFiles(Path(folder))
        write_text(files.spec_file, write_experiment_yaml(spec))
        command = [sys.executable, "-m", "mal.stages.worker", action, folder]
        try:
            _run_workers(command, files, nodes, stop)
        except ConnectionLostError as error:
            raise _cause_of(error, nodes) from error
        return files.read_result(action)


def _run_workers(
    command: Sequence[str], files: WorkerFiles, nodes: NodeCoordinator, stop: StopRequest
) -> None:
    """Run this node's workers until they exit.

    Raises:
        MalError: The error of a worker.
        Interrupted: The run was stopped.
    """
    topology = nodes.topology
    log.info(
        "node %d of %d starts %d processes", topology.node_rank, topology.num_nodes,
        topology.devices_per_node,
    )  # fmt: skip
    try:
        with stop.deferring():
            number = run_workers(topology, command, lambda: stop.received or nodes.poll())
    except WorkerError as error:
        written = files.read_error()
        # A lost connection only explains another lost connection.
        is_cause = isinstance(error, ConnectionLostError) or not isinstance(
            written, ConnectionLostError
        )
        if written is None or not is_cause:
            raise
        raise written from error
    if number is not None:
        written = files.read_error()
        if written is None or isinstance(written, WorkerError):
            raise Interrupted(number)
        raise written


def _cause_of(loss: ConnectionLostError, nodes: NodeCoordinator) -> MalError | Interrupted:
    """Return why the lost process exited, if its node publishes it in time."""
    if nodes.topology.num_nodes == 1:
        return loss
    first = nodes.first_exit(CAUSE_WAIT_S)
    if first is None:
        return loss
    return Interrupted(first.signal_number) if first.signal_number else WorkerError(str(first))
