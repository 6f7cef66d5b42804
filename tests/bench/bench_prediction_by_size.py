"""Prediction of boxes in COCO's mix of sizes: one crop of 512 for all, and a crop that suits each.

A randomly initialised ViT-B; cutting the crops and drawing the masks are not timed. What the
smaller crops cost in IoU is in docs/results.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from harness import Result, compare
from size_mix import draw_boxes

from mal.data.crops import prediction_window, xyxy_from_xywh
from mal.labeling.crop_plan import crop_size_for, plan_batches
from mal.labeling.predictor import NetworkEnsemble
from mal.model.network import MALNetwork
from mal.spec import load_spec

REQUIRED = 3
NUM_BOXES, BATCH_SIZE, MARGIN = 12, 3, 0.6
ONE_CROP = (512,)
CROPS = (256, 384, 512)


def run() -> Iterator[Result]:
    torch.manual_seed(0)
    spec = load_spec("train", {}, ["dataset.crop_size=512"])
    network = MALNetwork(spec.model, spec.dataset.crop_size)
    model = NetworkEnsemble([network], use_flip=False, device=torch.device("cpu"))
    sizes = [crop_size_for(side, CROPS) for side in window_sides()]
    yield compare(
        f"{NUM_BOXES} boxes, ViT-B, crops {', '.join(map(str, CROPS))}",
        partial(predict, model, ONE_CROP),
        partial(predict, model, CROPS),
        required=REQUIRED,
        repeats=2,
        warm_up=False,
        boxes_of_crop=dict(sorted(Counter(sizes).items())),
    )


def window_sides() -> list[int]:
    """Return the longer side of each box's window, px."""
    sides = []
    for box in draw_boxes(NUM_BOXES, 640, 480):
        x0, y0, x1, y1 = prediction_window(xyxy_from_xywh(box), MARGIN)
        sides.append(max(x1 - x0, y1 - y0))
    return sides


def predict(model: NetworkEnsemble, crop_sizes: Sequence[int]) -> None:
    boxes = draw_boxes(NUM_BOXES, 640, 480)
    areas = torch.from_numpy(boxes[:, 2] * boxes[:, 3]).float()
    unit_box = torch.tensor([[0.115, 0.115, 0.885, 0.885]])
    sizes = [crop_size_for(side, crop_sizes) for side in window_sides()]
    for items in plan_batches(sizes, BATCH_SIZE):
        size, rows = items[0][0], [position for _, position in items]
        image = torch.zeros(len(rows), 3, size, size, dtype=torch.uint8)
        model(image, unit_box.expand(len(rows), 4), areas[rows])
