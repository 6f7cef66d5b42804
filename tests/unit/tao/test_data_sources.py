from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from mal.errors import SpecError, StorageError
from mal.spec import ExperimentSpec
from mal.spec.experiment import ACTIONS
from mal.spec.load import iterate_settings
from mal.tao import (
    ANNOTATIONS_FILE,
    DATA_SOURCES,
    IMAGES_FILE,
    data_source_keys,
    root_keys,
    snapshot_uris,
)

SPEC_KEYS = {key for key, *_ in iterate_settings(ExperimentSpec)}
EVAL_KEYS = ("dataset.val_img_dir", "dataset.val_ann_path")


def make_root(root: Path, *names: str) -> str:
    root.mkdir(parents=True)
    for name in names or (IMAGES_FILE, ANNOTATIONS_FILE):
        (root / name).write_bytes(b"x")
    return str(root)


def put_root(s3: Any, prefix: str, *names: str) -> None:
    for name in names or (IMAGES_FILE, ANNOTATIONS_FILE):
        s3.put_object(Bucket="bucket", Key=f"{prefix}{name}", Body=b"x")


def problems_of(action: str, **roots: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        data_source_keys(action, **roots)
    return caught.value.problems


def test_the_table_names_every_action_and_only_keys_of_the_spec() -> None:
    assert tuple(DATA_SOURCES) == ACTIONS
    assert {source.key for sources in DATA_SOURCES.values() for source in sources} <= SPEC_KEYS


@pytest.mark.parametrize(
    ("action", "sources"),
    [
        (
            "train",
            {
                "dataset.train_img_dir": ("train_datasets", "images.tar.gz", False),
                "dataset.train_ann_path": ("train_datasets", "annotations.json", False),
                "dataset.val_img_dir": ("eval_dataset", "images.tar.gz", True),
                "dataset.val_ann_path": ("eval_dataset", "annotations.json", True),
            },
        ),
        (
            "evaluate",
            {
                "dataset.val_img_dir": ("eval_dataset", "images.tar.gz", False),
                "dataset.val_ann_path": ("eval_dataset", "annotations.json", False),
            },
        ),
        (
            "inference",
            {
                "inference.img_dir": ("inference_dataset", "images.tar.gz", False),
                "inference.ann_path": ("inference_dataset", "annotations.json", False),
            },
        ),
        ("export", {}),
    ],
    ids=ACTIONS,
)
def test_an_action_has_the_sources_of_tao(action: str, sources: dict[str, Any]) -> None:
    assert {
        source.key: (source.dataset, source.file_name, source.is_optional)
        for source in DATA_SOURCES[action]
    } == sources


def test_the_roots_of_a_training_fill_its_keys(tmp_path: Path) -> None:
    train, val = make_root(tmp_path / "train"), make_root(tmp_path / "val")
    assert data_source_keys("train", train_datasets=[train], eval_dataset=val) == {
        "dataset.train_img_dir": f"{train}/images.tar.gz",
        "dataset.train_ann_path": f"{train}/annotations.json",
        "dataset.val_img_dir": f"{val}/images.tar.gz",
        "dataset.val_ann_path": f"{val}/annotations.json",
    }


def test_an_optional_root_may_be_left_out(tmp_path: Path) -> None:
    keys = data_source_keys("train", train_datasets=make_root(tmp_path / "train"))
    assert set(keys).isdisjoint(EVAL_KEYS)
    assert data_source_keys("export") == {}


def test_a_root_beyond_those_of_the_action_fills_its_keys_too(tmp_path: Path) -> None:
    root = make_root(tmp_path / "set")
    keys = data_source_keys("evaluate", eval_dataset=root, train_datasets=root)
    assert set(keys) == {"dataset.train_img_dir", "dataset.train_ann_path", *EVAL_KEYS}


@pytest.mark.parametrize(
    "write",
    [str, "{}/".format, "{}//".format, lambda root: "~/my set", os.path.relpath],
    ids=["plain", "trailing slash", "two slashes", "home", "relative"],
)
def test_a_local_root_may_be_written_in_many_ways(
    write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    root = make_root(tmp_path / "my set")
    keys = data_source_keys("evaluate", eval_dataset=write(root))
    assert [Path(keys[key]).resolve() for key in EVAL_KEYS] == [
        tmp_path / "my set" / name for name in (IMAGES_FILE, ANNOTATIONS_FILE)
    ]


def test_a_root_may_be_a_path_object(tmp_path: Path) -> None:
    text = make_root(tmp_path / "set")
    root = Path(text)
    assert data_source_keys("evaluate", eval_dataset=root, train_datasets=root) == (
        data_source_keys("evaluate", eval_dataset=text, train_datasets=text)
    )
    assert root_keys(train_datasets=[root]) == root_keys(train_datasets=text)
    snapshot = snapshot_uris(train_dataset=root, val_images=root / "v", val_annotations="")
    assert snapshot == {**snapshot_uris(train_dataset=text, val_annotations=""),
                        "val_images": f"{text}/v"}  # fmt: skip


@pytest.mark.parametrize(
    ("prefix", "roots"),
    [
        ("a set/", ["s3://bucket/a set", "s3://bucket/a set/", "minio://bucket/a set"]),
        ("", ["s3://bucket", "s3://bucket/", "minio://bucket"]),
    ],
    ids=["folder", "bucket"],
)
def test_a_root_may_be_a_place_of_a_bucket(s3: Any, prefix: str, roots: list[str]) -> None:
    put_root(s3, prefix)
    for root in roots:
        keys = data_source_keys("evaluate", eval_dataset=root)
        assert [keys[key] for key in EVAL_KEYS] == [
            f"{root.rstrip('/')}/{name}" for name in (IMAGES_FILE, ANNOTATIONS_FILE)
        ]


@pytest.mark.parametrize(
    ("action", "dataset", "keys"),
    [
        ("train", "train_datasets", ["dataset.train_img_dir", "dataset.train_ann_path"]),
        ("evaluate", "eval_dataset", ["dataset.val_img_dir", "dataset.val_ann_path"]),
        ("inference", "inference_dataset", ["inference.img_dir", "inference.ann_path"]),
    ],
    ids=["train", "evaluate", "inference"],
)
def test_what_an_action_cannot_do_without_is_named(
    action: str, dataset: str, keys: list[str]
) -> None:
    remedy = "Give a root that holds images.tar.gz and annotations.json."
    assert problems_of(action) == [
        f"{key} must have a source, got no {dataset}. {remedy}" for key in keys
    ]


def test_an_unknown_action_is_refused() -> None:
    assert problems_of("fly") == [
        "action must be known, got fly. Use one of train, evaluate, inference, export."
    ]


def test_every_problem_of_every_root_is_told_at_once(s3: Any, tmp_path: Path) -> None:
    half = make_root(tmp_path / "half", ANNOTATIONS_FILE)
    put_root(s3, "set/", ANNOTATIONS_FILE)
    file = tmp_path / "file"
    file.write_text("x")
    told = problems_of(
        "train", train_datasets="s3://bucket/set/", eval_dataset=half, inference_dataset=str(file)
    )
    assert told == [
        f"{key} must be a file, got nothing at {root}/images.tar.gz. "
        f"Put the file there, or set {key}."
        for key, root in (("dataset.train_img_dir", "s3://bucket/set"), (EVAL_KEYS[0], half))
    ] + [
        f"{key} must be a file, got nothing at {file}/{name}. Put the file there, or set {key}."
        for key, name in (
            ("inference.img_dir", IMAGES_FILE),
            ("inference.ann_path", ANNOTATIONS_FILE),
        )
    ]


def test_a_folder_in_the_place_of_a_file_is_told(tmp_path: Path) -> None:
    root = make_root(tmp_path / "set", ANNOTATIONS_FILE)
    (tmp_path / "set" / IMAGES_FILE).mkdir()
    (problem,) = problems_of("evaluate", eval_dataset=root)
    assert "got a folder at" in problem


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("gs://b/set", "eval_dataset: uri must be a local path, s3:// or minio://, got gs://b/set"),
        (
            "s3://u:secret@b/set",
            "eval_dataset: uri must not carry credentials, got some in s3://b",
        ),
        ("ftp://u:secret@b/set?k=secret", "eval_dataset: uri must be a local path"),
        ("~no-such-user-of-mal/x", "eval_dataset must be a readable path, got ~no-s"),
        (f"/{'x' * 5000}", "eval_dataset must be a readable path, got /xxx"),
    ],
    ids=[
        "scheme",
        "credentials",
        "credentials of a foreign scheme",
        "unknown user",
        "too long",
    ],
)
def test_a_root_that_is_none_is_told_without_secrets(root: str, told: str) -> None:
    (problem,) = problems_of("evaluate", eval_dataset=root)
    assert problem.startswith(told)
    assert "secret" not in problem


