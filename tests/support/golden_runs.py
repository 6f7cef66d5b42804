"""Fixed short runs of every recipe, whose metrics and loss curves are on record beside the recipes.

`python tests/support/golden_runs.py [CASE...]` records them anew, which only a change that is meant
to move them may do; the slow tests compare.
"""

import csv
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mal.data.synthetic import generate_demo_dataset
from mal.spec import load_spec
from mal.spec.load import read_spec_source
from mal.stages import run_evaluate, run_train

REPOSITORY = Path(__file__).parents[2]
GOLDEN = REPOSITORY / "mal" / "recipes" / "golden"
METRICS_FILE = GOLDEN / "metrics.csv"
LOSSES_FILE = GOLDEN / "losses.json"
SHARED = REPOSITORY.parent / "shared"
VIT_WEIGHTS = SHARED / "weights" / "vit_small_patch14_dinov2_saliency_fp16.safetensors"

NUM_PICTURES = 24
NUM_LOSS_STEPS = 20
DEMO_SEED = 0
METRIC = "mean_iou_instances"
# Other processors add in another order; a change of the method moves more than this.
TOLERANCE = 0.005
SEED = "train.seed=1"
PLAIN = ("device=cpu", "dataset.num_workers_per_gpu=0", "wandb.enable=false")
VIT = f"train.pretrained_model_path={VIT_WEIGHTS}"


@dataclass(frozen=True)
class GoldenCase:
    """A run: a recipe on a set, shortened by overrides.

    Attributes:
        recipe: Name of the packaged recipe.
        data: `demo` or a set of ../shared/data, of which the first pictures are taken.
        overrides: What shortens the run; part of what is on record.
        curve_overrides: What makes the network small enough for the first steps of its curve.
    """

    recipe: str
    data: str
    overrides: tuple[str, ...]
    curve_overrides: tuple[str, ...] = ()

    @property
    def needs_shared(self) -> bool:
        return self.data != "demo"


SHORT_VIT = (VIT, "train.cached_crops=200", "train.max_steps=60")
CASES: Mapping[str, GoldenCase] = {
    "demo": GoldenCase("demo", "demo", ()),
    "scratch": GoldenCase("scratch", "nuclei", ("train.max_steps=300",)),
    "small_set": GoldenCase("small_set", "nuclei", SHORT_VIT, (VIT, "train.cached_crops=16")),
    "coco": GoldenCase("coco", "coco_open", SHORT_VIT, (VIT, "train.cached_crops=16")),
    # The recipe's own network is a ViT-B at 512 px: its losses are followed with a tiny one.
    "tao": GoldenCase(
        "tao",
        "demo",
        (),
        ("model.arch=vit-mae-tiny/16", "dataset.crop_size=64", "train.batch_size=4"),
    ),
}
MEASURED = [name for name in CASES if name != "tao"]


def measure(case: GoldenCase, folder: Path) -> float:
    """Train and evaluate; returns the mean IoU of objects."""
    train, val = write_set(case, folder)
    overrides = [SEED, *PLAIN, *case.overrides, *data_overrides(train, val, folder / "images")]
    overrides.append(f"results_dir={folder / 'out'}")
    result = run_train(_spec("train", case, overrides))
    checkpoint = f"evaluate.checkpoint={result.checkpoint}"
    metrics = run_evaluate(_spec("evaluate", case, [*overrides, checkpoint])).metrics
    return float(metrics[METRIC])


def first_losses(case: GoldenCase, folder: Path) -> list[float]:
    """Return the loss of each of the first steps: of one batch a step, the same boxes each time."""
    train, val = write_set(case, folder)
    overrides = [SEED, *PLAIN, *(case.curve_overrides or case.overrides)]
    spec = _spec("train", case, overrides)
    _keep_boxes(train, spec.train.batch_size, spec.dataset.min_obj_size)
    overrides += [
        f"train.max_steps={NUM_LOSS_STEPS}",
        "train.num_epochs=1000",
        *data_overrides(train, val, folder / "images")[:2],
        f"results_dir={folder / 'out'}",
    ]
    result = run_train(_spec("train", case, overrides))
    lines = (result.results_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["train_loss"] for line in lines]


