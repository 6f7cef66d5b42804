"""The record at the end of a page: written and read back."""

from __future__ import annotations

import pytest
from kfp_artifact import Artifact

from mal.lineage.page_record import read_record, with_record

METADATA = {"display_name": "model --> <b>\n### Lineage", "train_config": '{"lr": 1}', "mIoU": 0.5}


@pytest.mark.parametrize("page", ["## Model\n", "", "<!-- mal-lineage: {} -->\n\ntext"])
def test_a_record_is_read_as_it_was_written_and_ends_the_page(page: str) -> None:
    text = with_record(page, model=Artifact("/m", METADATA), labels=Artifact("/l"))
    assert read_record(text) == {
        "model": {"uri": "minio://bucket/m", **METADATA},
        "labels": {"uri": "minio://bucket/l"},
    }
    assert text.startswith(page.rstrip())
    assert text.count("-->") == page.count("-->") + 1
    assert text.splitlines()[-1].startswith("<!-- mal-lineage: ")


@pytest.mark.parametrize(
    "page",
    ["", "## Model of an older mal\n\n### Lineage\n\n```json\n{}\n```\n", "<!-- mal-lineage: {"],
)
def test_a_page_without_a_record_has_none(page: str) -> None:
    assert read_record(page) == {}
