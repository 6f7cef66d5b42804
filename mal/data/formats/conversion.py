"""Writes the table of another format as a COCO file, which is what all other code reads."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mal.artifacts import sha256_of_file
from mal.data.annotation_stream import write_members
from mal.data.formats.table import AnnotationFormat, AnnotationTable, BoxRow, ImageRow
from mal.data.problems import Problems
from mal.errors import AnnotationError
from mal.storage import open_image_folder
from mal.storage.cache import cache_dir, locked, wrap_cache_errors

UNKNOWN_IMAGE = "annotation of an image that is not listed or has no file"

# What the code of a format raises where a file is not as the code expects.
_READ_ERRORS = (
    ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError,
)  # fmt: skip
_MAX_SHOWN = 300


class Converted(NamedTuple):
    """A COCO file in the cache, what it leaves out, and what was read in another way."""

    path: Path
    left_out: Problems
    notes: Problems


log = logging.getLogger(__name__)


def convert_to_coco(
    annotation_format: AnnotationFormat, path: Path, image_source: str
) -> Converted:
    """Convert annotations to a COCO file in the cache.

    Each process converts anew, because the images may have changed. The file is named by the digest
    of its content: processes with the same result share it.

    Raises:
        AnnotationError: The file cannot be read, or its format breaks a rule of the page.
    """
    assert annotation_format.read is not None, "COCO is not converted"
    image_folder = open_image_folder(image_source)
    folder, problems = cache_dir() / "annotations", Problems()
    with wrap_cache_errors(str(path)):
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as partial:
        written = Path(partial) / "coco.json"
        try:
            table = annotation_format.read(path, image_folder)
            write_members(written, _CocoMembers(table, annotation_format.name, problems).members())
        except _READ_ERRORS as error:
            raise AnnotationError(
                f"Cannot read {path} as {annotation_format.name}: {type(error).__name__}: "
                f"{str(error)[:_MAX_SHOWN]}. Fix the file, or the code of the format."
            ) from error
        key = sha256_of_file(written)[:32]
        target = folder / key / f"{path.stem}.json"
        with locked(key):
            if not target.exists():
                target.parent.mkdir(exist_ok=True)
                written.rename(target)
                log.info("converted %s (%s) to %s", path, annotation_format.name, target)
    problems.update(table.left_out)
    return Converted(target, problems, table.notes)


class _CocoMembers:
    """The members of the COCO file; each row is checked as it is written."""

    def __init__(self, table: AnnotationTable, format_name: str, problems: Problems) -> None:
        self.format_name = format_name
        self.problems = problems
        if not isinstance(table, AnnotationTable):
            self._fail("return an AnnotationTable", table)
        self.table = table
        self.id_of_image: dict[str, int] = {}
        self.id_of_category = {name: number for number, name in enumerate(table.categories, 1)}

    def members(self) -> Iterator[tuple[str, Any]]:
        yield "images", self._images()
        yield "annotations", self._annotations()
        yield (
            "categories",
            [{"id": number, "name": name} for name, number in self.id_of_category.items()],
        )

    def _images(self) -> Iterator[dict[str, Any]]:
        for row in self.table.images:
            if not isinstance(row, ImageRow) or not all(
                isinstance(side, int) and side > 0 for side in (row.width, row.height)
            ):
                self._fail("give images as ImageRow with whole numbers of pixels", row)
            image_id = len(self.id_of_image) + 1
            if self.id_of_image.setdefault(row.file_name, image_id) != image_id:
                self._fail("list each image once", row.file_name)
            yield {"id": image_id, **row._asdict()}

    def _annotations(self) -> Iterator[dict[str, Any]]:
        for row in self.table.boxes:
            if not isinstance(row, BoxRow) or not isinstance(row.id, int):
                self._fail("give boxes as BoxRow with a whole number as id", row)
            if not row.category or not isinstance(row.category, str):
                self._fail(f"give box {row.id} the name of a category", row.category)
            if self.table.categories and row.category not in self.id_of_category:
                self._fail(f"give box {row.id} a category that it lists", row.category)
            if len(row.box_xywh) != 4:
                self._fail(f"give box {row.id} as x, y, width and height", row.box_xywh)
            if row.file_name not in self.id_of_image:
                self.problems.add(UNKNOWN_IMAGE, f"annotation {row.id} ({row.file_name})")
                continue
            category_id = self.id_of_category.setdefault(row.category, len(self.id_of_category) + 1)
            annotation = {
                "id": row.id,
                "image_id": self.id_of_image[row.file_name],
                "category_id": category_id,
                "bbox": [float(value) for value in row.box_xywh],
                "iscrowd": int(row.is_crowd),
            }
            if row.segmentation is not None:
                annotation["segmentation"] = row.segmentation
            yield annotation

    def _fail(self, rule: str, got: Any) -> None:
        raise AnnotationError(
            f"Annotation format {self.format_name!r} must {rule}, got {got!r:.200}. "
            "See docs/extending/annotation_format.md."
        )
