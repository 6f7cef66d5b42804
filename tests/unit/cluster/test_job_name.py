from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_jobs import SMALL

from mal.cluster import job_name

RUN = "7F3A9C12-0000-4000-8000-000000000001"


def test_a_name_shows_the_run_and_is_the_same_on_every_retry() -> None:
    assert job_name(RUN, "4711") == job_name(RUN, "4711")
    assert job_name(RUN, "4711").startswith("mal-7f3a9c12-")
    assert len(job_name(RUN, "4711")) == len("mal-7f3a9c12-abcd")


@pytest.mark.parametrize("other", [("0" + RUN[1:], "4711"), (RUN, "4712"), (RUN, "47110")])
def test_another_run_or_task_has_another_name(other: tuple[str, str]) -> None:
    assert job_name(*other) != job_name(RUN, "4711")


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_run_and_task_give_a_name_that_a_job_may_have(run_id: str, task_id: str) -> None:
    name = f"{job_name(run_id, task_id)}-r99"
    assert SMALL.replace(name=name).name == name