def write_set(case: GoldenCase, folder: Path) -> tuple[Path, Path]:
    """Write `train.json`, `val.json` and `images` of a case; returns the two files."""
    if case.data == "demo":
        demo = generate_demo_dataset(folder / "demo", num_images=300, seed=DEMO_SEED)
        (folder / "images").symlink_to(demo.image_dir)
        return demo.train_file, demo.val_file
    source = SHARED / "data" / case.data
    (folder / "images").symlink_to(source / "images")
    for name in ("train.json", "val.json"):
        document = json.loads((source / name).read_bytes())
        images = sorted(document["images"], key=lambda image: image["id"])[:NUM_PICTURES]
        _write_images(folder / name, document, {image["id"] for image in images})
    return folder / "train.json", folder / "val.json"


def data_overrides(train: Path, val: Path, images: Path) -> list[str]:
    return [
        f"dataset.train_ann_path={train}",
        f"dataset.train_img_dir={images}",
        f"dataset.val_ann_path={val}",
        f"dataset.val_img_dir={images}",
    ]


def processor() -> str:
    """Name what the last bits of a sum depend on."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")
    return f"{model or platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def _spec(action: str, case: GoldenCase, overrides: Sequence[str]) -> Any:
    return load_spec(action, [read_spec_source(f"recipe:{case.recipe}")], list(overrides))


def _write_images(path: Path, document: dict[str, Any], image_ids: set[int]) -> None:
    kept = {
        **document,
        "images": [image for image in document["images"] if image["id"] in image_ids],
        "annotations": [a for a in document["annotations"] if a["image_id"] in image_ids],
    }
    path.write_text(json.dumps(kept), encoding="utf-8")


def _keep_boxes(path: Path, count: int, min_area_px2: float) -> None:
    """Leave one batch of boxes that are trained on: an epoch is then a step."""
    document = json.loads(path.read_bytes())
    large = [
        a for a in document["annotations"]
        if not a.get("iscrowd") and a["bbox"][2] * a["bbox"][3] > max(min_area_px2, 32**2)
    ]  # fmt: skip
    path.write_text(json.dumps({**document, "annotations": large[:count]}), encoding="utf-8")


def _record(names: Sequence[str]) -> None:
    commit = subprocess.run(
        ["git", "-C", str(REPOSITORY), "rev-parse", "--short", "HEAD"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    GOLDEN.mkdir(exist_ok=True)
    rows = read_metrics()
    losses = read_losses()
    for name in names:
        case = CASES[name]
        with tempfile.TemporaryDirectory() as scratch:
            losses[name] = {
                "torch": torch.__version__,
                "processor": processor(),
                "losses": first_losses(case, Path(scratch)),
            }
        if name in MEASURED:
            with tempfile.TemporaryDirectory() as scratch:
                value = measure(case, Path(scratch))
            rows[name] = GoldenMetric(
                name, case.data, METRIC, round(value, 4), TOLERANCE, commit, processor()
            )
        _write(rows, losses)
        sys.stdout.write(f"{name}: {rows.get(name)}\n")


def _write(rows: Mapping[str, "GoldenMetric"], losses: Mapping[str, Any]) -> None:
    with METRICS_FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in dataclasses.fields(GoldenMetric)])
        writer.writerows(dataclasses.astuple(rows[name]) for name in CASES if name in rows)
    ordered = {name: losses[name] for name in CASES if name in losses}
    LOSSES_FILE.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")


@dataclass(frozen=True)
class GoldenMetric:
    """A line of metrics.csv."""

    recipe: str
    set: str
    metric: str
    value: float
    tolerance: float
    commit: str
    machine: str


def read_metrics() -> dict[str, GoldenMetric]:
    """Read metrics.csv, by recipe."""
    if not METRICS_FILE.exists():
        return {}
    with METRICS_FILE.open(encoding="utf-8", newline="") as file:
        rows = [
            GoldenMetric(
                row["recipe"], row["set"], row["metric"], float(row["value"]),
                float(row["tolerance"]), row["commit"], row["machine"],
            )
            for row in csv.DictReader(file)
        ]  # fmt: skip
    return {row.recipe: row for row in rows}


def read_losses() -> dict[str, Any]:
    """Read losses.json, by recipe."""
    if not LOSSES_FILE.exists():
        return {}
    losses: dict[str, Any] = json.loads(LOSSES_FILE.read_bytes())
    return losses


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    _record(sys.argv[1:] or list(CASES))
