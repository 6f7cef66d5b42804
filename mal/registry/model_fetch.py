"""Bring a model to a step: of a store its champion or a version, of a training what it left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import EXPERIMENT_FILE, LATEST_CHECKPOINT, sha256_of_file
from mal.errors import ArtifactError
from mal.registry.changes import Detection
from mal.registry.model_store import ModelStore
from mal.registry.promotion import MODEL_FILES
from mal.storage import (
    ConflictError,
    child_uri,
    fetch_file,
    list_files,
    put_file,
    redact_uri,
)

_FILE_SUFFIXES = (".pth", ".onnx")
_TRAIN_FOLDER = "train"


@dataclass(frozen=True)
class FetchedModel:
    """A model that was brought.

    Attributes:
        version: Of the store; '' for what a training left.
        checkpoint_uri: Where its weights stay.
        sha256: Of the weights.
        spec_sha256: Of the spec that they were trained with; '' for none.
    """

    version: str
    checkpoint_uri: str
    sha256: str
    spec_sha256: str = ""

    @property
    def uri(self) -> str:
        """What brings it again: the folder of the weights, or that one of several in it."""
        folder, _, name = self.checkpoint_uri.rpartition("/")
        return folder if name == LATEST_CHECKPOINT else self.checkpoint_uri


def fetch_model(source: str, folder: Path, *, version: str = "") -> FetchedModel:
    """Copy a model into a folder; its weights are then the latest checkpoint there.

    Args:
        source: A model store, the results folder of a job, the folder of its checkpoints, or one
            checkpoint with the spec beside it that it was trained with.
        folder: Where its files go.
        version: Of the store; '' for the champion.

    Raises:
        ArtifactError: There is none.
        StorageError: The place cannot be read.
    """
    place, checkpoint, version = _locate(source, version)
    names = list_files(place)
    is_latest = checkpoint == LATEST_CHECKPOINT
    if checkpoint not in names or not (is_latest or EXPERIMENT_FILE in names):
        got = f"{redact_uri(source)} {version}".rstrip()
        raise ArtifactError(
            f"model must be a model store with a champion, a version of it, a folder with "
            f"{LATEST_CHECKPOINT}, a job's results folder, or a .pth file beside its "
            f"{EXPERIMENT_FILE}, got {got}. Give one of them."
        )
    files = {name: name for name in MODEL_FILES if name in names} | {LATEST_CHECKPOINT: checkpoint}
    for name, origin in files.items():
        put_file(fetch_file(child_uri(place, origin)), str(folder / name))
    return FetchedModel(
        version,
        child_uri(place, checkpoint),
        sha256_of_file(folder / LATEST_CHECKPOINT),
        sha256_of_file(folder / EXPERIMENT_FILE) if EXPERIMENT_FILE in names else "",
    )


def _locate(source: str, version: str) -> tuple[str, str, str]:
    """Return folder and name of the checkpoint that a source stands for, and its version."""
    if not version and (source.endswith(_FILE_SUFFIXES) or Path(source).expanduser().is_file()):
        place, _, checkpoint = source.rpartition("/")
        return place or ".", checkpoint if checkpoint.endswith(".pth") else "", ""
    store = ModelStore(source)
    if version := version or store.read().champion_version:
        return store.version_uri(version, "model"), LATEST_CHECKPOINT, version
    results = child_uri(store.uri, _TRAIN_FOLDER)
    is_job = LATEST_CHECKPOINT in list_files(results)
    return results if is_job else store.uri, LATEST_CHECKPOINT, ""


def fetch_champion(found: Detection, folder: Path) -> FetchedModel | None:
    """Copy the champion that a run started from into a folder; None before the first promotion.

    Raises:
        ConflictError: There is another champion, or training, since.
    """
    state = ModelStore(found.store_uri).read()
    if state.etag != found.store_etag:
        raise ConflictError(
            f"{ModelStore(found.store_uri).pointer_uri} must be unchanged since this run started, "
            f"got champion '{state.champion_version}'. Run again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    if state.champion is None:
        return None
    return fetch_model(found.store_uri, folder, version=state.champion_version)


def starting_from(model: FetchedModel | None, overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a training that starts from a model's weights, if there is one."""
    if model is None:
        return list(overrides)
    return [*overrides, f"train.pretrained_model_path={json.dumps(model.checkpoint_uri)}"]
