"""Opens annotations of any known format, local or remote, as a local COCO file."""

from __future__ import annotations

import gzip
import logging
import shutil
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mal.artifacts import sha256_of_file
from mal.data.annotations import CocoBoxes, load_boxes
from mal.data.box_evidence import add_doubt, find_doubt_of_files
from mal.data.formats.content import (
    GZIP_MAGIC,
    HEAD_BYTES,
    archive_kind_of,
    read_head,
    refuse_foreign,
    text_of,
    wide_encoding_of,
)
from mal.data.formats.conversion import convert_to_coco
from mal.data.formats.image_files import files_below
from mal.data.formats.image_sizes import ImageSizes
from mal.data.formats.json_kinds import is_coco_text, is_panoptic, refuse_other_json
from mal.data.formats.table import AnnotationFormat
from mal.data.problems import Problems
from mal.errors import AnnotationError
from mal.spec.uri_list import split_uris
from mal.storage import fetch_file, open_image_folder, redact_uri
from mal.storage.annotation_folder import fetch_annotation_folder, is_folder_uri
from mal.storage.archives import ARCHIVE_SUFFIXES, is_archive
from mal.storage.cache import cache_dir, locked, wrap_cache_errors

AUTO, COCO_NAME = "auto", "coco"

_COPY_BYTES = 1 << 20
_GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AnnotationSource:
    """Annotations that were opened.

    Attributes:
        uri: As it was given.
        path: The local COCO file that all code reads: the given one, or one in the cache.
        images: Folder or archive of the images; '' for none.
        format_name: coco, voc, yolo, labelme, labelstudio, kitti, or that of another package.
        left_out: What the COCO file leaves out of the given one, and why.
        notes: What was read in another way than it is written.
        sources: URI and sha256 of each of several files, and its images; empty for one.
    """

    uri: str
    path: Path
    format_name: str
    images: str = ""
    left_out: Problems = field(default_factory=Problems)
    notes: Problems = field(default_factory=Problems)
    sources: Sequence[Mapping[str, str]] = ()

    def load_boxes(
        self, *, with_masks: bool, refuse_points: bool = True, opens_images: bool = True
    ) -> CocoBoxes:
        """Read the boxes; what the conversion left out is among their problems.

        Args:
            with_masks: As for `mal.data.annotations.load_boxes`.
            refuse_points: As for `mal.data.annotations.load_boxes`.
            opens_images: Whether boxes that keep to a corner are compared with the images' sizes,
                for which a remote folder is fetched.

        Raises:
            AnnotationError: The file cannot be read, no image of it is usable, or all boxes were
                left out.
        """
        try:
            boxes = load_boxes(
                self.path,
                with_masks=with_masks,
                refuse_points=refuse_points,
                read_size=ImageSizes(self.images) if self.images else None,
            )
        except AnnotationError as error:
            if self.is_as_given:
                raise
            reasons = "; ".join(self.left_out.lines()) or str(error)
            raise AnnotationError(
                f"Cannot use {self.shown_uri} ({self.format_name}): {reasons}"
            ) from error
        if not len(boxes) and is_panoptic(self.path):
            raise AnnotationError(
                f"Cannot use {self.shown_uri}: its annotations have no bbox but "
                "segments_info: it is a COCO panoptic file, not an instance file. Give the "
                "instance file, or convert it (panopticapi: panoptic2detection_coco_format)."
            )
        if self.format_name == COCO_NAME and opens_images:
            doubt = find_doubt_of_files(
                boxes.box_xywh_N4, boxes.image_index_N, boxes.images, self.images
            )
            if doubt is not None:
                add_doubt(doubt, self.path, boxes.problems, refuse=refuse_points)
        if not len(boxes) and self.left_out:
            reasons = "; ".join([*self.left_out.lines(), *boxes.problems.lines()])
            raise AnnotationError(
                f"Cannot use {self.shown_uri} ({self.format_name}): no box of it is usable. "
                f"{reasons}"
            )
        boxes.problems.update(self.left_out)
        return boxes

    @property
    def shown_uri(self) -> str:
        """The URIs for messages."""
        return ", ".join(map(redact_uri, split_uris(self.uri)))

    @property
    def is_as_given(self) -> bool:
        """Whether nothing was converted."""
        return self.format_name == COCO_NAME and not self.left_out


def open_source(
    uri: str,
    annotation_type: str,
    images: str,
    format_of: Callable[[Path, str], AnnotationFormat],
) -> AnnotationSource:
    """Open one file, folder or archive of annotations."""
    path = readable_path(uri)
    chosen = format_of(path, annotation_type)
    if chosen.read is None:
        _check_coco(path, uri)
        return AnnotationSource(uri, path, chosen.name, images)
    converted = convert_to_coco(chosen, path, images)
    for line in converted.notes.lines():
        log.info("%s: %s", redact_uri(uri), line)
    left_out, notes = converted.left_out, converted.notes
    return AnnotationSource(uri, converted.path, chosen.name, images, left_out, notes)


