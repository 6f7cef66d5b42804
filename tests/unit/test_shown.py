from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mal.shown import MAX_SHOWN_CHARS, printable, shown

any_character = st.characters(codec=None, exclude_categories=())
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(any_character),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(any_character), inner),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        pytest.param("a b/ü.png", "a b/ü.png", id="plain name"),
        pytest.param("C:\\images\\a.png", "C:\\images\\a.png", id="backslash"),
        pytest.param("a\nb\x1b[31m.png", "a\\nb\\x1b[31m.png", id="escape code"),
        pytest.param("a\u202egnp.exe", "a\\u202egnp.exe", id="right-to-left override"),
        pytest.param("\ud800.png", "\\ud800.png", id="lone surrogate"),
        pytest.param(None, "null", id="null"),
        pytest.param([1, 2.5, True, "4,5"], '[1, 2.5, true, "4,5"]', id="list"),
        pytest.param({"x": 4, "y": None}, '{"x": 4, "y": null}', id="object"),
        pytest.param([0] * 1000, "[0, 0, 0, 0, 0, 0, ...]", id="long list"),
        pytest.param([[[[[[1]]]]]], "[[[[[...]]]]]", id="deep list"),
        pytest.param(10**5000, "a number of 5001 digits", id="5001 digits"),
        pytest.param(float("nan"), "nan", id="not a number"),
    ],
)
def test_a_value_is_shown_in_one_line(value: Any, text: str) -> None:
    assert shown(value) == text


def test_of_a_long_name_start_end_and_length_are_shown() -> None:
    text = shown("data:image/png;base64," + "A" * 22_000 + "end.png")
    assert text.startswith("data:image/png;base64,AAA")
    assert text.endswith("AAAend.png (22029 characters)")
    assert len(text) < MAX_SHOWN_CHARS + 25


def test_quotes_tell_text_from_a_number() -> None:
    assert (shown("1", quoted=True), shown(1, quoted=True)) == ("'1'", "1")


@given(json_values)
def test_any_value_is_short_printable_and_can_be_encoded(value: Any) -> None:
    text = shown(value)
    assert text.isprintable()
    assert text.encode("utf-8").decode("utf-8") == text
    assert len(text) <= MAX_SHOWN_CHARS + 30
    assert shown(text, 200) == text, "showing twice changes nothing"


def test_a_message_keeps_its_lines() -> None:
    assert printable("first \x1b[2J\nsecond \ud800") == "first \\x1b[2J\nsecond \\ud800"
