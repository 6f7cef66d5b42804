"""The files that an action writes, and the check that it does not overwrite what it reads."""

from __future__ import annotations

import fnmatch
import os
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from mal.artifacts import (
    BEST_CHECKPOINT,
    BEST_SPEC_FILE,
    EPOCH_METRICS_FILE,
    ESTIMATED_BOXES_FILE,
    EXPERIMENT_FILE,
    FIRST_RUN_FOLDER,
    LATEST_CHECKPOINT,
    LEADERBOARD_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    PROFILE_FILE,
    REPORT_FILE,
    RUN_FILE,
    STATUS_FILE,
    STUDY_FILE,
    WANDB_RUN_FILE,
    companions_of,
)
from mal.errors import MalError, SpecError
from mal.spec import ExperimentSpec
from mal.storage import redact_uri
from mal.storage.image_search import is_image_name
from mal.storage.uris import parse_remote_uri
from mal.tao.data_sources import data_uris
from mal.tao.paths import shortened, wrap_path_errors

SEARCH = "automl"
COST_FILES = "cost-*.json"

_RECORDS = (MANIFEST_FILE, EXPERIMENT_FILE, STATUS_FILE)
_CHECKPOINTS = (LATEST_CHECKPOINT, BEST_CHECKPOINT, "mal_model_epoch_*_step_*.pth")

WRITTEN: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": (
            *_CHECKPOINTS, f"{FIRST_RUN_FOLDER}/mal_model_*.pth",
            *(f"{FIRST_RUN_FOLDER}/{name}" for name in (
                EPOCH_METRICS_FILE, STATUS_FILE, PROFILE_FILE, "lightning_logs/*"
            )),
            "lightning_logs/*", "wandb/*", EPOCH_METRICS_FILE, ESTIMATED_BOXES_FILE, PROFILE_FILE,
            WANDB_RUN_FILE, *_RECORDS, RUN_FILE,
        ),
        SEARCH: (
            *_CHECKPOINTS, "trials/*", STUDY_FILE, COST_FILES, LEADERBOARD_FILE, BEST_SPEC_FILE,
            REPORT_FILE, *_RECORDS, RUN_FILE,
        ),
        "evaluate": (METRICS_FILE, REPORT_FILE, *_RECORDS),
        "inference": (REPORT_FILE, *_RECORDS),
        "export": _RECORDS,
    }
)  # fmt: skip
"""Patterns of what each action writes into its results folder.

`train.overwrite` removes them in this order. What identifies the run is last: a kill in between
leaves a folder that is recognised.
"""

RESTORED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "train": (
            "*.pth", EPOCH_METRICS_FILE, ESTIMATED_BOXES_FILE, WANDB_RUN_FILE, *_RECORDS, RUN_FILE,
        ),
        SEARCH: ("trials/*", STUDY_FILE, COST_FILES, EXPERIMENT_FILE, STATUS_FILE, RUN_FILE),
    }
)  # fmt: skip
"""Patterns of what a resumed run needs from a remote results folder."""


def results_uri(action: str, spec: ExperimentSpec) -> str:
    """Return `<action>.results_dir`, or `<results_dir>/<action>`."""
    own: str = "" if action == SEARCH else getattr(spec, action).results_dir
    return own or f"{spec.results_dir.rstrip('/')}/{action}"


def require_inputs_kept(action: str, spec: ExperimentSpec) -> None:
    """Check, before any work, that an action does not overwrite a file that it reads.

    Args:
        action: train, evaluate, inference, export or automl.
        spec: The experiment.

    Raises:
        SpecError: It would; lists all such keys.
    """
    problems = []
    for key, uri in _inputs(action, spec).items():
        try:
            with wrap_path_errors(key, uri):
                found = _Location.of(uri)
                writers = (o.key for o in _outputs(action, spec) if o.hits(found))
                if (writer := next(writers, None)) is not None:
                    problems.append(
                        f"{writer} must not be written over {key}, got "
                        f"{shortened(redact_uri(uri))}, which {action} reads. "
                        f"Choose another {writer}."
                    )
        except MalError:
            continue  # the code that opens the file reports what is wrong with it
    if problems:
        raise SpecError(problems)


