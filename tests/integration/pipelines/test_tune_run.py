"""`python -m pipelines run tune` on this machine: a real search, small."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mal.data.synthetic import generate_demo_dataset

pytestmark = [pytest.mark.integration, pytest.mark.slow]

REPOSITORY = Path(__file__).parents[3]
SPEC = """\
device: cpu
dataset: {crop_size: 32, num_workers_per_gpu: 0, min_obj_size: 0}
model: {arch: vit-mae-tiny/16, mask_head_hidden_channel: 8, mask_head_out_channel: 8}
train: {batch_size: 4, num_epochs: 2, max_steps: 6, lr: 1e-6, crf_num_iter: 2}
evaluate: {batch_size: 8}
"""


def test_the_pipeline_searches_trains_with_the_best_and_exports(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    generate_demo_dataset(demo, num_images=6, seed=0)
    parameters = {
        "train_images": demo / "images",
        "train_annotations": demo / "train.json",
        "val_images": demo / "images",
        "val_annotations": demo / "val.json",
        "spec": SPEC,
        "trials": 3,
        "trial_overrides": "train.max_steps=4",
    }
    assignments = [f"-p{name}={value}" for name, value in parameters.items()]
    process = subprocess.run(
        [
            *(sys.executable, "-m", "pipelines", "run", "tune"),
            *("--output", str(tmp_path / "runs")),
            *assignments,
        ],
        cwd=REPOSITORY,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert "budget: at most 3 trials" in process.stdout
    outputs = tmp_path / "runs" / "latest"
    best = yaml.safe_load((outputs / "model" / "experiment.yaml").read_text())
    rows = list(csv.DictReader(next(outputs.glob("tune/**/leaderboard.csv")).open()))
    assert len(rows) == 3
    assert best["train"]["lr"] == float(rows[0]["train.lr"])
    assert best["train"]["max_steps"] == 6
    leaderboard = (outputs / "leaderboard.md").read_text()
    assert leaderboard.startswith("## The best trial\n")
    assert "**Warning:** the model is not worth using" in leaderboard  # after six steps
    assert "\n| rank | trial |" in leaderboard
    assert "AutoML search" in (outputs / "search.html").read_text()
    assert json.loads((outputs / "metrics.json").read_text())["mIoU"] > 0
    assert (outputs / "onnx" / "mal_model.onnx").is_file()
