"""Data sources: the files below a data set's root, and the spec keys that take them.

A root, local or in a bucket, holds `images.tar.gz` and `annotations.json`. `DATA_SOURCES` lists the
roots of each action and the keys that they fill, as TAO does.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType

from mal.errors import SpecError, StorageError
from mal.spec import ExperimentSpec
from mal.storage import redact_uri
from mal.storage.objects import head_object
from mal.storage.uris import RemoteUri, parse_remote_uri
from mal.tao.paths import PathOrUri, wrap_path_errors

IMAGES_FILE = "images.tar.gz"
ANNOTATIONS_FILE = "annotations.json"

_NOT_FOUND = 404


@dataclass(frozen=True)
class DataSource:
    """A file below a data set's root, and the spec key that takes its URI.

    Attributes:
        dataset: train_datasets, eval_dataset or inference_dataset.
        is_optional: Whether the action runs without it.
    """

    key: str
    dataset: str
    file_name: str
    is_optional: bool = False


_TRAIN = (
    DataSource("dataset.train_img_dir", "train_datasets", IMAGES_FILE),
    DataSource("dataset.train_ann_path", "train_datasets", ANNOTATIONS_FILE),
)
_EVAL = (
    DataSource("dataset.val_img_dir", "eval_dataset", IMAGES_FILE),
    DataSource("dataset.val_ann_path", "eval_dataset", ANNOTATIONS_FILE),
)
_INFERENCE = (
    DataSource("inference.img_dir", "inference_dataset", IMAGES_FILE),
    DataSource("inference.ann_path", "inference_dataset", ANNOTATIONS_FILE),
)

DATA_SOURCES: Mapping[str, tuple[DataSource, ...]] = MappingProxyType(
    {
        "train": (
            *_TRAIN,
            *(dataclasses.replace(source, is_optional=True) for source in _EVAL),
        ),
        "evaluate": _EVAL,
        "inference": _INFERENCE,
        "export": (),
    }
)

_ALL_SOURCES = {source.key: source for sources in DATA_SOURCES.values() for source in sources}
_SNAPSHOT_PARTS = {
    "train_datasets": "train",
    "eval_dataset": "val",
    "inference_dataset": "label",
}
_SNAPSHOT_FILES = {IMAGES_FILE: "images", ANNOTATIONS_FILE: "annotations"}


def data_uris(action: str, spec: ExperimentSpec) -> dict[str, str]:
    """Return the URIs of an action's data by spec key; '' is unset."""
    return {source.key: attrgetter(source.key)(spec) for source in DATA_SOURCES[action]}


def missing_settings(action: str, spec: ExperimentSpec) -> dict[str, str]:
    """Return, by key, a problem for each unset key without which the action cannot run."""
    uris = data_uris(action, spec)
    missing = {
        source.key: f"{source.key} must be set, got ''. Write {source.key}=PATH, or give a root "
        f"that holds {source.file_name} as {source.dataset}."
        for source in DATA_SOURCES[action]
        if not source.is_optional and not uris[source.key]
    }
    if not spec.results_dir and not getattr(spec, action).results_dir:
        missing["results_dir"] = "results_dir must be set, got ''. Write results_dir=FOLDER."
    return missing


def data_source_keys(
    action: str,
    *,
    train_datasets: PathOrUri | Sequence[PathOrUri] = (),
    eval_dataset: PathOrUri = "",
    inference_dataset: PathOrUri = "",
) -> dict[str, str]:
    """Return the data keys of an action, filled from the roots of its data sets.

    A root that the action does not need fills its keys too.

    Args:
        action: train, evaluate, inference or export.
        train_datasets: One root, local, `s3://` or `minio://`.
        eval_dataset: A root; '' for none.
        inference_dataset: A root; '' for none.

    Returns:
        URI by dotted key.

    Raises:
        SpecError: A root or one of its files is missing; lists all of them.
        StorageError: A bucket is out of reach.
    """
    if action not in DATA_SOURCES:
        known = ", ".join(DATA_SOURCES)
        raise SpecError(f"action must be known, got {action}. Use one of {known}.")
    roots = _Roots(train_datasets, eval_dataset, inference_dataset)
    problems = [
        f"{source.key} must have a source, got no {source.dataset}. Give a root that holds "
        f"{IMAGES_FILE} and {ANNOTATIONS_FILE}."
        for source in DATA_SOURCES[action]
        if not source.is_optional and source.dataset not in roots.by_dataset
    ]
    return _resolve(roots, ((source.key, source) for source in _ALL_SOURCES.values()), problems)


def root_keys(
    *,
    train_datasets: PathOrUri | Sequence[PathOrUri] = (),
    eval_dataset: PathOrUri = "",
    inference_dataset: PathOrUri = "",
    except_for: Collection[str] = (),
) -> dict[str, str]:
    """Return the keys that the given roots fill.

    Args:
        train_datasets: One root; empty for none.
        eval_dataset: A root; '' for none.
        inference_dataset: A root; '' for none.
        except_for: Keys that are set by other means; their files need not exist.

    Raises:
        SpecError: A file of a root is missing; lists all of them.
        StorageError: A bucket is out of reach.
    """
    wanted = [(key, source) for key, source in _ALL_SOURCES.items() if key not in except_for]
    return _resolve(_Roots(train_datasets, eval_dataset, inference_dataset), wanted, [])


