"""Estimates the cost of a trial from a few measured steps."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import write_text
from mal.automl.trial import start_process
from mal.errors import MalError
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import write_experiment_yaml

_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class TrialCost:
    """The estimated cost of a whole trial; `start_s` is the time before its first step."""

    num_epochs: int
    num_steps: int
    step_s: float
    validation_s: float
    start_s: float
    device: str

    @property
    def trial_s(self) -> float:
        """Wall time of a trial that is not ended early; it validates after each epoch."""
        return self.start_s + self.num_steps * self.step_s + self.num_epochs * self.validation_s

    def as_json(self) -> dict[str, float | int | str]:
        """Return plain values."""
        return dataclasses.asdict(self)


def measure_cost(
    spec: ExperimentSpec, variables: Mapping[str, str], check_stop: Callable[[], None]
) -> TrialCost:
    """Train a few steps in a process like that of a trial, and discard the result.

    Args:
        spec: The spec of a trial.
        variables: Environment variables of the process.
        check_stop: Raises when the search must stop.

    Raises:
        MalError: The training failed or could not be measured.
    """
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mal-cost-") as name:
        spec_file, answer_file = Path(name) / "spec.yaml", Path(name) / "cost.json"
        write_text(spec_file, write_experiment_yaml(spec))
        with (Path(name) / "log.txt").open("w+b") as log_file:
            process = start_process([str(spec_file), str(answer_file)], variables, log_file)
            try:
                while process.poll() is None:
                    check_stop()
                    time.sleep(_POLL_INTERVAL_S)
            finally:
                process.kill()
                process.wait()
            log_file.seek(0)
            last = log_file.read().decode(errors="replace").strip().rpartition("\n")[2]
        if not answer_file.exists():
            raise RuntimeError(f"the measured steps ended with {process.returncode}: {last}")
        answer = json.loads(answer_file.read_text(encoding="utf-8"))
    if "error" in answer:
        raise MalError(answer["error"])
    in_steps_s = answer.pop("measured_s")
    return TrialCost(**answer, start_s=max(time.monotonic() - started_s - in_steps_s, 0.0))
