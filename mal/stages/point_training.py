"""Training on objects that have points only: their boxes are estimated before the run.

A frozen pretrained ViT is asked what its tokens say (no training). Of any other network the one
that the training goes on from is asked, or the teacher of a first run on the objects with boxes,
half as long. What was estimated is kept in the result folder, so that a run that goes on learns
from the same boxes; for another set it is estimated again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mal.artifacts import ESTIMATED_BOXES_FILE, LATEST_CHECKPOINT, write_json
from mal.data.annotations import CocoBoxes
from mal.data.crop_dataset import ImageReader
from mal.data.size_prior import SizePrior
from mal.distributed.group import file_of_first, value_of_first
from mal.distributed.workers import Worker
from mal.errors import AnnotationError
from mal.labeling.box_estimation import has_boxes, rows_without_box, with_boxes
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble, ProbabilityModel, normalized_on
from mal.model.affinity import prior_logits
from mal.model.backbone import Backbone
from mal.model.checkpoint import load_network_weights, load_pretrained_weights, read_checkpoint
from mal.model.network import MALNetwork
from mal.spec.backbones import backbone_entry
from mal.spec.experiment import ExperimentSpec
from mal.stages.estimation import (
    Estimates,
    estimate_boxes,
    estimate_from_json,
    estimate_to_json,
)
from mal.stages.resume import Start, agree_on_start
from mal.training.trainer import TrainingRun, build_student, train_network

log = logging.getLogger(__name__)

FIRST_RUN_FOLDER = "box_estimation"
# Of the demo's least consistent quarter the mean IoU with the real box is 0.53, of the others 0.79.
UNCERTAIN_SHARE = 0.25


def with_boxes_to_train_on(reader: ImageReader, start: Start, run: TrainingRun) -> ImageReader:
    """Return the training set with estimated boxes; uncertain ones stay away.

    Raises:
        AnnotationError: There is nothing to learn boxes from.
        ArtifactError: The network to ask cannot be loaded.
    """
    if not len(rows_without_box(reader.boxes)):
        return reader
    certain = most_certain(_kept_or_new_estimates(reader, start, run))
    log.info("%d estimated boxes are certain enough to train on", len(certain))
    return reader.with_boxes(with_boxes(reader.boxes, certain))


def most_certain(estimates: Estimates) -> Estimates:
    """Leave out the least consistent quarter, and objects of unreadable images.

    A part and not a bound: networks differ in how sure they are of all they say.
    """
    by_consistency = sorted(estimates, key=lambda value: value[1].consistency)
    certain = by_consistency[int(UNCERTAIN_SHARE * len(estimates)) :]
    return [(row, estimate) for row, estimate in certain if estimate.consistency > 0]


def _kept_or_new_estimates(reader: ImageReader, start: Start, run: TrainingRun) -> Estimates:
    """Return what was estimated for this very set, on every rank."""
    path = run.folder / ESTIMATED_BOXES_FILE
    digest = _digest_of(reader.boxes)
    kept = value_of_first(_read_estimates(path, digest))
    if kept is not None:
        return [estimate_from_json(value) for value in kept]
    if path.exists():
        log.warning("%s is broken, or of another training set: estimating its boxes again", path)
        shutil.rmtree(run.folder / FIRST_RUN_FOLDER, ignore_errors=True)
        path.unlink()
    estimates = _estimate(reader, start, run)
    if Worker.current().is_first:
        encoded = [estimate_to_json(value) for value in estimates]
        write_json(path, {"set_sha256": digest, "estimates": encoded})
    return estimates


def _read_estimates(path: Path, digest: str) -> list[Any] | None:
    """Return the kept estimates as JSON values; None where they are of another set, or broken."""
    try:
        content = json.loads(path.read_bytes())
        return list(content["estimates"]) if content["set_sha256"] == digest else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _digest_of(boxes: CocoBoxes) -> str:
    """Return a digest of what the estimates of a set depend on: its boxes and points."""
    points = boxes.points
    assert points is not None
    digest = hashlib.sha256()
    for values in (
        boxes.box_xywh_N4, boxes.image_index_N, points.xy_P2, points.label_P, points.start_N1,
    ):  # fmt: skip
        digest.update(values.tobytes())
    return digest.hexdigest()


def _estimate(reader: ImageReader, start: Start, run: TrainingRun) -> Estimates:
    """Ask the tokens of a frozen ViT, or a trained network."""
    model_spec = start.spec.model
    if model_spec.freeze_backbone and backbone_entry(model_spec.arch).has_token_prior:
        model: ProbabilityModel = _TokenModel(_frozen_backbone(start), run.device, start.spec)
        thresholds = [0.5]
    else:
        if start.resume_from is None and has_boxes(reader.boxes):
            start = _train_on_boxes(reader, start.spec, run)
        thresholds = start.spec.train.mask_thres
        model = NetworkEnsemble(
            [_trained_network(start, reader.boxes)],
            use_flip=False,
            device=run.device,
            thresholds=thresholds,
        )
    settings = dataclasses.replace(
        prediction_settings(start.spec, start.spec.evaluate, start.spec.dataset.crop_size),
        num_workers=0,
        thresholds=thresholds,
    )
    return estimate_boxes(model, reader, settings, SizePrior.from_boxes(reader.boxes))


class _TokenModel:
    """The training-free prior as a probability model, not cut at the box that it was told."""

    def __init__(self, backbone: Backbone, device: torch.device, spec: ExperimentSpec) -> None:
        self.backbone = backbone.to(device).eval()
        self.device = device
        self.temperature = spec.train.affinity_temperature

    @torch.inference_mode()
    def __call__(self, image_BCSS: Tensor, unit_box_B4: Tensor, *_: Tensor) -> Tensor:
        """Return probabilities on the grid of tokens."""
        image = normalized_on(self.device, image_BCSS)
        tokens_BDhw = self.backbone(image)[-1]
        return prior_logits(tokens_BDhw, unit_box_B4.to(self.device), self.temperature).sigmoid()


def _frozen_backbone(start: Start) -> Backbone:
    """Return the backbone that the training will have, a random one too."""
    torch.manual_seed(start.spec.train.seed)
    checkpoint = read_checkpoint(start.resume_from) if start.resume_from else None
    return build_student(start.spec, checkpoint, start.warm_from).backbone


def _train_on_boxes(reader: ImageReader, spec: ExperimentSpec, run: TrainingRun) -> Start:
    """Train on the objects with boxes, for half of the run; returns where one may go on from."""
    folder = run.folder / FIRST_RUN_FOLDER
    folder.mkdir(exist_ok=True)
    train = dataclasses.replace(
        spec.train,
        max_steps=-(-spec.train.max_steps // 2),
        num_epochs=-(-spec.train.num_epochs // 2),
        resume_training_checkpoint_path="",
    )
    wandb = dataclasses.replace(spec.wandb, enable=False)
    first_spec = dataclasses.replace(spec, train=train, wandb=wandb)
    start = agree_on_start(first_spec, folder, has_shrunk=False)
    log.info("training on the objects with boxes first, to find the boxes of the others")
    first_run = dataclasses.replace(run, folder=folder, measure=None)
    train_network(reader, start.spec, first_run, start.resume_from)
    latest = folder / LATEST_CHECKPOINT if Worker.current().is_first else None
    return Start(start.spec, resume_from=file_of_first(latest, folder))


def _trained_network(start: Start, boxes: CocoBoxes) -> MALNetwork:
    """Return the teacher of the run that the start goes on from, else a trained student.

    Raises:
        AnnotationError: There is neither.
    """
    network = MALNetwork(start.spec.model, start.spec.dataset.crop_size)
    if start.resume_from:
        load_network_weights(network, read_checkpoint(start.resume_from), "teacher")
        return network
    source = start.warm_from or start.spec.train.pretrained_model_path
    if source and load_pretrained_weights(network, str(source)):
        return network
    raise AnnotationError(
        f"training set must have some boxes, got points only in {boxes.path}. Draw boxes for a "
        "tenth of the objects, start from a checkpoint of mal train for this network "
        "(train.pretrained_model_path), or freeze a pretrained ViT (model.freeze_backbone=true)."
    )