@pytest.mark.parametrize("root", ["s3://nowhere/set", "/no/such/place"], ids=["s3", "local"])
def test_a_root_that_does_not_exist_is_told_as_the_files_that_it_lacks(s3: Any, root: str) -> None:
    assert problems_of("evaluate", eval_dataset=root) == [
        f"{key} must be a file, got nothing at {root}/{name}. Put the file there, or set {key}."
        for key, name in zip(EVAL_KEYS, (IMAGES_FILE, ANNOTATIONS_FILE), strict=True)
    ]


def test_a_store_out_of_reach_is_no_mistake_of_the_spec(
    s3_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StorageError, match="no complete credentials are set"):
        data_source_keys("evaluate", eval_dataset="s3://bucket/set")


def test_several_training_roots_are_refused_without_their_secrets(tmp_path: Path) -> None:
    roots = [make_root(tmp_path / "a"), "s3://u:secret@b/c"]
    told = problems_of("train", train_datasets=roots)
    assert told == [
        f"train_datasets must be one root, got 2 ({roots[0]}, s3://b/c). Merge them into one."
    ]
    assert data_source_keys("train", train_datasets=(roots[0], ""))


def test_a_root_that_is_not_given_fills_nothing() -> None:
    assert root_keys() == {}


def test_a_file_whose_key_is_set_elsewhere_is_not_looked_for(tmp_path: Path) -> None:
    root = make_root(tmp_path / "set", ANNOTATIONS_FILE)
    assert root_keys(eval_dataset=root, except_for={"dataset.val_img_dir"}) == {
        "dataset.val_ann_path": f"{root}/{ANNOTATIONS_FILE}"
    }
    assert root_keys(eval_dataset="/no/such/place", except_for=EVAL_KEYS) == {}


