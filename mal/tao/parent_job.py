"""Fills spec keys from the results folders of a run and of its parent job (TAO's `infer_params`).

The functions have TAO's names: a service finds them in `SPEC_PARAMS`.
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
from mal.tao.paths import PathOrUri, shortened, wrap_path_errors

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
_METRIC = "val_mIoU"
_TRAIN_FOLDER, _SEARCH_FOLDER = "train", "automl"
_CHECKPOINT_NAME = re.compile(r"mal_model_epoch_([0-9]+)_step_([0-9]+)\.pth")
_WANTED = re.compile(r"(?:epoch[=_]([0-9]+))?(?:(?:^|_)step[=_]([0-9]+))?")
_MAX_LISTED_NAMES = 8


def parent_model(results_uri: PathOrUri, checkpoint: str = _BEST) -> str:
    """Choose a checkpoint of the parent job.

    The best one has the highest recorded `val_mIoU` of those that still exist; of equals the
    earliest is chosen, as in training. Without a recorded metric it is the target of
    `mal_model_best.pth`, else the latest.

    Args:
        results_uri: Results folder of the parent job, local or remote: the folder that contains
            `train/`, or the folder of the checkpoints itself.
        checkpoint: best, latest, `epoch=N` (the state after N epochs), `step=N`, or a file name.

    Returns:
        Path or URI of the checkpoint; of the original where the choice is a link or a copy.

    Raises:
        ArtifactError: There is no such checkpoint.
        StorageError: The bucket cannot be read.
    """
    folder = _open_parent(results_uri)
    match checkpoint:
        case "best":
            name = _best_of(folder)
        case "latest":
            name = _latest_of(folder) or _original_of(folder, BEST_CHECKPOINT)
        case _:
            name = _named_in(folder, checkpoint)
    assert name, "_open_parent returns only folders with checkpoints"
    return folder.uri_of(name)


def parent_model_folder(results_uri: PathOrUri) -> str:
    """Return the folder that holds the parent job's checkpoints.

    Raises:
        ArtifactError: There are none.
        StorageError: The bucket cannot be read.
    """
    return _open_parent(results_uri).uri


def create_inference_result_file_mal(
    results_dir: PathOrUri, label_dump_path: PathOrUri = "instances_val2017_mal.json"
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


def output_dir(results_dir: PathOrUri) -> str:
    """Return this run's results folder without `~` and trailing slash.

    Raises:
        SpecError: It is empty, or below the home of an unknown user.
        StorageError: It is neither a local path nor `s3://` nor `minio://`.
    """
    uri = os.fspath(results_dir)
    if not uri.strip():
        raise SpecError(f"results_dir must be set, got '{uri}'. Write results_dir=FOLDER.")
    remote = parse_remote_uri(uri)
    with wrap_path_errors("results_dir", uri):
        return str(Path(uri).expanduser()) if remote is None else _text_of(remote)


def resume_model(results_dir: PathOrUri) -> str:
    """Return this run's own latest checkpoint, or '' where it has none yet.

    Args:
        results_dir: The folder that contains `train/`, or the folder of the checkpoints itself.

    Raises:
        SpecError: There is no results folder.
        StorageError: The bucket cannot be read.
    """
    uri = output_dir(results_dir)
    with wrap_path_errors("results_dir", uri):
        folder = _find_folder(uri)
    name = _latest_of(folder) if folder else ""
    return folder.uri_of(name) if folder and name else ""


def ptm_if_no_resume_model(results_dir: PathOrUri, pretrained_model: PathOrUri) -> str:
    """Return the pretrained model for a first start, '' for a run that resumes.

    Raises:
        SpecError: There is no results folder.
        StorageError: The bucket cannot be read.
    """
    return "" if resume_model(results_dir) else os.fspath(pretrained_model)


def checkpoint_of(uri: PathOrUri) -> str:
    """Return the file that a checkpoint key names.

    For a folder of checkpoints this is its latest one, for a results folder the choice of
    `parent_model`. Anything else is returned unchanged; its reader reports what is wrong.
    """
    named = os.fspath(uri)
    with contextlib.suppress(MalError, OSError, RuntimeError):
        if not _is_folder(named):
            return named
        folder = _open_parent(named)
        is_named_itself = folder.uri == output_dir(named) and LATEST_CHECKPOINT in folder.files
        return folder.uri_of(LATEST_CHECKPOINT if is_named_itself else _best_of(folder))
    return named


def _is_folder(uri: str) -> bool:
    remote = parse_remote_uri(uri)
    if remote is None:
        return Path(uri).expanduser().is_dir()
    return remote.key.endswith("/") or not PurePosixPath(remote.key).suffix


def parent_job_keys(
    action: str,
    results_uri: PathOrUri,
    *,
    checkpoint: str = _BEST,
    except_for: Collection[str] = (),
) -> dict[str, str]:
    """Return the key that a parent job fills.

    A training starts from its parent's weights; once it has checkpoints of its own, `mal train`
    resumes from those.

    Args:
        action: train, evaluate, inference or export.
        results_uri: Results folder of the parent job; '' for none.
        checkpoint: As in `parent_model`.
        except_for: Keys that are set by other means; for these the parent job is not read.

    Raises:
        ArtifactError: There is no such checkpoint.
        StorageError: The bucket cannot be read.
    """
    key = "train.pretrained_model_path" if action == "train" else f"{action}.checkpoint"
    if not os.fspath(results_uri) or key in except_for:
        return {}
    return {key: parent_model(results_uri, checkpoint)}


@dataclass(frozen=True, order=True)
class _Checkpoint:
    """A checkpoint by the numbers in its name, in the order of training."""

    step: int
    epoch: int
    name: str


@dataclass(frozen=True)
class _CheckpointFolder:
    """A folder of checkpoints: its URI without a trailing slash, and its own files by name."""

    uri: str
    files: Mapping[str, Path | StoredObject]

    def uri_of(self, name: str) -> str:
        return f"{self.uri.rstrip('/')}/{name}"

    @property
    def checkpoints(self) -> list[_Checkpoint]:
        """The files named by epoch and step, in the order of training."""
        matches = ((name, _CHECKPOINT_NAME.fullmatch(name)) for name in self.files)
        return sorted(_Checkpoint(int(m[2]), int(m[1]), name) for name, m in matches if m)

    @property
    def model_names(self) -> list[str]:
        """Every checkpoint, including links and copies."""
        links = [name for name in (BEST_CHECKPOINT, LATEST_CHECKPOINT) if name in self.files]
        return [*(checkpoint.name for checkpoint in self.checkpoints), *links]


def _open_parent(uri: PathOrUri) -> _CheckpointFolder:
    results_uri = os.fspath(uri)
    if not results_uri.strip():
        raise ArtifactError(
            f"parent job must be given, got '{results_uri}'. Give the results folder of mal train."
        )
    with wrap_path_errors("parent job", results_uri, ArtifactError):
        folder = _find_folder(results_uri)
        found = "" if folder else _describe(results_uri)
    if folder is None:
        raise ArtifactError(
            f"The parent job at {redact_uri(results_uri)} has no checkpoints (mal_model_*.pth); it "
            f"{found}. Give the results folder of mal train, or set the checkpoint's own key."
        )
    return folder


def _find_folder(results_uri: str) -> _CheckpointFolder | None:
    """Find checkpoints below `train`, below a search's `automl`, or in the folder itself."""
    remote = parse_remote_uri(results_uri)
    for name in (_TRAIN_FOLDER, _SEARCH_FOLDER, ""):
        if remote is None:
            path = Path(results_uri).expanduser() / name
            folder = _CheckpointFolder(str(path), _list_local(path))
        else:
            child = remote.child(name) if name else remote
            folder = _CheckpointFolder(_text_of(child), _list_remote(child))
        if folder.model_names:
            return folder
    return None


