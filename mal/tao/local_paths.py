"""Places as callers give them: a uri or a path object, and local ones that cannot be looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mal.errors import ArtifactError, SpecError
from mal.storage import redact_uri

Place = str | os.PathLike[str]
"""A local path, `s3://` or `minio://`."""

MAX_SHOWN_LENGTH = 120


@contextmanager
def looking_at(
    name: str, place: str, kind: type[SpecError | ArtifactError] = SpecError
) -> Iterator[None]:
    """Name the place where the system refuses to look: no such user, too long, not permitted.

    Raises:
        SpecError: Or the given kind.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise kind(
            f"{name} must be a place that can be looked at, got {shown(redact_uri(place))} "
            f"({reason}). Check the path."
        ) from error


def shown(text: str) -> str:
    """Return a text short enough for a message."""
    return text if len(text) <= MAX_SHOWN_LENGTH else f"{text[: MAX_SHOWN_LENGTH - 4]} ..."
