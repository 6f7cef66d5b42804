"""Sizes of images whose annotation file leaves them out."""

from __future__ import annotations

from mal.data.images import upright_size_of
from mal.errors import AnnotationError, StorageError
from mal.storage import ImageFinder, open_image_folder


class ImageSizes:
    """Reads width and height from the headers of image files.

    The images are opened for the first size that is asked for: most files have all sizes.

    Args:
        image_source: Folder or archive, local or remote.
    """

    def __init__(self, image_source: str) -> None:
        self._image_source = image_source
        self._finder: ImageFinder | None = None

    def __call__(self, file_name: str) -> tuple[int, int] | None:
        """Return width and height in pixels as EXIF turns the image; None without a file.

        Raises:
            AnnotationError: The images cannot be opened, or the file is no image.
        """
        if self._finder is None:
            try:
                self._finder = ImageFinder(open_image_folder(self._image_source))
            except StorageError as error:
                raise AnnotationError(str(error)) from error
        path = self._finder.find(file_name)
        return None if path is None else upright_size_of(path)
