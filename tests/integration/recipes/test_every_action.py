"""Every packaged recipe through every action, by the command line and by `auto_label`.

Each recipe trains for two steps on a few photographs; the written ONNX files are compared with what
PyTorch predicts from the checkpoint.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from photographs_at_hand import (
    REPOSITORY,
    SmallSet,
    find_shared,
    points_of_boxes,
    weights_for,
    write_small_set,
)
from torch import Tensor

from mal import Predictor
from mal.artifacts import sha256_of_file
from mal.export.onnx import centred_unit_box
from mal.labeling.predictor import normalized_on
from mal.recipes import list_recipes

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(1800)]

MAX_DIFFERENCE = 1e-3
MAX_PART_OF_OTHER_PIXELS = 2e-3  # those whose probability is the threshold
EXPORTED = {"mal_model.onnx", "mal_model.json", "mal_encoder.onnx", "mal_decoder.onnx"}
FEW_STEPS = (
    "device=cpu",
    "train.max_steps=2",
    "train.batch_size=4",
    "train.crf_num_iter=2",
    "dataset.num_workers_per_gpu=0",
    "wandb.enable=false",
    # An exported model does not average with the mirrored crop, which Predictor(.pth) would.
    "inference.use_flip_test=false",
)
CACHED = ("train.cached_crops=8",)
# After two steps from nothing no probability reaches the recipes' own.
LOW_THRESHOLD = ("train.mask_thres=[0.3]",)


@dataclass(frozen=True)
class Case:
    """A recipe, and what makes it small enough.

    Attributes:
        recipe: Its name.
        arch: Whose weights training starts from; '' for none.
        overrides: Of the spec.
        is_by_commands: Whether it also runs by the command line.
    """

    recipe: str
    arch: str = ""
    overrides: tuple[str, ...] = ()
    is_by_commands: bool = True


CASES = {
    "demo": Case("demo", overrides=LOW_THRESHOLD),
    "scratch": Case("scratch", overrides=LOW_THRESHOLD),
    "small_set": Case("small_set", "vit-dinov2-small/14", CACHED),
    "small_set in bf16": Case(
        "small_set",
        "vit-dinov2-small/14",
        (*CACHED, "train.precision=bf16", "evaluate.precision=bf16"),
        is_by_commands=False,  # an export takes a minute
    ),
    "coco": Case("coco", "vit-dinov2-small/14", CACHED),
    # The recipe's ViT-B at 512 px is for GPUs.
    "tao": Case(
        "tao",
        "vit-mae-tiny/16",
        ("model.arch=vit-mae-tiny/16", "dataset.crop_size=128", "dataset.min_obj_size=0"),
    ),
}
DRIVERS = ("command line", "auto_label")


@dataclass(frozen=True)
class Made:
    """What one way of running a recipe left.

    Attributes:
        model: Folder of the training.
        metrics: File.
        labels: File.
        onnx: Folder.
    """

    model: Path
    metrics: Path
    labels: Path
    onnx: Path

    @property
    def checkpoint(self) -> Path:
        return self.model / "mal_model_latest.pth"


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> SmallSet:
    return write_small_set(tmp_path_factory.mktemp("photographs"))


THOROUGH = {"scratch", "small_set in bf16", "coco"}  # networks of the other cases


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, id=name, marks=[pytest.mark.thorough] if name in THOROUGH else [])
        for name, case in CASES.items()
    ],
)
def made(
    request: pytest.FixtureRequest, photographs: SmallSet, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Made]:
    """Run a recipe both ways, at the same time, each in processes of its own."""
    case, folder = request.param, tmp_path_factory.mktemp("recipe")
    overrides = [*FEW_STEPS, *case.overrides]
    if case.arch:
        overrides.append(f"train.pretrained_model_path={weights_for(case.arch, folder)}")
    log = folder / "pipeline.log"
    with started_pipeline(case.recipe, overrides, photographs, folder, log) as pipeline:
        by_commands = (
            run_commands(case.recipe, overrides, photographs, folder)
            if case.is_by_commands
            else None
        )
    assert pipeline.returncode == 0, log.read_text()
    latest = folder / "runs" / "latest"
    by_pipeline = Made(
        latest / "model", latest / "metrics.json", latest / "labels.json", latest / "onnx"
    )
    found = dict(zip(DRIVERS, (by_commands, by_pipeline), strict=True))
    return {driver: made for driver, made in found.items() if made is not None}


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "MAL_CACHE_DIR": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}


def run_commands(recipe: str, overrides: list[str], data: SmallSet, folder: Path) -> Made:
    results = folder / "results"
    checkpoint = results / "train" / "mal_model_latest.pth"
    keys_of_action = {
        "train": [],
        "evaluate": [f"evaluate.checkpoint={checkpoint}"],
        "inference": [
            f"inference.checkpoint={checkpoint}",
            f"inference.ann_path={data.train}",
            f"inference.img_dir={data.images}",
            "inference.label_dump_path=labels.json",
        ],
        "export": [f"export.checkpoint={checkpoint}"],
    }
    parts = [
        f"dataset.{part}_{key}={value}"
        for part, annotations in (("train", data.train), ("val", data.val))
        for key, value in (("ann_path", annotations), ("img_dir", data.images))
    ]
    shared = ["-e", f"recipe:{recipe}", f"results_dir={results}", *parts, *overrides]
    for action, keys in keys_of_action.items():
        process = subprocess.run(
            [sys.executable, "-m", "mal", action, *shared, *keys],
            cwd=REPOSITORY, env=environment(folder), check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert process.returncode == 0, process.stdout
    return Made(
        results / "train",
        results / "evaluate" / "metrics.json",
        results / "inference" / "labels.json",
        results / "export",
    )


def started_pipeline(
    recipe: str, overrides: list[str], data: SmallSet, folder: Path, log: Path
) -> subprocess.Popen[bytes]:
    parameters = [
        f"spec=recipe:{recipe}",
        "automl_policy=off",
        *(f"{part}_images={data.images}" for part in ("train", "val")),
        f"train_annotations={data.train}",
        f"val_annotations={data.val}",
        *(f"overrides={override}" for override in overrides),
    ]
    options = [part for parameter in parameters for part in ("-p", parameter)]
    command = [sys.executable, "-m", "pipelines", "run", "auto_label"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*command, "--output", str(folder / "runs"), *options],
            cwd=REPOSITORY, env=environment(folder), stdout=file, stderr=subprocess.STDOUT,
        )  # fmt: skip


@pytest.fixture(params=DRIVERS)
def one(request: pytest.FixtureRequest, made: dict[str, Made]) -> Made:
    if request.param not in made:
        pytest.skip("this case runs by auto_label alone")
    return made[request.param]


def test_every_packaged_recipe_is_run() -> None:
    assert {case.recipe for case in CASES.values()} == set(list_recipes())


def test_the_recipes_ran_on_photographs_and_pretrained_weights() -> None:
    for name in ("data/coco_open", "weights"):
        if find_shared(name) is None:
            pytest.skip(f"shared/{name} is not on this machine: generated data were used")


def test_both_ways_measure_the_same(made: dict[str, Made]) -> None:
    first, *others = (json.loads(one.metrics.read_text()) for one in made.values())
    assert first["num_instances"] > 0
    assert 0 < first["mIoU"] <= 1
    assert all(other == first for other in others)


def test_every_box_is_labelled(one: Made, photographs: SmallSet) -> None:
    given = json.loads(photographs.train.read_text())["annotations"]
    labels = json.loads(one.labels.read_text())["annotations"]
    assert [label["id"] for label in labels] == [annotation["id"] for annotation in given]
    assert all(label["segmentation"]["counts"] and 0 <= label["score"] <= 1 for label in labels)


def test_an_export_is_four_files_of_this_checkpoint(one: Made) -> None:
    names = {path.name for path in one.onnx.iterdir()}
    assert names >= EXPORTED
    assert not [name for name in names if name.startswith(".")]
    facts = json.loads((one.onnx / "mal_model.json").read_text())
    assert facts["sha256"] == sha256_of_file(one.onnx / "mal_model.onnx")
    assert facts["checkpoint_sha256"] == sha256_of_file(one.checkpoint)
    manifest = json.loads((one.onnx / "manifest.json").read_text())
    assert set(manifest["outputs"]) >= EXPORTED


class Recorded:
    """A probability model that keeps what it was asked."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.calls: list[tuple[Tensor, ...]] = []

    def __call__(self, *inputs: Tensor) -> Tensor:
        self.calls.append(inputs)
        prob: Tensor = self.model(*inputs)
        return prob


