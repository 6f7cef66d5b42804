"""`label_only` on this machine: split, shards, merge, and a second run that finds it all done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_sets import training_spec, write_tiny_set

from mal.stages import run_train

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1200)]

REPOSITORY = Path(__file__).parents[3]


def label(output: Path, **parameters: object) -> subprocess.CompletedProcess[str]:
    pairs = [part for key, value in parameters.items() for part in ("-p", f"{key}={value}")]
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "run", "label_only", "--output", str(output), *pairs],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_set_is_labelled_in_shards_and_a_second_run_labels_nothing_again(tmp_path: Path) -> None:
    data = write_tiny_set(tmp_path / "set", num_images=4)
    trained = run_train(training_spec(data, tmp_path / "job" / "train", "train.max_steps=1"))
    settings = {
        "images": data.images,
        "annotations": data.annotations,
        "model": tmp_path / "job",
        "work_dir": tmp_path / "work",
        "boxes_per_shard": 4,
    }
    failed = label(tmp_path / "runs", **settings, overrides="inference.batch_size=0")
    assert failed.returncode == 2, failed.stdout + failed.stderr
    assert "step split-boxes failed: inference.batch_size must be" in failed.stderr
    first = label(tmp_path / "runs", **settings)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "2 shards, 8 boxes" in first.stdout
    assert '"inputs": {' not in first.stdout
    labels = (tmp_path / "runs" / "latest" / "labels.json").read_bytes()
    boxes = json.loads(labels)["annotations"]
    before = data.document()["annotations"]
    assert [box["id"] for box in boxes] == [box["id"] for box in before]
    assert all("score" in box for box in boxes)
    again = label(tmp_path / "runs", **settings | {"model": trained.checkpoint})
    assert again.stdout.count("was labelled by an earlier run") == 2
    assert (tmp_path / "runs" / "latest" / "labels.json").read_bytes() == labels
