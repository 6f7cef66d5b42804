"""No user, password or signature of a URI is left in a text."""

from __future__ import annotations

import re

import pytest

from mal.errors import AnnotationError
from mal.redaction import (
    holds_secret,
    may_hold_secret,
    redact_file_name,
    redact_json,
    redact_text,
    redact_uri,
)

SIGNED = [
    "https://b.s3.amazonaws.com/a/img.png?X-Amz-Algorithm=AWS4&X-Amz-Credential=hush&X-Amz-Signature=hush",
    "https://b.s3.amazonaws.com/a/img.png?AWSAccessKeyId=hush&Signature=hush%2Fhush%3D&Expires=1",
    "https://storage.googleapis.com/b/a/img.png?X-Goog-Signature=hush",
    "https://storage.googleapis.com/b/a/img.png?GoogleAccessId=hush&Signature=hush",
    "https://a.blob.core.windows.net/b/img.png?sv=2022&se=2026&sr=b&sp=r&sig=hush",
    "https://firebasestorage.googleapis.com/a/img.png?alt=media&token=hush",
    "https://d1.cloudfront.net/img.png?Policy=hush&Key-Pair-Id=hush&Signature=hush",
    "https://host/img.png?access_token=hush",
    "https://host/img.png?API_KEY=hush",
    "https://host/img.png?a=1&amp;sig=hush",
    "https://host/img.png#access_token=hush",
    "https://joe:hush@host/img.png",
    "ftp://joe:hush@host/img.png",
    "https://proxy/img.png?uri=https%3A%2F%2Fb%2Fa.png%3Fsig%3Dhush",
]
"""Each has the word hush in place of its secrets."""


@pytest.mark.parametrize("uri", SIGNED)
@pytest.mark.parametrize("text", ["{}", "Cannot read {}: it is away.", '{{"url": "{}"}}', "('{}')"])
def test_a_secret_is_removed_from_a_text_and_the_rest_stays(uri: str, text: str) -> None:
    before, _, after = text.format("|").partition("|")
    redacted = redact_text(text.format(uri))
    assert "hush" not in redacted
    assert redacted.startswith(before)
    assert redacted.endswith(after)
    assert "img.png" in redacted
    assert holds_secret(uri)
    assert "hush" not in str(AnnotationError(text.format(uri)))


@pytest.mark.parametrize(
    "text",
    [
        "s3://b/a?x=1=2",
        "mail joe@example.com",
        "train.lr=1e-4",
        "/data/what?.json",
        "http://host/artifacts/get?source=s3&bucket=b&key_id",
        "dataset.val_img_dir=key=7",
        "a.jpg?monkey=7",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert redact_text(text) == text
    assert not holds_secret(text)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((uri, re.sub(r"(\w+:hush@)|([?#].*)", "", uri)) for uri in SIGNED if "#" not in uri),
        ("https://host/img.png?other=hush", "https://host/img.png"),
        ("/b/img.png?token=hush", "/b/img.png"),
        ("img.png?token=hush", "img.png"),
        ("/data/local-files/?d=a/img.png", "/data/local-files/?d=a/img.png"),
        ("http://host/data/local-files/?d=a/img.png", "http://host/data/local-files/?d=a/img.png"),
        ("what?.png", "what?.png"),
        ("a=b@c.png", "a=b@c.png"),
    ],
)
def test_a_file_name_loses_its_signature(name: str, expected: str) -> None:
    assert redact_file_name(name) == expected


def test_user_password_and_query_of_a_uri_are_removed() -> None:
    assert redact_uri("s3://key:hush@b/a.json?signature=hush") == "s3://b/a.json"
    assert "hush" not in redact_uri("http://oddS3://user:hush@host/a")
    assert redact_uri("/data/what?.json") == "/data/what?.json"
    assert redact_text('cannot reach "http://u:hush@host:9000/b"') == (
        'cannot reach "http://host:9000/b"'
    )


def test_every_text_of_a_json_value_is_redacted_but_no_mask() -> None:
    mask = {"counts": "?KEY=0?SIG=1", "size": [2, 2]}
    value = {"a": [{"url": SIGNED[0]}], "file_name": SIGNED[1], "segmentation": mask, "n": 1}
    assert "hush" not in str(redact_json(value))
    assert redact_json(value)["segmentation"] == mask
    assert redact_json({"file_name": 7}) == {"file_name": 7}


@pytest.mark.parametrize("uri", SIGNED)
def test_a_json_text_that_may_hold_a_secret_is_noticed(uri: str) -> None:
    assert may_hold_secret(f'{{"a": "{uri}"}}')
