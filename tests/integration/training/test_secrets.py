"""A signed URL in a data set never reaches what a run prints or writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_sets import HYBRID, TinySet, training_overrides, write_tiny_set

from mal.registry.model_fetch import FetchedModel
from mal.registry.snapshot import snapshot_dataset
from mal.steps.label_shards import merge_labels, split_data_set

HUSH = "hush" * 4
MODEL = FetchedModel("v1", "/models/v1/mal_model_latest.pth", "a" * 64)
QUERY = f"?X-Amz-Credential={HUSH}&X-Amz-Signature={HUSH}&Expires=9"


@pytest.fixture
def signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    """A set whose images, annotations and categories hold secrets; one image has no file."""
    monkeypatch.setenv("MAL_CACHE_DIR", str(tmp_path / "cache"))
    data = write_tiny_set(tmp_path / "set", num_images=3)
    content = json.loads(data.annotations.read_text())
    for image in content["images"]:
        name = image["file_name"].replace(" ", "%20")
        image["file_name"] = f"https://host.s3.amazonaws.com/a/{name}{QUERY}"
        image["coco_url"] = f"https://joe:{HUSH}@host/a.png"
    gone = f"https://host/gone.png?token={HUSH}"
    content["images"].append({"id": 99, "file_name": gone, "width": 9, "height": 9})
    content["images"].append({"id": 98, "file_name": gone, "width": -1, "height": 9})
    for annotation in content["annotations"]:
        annotation["attributes"] = {"source": [f"s3://bucket/a.png{QUERY}"]}
    content["info"] = {"url": f"https://host/?sig={HUSH}"}
    data.annotations.write_text(json.dumps(content))
    return data


def mal(*arguments: str, exit_code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "mal", *arguments], capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == exit_code, output
    assert HUSH not in output
    return output


def files_with_secret(folder: Path) -> Iterator[Path]:
    return (
        path
        for path in folder.rglob("*")
        if HUSH in path.name or (path.is_file() and HUSH.encode() in path.read_bytes())
    )


def test_no_run_prints_or_writes_the_secret_of_a_url(signed: TinySet, tmp_path: Path) -> None:
    assert "gone.png" in mal("dataset", "check", str(signed.annotations), str(signed.images))
    common = [*HYBRID, *training_overrides(signed, tmp_path / "out"), "train.max_steps=2"]
    common += [f"dataset.val_ann_path={signed.annotations}", f"dataset.val_img_dir={signed.images}"]
    mal("train", *common)
    checkpoint = tmp_path / "out/mal_model_latest.pth"
    common.append(f"results_dir={tmp_path / 'out'}")
    mal("evaluate", *common, f"evaluate.checkpoint={checkpoint}")
    mal(
        "inference", *common, f"inference.checkpoint={checkpoint}",
        f"inference.ann_path={signed.annotations}", f"inference.img_dir={signed.images}",
        f"inference.label_dump_path={tmp_path / 'out/labels.json'}",
    )  # fmt: skip
    labels = json.loads((tmp_path / "out/labels.json").read_text())
    assert labels["images"][0]["file_name"].startswith("https://host.s3.amazonaws.com/a/picture")
    assert labels["images"][0]["file_name"].endswith(".png")
    assert len(labels["annotations"]) == len(signed.document()["annotations"])
    assert list(files_with_secret(tmp_path / "out")) == []


def test_no_snapshot_or_shard_holds_the_secret_of_a_url(signed: TinySet, tmp_path: Path) -> None:
    manifest = snapshot_dataset(
        train_images=str(signed.images), train_annotations=str(signed.annotations)
    )
    work = tmp_path / "work"
    work.mkdir()
    manifest.write(work / "manifest.json")
    (shard,) = split_data_set(
        str(signed.annotations), str(signed.images),
        work_dir=str(work), model=MODEL, boxes_per_shard=1000, settings=(),
    )  # fmt: skip
    labels = [f"{shard.uri}/annotations.json"]
    merge_labels(str(signed.annotations), labels, boxes_per_shard=1000, output=work / "labels.json")
    assert len(json.loads((work / "labels.json").read_text())["images"]) == 5
    assert list(files_with_secret(tmp_path / "work")) == []


@pytest.mark.parametrize(
    "override",
    [
        f"dataset.train_ann_path=s3://bucket/a.json{QUERY}",
        f"dataset.train_img_dir=https://host/a.zip?sig={HUSH}",
        f"results_dir=s3://joe:{HUSH}@bucket/out",
        f"train.lr=s3://joe:{HUSH}@bucket/out",
        f"train.nope=https://host/a.zip?sig={HUSH}",
        f"https://host/a.zip?sig={HUSH}",
    ],
)
def test_a_secret_in_a_setting_is_refused_without_repeating_it(
    override: str, tmp_path: Path
) -> None:
    mal("train", "-e", "recipe:scratch", f"results_dir={tmp_path / 'out'}", override, exit_code=2)
    assert list(files_with_secret(tmp_path)) == []


@pytest.mark.parametrize("place", ["annotations", "images"])
def test_check_of_a_signed_url_does_not_repeat_it(place: str, signed: TinySet) -> None:
    given = {"annotations": str(signed.annotations), "images": str(signed.images)}
    given[place] = f"https://host/a.zip{QUERY}"
    mal("dataset", "check", *given.values(), exit_code=1)
