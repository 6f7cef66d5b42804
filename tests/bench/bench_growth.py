"""How cost grows: with boxes, image size, crop size and batch.

Nothing is compared: each line is what one item costs at one size, in seconds of the processor, the
fastest of a few.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_evaluation_items import run_ours as cut_evaluation_items
from bench_training_items import run_ours as cut_training_items
from coco_size import write_coco_file
from harness import Result, seconds_of, share_of_peak
from literal_training import OurTraining, draw_batch
from photographs import BOXES_PER_IMAGE, OpenSet, write_photographs

from mal.data.annotations import load_boxes
from mal.export.onnx import parity_inputs
from mal.labeling.predictor import NetworkEnsemble
from mal.model.network import MALNetwork
from mal.spec import load_spec

REPEATS = 3
PREDICTIONS = ((128, 1), (256, 1), (256, 4), (512, 1), (512, 4))  # crop size, batch
STEPS = ((256, 1), (256, 4), (512, 1))
IMAGES = ((640, 480, 8), (2000, 1500, 4), (4000, 3000, 2))  # width, height, how many
CROP_SIZE = 224
BOXES = (10_000, 100_000)


def run() -> Iterator[Result]:
    for crop_size, batch_size in PREDICTIONS:
        yield prediction(crop_size, batch_size)
    for crop_size, batch_size in STEPS:
        yield training_step(crop_size, batch_size)
    for width, height, num_images in IMAGES:
        yield from items(width, height, num_images)
    for num_boxes in BOXES:
        yield index(num_boxes)


def prediction(crop_size: int, batch_size: int) -> Result:
    torch.manual_seed(0)
    spec = load_spec("train", {}, [f"dataset.crop_size={crop_size}"])
    network = MALNetwork(spec.model, crop_size)
    model = NetworkEnsemble([network], use_flip=False, device=torch.device("cpu"))
    image, area = parity_inputs(batch_size, crop_size)
    unit_box = torch.tensor([[0.115, 0.115, 0.885, 0.885]]).expand(batch_size, 4)
    predict = partial(model, image, unit_box, area)
    seconds = fastest(predict)
    return Result(
        f"prediction of a box, ViT-B, crop {crop_size}, batch {batch_size}",
        None,
        seconds / batch_size,
        facts=share_of_peak(predict, seconds),
    )


def training_step(crop_size: int, batch_size: int) -> Result:
    step = OurTraining(load_spec("train", {}, [f"dataset.crop_size={crop_size}"]))
    take_step = partial(step, draw_batch(batch_size, crop_size))
    seconds = fastest(take_step)
    return Result(
        f"training step, an item, ViT-B, crop {crop_size}, batch {batch_size}",
        None,
        seconds / batch_size,
        facts=share_of_peak(take_step, seconds),
    )


def items(width: int, height: int, num_images: int) -> Iterator[Result]:
    ways: dict[str, Callable[[OpenSet, int], None]] = {
        "training": cut_training_items,
        "evaluation": cut_evaluation_items,
    }
    with tempfile.TemporaryDirectory() as folder:
        open_set = write_photographs(
            Path(folder), num_images=num_images, width=width, height=height
        )
        for name, cut in ways.items():
            seconds = fastest(partial(cut, open_set, CROP_SIZE))
            yield Result(
                f"{name} item, {width} x {height}, crop {CROP_SIZE}",
                None,
                seconds / (num_images * BOXES_PER_IMAGE),
            )


def index(num_boxes: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "boxes.json"
        write_coco_file(path, num_boxes=num_boxes, num_images=num_boxes // 7, with_masks=True)
        seconds = fastest(partial(load_boxes, path, with_masks=True))
    return Result(f"index, a thousand boxes of {num_boxes:,}", None, seconds / num_boxes * 1000)


def fastest(function: Callable[[], Any]) -> float:
    return min(seconds_of(function, time.process_time) for _ in range(REPEATS))