def snapshot_uris(
    *,
    train_images: PathOrUri = "",
    train_annotations: PathOrUri = "",
    val_images: PathOrUri = "",
    val_annotations: PathOrUri = "",
    label_images: PathOrUri = "",
    label_annotations: PathOrUri = "",
    train_dataset: PathOrUri = "",
    eval_dataset: PathOrUri = "",
    inference_dataset: PathOrUri = "",
) -> dict[str, str]:
    """Return the six arguments of `snapshot_dataset`, filled from roots where these are given.

    Each argument may be '' for none; a part is given as two URIs or as a root.

    Raises:
        SpecError: A part is given twice, the training part not at all, or a file is missing.
        StorageError: A bucket cannot be read.
    """
    given = {
        "train_images": os.fspath(train_images),
        "train_annotations": os.fspath(train_annotations),
        "val_images": os.fspath(val_images),
        "val_annotations": os.fspath(val_annotations),
        "label_images": os.fspath(label_images),
        "label_annotations": os.fspath(label_annotations),
    }
    roots = _Roots(train_dataset, eval_dataset, inference_dataset)
    wanted = {_snapshot_input(source): source for source in _ALL_SOURCES.values()}
    problems = [
        f"{name} must be given once, got it beside {_root_input(source)}. Leave one out."
        for name, source in wanted.items()
        if given[name] and source.dataset in roots.by_dataset
    ]
    if not (train_images or train_annotations or "train_datasets" in roots.by_dataset):
        problems.append(
            f"train_dataset must be given, got ''. Give a root that holds {IMAGES_FILE} and "
            f"{ANNOTATIONS_FILE}, or train_images and train_annotations."
        )
    return given | _resolve(roots, wanted.items(), problems)


class _Roots:
    """The given roots by data set, and the problems found before any file is checked."""

    def __init__(
        self,
        train_datasets: PathOrUri | Sequence[PathOrUri],
        eval_dataset: PathOrUri,
        inference_dataset: PathOrUri,
    ) -> None:
        if isinstance(train_datasets, str | os.PathLike):
            train_datasets = [train_datasets]
        several = [root for root in (os.fspath(uri) for uri in train_datasets) if root]
        given = {
            "train_datasets": several[0] if several else "",
            "eval_dataset": os.fspath(eval_dataset),
            "inference_dataset": os.fspath(inference_dataset),
        }
        self.by_dataset = {dataset: root for dataset, root in given.items() if root}
        self.problems: list[str] = []
        if len(several) > 1:
            self.problems.append(
                f"train_datasets must be one root, got {len(several)} "
                f"({', '.join(map(redact_uri, several))}). Merge them into one."
            )


def _resolve(
    roots: _Roots, wanted: Iterable[tuple[str, DataSource]], problems: list[str]
) -> dict[str, str]:
    """Return the URIs of the wanted sources, each with the name that the caller gives it.

    Raises:
        SpecError: With the given problems and those found here.
    """
    problems = [*problems, *roots.problems]
    found: dict[str, str] = {}
    sources = list(wanted)
    for dataset, root in roots.by_dataset.items():
        names = {name: source for name, source in sources if source.dataset == dataset}
        if not names:
            continue
        try:
            remote = parse_remote_uri(root)
        except StorageError as error:
            problems.append(f"{dataset}: {error}")
            continue
        if remote is not None:
            found.update(_remote_files(remote, names, problems))
            continue
        try:
            with wrap_path_errors(dataset, root):
                found.update(_local_files(Path(root).expanduser(), names, problems))
        except SpecError as error:
            problems += error.problems
    if problems:
        raise SpecError(problems)
    return found


def _local_files(
    root: Path, names: Mapping[str, DataSource], problems: list[str]
) -> dict[str, str]:
    files = {}
    for name, source in names.items():
        path = root / source.file_name
        if path.is_file():
            files[name] = str(path)
        else:
            problems.append(_missing_file(name, "a folder" if path.is_dir() else "nothing", path))
    return files


def _remote_files(
    root: RemoteUri, names: Mapping[str, DataSource], problems: list[str]
) -> dict[str, str]:
    files = {}
    for name, source in names.items():
        uri = root.child(source.file_name)
        try:
            head_object(uri)
        except StorageError as error:
            if not _is_not_found(error):
                raise
            problems.append(_missing_file(name, "nothing", uri))
        else:
            files[name] = f"{uri.scheme}://{uri.bucket}/{uri.key}"
    return files


def _missing_file(name: str, found: str, uri: Path | RemoteUri) -> str:
    return f"{name} must be a file, got {found} at {uri}. Put the file there, or set {name}."


def _is_not_found(error: StorageError) -> bool:
    """Whether the store answered that it has no such object or bucket."""
    response = getattr(error.__cause__, "response", {})
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == _NOT_FOUND)


def _snapshot_input(source: DataSource) -> str:
    return f"{_SNAPSHOT_PARTS[source.dataset]}_{_SNAPSHOT_FILES[source.file_name]}"


def _root_input(source: DataSource) -> str:
    return "train_dataset" if source.dataset == "train_datasets" else source.dataset
