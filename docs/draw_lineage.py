"""Draw docs/lineage.png: two waves of annotations through `retrain`, and the lineage they leave.

    python docs/draw_lineage.py

Takes some minutes on a CPU; needs Chromium for the picture.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PICTURE = Path(__file__).with_name("lineage.png")
CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--hide-scrollbars", "--disable-gpu")
WINDOW = "1830,530"
SPEC = """\
device: cpu
dataset: {crop_size: 64, window_rate: [1.3, 1.8], box_jitter: 0.2, min_obj_size: 0,
  num_workers_per_gpu: 0}
model: {arch: vit-hybrid-small/8, mask_head: pyramid}
train: {batch_size: 8, max_steps: 60, lr: 1e-3, loss_mil_step: 10, loss_crf_step: 5,
  crf_num_iter: 3, test_margin_rate: [1.2, 1.2], mask_thres: [0.45]}
wandb: {enable: false}
"""


def main() -> int:
    """Run two waves in a scratch folder and write the picture."""
    with tempfile.TemporaryDirectory() as scratch:
        data, store = Path(scratch) / "demo", Path(scratch) / "nuclei"
        run("mal", "dataset", "demo", "-o", str(data), "--images", "16", "--seed", "0")
        boxes = data / "train.json"
        document = json.loads(boxes.read_text(encoding="utf-8"))
        every = document["annotations"]
        for number in (len(every) // 2, len(every)):
            wave = {**document, "annotations": every[:number]}
            boxes.write_text(json.dumps(wave), encoding="utf-8")
            retrain(data, store)
        page = Path(scratch) / "lineage.html"
        run("pipelines", "lineage", str(store), "-o", str(page))
        screenshot = (f"--window-size={WINDOW}", f"--screenshot={PICTURE}", page.as_uri())
        subprocess.run([*CHROMIUM, *screenshot], check=True, capture_output=True)
    return 0


def retrain(data: Path, store: Path) -> None:
    """Run the pipeline once; with a large margin, since only the lineage is shown."""
    parameters = {
        "train_images": data / "images",
        "train_annotations": data / "train.json",
        "val_images": data / "images",
        "val_annotations": data / "val.json",
        "store": store,
        "spec": SPEC,
        "min_new_annotations": 10,
        "quiet_period_s": 0,
        "miou_margin": 0.2,
        "category_margin": 0.4,
        "automl_policy": "off",
    }
    pairs = [part for key, value in parameters.items() for part in ("-p", f"{key}={value}")]
    run("pipelines", "run", "retrain", "--output", str(store.parent / "runs"), *pairs)


def run(module: str, *arguments: str) -> None:
    """Run a module of this repository."""
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
