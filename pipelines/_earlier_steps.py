"""Reuses a step of earlier runs in the same output folder.

A step's folder has a record of its inputs. A finished step with equal inputs is reused by
reference: kfp gets the earlier step's outputs. A stopped step is moved into the new run, so that a
training finds its checkpoint; a link remains for the absolute paths in its files.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import write_json

from ._run_folder import RunFolder, is_run_alive, open_lock
from ._step_inputs import StepOutputs, key_of

STEP_RECORD = "step.json"
_STEP_LOCK = ".step.lock"
_POLL_INTERVAL_S = 0.1


@dataclass(frozen=True)
class EarlierStep:
    """The record in a step's folder.

    Attributes:
        inputs: Digest of each input, by name.
        outputs: Files and folders of the result; empty if the step has not succeeded.
    """

    folder: Path
    inputs: Mapping[str, str]
    outputs: Sequence[str] = ()

    @property
    def is_finished(self) -> bool:
        """Whether the step succeeded."""
        return bool(self.outputs)

    @property
    def key(self) -> str:
        """Equal for steps with equal inputs."""
        return key_of(self.inputs)

    def write(self) -> None:
        """Write the record."""
        content = {"inputs": dict(self.inputs), "outputs": list(self.outputs)}
        write_json(self.folder / STEP_RECORD, content)


def write_finished(folder: Path, inputs: Mapping[str, str], record: Path) -> None:
    """Record that a step has succeeded, with its outputs.

    Args:
        folder: The step's folder.
        inputs: Digest of each input, by name.
        record: `executor_output.json`; some artifacts, such as metrics, have no file.
    """
    artifacts = json.loads(record.read_bytes()).get("artifacts", {}).values()
    uris = (artifact["uri"] for entry in artifacts for artifact in entry["artifacts"])
    left = [str(record), *(uri for uri in uris if Path(uri).exists())]
    EarlierStep(folder, inputs, left).write()


def read_step(folder: Path) -> EarlierStep | None:
    """Return the record of a folder; None without one, or if it was moved into a later run."""
    if folder.is_symlink():
        return None
    try:
        content = json.loads((folder / STEP_RECORD).read_bytes())
        return EarlierStep(folder, dict(content["inputs"]), tuple(content["outputs"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


class EarlierSteps:
    """The same step in the earlier runs of this output folder.

    Args:
        run: The new run.
        outputs: Outputs of the step in the new run.
        inputs: Digest of each input, by name.
    """

    def __init__(self, run: RunFolder, outputs: StepOutputs, inputs: Mapping[str, str]) -> None:
        self._outputs = outputs
        self._inputs = inputs
        self._key = key_of(inputs)
        step = outputs.folder.relative_to(run.path)
        found = ((folder, read_step(folder / step)) for folder in run.earlier())
        self._records = [(folder, record) for folder, record in found if record is not None]

    def take_finished(self) -> Path | None:
        """Reuse a finished step with equal inputs; returns its folder, or None."""
        for _, record in self._records:
            is_equal = record.is_finished and record.key == self._key
            if is_equal and all(Path(each).exists() for each in record.outputs):
                self._refer_to(_outputs_in(record.folder, self._outputs))
                return record.folder
        return None

    def _refer_to(self, earlier: StepOutputs) -> None:
        self._outputs.folder.mkdir(parents=True, exist_ok=True)
        pairs = zip(earlier.parameter_files, self._outputs.parameter_files, strict=True)
        for source, target in [*pairs, (earlier.record, self._outputs.record)]:
            if source.exists():
                shutil.copyfile(source, target)

    def take_stopped(self, pause: Callable[[], None]) -> tuple[Path, int] | None:
        """Move the folder of a stopped step with equal inputs to this step's folder.

        Args:
            pause: Called while the step of a killed run still writes; may raise.

        Returns:
            The earlier folder and the lock of the folder, or None.
        """
        if self._outputs.folder.exists():  # an earlier attempt in this run
            return None
        for run_folder, record in self._records:
            if record.is_finished or record.key != self._key:
                continue
            lock = _lock_when_ended(run_folder, record, pause)
            if lock is not None:
                target = self._outputs.folder
                target.parent.mkdir(parents=True, exist_ok=True)
                record.folder.rename(target)
                record.folder.symlink_to(os.path.relpath(target, record.folder.parent))
                self._outputs.record.unlink(missing_ok=True)
                return record.folder, lock
        return None

    def difference(self) -> tuple[Path, str] | None:
        """Return the newest finished step and why it was not reused; None without one."""
        for _, record in self._records:
            if record.is_finished:
                names = sorted(self._inputs.keys() | record.inputs.keys())
                changed = [n for n in names if self._inputs.get(n) != record.inputs.get(n)]
                return record.folder, (
                    f"of which {', '.join(changed)} changed"
                    if changed
                    else "whose files were deleted"
                )
        return None


def lock_step(folder: Path) -> int | None:
    """Lock a step's folder, creating it if needed; None if another process has the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    return open_lock(folder / _STEP_LOCK)


def _outputs_in(folder: Path, outputs: StepOutputs) -> StepOutputs:
    def moved(path: Path) -> Path:
        return folder / path.relative_to(outputs.folder)

    return StepOutputs(moved(outputs.record), [moved(each) for each in outputs.parameter_files])


def _lock_when_ended(
    run_folder: Path, record: EarlierStep, pause: Callable[[], None]
) -> int | None:
    """Lock a stopped step, after it has ended: after a killed run it may still write."""
    while True:
        with contextlib.suppress(OSError):
            lock = open_lock(record.folder / _STEP_LOCK)
            if lock is not None:
                if read_step(record.folder) == record and _is_lock_of(lock, record.folder):
                    return lock
                os.close(lock)  # another run has moved it, or finished it
                return None
        if not record.folder.exists() or is_run_alive(run_folder):
            return None
        pause()
        time.sleep(_POLL_INTERVAL_S)


def _is_lock_of(lock: int, folder: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock), (folder / _STEP_LOCK).stat())
    except OSError:
        return False
