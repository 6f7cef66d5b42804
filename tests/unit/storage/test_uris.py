from __future__ import annotations

import pytest

from mal.errors import StorageError
from mal.storage.uris import RemoteUri, parse_remote_uri


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
        pytest.param("s3://b/a?X-Amz-Signature=hush", "must not carry credentials", id="signed"),
    ],
)
def test_an_unusable_uri_is_refused_without_repeating_its_secrets(uri: str, rule: str) -> None:
    with pytest.raises(StorageError, match=rule) as caught:
        parse_remote_uri(uri)
    assert "hush" not in str(caught.value)
