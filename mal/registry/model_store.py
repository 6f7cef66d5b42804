"""The place of one model's versions: a pointer to the champion, and what was trained last.

    STORE/champion.json                the pointer; the only file that is ever replaced
    STORE/versions/VERSION/            model/, onnx/ and version.json; never written twice
    STORE/annotations/SHA256.json      annotation files as a run saw them, and .npz of their boxes

Champion and last training share one document, so that one conditional write changes both: there is
no moment at which a model is promoted and its data set is still taken for new.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mal.errors import ArtifactError
from mal.storage import ABSENT, child_uri, read_document, replace_document

POINTER_FILE = "champion.json"
VERSION_FILE = "version.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Training:
    """A finished training, promoted or refused.

    Attributes:
        source_sha256: Of the data set as `detect_new_annotations` saw it.
        annotations_sha256: Of its training annotations.
        version: What was made of it.
        is_promoted: Whether it became the champion.
        at: When, ISO 8601.
    """

    source_sha256: str
    annotations_sha256: str
    version: str
    is_promoted: bool
    at: str


@dataclass(frozen=True)
class Champion:
    """The version that is in use; `since` in ISO 8601."""

    version: str
    sha256: str
    model_uri: str
    onnx_uri: str
    since: str


@dataclass(frozen=True)
class Change:
    """A change of the champion, for the history: from one version to another, when and why."""

    version: str
    previous: str
    at: str
    reason: str


@dataclass(frozen=True)
class StoreState:
    """What the pointer says.

    Attributes:
        champion: None before the first promotion.
        last_training: None before the first run.
        history: Every change of the champion, oldest first.
        etag: Names this state; a write that expects it fails once there is another.
    """

    champion: Champion | None = None
    last_training: Training | None = None
    history: tuple[Change, ...] = ()
    etag: str = ABSENT

    @property
    def champion_version(self) -> str:
        """Version of the champion, '' for none."""
        return self.champion.version if self.champion else ""


class ModelStore:
    """A model store, local or behind `s3://`."""

    def __init__(self, uri: str) -> None:
        if not uri:
            raise ArtifactError("model store must be given, got ''. Give a folder or s3://.")
        self.uri = uri.rstrip("/")

    @property
    def pointer_uri(self) -> str:
        """The document that names the champion."""
        return child_uri(self.uri, POINTER_FILE)

    def version_uri(self, version: str, *names: str) -> str:
        """Folder of a version, or something in it."""
        return child_uri(self.uri, "versions", version, *names)

    def annotations_uri(self, sha256: str, suffix: str = ".json") -> str:
        """Where the annotation file of that content is kept."""
        return child_uri(self.uri, "annotations", f"{sha256}{suffix}")

    def read(self) -> StoreState:
        """Read the pointer; an empty store has an empty state.

        Raises:
            ArtifactError: It is none that this version of mal can read.
            StorageError: It cannot be read.
        """
        document = read_document(self.pointer_uri)
        if document is None:
            return StoreState()
        content = document.content
        if content.get("format_version") != FORMAT_VERSION:
            raise ArtifactError(
                f"model store pointer must be of format {FORMAT_VERSION}, got "
                f"{content.get('format_version')} in {self.pointer_uri}. Update mal."
            )
        try:
            return StoreState(
                champion=_optional(Champion, content["champion"]),
                last_training=_optional(Training, content["last_training"]),
                history=tuple(Change(**change) for change in content["history"]),
                etag=document.etag,
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(
                f"model store pointer must be what promote wrote, got {self.pointer_uri} "
                f"({error}). Restore an earlier one."
            ) from error

    def write(self, state: StoreState) -> StoreState:
        """Replace the pointer, if it is still the one of `state.etag`.

        Raises:
            ConflictError: It is not; nothing was written.
            StorageError: It cannot be written.
        """
        content = {
            "format_version": FORMAT_VERSION,
            "champion": state.champion and dataclasses.asdict(state.champion),
            "last_training": state.last_training and dataclasses.asdict(state.last_training),
            "history": [dataclasses.asdict(change) for change in state.history],
        }
        etag = replace_document(self.pointer_uri, content, expected_etag=state.etag)
        return dataclasses.replace(state, etag=etag)

    def read_version(self, version: str) -> Mapping[str, Any] | None:
        """Return what was recorded of a version; None for one that is not there."""
        document = read_document(self.version_uri(version, VERSION_FILE))
        return None if document is None else document.content


def now() -> str:
    """Return the time as the store keeps it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _optional(kind: Any, fields: Mapping[str, Any] | None) -> Any:
    return None if fields is None else kind(**fields)
