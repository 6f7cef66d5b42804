"""How `-p key=value` becomes arguments."""

from pathlib import Path

import pytest

from mal.kfp.pipelines._arguments import ArgumentError, parse_arguments
from mal.kfp.pipelines._registry import find_pipeline

AUTO_LABEL = find_pipeline("auto_label")
REQUIRED = ["train_images=s3://bucket/images", "train_annotations=s3://bucket/train.json"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["overrides=train.lr=1e-4"], ["train.lr=1e-4"]),
        (["overrides=train.lr=1e-4", "overrides=train.wd=0"], ["train.lr=1e-4", "train.wd=0"]),
        (["overrides=[train.lr=1e-4, train.wd=0]"], ["train.lr=1e-4", "train.wd=0"]),
        (['overrides=["evaluate.batch_size=2"]'], ["evaluate.batch_size=2"]),
        (["overrides=weights=set #2"], ["weights=set #2"]),
        (["overrides=[07, weights=07]"], ["07", "weights=07"]),
    ],
    ids=["one", "repeated", "yaml list", "json list", "hash", "zero"],
)
def test_a_list_is_given_whole_or_an_item_at_a_time(given: list[str], expected: list[str]) -> None:
    assert parse_arguments(AUTO_LABEL, [*REQUIRED, *given])["overrides"] == expected


@pytest.mark.parametrize("text", ["010", "1:30", "5 #6", "yes"])
def test_a_number_of_yaml_that_json_lacks_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="trials must be a NUMBER_INTEGER"):
        parse_arguments(find_pipeline("retrain"), [f"trials={text}"])


@pytest.mark.parametrize("text", ["[a: 1]", "[[a]]", "[a=1 #2]"])
def test_a_list_of_something_else_than_texts_is_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="overrides must be a LIST"):
        parse_arguments(AUTO_LABEL, [*REQUIRED, f"overrides={text}"])


def test_relative_paths_of_data_become_absolute_and_remote_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = parse_arguments(
        AUTO_LABEL,
        ["train_images=data/images", "train_annotations=s3://bucket/a.json", "val_images="],
    )
    assert arguments == {
        "train_images": str(tmp_path / "data/images"),
        "train_annotations": "s3://bucket/a.json",
        "val_images": "",
    }


def test_spec_may_name_a_file_whose_text_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("train: {lr: 1e-4}\n")
    assert parse_arguments(AUTO_LABEL, [*REQUIRED, f"spec={path}"])["spec"] == path.read_text()
    assert parse_arguments(AUTO_LABEL, [*REQUIRED, "spec=recipe:demo"])["spec"] == "recipe:demo"


def test_all_mistakes_are_reported_at_once() -> None:
    with pytest.raises(ArgumentError) as caught:
        parse_arguments(
            AUTO_LABEL, ["train_image=x", "overrides", "spec=/no/such.yaml", "overrides=[a"]
        )
    message = str(caught.value)
    assert "Did you mean train_images?" in message
    assert "key=value" in message
    assert "/no/such.yaml" in message
    assert "overrides must be a LIST" in message
    assert "train_annotations must be given" in message
