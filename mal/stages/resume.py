"""Where a training begins: at the start, or where an earlier one was stopped."""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from mal.artifacts import LATEST_CHECKPOINT
from mal.distributed.group import broadcast_file_from_rank0, broadcast_from_rank0
from mal.distributed.workers import Worker
from mal.errors import ArtifactError
from mal.model.checkpoint import read_training_spec
from mal.spec.experiment import ExperimentSpec
from mal.spec.load import load_spec, spec_as_dict
from mal.stages.memory import MemoryKeys, iterate_fallbacks, memory_keys
from mal.stages.written_files import results_uri
from mal.storage import fetch_file
from mal.storage.uris import parse_remote_uri

log = logging.getLogger(__name__)

_Value = TypeVar("_Value", int, str)


@dataclass(frozen=True)
class Start:
    """Where a training begins.

    Attributes:
        spec: The spec in use.
        resume_from: A checkpoint to go on from.
        warm_from: A checkpoint of a larger setting whose student to start from.
    """

    spec: ExperimentSpec
    resume_from: Path | None = None
    warm_from: Path | None = None


@dataclass(frozen=True)
class _SavedSpec:
    """The spec that a checkpoint carries, perhaps of another version: read only where asked.

    Attributes:
        content: By section and key.
        path: The checkpoint.
    """

    content: Mapping[str, Any]
    path: Path

    @property
    def memory_keys(self) -> MemoryKeys:
        """What the memory fallback changes."""
        crop_px = self._value("dataset", "crop_size", int)
        return crop_px, self._value("model", "arch", str), self._value("train", "batch_size", int)

    @property
    def seed(self) -> int:
        """The run's own, never -1."""
        return self._value("train", "seed", int)

    def _value(self, section: str, key: str, make: Callable[[Any], _Value]) -> _Value:
        try:
            return make(self.content[section][key])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(
                f"checkpoint to go on from must carry its spec, got none that says {section}.{key} "
                f"in {self.path}. Give one of mal train, or give it as "
                "train.pretrained_model_path."
            ) from error


def agree_on_start(spec: ExperimentSpec, folder: Path, *, has_shrunk: bool) -> Start:
    """Return what `choose_start` says on the first rank; all ranks begin there.

    Args:
        spec: The experiment.
        folder: Of this rank; one that cannot see the first rank's checkpoint copies it there.
        has_shrunk: See `choose_start`.
    """
    worker = Worker.current()
    if worker.num_ranks == 1:
        return choose_start(spec, folder, has_shrunk=has_shrunk)
    chosen = choose_start(spec, folder, has_shrunk=has_shrunk) if worker.is_rank0 else None
    return Start(
        spec=load_spec("train", broadcast_from_rank0(chosen and spec_as_dict(chosen.spec))),
        resume_from=broadcast_file_from_rank0(chosen.resume_from if chosen else None, folder),
        warm_from=broadcast_file_from_rank0(chosen.warm_from if chosen else None, folder),
    )


def choose_start(spec: ExperimentSpec, folder: Path, *, has_shrunk: bool) -> Start:
    """Return where a training in this folder begins, with a seed drawn in place of -1.

    Args:
        spec: The experiment.
        folder: Result folder, local.
        has_shrunk: Memory ran out at a larger setting, to which the checkpoint belongs.

    Raises:
        ArtifactError: The checkpoint is of another network, or does not say of which.
    """
    path = _resume_checkpoint(spec, folder)
    content = read_training_spec(path) if path else None
    saved = _SavedSpec(content, path) if path and content is not None else None
    spec = _with_drawn_seed(spec, saved)
    if path is None or saved is None:
        return Start(spec, resume_from=path)
    trained_keys = saved.memory_keys
    if trained_keys == memory_keys(spec):
        return Start(spec, resume_from=path)
    if has_shrunk:
        log.info("starting from the student of %s", path.resolve().name)
        return Start(spec, warm_from=path)
    for smaller in iterate_fallbacks(spec) if spec.train.oom_fallback else ():
        if memory_keys(smaller) == trained_keys:
            log.info("train.oom_fallback came down to dataset.crop_size %d, model.arch %s and "
                     "train.batch_size %d: going on there", *trained_keys)  # fmt: skip
            return Start(smaller, resume_from=path)
    _require_same_network(memory_keys(spec), trained_keys, path)
    return Start(spec, resume_from=path)


def _require_same_network(mine: MemoryKeys, theirs: MemoryKeys, path: Path) -> None:
    wanted, found = (f"{keys[1]} at dataset.crop_size {keys[0]}" for keys in (mine, theirs))
    if wanted != found:
        raise ArtifactError(
            f"checkpoint to go on from must be of this network, {wanted}, got {found} in {path}. "
            "Set both keys as there, or give it as train.pretrained_model_path with another "
            "train.results_dir."
        )


def _with_drawn_seed(spec: ExperimentSpec, saved: _SavedSpec | None) -> ExperimentSpec:
    """Return the spec with a seed in place of -1: the resumed run's own, or a new one."""
    if spec.train.seed >= 0:
        return spec
    seed = secrets.randbits(31) if saved is None else saved.seed
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, seed=seed))


def _resume_checkpoint(spec: ExperimentSpec, folder: Path) -> Path | None:
    """Return the checkpoint to go on from: the latest of this folder, or the given one.

    A restarted run finds its own checkpoints and goes on from them, not from where it once began;
    a given checkpoint of this very folder is a wish to go back.
    """
    given = spec.train.resume_training_checkpoint_path
    latest = folder / LATEST_CHECKPOINT
    if given and is_of_folder(spec, folder, given):
        log.info("going on from %s of this folder, as train.resume_training_checkpoint_path says",
                 Path(given).name)  # fmt: skip
        own = folder / Path(given).name
        return own if own.exists() else fetch_file(given)
    if latest.exists():
        name = latest.resolve().name
        if given:
            log.warning(
                "going on from %s of this folder, not from %s: a run that has checkpoints goes on "
                "from its own, not from train.resume_training_checkpoint_path. To start from that, "
                "set another train.results_dir.", name, given,
            )  # fmt: skip
        else:
            log.info("going on from %s", name)
        return latest
    if not given:
        return None
    log.info("going on from %s", given)
    return fetch_file(given)


def is_of_folder(spec: ExperimentSpec, folder: Path, checkpoint: str) -> bool:
    """Whether a checkpoint lies in this run's own result folder, local or remote."""
    if parse_remote_uri(checkpoint) is None:
        return Path(checkpoint).resolve().parent == folder.resolve()
    return checkpoint.rpartition("/")[0] == results_uri("train", spec).rstrip("/")
