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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mal.artifacts import write_text
from mal.distributed import NodeTopology
from mal.distributed.workers import is_worker, run_workers
from mal.errors import (
    AnnotationError,
    ArtifactError,
    MalError,
    MemoryShortageError,
    SpecError,
    StorageError,
    WorkerError,
)
from mal.runtime import Interrupted, handling_stop_signals
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
        AnnotationError, ArtifactError, MemoryShortageError, SpecError, StorageError, WorkerError,
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

    def write_error(self, rank: int, error: MalError | Interrupted) -> None:
        """Leave what ended a worker."""
        signal_number = error.signal_number if isinstance(error, Interrupted) else 0
        content = {
            "type": type(error).__name__, "message": str(error), "signal_number": signal_number,
        }  # fmt: skip
        write_text(self.folder / f"error-{rank}.json", json.dumps(content))

    def read_cause(self) -> MalError | Interrupted | None:
        """Return what ended the workers, and not what followed of it; None if none says."""
        causes = [
            json.loads(path.read_text(encoding="utf-8"))
            for path in sorted(self.folder.glob("error-*.json"))
        ]
        causes.sort(key=lambda cause: cause["type"] == WorkerError.__name__)
        if not causes:
            return None
        if causes[0]["signal_number"]:
            return Interrupted(causes[0]["signal_number"])
        error_type = _RAISED_AGAIN.get(causes[0]["type"], MalError)
        return error_type(causes[0]["message"])


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
        WorkerError: A worker was lost.
    """
    log.info(
        "node %d of %d: %d processes, meeting at %s:%d", topology.node_rank, topology.num_nodes,
        topology.devices_per_node, topology.master_addr, topology.master_port,
    )  # fmt: skip
    with (
        handling_stop_signals() as stop,
        tempfile.TemporaryDirectory(prefix="mal-node-") as folder,
    ):
        exchange = Exchange(Path(folder))
        write_text(exchange.spec_file, write_experiment_yaml(spec))
        command = [sys.executable, "-m", "mal.stages.worker", action, folder]
        try:
            with stop.deferring():
                run_workers(topology, command, lambda: stop.received)
        except WorkerError as error:
            raise exchange.read_cause() or error from error
        stop.raise_if_received()
        return exchange.read_result(action)
