from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_jobs import FULL, SMALL, jobs

from mal.cluster import JobSettings, read_job_settings
from mal.errors import SpecError

GIVEN = {name: getattr(SMALL, name) for name in ("name", "namespace", "image", "outputs_uri")}


def plain(job: JobSettings) -> dict[str, Any]:
    """Write settings as Kubeflow passes them: JSON, every number a float."""
    values: dict[str, Any] = json.loads(json.dumps(job.model_dump()), parse_int=float)
    return {name: value for name, value in values.items() if value is not None}


@given(jobs)
def test_settings_survive_a_pipeline_parameter(job: JobSettings) -> None:
    assert read_job_settings(plain(job)) == job


def test_every_setting_can_be_given() -> None:
    assert read_job_settings(plain(FULL)) == FULL


def test_nothing_but_the_callers_settings_is_the_defaults() -> None:
    assert read_job_settings({}, **GIVEN) == SMALL


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ({"num_node": 2}, "job.num_node is not a setting of a job. Did you mean num_nodes?"),
        ({"resources": {"gpus": 2}}, "job.resources.gpus is not a setting of a job."),
        ({"name": "x"}, "job.name must be left out, got a value: the step sets it."),
        ({"num_nodes": "two"}, "job.num_nodes must be a whole number, got a str."),
        ({"num_nodes": 1.5}, "job.num_nodes must be a whole number, got a float."),
        (
            {"num_nodes": 10**5000},
            "job.num_nodes must be a whole number, got one that",
        ),
        ({"num_nodes": True}, "job.num_nodes must be a whole number, got a bool."),
        ({"resources": 3}, "job.resources must be a mapping, got a int."),
        ({"overrides": "a=b"}, "job.overrides must be a list, got a str."),
        ({"security": {"read_only_root": 1}}, "job.security.read_only_root must be true or false"),
        ({"environment": {"values": {"A": None}}}, "job.environment.values.A must be text"),
        (
            {"environment": {"secrets": {"A": "hunter2"}}},
            "job.environment.secrets.A must be a mapping, got a str.",
        ),
        (
            {"environment": {"secrets": {"A": {"secret": "s"}}}},
            "job.environment.secrets.A.key must be set, got none.",
        ),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, str) else "",
)
def test_a_mistake_is_named(content: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        read_job_settings(content, **GIVEN)
    (found,) = raised.value.problems
    assert found.startswith(problem)
    assert "hunter2" not in found


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from(list(JobSettings.model_fields)), _plain))
def test_any_content_is_settings_or_a_spec_error(content: dict[str, Any]) -> None:
    with contextlib.suppress(SpecError):
        read_job_settings(content)
