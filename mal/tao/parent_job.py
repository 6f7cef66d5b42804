"""Job inference: what a job's keys become by its own results folder and its parent's.

The functions have TAO's names, under which a service looks them up (`SPEC_PARAMS`).
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from mal.artifacts import BEST_CHECKPOINT, EPOCH_METRICS_FILE, LATEST_CHECKPOINT
from mal.errors import ArtifactError, MalError, SpecError
from mal.status import MONITORED_METRIC
from mal.storage import fetch_file, redact_uri
from mal.storage.objects import StoredObject, list_objects
from mal.storage.uris import RemoteUri, parse_remote_uri
from mal.tao.local_paths import Place, looking_at, shown

SPEC_PARAMS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "train": MappingProxyType(
            {
                "results_dir": "output_dir",
                "train.pretrained_model_path": "ptm_if_no_resume_model",
                "train.resume_training_checkpoint_path": "resume_model",
            }
        ),
        "evaluate": MappingProxyType(
            {"evaluate.checkpoint": "parent_model", "results_dir": "output_dir"}
        ),
        "inference": MappingProxyType(
            {
                "inference.checkpoint": "parent_model",
                "inference.label_dump_path": "create_inference_result_file_mal",
                "results_dir": "output_dir",
            }
        ),
        "export": MappingProxyType(
            {"export.checkpoint": "parent_model", "results_dir": "output_dir"}
        ),
    }
)

_BEST, _LATEST = "best", "latest"
_FIGURE = "val_mIoU"
_TRAIN_FOLDER, _SEARCH_FOLDER = "train", "automl"
_CHECKPOINT_NAME = re.compile(r"mal_model_epoch_([0-9]+)_step_([0-9]+)\.pth")
_WANTED = re.compile(r"(?:epoch[=_]([0-9]+))?(?:(?:^|_)step[=_]([0-9]+))?")
_MAX_NAMES_TOLD = 8


def parent_model(results_uri: Place, checkpoint: str = _BEST) -> str:
    """Choose a checkpoint of the parent job.

    The best one has the highest recorded `val_mIoU` (the earliest of equals, as in training) of
    those that still exist; where none is recorded, it is what `mal_model_best.pth` stands for,
    else the latest.

    Args:
        results_uri: Results folder of the parent, local or remote: what holds `train/`, or the
            folder of the checkpoints itself.
        checkpoint: best, latest, `epoch=N` (the state after N epochs), `step=N`, or a file name.

    Returns:
        Path or uri: of the checkpoint itself where a link or a copy stands for it.

    Raises:
        ArtifactError: There is no such checkpoint.
        StorageError: The bucket is out of reach.
    """
    job = _open_parent(results_uri)
    match checkpoint:
        case "best":
            name = _best_of(job)
        case "latest":
            name = _latest_of(job) or _original_of(job, BEST_CHECKPOINT)
        case _:
            name = _named_in(job, checkpoint)
    assert name, "a folder counts as a job's only if it has checkpoints"
    return job.uri_of(name)


def parent_model_folder(results_uri: Place) -> str:
    """Return the folder that holds the parent job's checkpoints.

    Raises:
        ArtifactError: There are none.
        StorageError: The bucket is out of reach.
    """
    return _open_parent(results_uri).uri


def create_inference_result_file_mal(
    results_dir: Place, label_dump_path: Place = "instances_val2017_mal.json"
) -> str:
    """Return the file that inference writes its labels to; an absolute path stays as it is.

    Raises:
        SpecError: There is no results folder, or no file name.
    """
    folder, name = output_dir(results_dir).rstrip("/"), os.fspath(label_dump_path)
    if not name.strip():
        raise SpecError(
            f"inference.label_dump_path must be a file, got '{name}'. Give a file name."
        )
    return name if Path(name).is_absolute() else f"{folder}/inference/{name}"


def output_dir(results_dir: Place) -> str:
    """Return this job's results folder without `~` and trailing slash.

    Raises:
        SpecError: It is empty, or below the home of an unknown user.
        StorageError: It is no local path, `s3://` or `minio://`.
    """
    uri = os.fspath(results_dir)
    if not uri.strip():
        raise SpecError(f"results_dir must be set, got '{uri}'. Write results_dir=FOLDER.")
    remote = parse_remote_uri(uri)
    with looking_at("results_dir", uri):
        return str(Path(uri).expanduser()) if remote is None else _text_of(remote)


def resume_model(results_dir: Place) -> str:
    """Return this job's own latest checkpoint, or '' where it has none yet.

    Args:
        results_dir: What holds `train/`, or the folder of the checkpoints itself.

    Raises:
        SpecError: There is no results folder.
        StorageError: The bucket is out of reach.
    """
    uri = output_dir(results_dir)
    with looking_at("results_dir", uri):
        job = _find_job(uri)
    name = _latest_of(job) if job else ""
    return job.uri_of(name) if job and name else ""


def ptm_if_no_resume_model(results_dir: Place, pretrained_model: Place) -> str:
    """Return the pretrained model for a first start, '' for a job that goes on by itself.

    Raises:
        SpecError: There is no results folder.
        StorageError: The bucket is out of reach.
    """
    return "" if resume_model(results_dir) else os.fspath(pretrained_model)


def checkpoint_of(uri: Place) -> str:
    """Return the file that a checkpoint key names.

    A folder of checkpoints stands for its latest one, a job's results folder for what
    `parent_model` chooses. What is neither is returned as it is: its reader says what is wrong.
    """
    named = os.fspath(uri)
    with contextlib.suppress(MalError, OSError, RuntimeError):
        if not _is_folder(named):
            return named
        job = _open_parent(named)
        is_named_itself = job.uri == output_dir(named) and LATEST_CHECKPOINT in job.files
        return job.uri_of(LATEST_CHECKPOINT if is_named_itself else _best_of(job))
    return named


def _is_folder(uri: str) -> bool:
    remote = parse_remote_uri(uri)
    if remote is None:
        return Path(uri).expanduser().is_dir()
    return remote.key.endswith("/") or not PurePosixPath(remote.key).suffix


def parent_job_keys(
    action: str, results_uri: Place, *, checkpoint: str = _BEST, except_for: Collection[str] = ()
) -> dict[str, str]:
    """Return the key that a parent job fills.

    A train job starts from its parent's weights; once it has checkpoints of its own, `mal train`
    goes on from those.

    Args:
        action: train, evaluate, inference or export.
        results_uri: Results folder of the parent; '' for none.
        checkpoint: As in `parent_model`.
        except_for: Keys that are set elsewhere: the parent is not looked at for them.

    Raises:
        ArtifactError: There is no such checkpoint.
        StorageError: The bucket is out of reach.
    """
    key = "train.pretrained_model_path" if action == "train" else f"{action}.checkpoint"
    if not os.fspath(results_uri) or key in except_for:
        return {}
    return {key: parent_model(results_uri, checkpoint)}


@dataclass(frozen=True, order=True)
class _Checkpoint:
    """A checkpoint by what its name says, in the order of training."""

    step: int
    epoch: int
    name: str


@dataclass(frozen=True)
class _JobFolder:
    """A folder of checkpoints.

    Attributes:
        uri: Without a trailing slash.
        files: Local path or remote object by name; nothing of subfolders.
    """

    uri: str
    files: Mapping[str, Path | StoredObject]

    def uri_of(self, name: str) -> str:
        """Return the place of a file."""
        return f"{self.uri.rstrip('/')}/{name}"

    @property
    def checkpoints(self) -> list[_Checkpoint]:
        """Those named by epoch and step, in the order of training."""
        matches = ((name, _CHECKPOINT_NAME.fullmatch(name)) for name in self.files)
        return sorted(_Checkpoint(int(m[2]), int(m[1]), name) for name, m in matches if m)

    @property
    def model_names(self) -> list[str]:
        """Every checkpoint, links and copies too."""
        links = [name for name in (BEST_CHECKPOINT, LATEST_CHECKPOINT) if name in self.files]
        return [*(checkpoint.name for checkpoint in self.checkpoints), *links]


def _open_parent(place: Place) -> _JobFolder:
    results_uri = os.fspath(place)
    if not results_uri.strip():
        raise ArtifactError(
            f"parent job must be given, got '{results_uri}'. Give the results folder of mal train."
        )
    with looking_at("parent job", results_uri, ArtifactError):
        job = _find_job(results_uri)
        found = "" if job else _describe(results_uri)
    if job is None:
        raise ArtifactError(
            f"parent job must have checkpoints (mal_model_*.pth), got {found} "
            f"at {redact_uri(results_uri)}. Give the results folder of mal train, or set the "
            "checkpoint's own key."
        )
    return job


def _find_job(results_uri: str) -> _JobFolder | None:
    """Look for checkpoints below `train`, below a search's `automl`, then in the folder itself."""
    remote = parse_remote_uri(results_uri)
    for name in (_TRAIN_FOLDER, _SEARCH_FOLDER, ""):
        if remote is None:
            path = Path(results_uri).expanduser() / name
            job = _JobFolder(str(path), _list_local(path))
        else:
            folder = remote.child(name) if name else remote
            job = _JobFolder(_text_of(folder), _list_remote(folder))
        if job.model_names:
            return job
    return None


