"""One local folder for several: a link to each, under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mal.redaction import redact_uri
from mal.storage.archives import ARCHIVE_SUFFIXES
from mal.storage.cache import build_folder_once, key_of

_OTHER_CHARACTERS = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_CHARACTERS = 60


def names_in_merged_folder(sources: Sequence[str]) -> list[str]:
    """Return the name of each source in the merged folder: its number and last part."""
    names = []
    for number, source in enumerate(sources, 1):
        last = PurePosixPath(redact_uri(source).rstrip("/")).name
        for suffix in ARCHIVE_SUFFIXES:
            last = last.removesuffix(suffix)
        safe = _OTHER_CHARACTERS.sub("_", last).strip("._-")[:_MAX_CHARACTERS]
        names.append(f"{number}-{safe}" if safe else f"{number}")
    return names


def merge_folders(sources: Sequence[str], folders: Sequence[Path]) -> Path:
    """Return a folder in the cache with a link to each of some local folders."""
    names = names_in_merged_folder(sources)
    targets = [folder.absolute() for folder in folders]

    def fill(folder: Path) -> None:
        for name, target in zip(names, targets, strict=True):
            (folder / name).symlink_to(target, target_is_directory=True)

    key = key_of("merged", *names, *targets)
    return build_folder_once(key, ", ".join(map(redact_uri, sources)), fill)
