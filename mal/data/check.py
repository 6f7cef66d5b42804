"""`mal dataset check`: find every problem of a data set before a long run uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mal.data.annotations import CocoBoxes, CocoImage, Problems
from mal.data.box_evidence import MISPLACED
from mal.data.box_masks import reason_without_true_masks
from mal.data.formats import AUTO, open_annotations
from mal.data.image_table import FileNames
from mal.data.images import (
    UPRIGHT,
    ImageSizeError,
    MissingImageError,
    UnreadableImageError,
    decode_image,
)
from mal.data.points import REFUSED_POINTS
from mal.data.problems import CROWD_REMEDY, NOTE_KINDS
from mal.data.segmentations import SegmentationError, area_of, box_of_rle
from mal.errors import AnnotationError, StorageError
from mal.progress import track
from mal.shown import shown
from mal.storage import FoundImages, find_images, open_image_folder
from mal.storage.file_names import leaves_folder

TINY_SIDE_PX = 4.0

MISSING_IMAGE = "missing image file"
UNREADABLE_IMAGE = "image that cannot be read"
WRONG_SIZE = "image of another size than annotated"
UNSAFE_NAME = "file_name that leaves the image folder"
DUPLICATE_ID = "annotation id given twice"
NO_MEETING = "box that does not enclose its segmentation"
BAD_SEGMENTATION = "segmentation that cannot be read"
EMPTY_MASK = "segmentation without a pixel"
NO_ANNOTATION = "set without annotations"
ONLY_CROWDS = "set of crowds only"
BAD_FILE = "annotation file that cannot be used"
BAD_FOLDER = "image folder that cannot be used"
STOPPING = frozenset({BAD_FOLDER, MISPLACED, *REFUSED_POINTS})

_CROSSING_TOLERANCE_PX = 0.5
_MIN_SHARE_IN_BOX = 0.5
_NUM_READERS = 4
_NUM_AHEAD = 64
_KIND_OF_ERROR = {
    MissingImageError: MISSING_IMAGE,
    UnreadableImageError: UNREADABLE_IMAGE,
    ImageSizeError: WRONG_SIZE,
}
_Findings = tuple[tuple[str, str] | None, list[str]]  # problem with its reason, and notes
_EIGHT_BIT_COLOUR_MODES = frozenset({"RGB", "YCbCr"})


@dataclass(frozen=True)
class CheckReport:
    """The problems of a set.

    Attributes:
        summary: The content of the set, one line.
        errors: Problems for which a run leaves something out, or stops.
        notes: Problems that a run handles.
        num_usable_boxes: Boxes on readable images, without crowds.
        boxes: The set; None where nothing of it can be read.
        is_readable_I: True for an image that can be read; None where their folder cannot be used.
    """

    summary: str
    errors: Problems = field(default_factory=Problems)
    notes: Problems = field(default_factory=Problems)
    num_usable_boxes: int = 0
    boxes: CocoBoxes | None = None
    is_readable_I: NDArray[np.bool_] | None = None

    @property
    def is_usable(self) -> bool:
        """Whether a run can use the set: it has usable boxes and no problem that stops a run."""
        return self.num_usable_boxes > 0 and STOPPING.isdisjoint(self.errors.subjects)

    def lines(self) -> list[str]:
        """Describe the set, every kind of problem, and the verdict."""
        return [
            self.summary,
            *(f"error: {line}" for line in self.errors.lines()),
            *(f"note: {line}" for line in self.notes.lines()),
            f"usable: {self.num_usable_boxes} boxes"
            if self.is_usable
            else f"cannot be used: {self.num_usable_boxes} boxes on images that can be read"
            + ("; fix the errors above" if self.errors else ""),
        ]


def check_dataset(annotations: str, images: str, annotation_type: str = AUTO) -> CheckReport:
    """Read every annotation and every image of a set.

    Args:
        annotations: Annotation file or folder, local or `s3://`.
        images: Folder, archive or `s3://`.
        annotation_type: As `dataset.type`.

    Returns:
        The problems. A file or folder that does not exist or cannot be read is one of them.
    """
    errors, notes = Problems(), Problems()
    folder = None
    try:
        folder = open_image_folder(images)
    except StorageError as error:
        errors.add(BAD_FOLDER, str(error))
    try:
        source = open_annotations(annotations, annotation_type, images=images)
        boxes = source.load_boxes(with_masks=True, refuse_points=False)
    except (AnnotationError, StorageError) as error:
        errors.add(BAD_FILE, str(error))
        return CheckReport(f"{annotations}: nothing that can be used", errors)
    notes.update(source.notes)
    notes.update(boxes.problems, NOTE_KINDS)
    errors.update(boxes.problems, frozenset(boxes.problems) - NOTE_KINDS)
    _check_emptiness(boxes, errors)
    _check_ids(boxes, errors, notes)
    _check_boxes(boxes, notes)
    reason = reason_without_true_masks(boxes)
    if reason and boxes.has_masks():
        notes.add("masks that measure nothing", reason)
    _check_segmentations(boxes, errors, notes)
    is_readable = np.zeros(len(boxes.images), dtype=np.bool_)
    if folder is not None:
        is_readable = _check_images(boxes, folder, errors, notes)
    is_usable_N = is_readable[boxes.image_index_N] & ~boxes.is_crowd_N
    summary = _summary_of(boxes, annotations, measures_nothing=bool(reason))
    return CheckReport(summary, errors, notes, int(is_usable_N.sum()), boxes, is_readable)


def _summary_of(boxes: CocoBoxes, annotations: str, *, measures_nothing: bool) -> str:
    num_boxes, prompts = len(boxes), ""
    if boxes.points is not None:
        num_alone = int(boxes.points.is_without_box_N.sum())
        num_both = int((boxes.points.count_N > 0).sum()) - num_alone
        num_boxes -= num_alone
        prompts = f", {num_both} of them with points, {num_alone} objects of points only"
    return (
        f"{annotations}: {len(boxes.images)} images, {num_boxes} boxes "
        f"({int(boxes.is_crowd_N.sum())} crowds){prompts}, {len(boxes.categories)} categories, "
        f"{_masks_of(boxes, measures_nothing=measures_nothing)}"
    )


def _masks_of(boxes: CocoBoxes, *, measures_nothing: bool) -> str:
    if measures_nothing or boxes.segmentations is None:
        return "without true masks"
    num_given = int(boxes.segmentations.is_given_N.sum())
    return "with true masks" if num_given == len(boxes) else f"with {num_given} true masks"


def _name_of(boxes: CocoBoxes, index: int) -> str:
    return f"{boxes.name_of(index)} in {shown(boxes.image_of(index).file_name)}"


def _check_emptiness(boxes: CocoBoxes, errors: Problems) -> None:
    """Name what leaves no object at all, which is no problem of any single annotation."""
    if not len(boxes) and not boxes.num_unusable:
        errors.add(NO_ANNOTATION, "the list 'annotations' is empty", "Export the set with them.")
    elif len(boxes) and boxes.is_crowd_N.all():
        errors.add(
            ONLY_CROWDS,
            f"all {len(boxes)} have iscrowd 1",
            f"Crowds are neither trained nor measured. {CROWD_REMEDY}",
        )


def _check_ids(boxes: CocoBoxes, errors: Problems, notes: Problems) -> None:
    for annotation_id, count in Counter(boxes.annotation_id_N.tolist()).items():
        if count > 1:
            errors.add(DUPLICATE_ID, f"{shown(annotation_id)} ({count} times)")
    for file_name, count in Counter(image.file_name for image in boxes.images).items():
        if count > 1:
            notes.add("file_name of several images", f"{shown(file_name)} ({count} times)")
    with_boxes = set(boxes.image_index_N.tolist())
    for index, image in enumerate(boxes.images):
        if index not in with_boxes:
            notes.add("image without boxes", shown(image.file_name))


def _check_boxes(boxes: CocoBoxes, notes: Problems) -> None:
    size_N2 = np.array([(image.width, image.height) for image in boxes.images], dtype=np.float64)[
        boxes.image_index_N
    ]
    low_N2, side_N2 = boxes.box_xywh_N4[:, :2], boxes.box_xywh_N4[:, 2:]
    is_crossing_N = (
        (low_N2 < -_CROSSING_TOLERANCE_PX) | (low_N2 + side_N2 > size_N2 + _CROSSING_TOLERANCE_PX)
    ).any(axis=1)
    for index in np.flatnonzero(is_crossing_N).tolist():
        notes.add("box across the image's border, kept", _name_of(boxes, index))
    is_tiny_N = (side_N2 < TINY_SIDE_PX).any(axis=1)
    for index in np.flatnonzero(is_tiny_N).tolist():
        notes.add(f"tiny box, a side under {TINY_SIDE_PX:g} px", _name_of(boxes, index))


def _check_segmentations(boxes: CocoBoxes, errors: Problems, notes: Problems) -> None:
    if boxes.segmentations is None or not boxes.has_masks():
        return
    for index, is_given in enumerate(boxes.segmentations.is_given_N):
        if not is_given:
            notes.add("box without a segmentation, others have one", _name_of(boxes, index))
            continue
        try:
            rle = boxes.rle_of(index)
        except SegmentationError as error:
            errors.add(
                f"{BAD_SEGMENTATION}: it must {error.rule}",
                f"{_name_of(boxes, index)} ({error.got})",
                error.remedy,
            )
        else:
            if rle is not None and not area_of(rle):
                errors.add(EMPTY_MASK, _name_of(boxes, index), "It is not measured.")
            elif rle is not None and not _meets(boxes.box_xywh_N4[index], box_of_rle(rle)):
                errors.add(NO_MEETING, _name_of(boxes, index))


def _meets(box_xywh_4: NDArray[np.float64], segment_xywh_4: NDArray[np.float64]) -> bool:
    """Return whether at least half of a segmentation's bounding box lies in the box."""
    low_2 = np.maximum(box_xywh_4[:2], segment_xywh_4[:2])
    high_2 = np.minimum(box_xywh_4[:2] + box_xywh_4[2:], segment_xywh_4[:2] + segment_xywh_4[2:])
    common = np.clip(high_2 - low_2, 0, None).prod()
    return bool(common >= _MIN_SHARE_IN_BOX * segment_xywh_4[2:].prod())


