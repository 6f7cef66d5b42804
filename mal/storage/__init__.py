"""Where data and results lie: folders, archives, S3, and the cache of what was fetched."""

from mal.storage.cache import fetch_file
from mal.storage.image_folder import ImageFile, describe_images, find_image, open_image_folder
from mal.storage.results_folder import ResultsFolder, fetch_results
from mal.storage.uris import redact_uri

__all__ = [
    "ImageFile",
    "ResultsFolder",
    "describe_images",
    "fetch_file",
    "fetch_results",
    "find_image",
    "open_image_folder",
    "redact_uri",
]
