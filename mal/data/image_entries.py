"""The list `images` of an annotation file: which images there are, and by which ids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mal.data.annotation_stream import Entry
from mal.data.entry_values import MAX_PIXELS, file_name_of, id_of, side_of
from mal.data.ids import AMBIGUOUS, UNUSABLE_IMAGE, Id, IdError, IdLookup, exact_id
from mal.data.image_table import CocoImage, ImageTable
from mal.data.problems import (
    IMAGE_TWICE,
    NAME_OF_URL,
    SIZE_OF_FILE,
    FieldError,
    Problems,
)
from mal.errors import AnnotationError
from mal.shown import shown

ID_TWICE = "image id of several files, their boxes are left out"

SizeReader = Callable[[str], tuple[int, int] | None]
"""Returns width and height of an image's file by file_name; None where there is no file."""


def read_images(
    entries: Iterator[Entry],
    images: ImageTable,
    problems: Problems,
    read_size: SizeReader | None = None,
) -> IdLookup:
    """Add the usable images to `images`.

    An id of two different files could be of either: its annotations are not used.

    Args:
        entries: The list.
        images: Gets the images.
        problems: Gets what is left out, and why.
        read_size: For images without width and height; None: they are left out.

    Returns:
        What an `image_id` finds: an index of `images`, AMBIGUOUS or UNUSABLE_IMAGE.
    """
    lookup = IdLookup()
    for position, (value, _, _) in enumerate(entries):
        name = f"images[{position}]"
        image_id = _id_or_none(value)
        try:
            image = _image_from(value, name, problems, read_size)
        except FieldError as error:
            problems.add_field(name, error)
            if image_id is not None:
                _add_unusable(image_id, images, lookup)
            continue
        if image.id not in lookup:
            lookup.add(image.id, len(images))
            images.append(image)
            continue
        known = lookup.find(image.id)
        if known >= 0 and images[known] == image:
            problems.add(IMAGE_TWICE, f"{name} ({shown(image.file_name)})")
            continue
        _add_ambiguous(image.id, images, lookup)
        first = f", {shown(images[known].file_name)}" if known >= 0 else ""
        problems.add(
            ID_TWICE,
            f"{shown(image.id, quoted=True)} ({shown(image.file_name)}{first})",
            "Number the images of merged files anew.",
        )
    return lookup


def _add_unusable(image_id: Id, images: ImageTable, lookup: IdLookup) -> None:
    if image_id in lookup:
        _add_ambiguous(image_id, images, lookup)
    else:
        lookup.add(image_id, UNUSABLE_IMAGE)


def _add_ambiguous(image_id: Id, images: ImageTable, lookup: IdLookup) -> None:
    known = lookup.find(image_id)
    if known >= 0:
        images.mark_ambiguous(known)
    lookup.add(image_id, AMBIGUOUS)


def _id_or_none(value: Any) -> Id | None:
    try:
        return exact_id(value["id"])
    except (IdError, KeyError, TypeError):
        return None


def _image_from(
    value: Any, name: str, problems: Problems, read_size: SizeReader | None
) -> CocoImage:
    if not isinstance(value, dict):
        raise FieldError("image that is not an object", f" is {shown(value, quoted=True)}")
    image_id = id_of(value, "id", "image")
    file_name, is_of_url = file_name_of(value)
    width, height = _size_of(value, name, file_name, problems, read_size)
    if width * height > MAX_PIXELS:
        raise FieldError("image of too many pixels", f" is of {width} x {height} pixels")
    if is_of_url:
        problems.add(NAME_OF_URL, f"{name} ({shown(file_name)})")
    return CocoImage(image_id, file_name, width, height)


def _size_of(
    value: Mapping[str, Any],
    name: str,
    file_name: str,
    problems: Problems,
    read_size: SizeReader | None,
) -> tuple[int, int]:
    width, height = side_of(value, "width"), side_of(value, "height")
    if width is not None and height is not None:
        return width, height
    kind = "image without width and height"
    given = f" ({shown(file_name)}) has width {_side(value, 'width')}"
    given += f" and height {_side(value, 'height')}"
    if read_size is None:
        raise FieldError(kind, given, "Write the size of each image in pixels.")
    try:
        size = read_size(file_name)
    except AnnotationError as error:
        raise FieldError(f"{kind}, whose file cannot be read", f"{given}: {error}") from error
    if size is None:
        raise FieldError(f"{kind}, and without a file to read them from", given)
    if width not in (None, size[0]) or height not in (None, size[1]):
        raise FieldError(f"{kind} that its file has", f"{given}, its file {size[0]} x {size[1]}")
    problems.add(SIZE_OF_FILE, f"{name} ({shown(file_name)})")
    return size


def _side(value: Mapping[str, Any], key: str) -> str:
    return shown(value[key]) if key in value else "missing"