def _list_local(folder: Path) -> dict[str, Path | StoredObject]:
    """List the files; a link to nothing is none."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def _list_remote(folder: RemoteUri) -> dict[str, Path | StoredObject]:
    prefix_length = len(folder.folder_prefix)
    names = ((stored.uri.key[prefix_length:], stored) for stored in list_objects(folder))
    return {name: stored for name, stored in names if "/" not in name}


def _describe(results_uri: str) -> str:
    """Say what is there instead of a job's checkpoints."""
    remote = parse_remote_uri(results_uri)
    if remote is not None:
        prefix_length = len(remote.folder_prefix)
        keys = (stored.uri.key[prefix_length:] for stored in list_objects(remote))
        names = sorted({key.partition("/")[0] for key in keys})
        return f"only {_name_some(names)}" if names else "nothing"
    path = Path(results_uri).expanduser()
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        return f"only {_name_some(names)}" if names else "an empty folder"
    return "a file" if path.exists() else "nothing"


def _name_some(names: list[str]) -> str:
    more = ", ..." if len(names) > _MAX_NAMES_TOLD else ""
    return f"{', '.join(names[:_MAX_NAMES_TOLD])}{more}"


def _best_of(job: _JobFolder) -> str:
    figures = _recorded_figures(job)
    measured = _figures_by_checkpoint(job, figures)
    if measured:
        best = max(measured, key=lambda c: (measured[c], -c.step, -c.epoch))
        if measured[best] == max(figures.values()):
            return best.name
        # The file of the best epoch is gone, unless the link was turned into a copy of it.
        if _original_of(job, BEST_CHECKPOINT) != BEST_CHECKPOINT:
            return best.name
    return _original_of(job, BEST_CHECKPOINT) or _latest_of(job)


