"""A file read piece by piece says the same as one read whole."""

from __future__ import annotations

import json
import tracemalloc
from codecs import BOM_UTF8
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.data import annotation_stream
from mal.data.annotation_stream import read_members
from mal.errors import AnnotationError

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.sampled_from(["\ud800", "é", "😀", '"', "\\"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=5), json_values | st.lists(json_values), max_size=5)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stream") / "set.json"


def read(path: Path) -> dict[str, Any]:
    return {
        key: value if entries is None else [entry.value for entry in entries]
        for key, value, entries in read_members(path)
    }


@given(objects, st.integers(1, 9), st.sampled_from([None, 1]), st.booleans())
def test_pieces_of_any_size_give_what_the_whole_file_says(
    path: Path, document: dict[str, Any], size: int, indent: int | None, is_plain: bool
) -> None:
    text = json.dumps(document, indent=indent, ensure_ascii=is_plain)
    path.write_bytes((b"" if is_plain else BOM_UTF8) + text.encode("utf-8", "surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotation_stream, "CHUNK_BYTES", size)
        assert read(path) == document
        content = path.read_bytes()
        for key, _, entries in read_members(path):
            for index, entry in enumerate(entries or ()):
                part = content[entry.start : entry.start + entry.num_bytes]
                assert json.loads(part) == entry.value == document[key][index]


def test_entries_that_nobody_asks_for_are_passed_over(path: Path) -> None:
    path.write_text('{"images": [1, 2, 3], "annotations": [4, [5]], "info": {"year": 1}}')
    assert [member.key for member in read_members(path)] == ["images", "annotations", "info"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "Expecting value"),
        ('{"images": [1, 2', "expecting ',' or ']' at byte 16"),
        ('{"images": [1, ]}', "Expecting value at byte 15"),
        ('{"images": [1 2]}', "expecting ',' or ']'"),
        ('{"images": [], }', "expecting a key at byte 15"),
        ('{"images": {"a": "b}', "Unterminated string"),
        ('{"images" []}', "expecting ':'"),
        ('{"images": []} x', "extra data at byte 15"),
        ('{"images": [], "images": []}', "a second 'images'"),
    ],
)
def test_what_is_no_json_is_named_with_its_place(text: str, told: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(
        AnnotationError, match=r"Cannot read the annotation file .* as JSON"
    ) as caught:
        read(path)
    assert told in str(caught.value)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_named(path: Path) -> None:
    path.write_bytes(b'{"images": ["\xff"]}')
    with pytest.raises(AnnotationError, match=r"as JSON: .*0xff"):
        read(path)


def test_of_a_long_file_only_a_piece_is_held(path: Path) -> None:
    entry = {"segmentation": [[0.25] * 40]}
    num_entries = 30_000
    path.write_text(json.dumps({"annotations": [entry] * num_entries}))
    assert path.stat().st_size > 6 * annotation_stream.CHUNK_BYTES
    tracemalloc.start()
    try:
        count = sum(1 for _, _, entries in read_members(path) for _ in entries or ())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == num_entries
    assert peak < 5 * annotation_stream.CHUNK_BYTES