def readable_path(uri: str) -> Path:
    """Return a local file of UTF-8 text, or a local folder of such files.

    What is compressed with gzip, packed or in UTF-16 is written to the cache.

    Raises:
        AnnotationError: The file is of a kind that holds no annotations.
        StorageError: It does not exist, or cannot be fetched.
    """
    if is_folder_uri(uri):
        folder = fetch_annotation_folder(uri)
        if folder is not None:
            return folder
    local = Path(uri).expanduser() if "://" not in uri else None
    if local is not None and local.is_dir():
        return local
    path = fetch_file(uri)
    head = read_head(path)
    if kind := archive_kind_of(head):
        return _unpacked(path, uri, kind)
    if head.startswith(GZIP_MAGIC):
        if is_archive(path.name):
            return _unpacked(path, uri, "tar")
        path = _rewritten(path, _expand)
        head = read_head(path)
        if archive_kind_of(head):
            raise _badly_named(uri, "tar.gz")
    if encoding := wide_encoding_of(head):
        path = _rewritten(path, lambda source, target: _transcode(source, target, encoding))
        head = read_head(path)
    refuse_foreign(path, head)
    return path


def _unpacked(path: Path, uri: str, kind: str) -> Path:
    if not is_archive(path.name):
        raise _badly_named(uri, kind)
    folder = open_image_folder(str(path))
    while len(inside := list(folder.iterdir())) == 1 and inside[0].is_dir():
        folder = inside[0]
    return folder


def _badly_named(uri: str, kind: str) -> AnnotationError:
    return AnnotationError(
        f"Cannot use {redact_uri(uri)} as annotations: it is an archive ({kind}). Unpack it and "
        f"give the JSON, or name it with one of {', '.join(ARCHIVE_SUFFIXES)} if it holds a file "
        "for each image."
    )


def _rewritten(path: Path, write: Callable[[Path, Path], None]) -> Path:
    """Return a rewritten copy of a file in the cache, named by the digest of the file."""
    key = sha256_of_file(path)[:32]
    target = cache_dir() / "annotations" / key / f"{PurePosixPath(path.name).stem or 'annotations'}"
    with locked(key):
        if target.exists():
            return target
        with wrap_cache_errors(str(path)):
            target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".part-") as partial:
            written = Path(partial) / "content"
            write(path, written)
            written.rename(target)
    return target


def _expand(source: Path, target: Path) -> None:
    try:
        with gzip.open(source) as packed, target.open("wb") as file:
            shutil.copyfileobj(packed, file, _COPY_BYTES)
    except _GZIP_ERRORS as error:
        raise AnnotationError(
            f"Cannot unpack {source} (gzip): {error}. Copy or pack it again."
        ) from error


def _transcode(source: Path, target: Path, encoding: str) -> None:
    try:
        with (
            source.open(encoding=encoding, newline="") as text,
            target.open("w", encoding="utf-8", newline="") as file,
        ):
            while part := text.read(_COPY_BYTES):
                file.write(part.removeprefix("\ufeff"))
    except UnicodeError as error:
        raise AnnotationError(
            f"Cannot read {source} as {encoding.upper()}: {error}. Save it as UTF-8."
        ) from error


def _check_coco(path: Path, uri: str) -> None:
    """Refuse what is no COCO file by the first bytes; all else the reader finds."""
    if path.is_dir():
        raise _folder_without_format(path, uri)
    head = read_head(path)
    refuse_other_json(path, text_of(head), is_whole=len(head) < HEAD_BYTES)


def _folder_without_format(path: Path, uri: str) -> AnnotationError:
    """Return the error for a folder in which no format is recognised; name a COCO file in it."""
    files = files_below(path, ".json")
    coco = [file for file in files[:20] if is_coco_text(text_of(read_head(file)))]
    named = ", ".join(str(file.relative_to(path)) for file in coco[:3])
    if coco:
        is_packed = is_archive(uri)
        what = "an archive" if is_packed else "a folder"
        remedy = "Unpack it and give" if is_packed else "Give"
        return AnnotationError(
            f"Cannot use {redact_uri(uri)} as annotations: it is {what} with {named}. {remedy} "
            "the JSON file."
        )
    return AnnotationError(
        f"Cannot use {redact_uri(uri)} as annotations: it holds no file of VOC (.xml), YOLO or "
        "KITTI (.txt), or LabelMe (.json). Check the path, or set dataset.type."
    )
