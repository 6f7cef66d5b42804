"""Training on objects that have points only: their boxes are estimated before the run.

A frozen pretrained ViT is asked what its tokens say (no training). Any other network is first
trained on the objects with boxes, for half of the run. What was estimated is kept in the result
folder, so that a run that goes on learns from the same boxes.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path

import torch
from torch import Tensor

from mal.artifacts import ESTIMATED_BOXES_FILE, LATEST_CHECKPOINT, write_json
from mal.data.crop_dataset import ImageReader
from mal.data.size_prior import SizePrior
from mal.distributed.group import value_of_first
from mal.distributed.workers import Worker
from mal.errors import AnnotationError
from mal.labeling.box_estimation import has_boxes, rows_without_box, with_boxes
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble, ProbabilityModel, normalized_on
from mal.model.affinity import prior_logits
from mal.model.backbone import ViTBackbone
from mal.model.checkpoint import load_network_weights, load_pretrained_weights, read_checkpoint
from mal.model.network import MALNetwork
from mal.spec.experiment import ExperimentSpec
from mal.spec.rules import is_hybrid
from mal.stages.estimation import (
    Estimates,
    estimate_boxes,
    estimate_from_json,
    estimate_to_json,
)
from mal.training.trainer import TrainingRun, train_network

log = logging.getLogger(__name__)

FIRST_RUN_FOLDER = "box_estimation"
# Of the demo's least consistent quarter the mean IoU with the real box is 0.53, of the others 0.79.
UNCERTAIN_SHARE = 0.25


def with_boxes_to_train_on(
    reader: ImageReader, spec: ExperimentSpec, run: TrainingRun
) -> ImageReader:
    """Return the training set with estimated boxes; uncertain ones stay away.

    Raises:
        AnnotationError: There is nothing to learn boxes from.
    """
    if not len(rows_without_box(reader.boxes)):
        return reader
    path = run.folder / ESTIMATED_BOXES_FILE
    estimates = value_of_first(_read(path)) if Worker.current().num_ranks > 1 else _read(path)
    if estimates is None:
        estimates = [estimate_to_json(value) for value in _estimate(reader, spec, run)]
        if Worker.current().is_first:
            write_json(path, {"estimates": estimates})
    certain = most_certain([estimate_from_json(value) for value in estimates])
    log.info("%d estimated boxes are certain enough to train on", len(certain))
    return reader.with_boxes(with_boxes(reader.boxes, certain))


def most_certain(estimates: Estimates) -> Estimates:
    """Leave out the least consistent quarter, and objects of unreadable images.

    A part and not a bound: networks differ in how sure they are of all they say.
    """
    by_consistency = sorted(estimates, key=lambda value: value[1].consistency)
    certain = by_consistency[int(UNCERTAIN_SHARE * len(estimates)) :]
    return [(row, estimate) for row, estimate in certain if estimate.consistency > 0]


def _read(path: Path) -> list[list[object]] | None:
    if not path.exists():
        return None
    content: list[list[object]] = json.loads(path.read_bytes())["estimates"]
    return content


def _estimate(reader: ImageReader, spec: ExperimentSpec, run: TrainingRun) -> Estimates:
    settings = dataclasses.replace(
        prediction_settings(spec, spec.evaluate, spec.dataset.crop_size), num_workers=0
    )
    if spec.model.freeze_backbone and not is_hybrid(spec.model.arch):
        network = MALNetwork(spec.model, spec.dataset.crop_size)
        if spec.train.pretrained_model_path:
            load_pretrained_weights(network, spec.train.pretrained_model_path)
        assert isinstance(network.backbone, ViTBackbone)
        model: ProbabilityModel = _TokenModel(network.backbone, run.device, spec)
        settings = dataclasses.replace(settings, thresholds=[0.5])
    else:
        model = NetworkEnsemble(
            [_first_network(reader, spec, run)],
            use_flip=False,
            device=run.device,
            thresholds=spec.train.mask_thres,
        )
    return estimate_boxes(model, reader, settings, SizePrior.from_boxes(reader.boxes))


class _TokenModel:
    """The training-free prior as a probability model, not cut at the box that it was told."""

    def __init__(self, backbone: ViTBackbone, device: torch.device, spec: ExperimentSpec) -> None:
        self.backbone = backbone.to(device).eval()
        self.device = device
        self.temperature = spec.train.affinity_temperature

    @torch.inference_mode()
    def __call__(self, image_BCSS: Tensor, unit_box_B4: Tensor, *_: Tensor) -> Tensor:
        """Return probabilities on the grid of tokens."""
        image = normalized_on(self.device, image_BCSS)
        tokens_BDhw = self.backbone(image)[-1]
        return prior_logits(tokens_BDhw, unit_box_B4.to(self.device), self.temperature).sigmoid()


def _first_network(reader: ImageReader, spec: ExperimentSpec, run: TrainingRun) -> MALNetwork:
    """Return the teacher of a first run on the objects with boxes, or the network to start from.

    Raises:
        AnnotationError: There are neither boxes nor a trained network.
    """
    network = MALNetwork(spec.model, spec.dataset.crop_size)
    if not has_boxes(reader.boxes):
        if not (spec.train.pretrained_model_path and is_hybrid(spec.model.arch)):
            raise AnnotationError(
                f"training set must have some boxes, got points only in {reader.boxes.path}. Draw "
                "boxes for a tenth of the objects, start from a trained checkpoint "
                "(train.pretrained_model_path), or freeze a pretrained ViT "
                "(model.freeze_backbone=true)."
            )
        load_pretrained_weights(network, spec.train.pretrained_model_path)
        return network
    folder = run.folder / FIRST_RUN_FOLDER
    folder.mkdir(exist_ok=True)
    latest = folder / LATEST_CHECKPOINT
    train = dataclasses.replace(
        spec.train,
        max_steps=-(-spec.train.max_steps // 2),
        num_epochs=-(-spec.train.num_epochs // 2),
        resume_training_checkpoint_path="",
    )
    log.info("training on the objects with boxes first, to find the boxes of the others")
    train_network(
        reader,
        dataclasses.replace(spec, train=train, wandb=dataclasses.replace(spec.wandb, enable=False)),
        dataclasses.replace(run, folder=folder, measure=None),
        latest if latest.exists() else None,
    )
    load_network_weights(network, read_checkpoint(latest), "teacher")
    return network
