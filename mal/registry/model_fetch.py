"""Fetch a model into a folder: from a model store, or from the results of a training."""

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
from mal.storage import child_uri, fetch_file, list_files, put_file, redact_uri

_FILE_SUFFIXES = (".pth", ".onnx")
_TRAIN_FOLDER = "train"


@dataclass(frozen=True)
class FetchedModel:
    """A fetched model; version and spec_sha256 are '' for a model without them."""

    version: str
    checkpoint_uri: str
    sha256: str
    spec_sha256: str = ""

    @property
    def uri(self) -> str:
        """The `source` with which `fetch_model` fetches it again."""
        folder, _, name = self.checkpoint_uri.rpartition("/")
        return folder if name == LATEST_CHECKPOINT else self.checkpoint_uri


def fetch_model(source: str, folder: Path, *, version: str = "") -> FetchedModel:
    """Copy a model into a folder; its weights become the latest checkpoint there.

    Args:
        source: A model store, the results folder of a run, a folder of checkpoints, or one
            checkpoint beside the spec of its training.
        folder: Target.
        version: Version of the store; '' for the champion.

    Raises:
        ArtifactError: The source has no model.
        StorageError: The source cannot be read.
    """
    model_uri, checkpoint, version = _locate(source, version)
    names = list_files(model_uri)
    is_latest = checkpoint == LATEST_CHECKPOINT
    if checkpoint not in names or not (is_latest or EXPERIMENT_FILE in names):
        got = f"{redact_uri(source)} {version}".rstrip()
        raise ArtifactError(
            f"model must be a model store with a champion, a version of it, a folder with "
            f"{LATEST_CHECKPOINT}, the results folder of a run, or a .pth file beside its "
            f"{EXPERIMENT_FILE}, got {got}. Give one of them."
        )
    files = {name: name for name in MODEL_FILES if name in names} | {LATEST_CHECKPOINT: checkpoint}
    for name, origin in files.items():
        put_file(fetch_file(child_uri(model_uri, origin)), str(folder / name))
    return FetchedModel(
        version,
        child_uri(model_uri, checkpoint),
        sha256_of_file(folder / LATEST_CHECKPOINT),
        sha256_of_file(folder / EXPERIMENT_FILE) if EXPERIMENT_FILE in names else "",
    )


def _locate(source: str, version: str) -> tuple[str, str, str]:
    """Return folder, name and version of the checkpoint that a source stands for."""
    if not version and (source.endswith(_FILE_SUFFIXES) or Path(source).expanduser().is_file()):
        folder, _, checkpoint = source.rpartition("/")
        return folder or ".", checkpoint if checkpoint.endswith(".pth") else "", ""
    store = ModelStore(source)
    if version := version or store.read().champion_version:
        return store.version_uri(version, "model"), LATEST_CHECKPOINT, version
    results = child_uri(store.uri, _TRAIN_FOLDER)
    is_run = LATEST_CHECKPOINT in list_files(results)
    return results if is_run else store.uri, LATEST_CHECKPOINT, ""


def fetch_champion(detection: Detection, folder: str | Path) -> FetchedModel | None:
    """Copy the champion into a folder; return None before the first promotion.

    Raises:
        ConflictError: The store changed since the run started.
    """
    store = ModelStore(detection.store_uri)
    state = store.read()
    store.require_unchanged(state, detection.store_etag)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if state.champion is None:
        return None
    return fetch_model(detection.store_uri, folder, version=state.champion_version)


def starting_from(model: FetchedModel | None, overrides: Sequence[str]) -> list[str]:
    """Return overrides, with the model's weights as the start of a training if there is a model."""
    if model is None:
        return list(overrides)
    return [*overrides, f"train.pretrained_model_path={json.dumps(model.checkpoint_uri)}"]
