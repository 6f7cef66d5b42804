"""A trial in milliseconds: speaks the protocol of `mal.stages.trial`, and learns by a formula.

The mIoU of a whole trial is best at `train.lr` = 1e-3 and grows by epoch; a rate above 5e-3
diverges. The pace is MAL_FAKE_EPOCH_S seconds an epoch.
"""

import json
import math
import os
import sys
import time
from pathlib import Path

import yaml

BEST_LR, HIGHEST_LR = 1e-3, 5e-3


def final_figure(lr: float) -> float:
    return 0.9 - 0.1 * abs(math.log10(lr / BEST_LR))


def main(spec_file: str, cost_file: str = "") -> int:
    folder = Path(spec_file).parent
    train = yaml.safe_load(Path(spec_file).read_text())["train"]
    if cost_file:
        epochs = train["num_epochs"]
        cost = {"num_epochs": epochs, "num_steps": epochs, "step_s": 0.1, "validation_s": 0.2}
        Path(cost_file).write_text(json.dumps({**cost, "device": "cpu", "measured_s": 0}))
        return 0
    if train["lr"] > HIGHEST_LR:
        status = {"status": "FAILURE", "message": "train failed: train_loss must be finite\nmore"}
        (folder / "status.json").write_text(json.dumps(status) + "\n")
        return 2
    metrics = folder / "metrics.jsonl"
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    for epoch in range(done + 1, train["num_epochs"] + 1):
        time.sleep(float(os.environ.get("MAL_FAKE_EPOCH_S", "0")))
        checkpoint = folder / f"mal_model_epoch_{epoch:03d}_step_{epoch:05d}.pth"
        checkpoint.write_text(json.dumps(train["lr"]))
        for name in ("mal_model_best.pth", "mal_model_latest.pth"):
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(checkpoint.name)
        figure = final_figure(train["lr"]) * (0.5 + 0.5 * epoch / train["num_epochs"])
        with metrics.open("a") as file:
            file.write(json.dumps({"epoch": epoch, "step": epoch, "val_mIoU": figure}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
