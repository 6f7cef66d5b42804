"""The store of one model's versions: a pointer to the champion, and the last training.

    STORE/champion.json                the pointer; the only file that is ever replaced
    STORE/versions/VERSION/            model/, onnx/ and version.json; never written twice
    STORE/annotations/SHA256.json      annotation files as a run saw them, and .npz of their boxes

Champion and last training share one document, so that one conditional write changes both: a crash
cannot promote a model and leave its data set marked as new.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mal.errors import ArtifactError
from mal.storage import ABSENT, ConflictError, child_uri, read_document, replace_document

POINTER_FILE = "champion.json"
VERSION_FILE = "version.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Training:
    """A finished training; `source_sha256` is the digest of its whole data set."""

    source_sha256: str
    annotations_sha256: str
    version: str
    is_promoted: bool
    at: str


@dataclass(frozen=True)
class Champion:
    """The version in use."""

    version: str
    sha256: str
    model_uri: str
    onnx_uri: str
    since: str


@dataclass(frozen=True)
class Change:
    """A change of the champion from `previous` to `version`."""

    version: str
    previous: str
    at: str
    reason: str


@dataclass(frozen=True)
class StoreState:
    """The content of the pointer, with the changes of the champion from old to new."""

    champion: Champion | None = None
    last_training: Training | None = None
    history: tuple[Change, ...] = ()
    etag: str = ABSENT

    @property
    def champion_version(self) -> str:
        """Version of the champion; '' for none."""
        return self.champion.version if self.champion else ""


class ModelStore:
    """A model store, local or behind `s3://`."""

    def __init__(self, uri: str) -> None:
        if not uri:
            raise ArtifactError("model store must be given, got ''. Give a folder or s3://.")
        self.uri = uri.rstrip("/")

    @property
    def pointer_uri(self) -> str:
        """URI of the document that names the champion."""
        return child_uri(self.uri, POINTER_FILE)

    def version_uri(self, version: str, *names: str) -> str:
        """URI of a version's folder, or of something in it."""
        return child_uri(self.uri, "versions", version, *names)

    def annotations_uri(self, sha256: str, suffix: str = ".json") -> str:
        """URI of the copied annotation file with that sha256."""
        return child_uri(self.uri, "annotations", f"{sha256}{suffix}")

    def read(self) -> StoreState:
        """Read the pointer; an empty store has an empty state.

        Raises:
            ArtifactError: The pointer has another format.
            StorageError: The store cannot be read.
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
        """Replace the pointer if it still has `state.etag`.

        Raises:
            ConflictError: The pointer has changed; nothing was written.
            StorageError: The store cannot be written.
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
        """Return the record of a version; None for an unknown version."""
        document = read_document(self.version_uri(version, VERSION_FILE))
        return None if document is None else document.content

    def require_unchanged(self, state: StoreState, etag: str) -> None:
        """Check that the store has the state that a run started from.

        Raises:
            ConflictError: Another run or a person has changed it.
        """
        if state.etag != etag:
            raise ConflictError(
                f"{self.pointer_uri} changed since this run started: its champion is now "
                f"'{state.champion_version}'. Another run or a person changed it. Run again."
            )


def now() -> str:
    """Return the current time, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _optional(kind: Any, fields: Mapping[str, Any] | None) -> Any:
    return None if fields is None else kind(**fields)
