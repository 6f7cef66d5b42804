"""Output files and folders of the writers: complete or absent, and never outside the target."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from mal.errors import AnnotationError, StorageError
from mal.shown import shown

_UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"|?*\ud800-\udfff]')
_MAX_NAME_BYTES = 200  # a file system allows 255, and a suffix is added
_DIGEST_CHARS = 8


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Yield a temporary folder beside the target; rename it on success, delete it on failure.

    Raises:
        StorageError: The target has files, or cannot be written.
    """
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise StorageError(
            f"{target} must be a new or an empty folder. Choose another, or delete it."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield partial
        partial.chmod(0o755)
        if target.is_dir():
            target.rmdir()
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def safe_name(file_name: str) -> PurePosixPath:
    """Return a relative path without `..`, a drive, control characters or overlong parts."""
    parts = [
        _safe_part(part)
        for part in re.split(r"[/\\]", file_name)
        if part not in ("", ".", "..") and not re.fullmatch(r"[A-Za-z]:", part)
    ]
    return PurePosixPath(*(parts or ["_"]))


def _safe_part(part: str) -> str:
    cleaned = _UNSAFE.sub("_", part).strip(" ") or "_"
    encoded = cleaned.encode()
    if len(encoded) <= _MAX_NAME_BYTES:
        return cleaned
    digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST_CHARS]
    suffix = PurePosixPath(cleaned).suffix
    suffix = suffix if len(suffix) <= _DIGEST_CHARS else ""
    stem = cleaned.removesuffix(suffix)
    room = _MAX_NAME_BYTES - len(suffix) - _DIGEST_CHARS - 1
    return f"{stem.encode()[:room].decode(errors='ignore')}-{digest}{suffix}"


class OutputNames:
    """Gives each image a path of its own below a folder."""

    def __init__(self) -> None:
        self._owner_of: dict[Path, str] = {}

    def path_for(self, folder: Path, file_name: str, suffix: str) -> Path:
        """Return the path of an image's file, which the caller writes; its folder exists.

        Args:
            folder: The path is below it.
            file_name: Name of the image.
            suffix: Replaces that of the image.

        Raises:
            AnnotationError: Another image has this path already.
        """
        relative = safe_name(file_name)
        path = folder / relative.with_name(f"{relative.stem}{suffix}")
        if path.exists():  # for some file systems a.txt is A.txt
            owner = self._owner_of.get(path, "another image")
            raise AnnotationError(
                f"Images {shown(owner, quoted=True)} and {shown(file_name, quoted=True)} would "
                f"both have the file {shown(str(path.relative_to(folder)))}. Rename or remove one "
                "of the images."
            )
        self._owner_of[path] = file_name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


def add_image(source: Path, target: Path) -> None:
    """Put an image into an output folder: a hard link where the file system allows, or a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except FileExistsError:
        return
    except OSError:
        shutil.copyfile(source, target)