def _check_images(
    boxes: CocoBoxes, folder: Path, errors: Problems, notes: Problems
) -> NDArray[np.bool_]:
    """Decode every image; return which are readable."""
    is_readable = np.zeros(len(boxes.images), dtype=np.bool_)
    found = find_images(folder, FileNames(boxes.images))
    findings = _findings_in_order(boxes.images, found)
    tracked = track(findings, "check", len(boxes.images), unit="images")
    for index, (problem, image_notes) in enumerate(tracked):
        name = shown(boxes.images[index].file_name)
        if problem:
            kind, reason = problem
            errors.add(kind, f"{name} ({reason})" if reason else name)
        for note in image_notes:
            notes.add(note, name)
        is_readable[index] = problem is None
    return is_readable


def _findings_in_order(images: Sequence[CocoImage], found: FoundImages) -> Iterator[_Findings]:
    """Read images in threads (Pillow decodes without the GIL), a few at a time."""
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        for start in range(0, len(images), _NUM_AHEAD):
            ahead = range(start, min(start + _NUM_AHEAD, len(images)))
            yield from pool.map(partial(_findings_of_image, images, found), ahead)


def _findings_of_image(images: Sequence[CocoImage], found: FoundImages, index: int) -> _Findings:
    """Return an image's problem (kind and reason), and its notes."""
    image = images[index]
    path = found.path_of(index, image.file_name)
    if path is None:
        kind = UNSAFE_NAME if leaves_folder(image.file_name) else MISSING_IMAGE
        return (kind, found.reasons.get(index, "")), []
    try:
        decoded = decode_image(path, width=image.width, height=image.height)
    except AnnotationError as error:
        return (_KIND_OF_ERROR[type(error)], str(error)), []
    notes: list[str] = []
    if rule := found.rule_of(index):
        notes.append(f"image found {rule}")
    notes += decoded.notes
    if decoded.orientation != UPRIGHT:
        notes.append("image that EXIF rotates")
    if decoded.is_resized:
        notes.append("image larger or smaller than annotated, resized")
    if decoded.mode not in _EIGHT_BIT_COLOUR_MODES:
        notes.append(f"image of mode {decoded.mode}, converted to RGB")
    return None, notes
