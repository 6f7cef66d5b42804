"""Bring a model to a step: the champion of a store, a version of it, or a plain model folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import EXPERIMENT_FILE, LATEST_CHECKPOINT, sha256_of_file
from mal.errors import ArtifactError
from mal.lifecycle.changes import Detection
from mal.lifecycle.model_store import ModelStore
from mal.lifecycle.promotion import MODEL_FILES
from mal.storage import (
    ConflictError,
    child_uri,
    fetch_file,
    list_files,
    put_file,
    redact_uri,
)


@dataclass(frozen=True)
class FetchedModel:
    """A model that was brought.

    Attributes:
        version: Of the store; '' for a plain folder.
        checkpoint_uri: Where its weights stay.
        sha256: Of the weights.
        spec_sha256: Of the spec that they were trained with; '' for none.
    """

    version: str
    checkpoint_uri: str
    sha256: str
    spec_sha256: str = ""

    @property
    def folder_uri(self) -> str:
        """Folder of the weights and of the spec that they were trained with."""
        return self.checkpoint_uri.rpartition("/")[0]


def fetch_model(source: str, folder: Path, *, version: str = "") -> FetchedModel:
    """Copy a model into a folder.

    Args:
        source: A model store, or a folder that train left.
        folder: Where its files go.
        version: Of the store; '' for the champion.

    Raises:
        ArtifactError: There is none.
        StorageError: The place cannot be read.
    """
    store = ModelStore(source)
    if not version:
        version = store.read().champion_version
    place = store.version_uri(version, "model") if version else store.uri
    names = list_files(place)
    if LATEST_CHECKPOINT not in names:
        raise ArtifactError(
            f"model must be a model store with a champion, a version of it, or a folder with "
            f"{LATEST_CHECKPOINT}, got {redact_uri(source)} {version}. Give another."
        )
    for name in MODEL_FILES:
        if name in names:
            put_file(fetch_file(child_uri(place, name)), str(folder / name))
    return FetchedModel(
        version,
        child_uri(place, LATEST_CHECKPOINT),
        sha256_of_file(folder / LATEST_CHECKPOINT),
        sha256_of_file(folder / EXPERIMENT_FILE) if EXPERIMENT_FILE in names else "",
    )


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
