from __future__ import annotations

import pytest

from mal.errors import StorageError
from mal.storage.uris import RemoteUri, parse_remote_uri, redact_text, redact_uri


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        pytest.param("s3://b/a/c.json", RemoteUri("s3", "b", "a/c.json"), id="object"),
        pytest.param("S3://b/a", RemoteUri("s3", "b", "a"), id="scheme in capitals"),
        pytest.param("minio://mlpipeline/v2/x", RemoteUri("minio", "mlpipeline", "v2/x"), id="kfp"),
        pytest.param("s3://b", RemoteUri("s3", "b", ""), id="whole bucket"),
        pytest.param("s3://b/a b#1.png", RemoteUri("s3", "b", "a b#1.png"), id="odd characters"),
        pytest.param("data/train.json", None, id="relative path"),
        pytest.param("/data/a:b.json", None, id="absolute path with a colon"),
    ],
)
def test_a_uri_is_told_from_a_path(uri: str, expected: RemoteUri | None) -> None:
    assert parse_remote_uri(uri) == expected


@pytest.mark.parametrize(
    ("uri", "rule"),
    [
        pytest.param("gs://b/a", "s3:// or minio://", id="other cloud"),
        pytest.param("https://host/a.json?token=hush", "s3:// or minio://", id="web"),
        pytest.param("s3:///a", "name a bucket", id="no bucket"),
        pytest.param("s3://key:hush@b/a", "must not carry credentials", id="credentials"),
    ],
)
def test_an_unusable_uri_is_refused_without_repeating_its_secrets(uri: str, rule: str) -> None:
    with pytest.raises(StorageError, match=rule) as caught:
        parse_remote_uri(uri)
    assert "hush" not in str(caught.value)


def test_user_password_and_query_are_stripped() -> None:
    assert redact_uri("s3://key:hush@b/a.json?signature=hush") == "s3://b/a.json"
    assert redact_uri("/data/what?.json") == "/data/what?.json"
    assert redact_text('cannot reach "http://u:hush@host:9000/b"') == (
        'cannot reach "http://host:9000/b"'
    )
    assert "hush" not in str(parse_remote_uri("s3://b/a?X-Amz-Signature=hush"))
