"""Paths and URIs as callers give them, and errors of the file system while one is checked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mal.errors import ArtifactError, SpecError
from mal.storage import redact_uri

PathOrUri = str | os.PathLike[str]
"""A local path, `s3://` or `minio://`."""

MAX_SHOWN_LENGTH = 120


@contextmanager
def wrap_path_errors(
    name: str, uri: str, kind: type[SpecError | ArtifactError] = SpecError
) -> Iterator[None]:
    """Raise what the file system refuses (unknown user, name too long, no permission) as `kind`."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise kind(
            f"{name} must be a readable path, got {shortened(redact_uri(uri))} ({reason}). "
            "Check the path."
        ) from error


def shortened(text: str) -> str:
    """Return a text short enough for a message."""
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[: MAX_SHOWN_LENGTH - 4]} ..."
