"""What each algorithm of `mal automl` finds from a learning rate a hundred times too low.

    python docs/measure_search.py OUT --seeds 1 2 3 [--epochs 60]

Prints a row of docs/automl.md for each algorithm: best mIoU with half the epochs and with all of
them, seed by seed. A search that was measured already is not run again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial

ALGORITHMS = ("bayesian", "random", "asha", "hyperband", "bohb")
OVERRIDES = (
    "train.lr=2.5e-6", "train.max_steps=60", "dataset.crop_size=48",
    "dataset.num_workers_per_gpu=0", "evaluate.use_flip_test=false", "device=cpu",
)  # fmt: skip


def mal(*arguments: str) -> None:
    """Run `mal`, silently unless it fails."""
    process = subprocess.run(
        [sys.executable, "-m", "mal", *arguments], capture_output=True, text=True, check=False
    )
    if process.returncode:
        raise SystemExit(process.stdout + process.stderr)


def search(demo: Path, folder: Path, algorithm: str, seed: int, epochs: int) -> list[FrozenTrial]:
    """Search, or go on where a search stopped; return its trials in order."""
    data = [
        f"dataset.{split}_{key}={demo / name}"
        for split in ("train", "val")
        for key, name in (("ann_path", f"{split}.json"), ("img_dir", "images"))
    ]
    options = ("--algorithm", algorithm, "--seed", str(seed), "--epochs", str(epochs))
    mal("automl", "-e", "recipe:demo", *data, *OVERRIDES, f"results_dir={folder}", *options)
    storage = f"sqlite:///{folder}/automl/study.db"
    return optuna.load_study(study_name=None, storage=storage).get_trials()


def best_within(trials: list[FrozenTrial], epochs: int) -> float:
    """Return the best validation mIoU of the first so many epochs of a search."""
    curves = [sorted(trial.intermediate_values.items()) for trial in trials]
    return max([miou for curve in curves for _, miou in curve][:epochs])


def main() -> None:
    """Search with every algorithm and seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--algorithms", nargs="+", default=ALGORITHMS, choices=ALGORITHMS)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    demo = arguments.out / "demo"
    if not demo.exists():
        mal("dataset", "demo", "--output", str(demo), "--images", "24")
    for algorithm in arguments.algorithms:
        halves, wholes, counts, ended = [], [], [], []
        for seed in arguments.seeds:
            folder = arguments.out / f"{algorithm}-{seed}"
            trials = search(demo, folder, algorithm, seed, arguments.epochs)
            halves.append(f"{best_within(trials, arguments.epochs // 2):.3f}")
            wholes.append(f"{best_within(trials, arguments.epochs):.3f}")
            counts.append(str(len(trials)))
            ended.append(str(sum(trial.state.name == "PRUNED" for trial in trials)))
        cells = (f"`{algorithm}`", *(", ".join(c) for c in (counts, ended, halves, wholes)))
        sys.stdout.write(f"| {' | '.join(cells)} |\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