def _list_local(folder: Path) -> dict[str, Path | StoredObject]:
    """List the files, without broken links."""
    if not folder.is_dir():
        return {}
    return {path.name: path for path in sorted(folder.iterdir()) if path.is_file()}


def _list_remote(folder: RemoteUri) -> dict[str, Path | StoredObject]:
    prefix_length = len(folder.folder_prefix)
    names = ((stored.uri.key[prefix_length:], stored) for stored in list_objects(folder))
    return {name: stored for name, stored in names if "/" not in name}


def _describe(results_uri: str) -> str:
    """Describe what the URI holds instead of checkpoints."""
    remote = parse_remote_uri(results_uri)
    if remote is not None:
        prefix_length = len(remote.folder_prefix)
        keys = (stored.uri.key[prefix_length:] for stored in list_objects(remote))
        names = sorted({key.partition("/")[0] for key in keys})
        return f"has only {_name_some(names)}" if names else "has no files"
    path = Path(results_uri).expanduser()
    if path.is_dir():
        names = sorted(entry.name for entry in path.iterdir())
        return f"has only {_name_some(names)}" if names else "has no files"
    return "is a file" if path.exists() else "does not exist"


def _name_some(names: list[str]) -> str:
    more = ", ..." if len(names) > _MAX_LISTED_NAMES else ""
    return f"{', '.join(names[:_MAX_LISTED_NAMES])}{more}"


