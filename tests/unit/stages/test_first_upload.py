"""A training in a bucket leaves its status there at its start, not at its first checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

from mal.stages import session


class Recorded:
    """A session that records what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return lambda: self.calls.append(name)


def test_an_upload_is_asked_for_at_the_start() -> None:
    recorded: Any = Recorded()
    with session._uploading(recorded):
        assert recorded.calls == ["start_uploads", "upload_soon"]
    assert recorded.calls[-1] == "end_uploads"


def test_uploads_end_also_after_an_error() -> None:
    recorded: Any = Recorded()
    with pytest.raises(ValueError, match="x"), session._uploading(recorded):
        raise ValueError("x")
    assert recorded.calls[-1] == "end_uploads"