def _latest_of(job: _JobFolder) -> str:
    """Return what training would go on from: a run that went back has later files besides."""
    linked = _original_of(job, LATEST_CHECKPOINT)
    checkpoints = job.checkpoints
    return linked or (checkpoints[-1].name if checkpoints else "")


def _named_in(job: _JobFolder, checkpoint: str) -> str:
    if checkpoint in job.model_names:
        return _original_of(job, checkpoint) or checkpoint
    wanted = _WANTED.fullmatch(checkpoint)
    if wanted and any(wanted.groups()):
        # As text: a number may have more digits than Python reads.
        epoch, step = (number and (number.lstrip("0") or "0") for number in wanted.groups())
        for found in job.checkpoints:  # of several in an epoch the first one ended the last epoch
            if epoch in (None, str(found.epoch)) and step in (None, str(found.step)):
                return found.name
    elif not checkpoint.endswith(".pth"):
        raise ArtifactError(
            f"checkpoint must be best, latest, epoch=N, step=N or a file name, got "
            f"{shown(repr(checkpoint))}. {redact_uri(job.uri)} has {_name_some(job.model_names)}."
        )
    raise ArtifactError(
        f"checkpoint must be one of the parent job, got {shown(repr(checkpoint))}: "
        f"{redact_uri(job.uri)} has {_name_some(job.model_names)}. Give one of these, "
        "best or latest."
    )


def _original_of(job: _JobFolder, name: str) -> str:
    """Return the checkpoint that a link or a copy stands for; itself if none, '' if missing."""
    stands_for = job.files.get(name)
    if stands_for is None or _CHECKPOINT_NAME.fullmatch(name):
        return "" if stands_for is None else name
    originals = [checkpoint.name for checkpoint in reversed(job.checkpoints)]
    if isinstance(stands_for, Path) and stands_for.resolve().name in originals:
        return stands_for.resolve().name
    return next((o for o in originals if _has_same_content(stands_for, job.files[o])), name)


def _has_same_content(left: Path | StoredObject, right: Path | StoredObject) -> bool:
    if isinstance(left, StoredObject) and isinstance(right, StoredObject):
        return (left.size, left.etag) == (right.size, right.etag)
    if isinstance(left, Path) and isinstance(right, Path):
        return left.samefile(right) or filecmp.cmp(left, right, shallow=False)
    return False


def _figures_by_checkpoint(
    job: _JobFolder, figures: Mapping[tuple[int, int], float]
) -> dict[_Checkpoint, float]:
    """Match records and files by epoch and step.

    A run that `max_steps` ends inside an epoch records that epoch; its file counts finished ones.
    """
    known = {(checkpoint.epoch, checkpoint.step) for checkpoint in job.checkpoints}
    measured = {}
    for checkpoint in job.checkpoints:
        place = (checkpoint.epoch, checkpoint.step)
        next_place = (checkpoint.epoch + 1, checkpoint.step)
        if place not in figures and next_place not in known:
            place = next_place
        if place in figures:
            measured[checkpoint] = figures[place]
    return measured


def _recorded_figures(job: _JobFolder) -> dict[tuple[int, int], float]:
    """Return the recorded mIoU by epoch and step; lines that do not say one are passed over."""
    if EPOCH_METRICS_FILE not in job.files:
        return {}
    text = fetch_file(job.uri_of(EPOCH_METRICS_FILE)).read_text(encoding="utf-8", errors="replace")
    return dict(_read_figures(text))


def _read_figures(text: str) -> Iterator[tuple[tuple[int, int], float]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
            place = (int(record["epoch"]), int(record["step"]))
            figure = float(record[_FIGURE if _FIGURE in record else MONITORED_METRIC])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        if math.isfinite(figure):
            yield place, figure


def _text_of(remote: RemoteUri) -> str:
    return f"{remote.scheme}://{remote.bucket}/{remote.key.rstrip('/')}".rstrip("/")
