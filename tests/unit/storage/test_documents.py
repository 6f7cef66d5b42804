"""Documents that several writers share, on a local disk and on a store that speaks S3."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from mal.errors import StorageError
from mal.storage import ABSENT, ConflictError, read_document, replace_document


@pytest.fixture(params=["local", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "folder" / "pointer.json")
    request.getfixturevalue("s3")
    return "s3://bucket/folder/pointer.json"


def test_a_document_that_is_not_there_is_none(uri: str) -> None:
    assert read_document(uri) is None


def test_a_document_is_read_as_it_was_written(uri: str) -> None:
    etag = replace_document(uri, {"name": "ü", "n": 1}, expected_etag=ABSENT)
    document = read_document(uri)
    assert document is not None
    assert (document.content, document.etag) == ({"name": "ü", "n": 1}, etag)


def test_only_what_was_read_is_replaced(uri: str) -> None:
    first = replace_document(uri, {"n": 1}, expected_etag=ABSENT)
    second = replace_document(uri, {"n": 2}, expected_etag=first)
    for stale in (first, ABSENT):
        with pytest.raises(ConflictError, match="another writer changed it after it was read"):
            replace_document(uri, {"n": 3}, expected_etag=stale)
    document = read_document(uri)
    assert document is not None
    assert (document.content, document.etag) == ({"n": 2}, second)


def test_what_is_expected_and_gone_is_a_conflict(uri: str) -> None:
    with pytest.raises(ConflictError):
        replace_document(uri, {}, expected_etag="0123")
    assert read_document(uri) is None


def test_writing_again_what_one_has_just_written_is_no_conflict(uri: str) -> None:
    etag = replace_document(uri, {"n": 1}, expected_etag=ABSENT)
    assert replace_document(uri, {"n": 1}, expected_etag=ABSENT) == etag


def test_of_several_writers_at_once_one_wins(tmp_path: Path) -> None:
    uri = str(tmp_path / "pointer.json")
    replace_document(uri, {"winner": -1}, expected_etag=ABSENT)
    before = read_document(uri)
    assert before is not None

    def write(number: int) -> bool:
        try:
            replace_document(uri, {"winner": number}, expected_etag=before.etag)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        has_won = list(pool.map(write, range(16)))
    after = read_document(uri)
    assert has_won.count(True) == 1
    assert after is not None
    assert after.content == {"winner": has_won.index(True)}


@pytest.mark.parametrize("text", ["[1]", "{"], ids=["a list", "half"])
def test_what_is_no_document_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "pointer.json").write_text(text)
    with pytest.raises(StorageError, match=r"Cannot (use|read) .*pointer\.json"):
        read_document(str(tmp_path / "pointer.json"))


def test_a_store_that_refuses_is_no_conflict(s3: Any) -> None:
    with pytest.raises(StorageError, match=r"Cannot write .*: it does not exist") as caught:
        replace_document("s3://another/pointer.json", {}, expected_etag=ABSENT)
    assert not isinstance(caught.value, ConflictError)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"Cannot write .*Choose a folder that can be written"):
        replace_document(str(tmp_path / "file" / "pointer.json"), {}, expected_etag=ABSENT)