def _inputs(action: str, spec: ExperimentSpec) -> dict[str, str]:
    """Return what an action reads, by spec key."""
    is_training = action in ("train", SEARCH)
    model_key = "train.pretrained_model_path" if is_training else f"{action}.checkpoint"
    model = spec.train.pretrained_model_path if is_training else getattr(spec, action).checkpoint
    inputs = {**data_uris("train" if is_training else action, spec), model_key: model}
    return {key: uri for key, uri in inputs.items() if uri}


@dataclass(frozen=True)
class _Location:
    """A path or URI in one spelling, so that two can be compared.

    Attributes:
        path: Absolute path; bucket and key of a remote object.
        resolved: `path` with symbolic links resolved.
    """

    path: PurePosixPath
    resolved: PurePosixPath
    is_remote: bool

    @classmethod
    def of(cls, uri: str) -> _Location:
        remote = parse_remote_uri(uri)
        if remote is not None:
            path = PurePosixPath(posixpath.normpath(f"{remote.bucket}/{remote.key}"))
            return cls(path, path, is_remote=True)
        local = Path(os.path.abspath(Path(uri).expanduser()))  # noqa: PTH100 - links stay
        return cls(PurePosixPath(local), PurePosixPath(local.resolve()), is_remote=False)

    def spellings(self) -> set[PurePosixPath]:
        return {self.path, self.resolved}

    def is_same(self, other: _Location) -> bool:
        if self.is_remote != other.is_remote:
            return False
        if self.spellings() & other.spellings():
            return True
        if self.is_remote:
            return False
        mine, theirs = Path(self.path), Path(other.path)
        return mine.is_file() and theirs.is_file() and mine.samefile(theirs)

    def contains(self, other: _Location) -> bool:
        return self.is_remote == other.is_remote and self.resolved in other.resolved.parents


@dataclass(frozen=True)
class _Output:
    """A file, or a folder with files of certain names, that an action writes.

    Attributes:
        key: The spec key that sets its location.
        names: Patterns of the names in a folder; empty for a file.
    """

    key: str
    location: _Location
    names: tuple[str, ...] = ()

    def hits(self, found: _Location) -> bool:
        """Whether writing it overwrites an input."""
        if not self.names:
            return self.location.is_same(found) or (
                found.contains(self.location) and is_image_name(self.location.path.name)
            )
        if self.location.is_remote != found.is_remote:
            return False
        return bool(self.location.spellings() & found.spellings()) or any(
            spelling.parent in self.location.spellings()
            and any(fnmatch.fnmatchcase(spelling.name, name) for name in self.names)
            for spelling in found.spellings()
        )


def _outputs(action: str, spec: ExperimentSpec) -> Iterator[_Output]:
    folder = results_uri(action, spec)
    own = "" if action == SEARCH else getattr(spec, action).results_dir
    key = f"{action}.results_dir" if own else "results_dir"
    yield _Output(key, _Location.of(folder), WRITTEN[action])
    if action == "inference":
        name = spec.inference.label_dump_path
        yield _Output("inference.label_dump_path", _Location.of(_below(folder, name)))
    elif action == "export":
        path = PurePosixPath(spec.export.onnx_file)
        for name in (path.name, *companions_of(path.name)):
            file = _below(folder, str(path.with_name(name)))
            yield _Output("export.onnx_file", _Location.of(file))


def _below(folder: str, name: str) -> str:
    """Return the path of a file: below the results folder, unless it is absolute."""
    if "://" in name or Path(name).is_absolute():
        return name
    return f"{folder.rstrip('/')}/{name}"
