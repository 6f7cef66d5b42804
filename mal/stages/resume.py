"""Decides whether a training starts from the beginning or resumes a checkpoint."""

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
class ResumePlan:
    """How a training starts.

    Attributes:
        spec: The spec in use.
        resume_from: The checkpoint to resume.
        warm_from: A checkpoint, at larger settings, whose student's weights to start from.
    """

    spec: ExperimentSpec
    resume_from: Path | None = None
    warm_from: Path | None = None


@dataclass(frozen=True)
class _SavedSpec:
    """The spec in a checkpoint, perhaps of another version; a key is read when it is needed."""

    content: Mapping[str, Any]
    path: Path

    @property
    def memory_keys(self) -> MemoryKeys:
        """The values that the memory fallback changes."""
        crop_px = self._value("dataset", "crop_size", int)
        return crop_px, self._value("model", "arch", str), self._value("train", "batch_size", int)

    @property
    def seed(self) -> int:
        """The seed in use, never -1."""
        return self._value("train", "seed", int)

    def _value(self, section: str, key: str, make: Callable[[Any], _Value]) -> _Value:
        try:
            return make(self.content[section][key])
        except (LookupError, TypeError, ValueError, OverflowError) as error:
            raise ArtifactError(
                f"checkpoint to resume must contain its spec, got none with {section}.{key} "
                f"in {self.path}. Give a checkpoint of mal train, or set it as "
                "train.pretrained_model_path."
            ) from error


def broadcast_resume_plan(
    spec: ExperimentSpec, folder: Path, *, after_oom_fallback: bool
) -> ResumePlan:
    """Return the plan of `choose_resume_plan` on rank 0, on every rank.

    Args:
        spec: The experiment.
        folder: This rank's folder; a rank that cannot read rank 0's checkpoint copies it there.
        after_oom_fallback: See `choose_resume_plan`.
    """
    worker = Worker.current()
    if worker.num_ranks == 1:
        return choose_resume_plan(spec, folder, after_oom_fallback=after_oom_fallback)
    chosen = (
        choose_resume_plan(spec, folder, after_oom_fallback=after_oom_fallback)
        if worker.is_rank0
        else None
    )
    return ResumePlan(
        spec=load_spec("train", broadcast_from_rank0(chosen and spec_as_dict(chosen.spec))),
        resume_from=broadcast_file_from_rank0(chosen.resume_from if chosen else None, folder),
        warm_from=broadcast_file_from_rank0(chosen.warm_from if chosen else None, folder),
    )


def choose_resume_plan(
    spec: ExperimentSpec, folder: Path, *, after_oom_fallback: bool
) -> ResumePlan:
    """Return how a training in this folder starts, with a drawn seed instead of -1.

    Args:
        spec: The experiment.
        folder: The local results folder.
        after_oom_fallback: Memory ran out at larger settings, which the checkpoint belongs to.

    Raises:
        ArtifactError: The checkpoint belongs to another network, or has no spec.
    """
    path = _resume_checkpoint(spec, folder)
    content = read_training_spec(path) if path else None
    saved = _SavedSpec(content, path) if path and content is not None else None
    spec = _with_drawn_seed(spec, saved)
    if path is None or saved is None:
        return ResumePlan(spec, resume_from=path)
    trained_keys = saved.memory_keys
    if trained_keys == memory_keys(spec):
        return ResumePlan(spec, resume_from=path)
    if after_oom_fallback:
        log.info("starting from the student of %s", path.resolve().name)
        return ResumePlan(spec, warm_from=path)
    for smaller in iterate_fallbacks(spec) if spec.train.oom_fallback else ():
        if memory_keys(smaller) == trained_keys:
            log.info(
                "resuming at the settings that train.oom_fallback chose: dataset.crop_size %d, "
                "model.arch %s, train.batch_size %d", *trained_keys,
            )  # fmt: skip
            return ResumePlan(smaller, resume_from=path)
    _require_same_network(memory_keys(spec), trained_keys, path)
    return ResumePlan(spec, resume_from=path)


def _require_same_network(mine: MemoryKeys, theirs: MemoryKeys, path: Path) -> None:
    wanted, found = (f"{keys[1]} at dataset.crop_size {keys[0]}" for keys in (mine, theirs))
    if wanted != found:
        raise ArtifactError(
            f"checkpoint to resume must be of this network, {wanted}, got {found} in {path}. "
            "Set both keys as there, or give it as train.pretrained_model_path with another "
            "train.results_dir."
        )


def _with_drawn_seed(spec: ExperimentSpec, saved: _SavedSpec | None) -> ExperimentSpec:
    """Return the spec with a seed instead of -1: that of the resumed run, or a new one."""
    if spec.train.seed >= 0:
        return spec
    seed = secrets.randbits(31) if saved is None else saved.seed
    return dataclasses.replace(spec, train=dataclasses.replace(spec.train, seed=seed))


def _resume_checkpoint(spec: ExperimentSpec, folder: Path) -> Path | None:
    """Return the checkpoint to resume: the latest of this folder, or the given one.

    A restarted run resumes its own checkpoints, not the one that it started from. A given
    checkpoint in this folder is used: the user wants to go back to it.
    """
    given = spec.train.resume_training_checkpoint_path
    latest = folder / LATEST_CHECKPOINT
    if given and is_of_folder(spec, folder, given):
        log.info("resuming %s of this folder, as train.resume_training_checkpoint_path requests",
                 Path(given).name)  # fmt: skip
        own = folder / Path(given).name
        return own if own.exists() else fetch_file(given)
    if latest.exists():
        name = latest.resolve().name
        if given:
            log.warning(
                "resuming %s of this folder, not %s: a run that has checkpoints resumes its own, "
                "not train.resume_training_checkpoint_path. To start from that, set another "
                "train.results_dir.", name, given,
            )  # fmt: skip
        else:
            log.info("resuming %s", name)
        return latest
    if not given:
        return None
    log.info("resuming %s", given)
    return fetch_file(given)


def is_of_folder(spec: ExperimentSpec, folder: Path, checkpoint: str) -> bool:
    """Whether a checkpoint is in this run's own results folder, local or remote."""
    if parse_remote_uri(checkpoint) is None:
        return Path(checkpoint).resolve().parent == folder.resolve()
    return checkpoint.rpartition("/")[0] == results_uri("train", spec).rstrip("/")
