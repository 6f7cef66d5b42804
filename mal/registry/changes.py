"""Whether a data set has changed enough since the last training to train again."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import sha256_of_file, write_json
from mal.errors import ArtifactError, StorageError
from mal.registry.box_index import BoxChanges, BoxIndex, count_changes, index_boxes
from mal.registry.model_store import ModelStore, Training, now
from mal.registry.snapshot import sha256_of, sha256_of_images
from mal.storage import child_uri, describe_source, fetch_file, list_files, put_file, redact_uri
from mal.storage.objects import head_object
from mal.storage.uris import parse_remote_uri

FORMAT_VERSION = 1


@dataclass(frozen=True)
class SourcePart:
    """One part of a data set as it was found.

    Attributes:
        images_uri: Folder, archive or bucket folder.
        annotations_uri: Where it was found.
        annotations_sha256: Of the file's content; an etag of a multipart upload is not one.
        annotations_version: Of the object, in a bucket with versioning; else ''.
        frozen_annotations_uri: A copy under the name of its content, which nobody changes.
        images_sha256: Of names, sizes and checksums of the annotated images, or of the archive.
        num_boxes: Annotations, usable or not.
        modified_s: Last write of any of it, seconds since 1970.
    """

    images_uri: str
    annotations_uri: str
    annotations_sha256: str
    annotations_version: str
    frozen_annotations_uri: str
    images_sha256: str
    num_boxes: int
    modified_s: float


@dataclass(frozen=True)
class Detection:
    """What was found.

    Attributes:
        is_changed: Whether to train.
        reason: Why, or why not, in a sentence.
        changes: Boxes that differ from those of the last training.
        source_sha256: Of the data set.
        at: When, ISO 8601.
        store_uri: The model store.
        store_etag: State of the store that was compared with.
        train: What is learnt from.
        val: What is measured on; None: nothing was given.
    """

    is_changed: bool
    reason: str
    changes: BoxChanges
    source_sha256: str
    at: str
    store_uri: str
    store_etag: str
    train: SourcePart
    val: SourcePart | None

    @property
    def frozen_annotations(self) -> tuple[str, str]:
        """Frozen annotations of the training and of the validation part, '' for none."""
        return (
            self.train.frozen_annotations_uri,
            self.val.frozen_annotations_uri if self.val else "",
        )

    @property
    def outputs(self) -> tuple[bool, int, int, int, str, str]:
        """What the next steps of a pipeline need, as parameters."""
        return (self.is_changed, *dataclasses.astuple(self.changes), *self.frozen_annotations)

    @property
    def counts(self) -> dict[str, float]:
        """Boxes of the training part, and how many of them differ from the last training's."""
        counts = {"num_boxes": self.train.num_boxes, **dataclasses.asdict(self.changes)}
        return {name: float(count) for name, count in counts.items()}

    def write(self, path: Path) -> None:
        """Write it as JSON, what people want to see first."""
        write_json(path, {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)})

    def training(self, *, version: str, is_promoted: bool, at: str) -> Training:
        """Return the record that a training on this data set leaves."""
        return Training(self.source_sha256, self.train.annotations_sha256, version, is_promoted, at)


def read_detection(path: Path) -> Detection:
    """Read what `Detection.write` wrote.

    Raises:
        ArtifactError: It is missing or something else.
    """
    try:
        content = json.loads(path.read_bytes())
        if content.pop("format_version") != FORMAT_VERSION:
            raise ValueError("another format")
        content["changes"] = BoxChanges(**content["changes"])
        content["train"] = SourcePart(**content["train"])
        content["val"] = content["val"] and SourcePart(**content["val"])
        return Detection(**content)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(
            f"snapshot must be what detect_new_annotations wrote, got {path} "
            f"({type(error).__name__}: {error}). Detect again."
        ) from error


