"""What a search may vary, and in which words it is told."""

from __future__ import annotations

from typing import Any

import pytest

from mal.automl.space import Interval, Options, build_search_space
from mal.errors import SpecError
from mal.spec.schema import action_schema

SCHEMA = action_schema("train")


def test_without_a_wish_the_schema_says_what_is_searched() -> None:
    assert build_search_space(SCHEMA) == (
        Interval("train.lr", 1e-7, 1e-2, is_log=True),
        Interval("train.wd", 1e-6, 1e-1, is_log=True),
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("train.lr=1e-7:1e-5:log", Interval("train.lr", 1e-7, 1e-5, is_log=True)),
        ("learning_rate=1e-7:1", Interval("train.lr", 1e-7, 1)),
        ("train.wd=0:0.1:0.05", Interval("train.wd", 0, 0.1, step=0.05)),
        ("crop_size=64:128:32", Interval("dataset.crop_size", 64, 128, is_whole=True, step=32)),
        ("train.batch_size=2,4,8", Options("train.batch_size", (2, 4, 8), (1, 1, 1))),
        ("train.batch_size=[2, 4]", Options("train.batch_size", (2, 4), (1, 1))),
        (
            "train.crf_view=student@3,teacher",
            Options("train.crf_view", ("student", "teacher"), (3, 1)),
        ),
        (
            "model.not_adjust_scale=true,false",
            Options("model.not_adjust_scale", (True, False), (1, 1)),
        ),
    ],
)
def test_a_range_is_read_as_it_is_written(words: str, expected: Interval | Options) -> None:
    assert build_search_space(SCHEMA, [expected.key], [words]) == (expected,)


def test_a_range_of_a_further_key_is_searched_beside_the_default_ones() -> None:
    space = build_search_space(SCHEMA, (), ["train.batch_size=2:8"])
    assert [parameter.key for parameter in space] == ["train.lr", "train.wd", "train.batch_size"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("model.teacher_momentum", Interval("model.teacher_momentum", 0, 1)),
        ("model.not_adjust_scale", Options("model.not_adjust_scale", (False, True), (1, 1))),
        ("train.crf_start", Options("train.crf_start", ("clamped", "balanced"), (1, 1))),
    ],
    ids=["bounds", "both values of a switch", "choices of weight above 0"],
)
def test_a_key_without_a_range_has_what_the_schema_knows(
    key: str, expected: Interval | Options
) -> None:
    assert build_search_space(SCHEMA, [key]) == (expected,)


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("train.gpu_ids", "it is a list"),
        ("train.seed", "it sets where, how long or on what a trial runs"),
        ("train.num_epochs", "it sets where, how long or on what a trial runs"),
        ("results_dir", "training does not depend on it"),
        ("evaluate.use_flip_test", "training does not depend on it"),
        ("train.pretrained_model_path", "it is free text"),
        ("train.loss_crf_weight", "have a range to be searched, got none. Add --range"),
        ("lr", "is not a key of the spec. Did you mean train.lr?"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_the_reason(key: str, reason: str) -> None:
    with pytest.raises(SpecError, match=key) as refused:
        build_search_space(SCHEMA, [key])
    assert reason in str(refused.value)


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ("train.lr", "must read KEY=RANGE"),
        ("train.lr=1:0", "LOW below HIGH"),
        ("train.lr=0:1:log", "begin above 0"),
        ("train.lr=0:1:2", "a step that fits"),
        ("train.lr=0:1:log:2", "LOW below HIGH"),
        ("train.lr=-1:1", "be at least 0"),
        ("train.lr=a:b", "be a number"),
        ("train.batch_size=1:8:0.5", "a whole step"),
        ("train.batch_size=4", "several different options"),
        ("train.batch_size=4,4", "several different options"),
        ("train.batch_size=2@0,4", "weights above 0"),
        ("model.arch=small,large", "be a known name"),
    ],
)
def test_a_range_that_cannot_be_used_is_refused(words: str, rule: str) -> None:
    with pytest.raises(SpecError) as refused:
        build_search_space(SCHEMA, (), [words])
    assert rule in str(refused.value)


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(SpecError) as refused:
        build_search_space(SCHEMA, ["train.seed", "train.lrr"], ["train.lr=1:0"])
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize(
    ("value", "is_inside"), [(64, True), (96, True), (80, False), (160, False), ("64", False)]
)
def test_an_interval_with_steps_contains_its_steps(value: Any, is_inside: bool) -> None:
    assert Interval("dataset.crop_size", 64, 128, step=32).contains(value) == is_inside


def test_an_option_is_contained_by_value_and_type() -> None:
    options = Options("model.not_adjust_scale", (False, True), (1, 1))
    assert options.contains(True)
    assert not options.contains(1)