def _best_of(folder: _CheckpointFolder) -> str:
    metrics = _recorded_metrics(folder)
    measured = _metrics_by_checkpoint(folder, metrics)
    if measured:
        best = max(measured, key=lambda c: (measured[c], -c.step, -c.epoch))
        if measured[best] == max(metrics.values()):
            return best.name
        # The file of the best epoch is gone, unless the link was turned into a copy of it.
        if _original_of(folder, BEST_CHECKPOINT) != BEST_CHECKPOINT:
            return best.name
    return _original_of(folder, BEST_CHECKPOINT) or _latest_of(folder)


def _latest_of(folder: _CheckpointFolder) -> str:
    """Return what training would resume from; later files of a run that went back do not count."""
    linked = _original_of(folder, LATEST_CHECKPOINT)
    checkpoints = folder.checkpoints
    return linked or (checkpoints[-1].name if checkpoints else "")


def _named_in(folder: _CheckpointFolder, checkpoint: str) -> str:
    if checkpoint in folder.model_names:
        return _original_of(folder, checkpoint) or checkpoint
    wanted = _WANTED.fullmatch(checkpoint)
    if wanted and any(wanted.groups()):
        # As text: a number may have more digits than Python reads.
        epoch, step = (number and (number.lstrip("0") or "0") for number in wanted.groups())
        for found in folder.checkpoints:  # the first of an epoch was written at its end
            if epoch in (None, str(found.epoch)) and step in (None, str(found.step)):
                return found.name
    elif not checkpoint.endswith(".pth"):
        raise ArtifactError(
            f"checkpoint must be best, latest, epoch=N, step=N or a file name, got "
            f"{shortened(repr(checkpoint))}. "
            f"{redact_uri(folder.uri)} has {_name_some(folder.model_names)}."
        )
    raise ArtifactError(
        f"checkpoint must be one of the parent job, got {shortened(repr(checkpoint))}: "
        f"{redact_uri(folder.uri)} has {_name_some(folder.model_names)}. Give one of these, "
        "best or latest."
    )


def _original_of(folder: _CheckpointFolder, name: str) -> str:
    """Return the original of a link or a copy; the name itself if none, '' if missing."""
    link = folder.files.get(name)
    if link is None or _CHECKPOINT_NAME.fullmatch(name):
        return "" if link is None else name
    originals = [checkpoint.name for checkpoint in reversed(folder.checkpoints)]
    if isinstance(link, Path) and link.resolve().name in originals:
        return link.resolve().name
    return next((o for o in originals if _has_same_content(link, folder.files[o])), name)


def _has_same_content(left: Path | StoredObject, right: Path | StoredObject) -> bool:
    if isinstance(left, StoredObject) and isinstance(right, StoredObject):
        return (left.size, left.etag) == (right.size, right.etag)
    if isinstance(left, Path) and isinstance(right, Path):
        return left.samefile(right) or filecmp.cmp(left, right, shallow=False)
    return False


def _metrics_by_checkpoint(
    folder: _CheckpointFolder, metrics: Mapping[tuple[int, int], float]
) -> dict[_Checkpoint, float]:
    """Match records and files by epoch and step.

    A run that `max_steps` ended inside an epoch recorded that epoch; its file counts finished ones.
    """
    known = {(checkpoint.epoch, checkpoint.step) for checkpoint in folder.checkpoints}
    measured = {}
    for checkpoint in folder.checkpoints:
        key = (checkpoint.epoch, checkpoint.step)
        next_key = (checkpoint.epoch + 1, checkpoint.step)
        if key not in metrics and next_key not in known:
            key = next_key
        if key in metrics:
            measured[checkpoint] = metrics[key]
    return measured


def _recorded_metrics(folder: _CheckpointFolder) -> dict[tuple[int, int], float]:
    """Return the recorded mIoU by epoch and step; other lines are ignored."""
    if EPOCH_METRICS_FILE not in folder.files:
        return {}
    text = fetch_file(folder.uri_of(EPOCH_METRICS_FILE)).read_text(
        encoding="utf-8", errors="replace"
    )
    return dict(_read_metrics(text))


def _read_metrics(text: str) -> Iterator[tuple[tuple[int, int], float]]:
    for line in text.splitlines():
        try:
            record = json.loads(line)
            key = (int(record["epoch"]), int(record["step"]))
            metric = float(record[_METRIC if _METRIC in record else MONITORED_METRIC])
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            continue
        if math.isfinite(metric):
            yield key, metric


def _text_of(remote: RemoteUri) -> str:
    return f"{remote.scheme}://{remote.bucket}/{remote.key.rstrip('/')}".rstrip("/")