@pytest.fixture(params=["boxes", "boxes and points"])
def prompts(request: pytest.FixtureRequest, photographs: SmallSet) -> tuple[Any, ...]:
    image, boxes = photographs.first_image()
    return image, boxes, None if request.param == "boxes" else points_of_boxes(boxes)


def test_the_written_files_give_the_checkpoint_s_probabilities(
    one: Made, prompts: tuple[Any, ...]
) -> None:
    """ONNX Runtime alone reads the files; the crops are those that the predictor cut.

    A graph takes no box: the place of a box in its crop is a constant of it, which windows of whole
    pixels miss by up to half of one.
    """
    facts = json.loads((one.onnx / "mal_model.json").read_text())
    predictor = Predictor(one.checkpoint)
    name = "_plain" if prompts[2] is None else "_prompted"
    recorded = Recorded(getattr(predictor, name))
    setattr(predictor, name, recorded)
    predictor.predict(*prompts)
    assert recorded.calls
    for inputs in recorded.calls:
        image, unit_box, *others = inputs
        expected = recorded.model(
            image, centred_unit_box(facts["margin_rate"]).expand_as(unit_box), *others
        )
        found = run_files(one.onnx, *inputs)
        assert found.shape == expected.shape
        assert found.std() > 0
        np.testing.assert_allclose(found, expected.numpy(), atol=MAX_DIFFERENCE, rtol=0)


def run_files(
    folder: Path, image: Tensor, _unit_box: Tensor, area: Tensor, points: Tensor | None = None
) -> NDArray[np.float32]:
    def run(name: str, **inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        session = onnxruntime.InferenceSession(folder / name, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, inputs)
        result: NDArray[np.float32] = output
        return result

    pixels = normalized_on(torch.device("cpu"), image).numpy()
    if points is None:
        return run("mal_model.onnx", image=pixels, box_area=area.numpy())
    return run(
        "mal_decoder.onnx",
        features=run("mal_encoder.onnx", image=pixels),
        box_area=area.numpy(),
        points=(points[:, :, :2] * image.shape[-1]).numpy(),
        point_labels=points[:, :, 2].numpy(),
    )


def test_masks_of_checkpoint_and_exported_model_are_the_same(
    one: Made, prompts: tuple[Any, ...]
) -> None:
    expected = Predictor(one.checkpoint).predict(*prompts)
    found = Predictor(one.onnx / "mal_model.onnx").predict(*prompts)
    assert expected.any()
    assert (found != expected).mean() < MAX_PART_OF_OTHER_PIXELS
