"""Folders, archives and S3 objects, and the local cache of fetched files.

Every function raises StorageError if a file, disk or object store gives an error.
"""

from mal.redaction import redact_uri
from mal.storage.background import BackgroundUpload
from mal.storage.cache import fetch_file
from mal.storage.documents import (
    ABSENT,
    ConflictError,
    Document,
    read_document,
    replace_document,
)
from mal.storage.files import child_uri, list_files, put_file, put_files
from mal.storage.fingerprints import describe_input, describe_inputs
from mal.storage.image_folder import (
    ImageFile,
    describe_images,
    describe_source,
    fetch_images,
    find_image,
    open_image_folder,
)
from mal.storage.image_search import FoundImages, ImageFinder, find_images
from mal.storage.patience import impatient, patient
from mal.storage.results_folder import ResultsFolder, fetch_results

__all__ = [
    "ABSENT",
    "BackgroundUpload",
    "ConflictError",
    "Document",
    "FoundImages",
    "ImageFile",
    "ImageFinder",
    "ResultsFolder",
    "child_uri",
    "describe_images",
    "describe_input",
    "describe_inputs",
    "describe_source",
    "fetch_file",
    "fetch_images",
    "fetch_results",
    "find_image",
    "find_images",
    "impatient",
    "list_files",
    "open_image_folder",
    "patient",
    "put_file",
    "put_files",
    "read_document",
    "redact_uri",
    "replace_document",
]