def detect_changes(
    store: ModelStore,
    *,
    train_images: str,
    train_annotations: str,
    val_images: str = "",
    val_annotations: str = "",
    min_new_annotations: int = 1,
    quiet_period_s: float = 0.0,
    now_s: float | None = None,
) -> Detection:
    """Compare a data set with the one of the last training, and freeze it if it is time to train.

    Args:
        store: Knows the last training; keeps the frozen annotations.
        train_images: Folder, archive or bucket folder.
        train_annotations: COCO JSON.
        val_images: With `val_annotations`; '' for no validation.
        val_annotations: With `val_images`.
        min_new_annotations: How many boxes must be new or changed; 0: anything that changes the
            digest counts. Removed boxes alone do not: a file that was cut short must not train.
        quiet_period_s: How long nothing of the data set must have been written.
        now_s: For tests; seconds since 1970.

    Raises:
        AnnotationError: An annotation file cannot be read.
        StorageError: A place cannot be read or written.
    """
    state = store.read()
    with tempfile.TemporaryDirectory(prefix="mal-detect-") as scratch:
        train = _look_at(store, train_images, train_annotations, Path(scratch) / "train.npz")
        val = None
        if val_images or val_annotations:
            val = _look_at(store, val_images, val_annotations, Path(scratch) / "val.npz")
        before = _last_index(store, state.last_training)
        changes = count_changes(before, BoxIndex.read(Path(scratch) / "train.npz"))
        parts = [part for part in (train, val) if part]
        source = sha256_of([[part.annotations_sha256, part.images_sha256] for part in parts])
        reason = _reason_to_wait(
            is_known=state.last_training is not None
            and state.last_training.source_sha256 == source,
            changes=changes,
            min_new_annotations=min_new_annotations,
            quiet_for_s=(time.time() if now_s is None else now_s)
            - max(part.modified_s for part in parts),
            quiet_period_s=quiet_period_s,
        )
        if not reason:
            for part, name in zip(parts, ("train.npz", "val.npz"), strict=False):
                _freeze(store, part, Path(scratch) / name)
    return Detection(
        is_changed=not reason,
        reason=reason or f"{changes} since the last training",
        changes=changes,
        source_sha256=source,
        at=now(),
        store_uri=store.uri,
        store_etag=state.etag,
        train=train,
        val=val,
    )


def _reason_to_wait(
    *,
    is_known: bool,
    changes: BoxChanges,
    min_new_annotations: int,
    quiet_for_s: float,
    quiet_period_s: float,
) -> str:
    if is_known:
        return "the data set is the one that the last training saw"
    if quiet_for_s < quiet_period_s:
        return (
            f"the data set was written {max(quiet_for_s, 0):.0f} s ago; {quiet_period_s:.0f} s of "
            f"quiet are asked for ({changes})"
        )
    num_come = changes.num_new + changes.num_changed
    if num_come < min_new_annotations:
        return f"{num_come} of {min_new_annotations} new or changed boxes ({changes})"
    return ""


def _look_at(store: ModelStore, images: str, annotations: str, index_path: Path) -> SourcePart:
    """Describe a part and leave the index of its boxes.

    Raises:
        StorageError: The annotation file changed while it was fetched: its version would not be
            that of its content.
    """
    remote = parse_remote_uri(annotations)
    stored = None if remote is None else head_object(remote)
    path = fetch_file(annotations)
    if remote is not None and head_object(remote) != stored:
        raise _changed_meanwhile(annotations)
    sha256 = sha256_of_file(path)
    index, file_names = index_boxes(path)
    index.write(index_path)
    files = describe_source(images, file_names)
    if not files:
        raise StorageError(
            f"images must hold the annotated images, got none of {len(file_names)} in "
            f"{redact_uri(images)}. Check the folder."
        )
    modified_s = path.stat().st_mtime if stored is None else stored.modified.timestamp()
    return SourcePart(
        images_uri=images,
        annotations_uri=annotations,
        annotations_sha256=sha256,
        annotations_version="" if stored is None else stored.version_id,
        frozen_annotations_uri=store.annotations_uri(sha256),
        images_sha256=sha256_of_images(files),
        num_boxes=len(index),
        modified_s=max(modified_s, *(file.modified_s for file in files.values())),
    )


def _freeze(store: ModelStore, part: SourcePart, index_path: Path) -> None:
    """Keep the annotation file and its index; what is there already has the same content.

    Raises:
        StorageError: The file changed while it was looked at.
    """
    kept = list_files(child_uri(store.uri, "annotations"))
    sha256 = part.annotations_sha256
    if f"{sha256}.json" not in kept:
        with tempfile.TemporaryDirectory(prefix="mal-freeze-") as scratch:
            copy = Path(scratch) / "annotations.json"
            put_file(fetch_file(part.annotations_uri), str(copy))
            if sha256_of_file(copy) != sha256:
                raise _changed_meanwhile(part.annotations_uri)
            put_file(copy, store.annotations_uri(sha256))
    put_file(index_path, store.annotations_uri(sha256, ".npz"))


def _changed_meanwhile(uri: str) -> StorageError:
    return StorageError(
        f"{redact_uri(uri)} must stay as it is while it is read, got a change. Run again."
    )


def _last_index(store: ModelStore, last: Training | None) -> BoxIndex:
    if last is None:
        return BoxIndex.empty()
    return BoxIndex.read(fetch_file(store.annotations_uri(last.annotations_sha256, ".npz")))
