"""A key of several URIs: one text, so that every reader of one URI also passes on several."""

from __future__ import annotations

import json
from collections.abc import Sequence


def join_uris(uris: Sequence[str]) -> str:
    """Return one text for several URIs: a JSON list; one URI stays as it is, none is ''."""
    return json.dumps(list(uris), ensure_ascii=False) if len(uris) > 1 else "".join(uris)


def split_uris(text: str) -> list[str]:
    """Return the URIs of a text of `join_uris`; a path that is no JSON list of texts is one."""
    if text.lstrip()[:1] == "[":
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        if isinstance(values, list) and values and all(isinstance(v, str) and v for v in values):
            return list(values)
    return [text]
