"""An action on every device of every node: the same `run_<action>(spec)`, in several processes.

mal train, once a node                one process a device
run_train(spec) -> run_workers  ->    mal.stages.worker: joins the others, run_train(spec)
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
from mal.distributed.nodes import CAUSE_WAIT_S, NodeBoard, meeting
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
        AnnotationError, ArtifactError, ConnectionLostError, MemoryShortageError, SpecError,
        StorageError, WorkerError,
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Exchange:
    """The files through which a node's workers and the process that started them speak.

    Attributes:
        folder: Theirs alone.
    """

    folder: Path

    @property
    def spec_file(self) -> Path:
        """What the workers run."""
        return self.folder / "spec.yaml"

    def write_result(self, encoded: Mapping[str, Any]) -> None:
        """Leave the result of the action, by `result_as_json`."""
        write_text(self.folder / "result.json", json.dumps(encoded))

    def read_result(self, action: str) -> Any:
        """Read what `write_result` left."""
        encoded = json.loads((self.folder / "result.json").read_text(encoding="utf-8"))
        return _result_from_json(RESULT_TYPES[action], encoded)

    def write_error(self, rank: int, error: MalError) -> None:
        """Leave what ended a worker."""
        content = {"type": type(error).__name__, "message": str(error)}
        write_text(self.folder / f"error-{rank}.json", json.dumps(content))

    def read_error(self) -> MalError | None:
        """Return what ended the workers, and not what followed of it; None if none says."""
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
        **{name: Path(value) if hints[name] is Path else value for name, value in encoded.items()}
    )


def on_every_device(action: str) -> Callable[[Run[Result]], Run[Result]]:
    """Let `run_<action>` start workers where the environment or the spec asks for several.

    It is called once a node. Inside a worker, and for one device on one node, it runs as it is.
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
    """Run the action in workers; returns the first rank's result.

    Raises:
        MalError: What a worker failed of.
        Interrupted: This node, or another one, was asked to stop.
        WorkerError: A worker was lost, here or on another node.
    """
    with (
        handling_stop_signals() as stop,
        meeting(topology) as board,
        tempfile.TemporaryDirectory(prefix="mal-node-") as folder,
    ):
        exchange = Exchange(Path(folder))
        write_text(exchange.spec_file, write_experiment_yaml(spec))
        command = [sys.executable, "-m", "mal.stages.worker", action, folder]
        try:
            _run_workers(command, exchange, board, stop)
        except ConnectionLostError as error:
            raise _cause_of(error, board) from error
        return exchange.read_result(action)


def _run_workers(
    command: Sequence[str], exchange: Exchange, board: NodeBoard, stop: StopRequest
) -> None:
    """Run this node's workers to their end.

    Raises:
        MalError: What a worker failed of.
        Interrupted: The run was stopped.
    """
    topology = board.topology
    log.info(
        "node %d of %d starts %d processes", topology.node_rank, topology.num_nodes,
        topology.devices_per_node,
    )  # fmt: skip
    try:
        with stop.deferring():
            number = run_workers(topology, command, lambda: stop.received or board.hear())
    except WorkerError as error:
        told = exchange.read_error()
        is_cause = isinstance(error, ConnectionLostError) or not isinstance(
            told, ConnectionLostError
        )
        if told is None or not is_cause:
            raise
        raise told from error
    if number is not None:
        told = exchange.read_error()
        if told is None or isinstance(told, WorkerError):
            raise Interrupted(number)
        raise told


def _cause_of(loss: ConnectionLostError, board: NodeBoard) -> MalError | Interrupted:
    """Return why the lost process ended, where its node says so in time."""
    if board.topology.num_nodes == 1:
        return loss
    end = board.first_end(CAUSE_WAIT_S)
    if end is None:
        return loss
    return Interrupted(end.signal_number) if end.signal_number else WorkerError(end.text())
