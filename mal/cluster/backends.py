"""The registered kinds of training jobs, by the name that the parameter `backend` takes."""

from __future__ import annotations

from mal.cluster.job_kind import JobKind
from mal.cluster.pytorchjob import PYTORCHJOB
from mal.cluster.trainjob import TRAINJOB
from mal.errors import SpecError

_KINDS: dict[str, JobKind] = {"pytorchjob": PYTORCHJOB, "trainjob": TRAINJOB}


def register_job_kind(backend: str, kind: JobKind) -> None:
    """Make a kind known under a name.

    Raises:
        SpecError: Another kind has the name.
    """
    if _KINDS.get(backend, kind) is not kind:
        raise SpecError(
            f"backend must have a name of its own, got {backend!r}: it is {_KINDS[backend].name}. "
            "Choose another name."
        )
    _KINDS[backend] = kind


def get_job_kind(backend: str) -> JobKind:
    """Return the kind of this name.

    Raises:
        SpecError: No kind has the name.
    """
    if backend not in _KINDS:
        raise SpecError(f"backend must be {' or '.join(_KINDS)}, got {backend!r}. Choose one.")
    return _KINDS[backend]