def test_roots_and_single_sources_make_a_snapshot_together(tmp_path: Path) -> None:
    train, label = make_root(tmp_path / "train"), make_root(tmp_path / "label")
    given = {"train_images": "", "val_images": "v", "val_annotations": "v.json"}
    assert snapshot_uris(train_dataset=train, inference_dataset=label, **given) == {
        "train_images": f"{train}/images.tar.gz",
        "train_annotations": f"{train}/annotations.json",
        "val_images": "v",
        "val_annotations": "v.json",
        "label_images": f"{label}/images.tar.gz",
        "label_annotations": f"{label}/annotations.json",
    }


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ({}, ["train_dataset must be given, got ''."]),
        (
            {"train_dataset": "ROOT", "train_images": "i", "train_annotations": "a"},
            [
                "train_images must be given once, got it beside train_dataset. Leave one out.",
                "train_annotations must be given once, got it beside train_dataset.",
            ],
        ),
        (
            {"train_images": "i", "eval_dataset": "ROOT", "val_annotations": "a"},
            ["val_annotations must be given once, got it beside eval_dataset."],
        ),
        (
            {"train_dataset": "ROOT/absent", "inference_dataset": "EMPTY"},
            [
                "train_images must be a file, got nothing at",
                "train_annotations must be a file, got nothing at",
                "label_images must be a file, got nothing at",
                "label_annotations must be a file, got nothing at",
            ],
        ),
    ],
    ids=["nothing", "both", "half of both", "absent files"],
)
def test_a_part_of_a_snapshot_has_one_source(
    given: dict[str, str], problems: list[str], tmp_path: Path
) -> None:
    root = make_root(tmp_path / "set")
    with pytest.raises(SpecError) as caught:
        snapshot_uris(
            **{
                name: value.replace("ROOT", root).replace("EMPTY", str(tmp_path))
                for name, value in given.items()
            }
        )
    assert len(caught.value.problems) == len(problems)
    for told, problem in zip(caught.value.problems, problems, strict=True):
        assert told.startswith(problem)
