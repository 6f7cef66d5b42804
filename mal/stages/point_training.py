"""Training on objects that have points only: their boxes are estimated before the run.

The estimate uses the tokens of a frozen pretrained ViT, without training. For any other network it
uses the checkpoint that the training starts from, or the teacher of a first run on the objects
with boxes, half as long. The estimates are kept in the results folder, so that a resumed run trains
on the same boxes; for another data set they are computed again.
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

from mal.artifacts import ESTIMATED_BOXES_FILE, FIRST_RUN_FOLDER, LATEST_CHECKPOINT, write_json
from mal.data.annotations import CocoBoxes
from mal.data.crop_dataset import ImageReader
from mal.data.size_prior import SizePrior
from mal.distributed.group import broadcast_file_from_rank0, broadcast_from_rank0
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
from mal.stages.resume import ResumePlan, broadcast_resume_plan
from mal.training.trainer import TrainingRun, build_student, train_network

log = logging.getLogger(__name__)

# Demo set: the least consistent quarter has a mean IoU with the real box of 0.53, the others 0.79.
UNCERTAIN_SHARE = 0.25


def with_boxes_to_train_on(reader: ImageReader, start: ResumePlan, run: TrainingRun) -> ImageReader:
    """Return the training set with estimated boxes, without the uncertain ones.

    Raises:
        AnnotationError: There is no box and no network to estimate boxes from.
        ArtifactError: The network for the estimate cannot be loaded.
    """
    if not len(rows_without_box(reader.boxes)):
        return reader
    certain = most_certain(_kept_or_new_estimates(reader, start, run))
    log.info("%d estimated boxes are certain enough to train on", len(certain))
    return reader.with_boxes(with_boxes(reader.boxes, certain))


def most_certain(estimates: Estimates) -> Estimates:
    """Leave out the least consistent quarter, and objects of unreadable images.

    A quantile rather than a threshold: the scale of the consistency differs between networks.
    """
    by_consistency = sorted(estimates, key=lambda value: value[1].consistency)
    certain = by_consistency[int(UNCERTAIN_SHARE * len(estimates)) :]
    return [(row, estimate) for row, estimate in certain if estimate.consistency > 0]


def _kept_or_new_estimates(reader: ImageReader, start: ResumePlan, run: TrainingRun) -> Estimates:
    """Return the kept estimates of this data set, or new ones; the same on every rank."""
    path = run.folder / ESTIMATED_BOXES_FILE
    digest = _digest_of(reader.boxes)
    kept = broadcast_from_rank0(_read_estimates(path, digest))
    if kept is not None:
        return [estimate_from_json(value) for value in kept]
    if path.exists():
        log.warning("%s is malformed or of another data set: estimating the boxes again", path)
        shutil.rmtree(run.folder / FIRST_RUN_FOLDER, ignore_errors=True)
        path.unlink()
    estimates = _estimate(reader, start, run)
    if Worker.current().is_rank0:
        encoded = [estimate_to_json(value) for value in estimates]
        write_json(path, {"set_sha256": digest, "estimates": encoded})
    return estimates


def _read_estimates(path: Path, digest: str) -> list[Any] | None:
    """Return the kept estimates as JSON values; None if malformed or of another data set."""
    try:
        content = json.loads(path.read_bytes())
        return list(content["estimates"]) if content["set_sha256"] == digest else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _digest_of(boxes: CocoBoxes) -> str:
    """Digest what the estimates depend on: the boxes and points of the set."""
    points = boxes.points
    assert points is not None
    digest = hashlib.sha256()
    for values in (
        boxes.box_xywh_N4, boxes.image_index_N, points.xy_P2, points.label_P, points.start_N1,
    ):  # fmt: skip
        digest.update(values.tobytes())
    return digest.hexdigest()


def _estimate(reader: ImageReader, start: ResumePlan, run: TrainingRun) -> Estimates:
    """Estimate boxes by the tokens of a frozen ViT, or by a trained network."""
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
    """The training-free prior as a probability model; its mask may leave the given box."""

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


def _frozen_backbone(start: ResumePlan) -> Backbone:
    """Return the backbone that the training will use, which may be random."""
    torch.manual_seed(start.spec.train.seed)
    checkpoint = read_checkpoint(start.resume_from) if start.resume_from else None
    return build_student(start.spec, checkpoint, start.warm_from).backbone


def _train_on_boxes(reader: ImageReader, spec: ExperimentSpec, run: TrainingRun) -> ResumePlan:
    """Train on the objects with boxes for half of the run; returns the resulting checkpoint."""
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
    start = broadcast_resume_plan(first_spec, folder, after_oom_fallback=False)
    log.info("training on the objects with boxes first, to estimate the boxes of the others")
    first_run = dataclasses.replace(run, folder=folder, measure=None)
    train_network(reader, start.spec, first_run, start.resume_from)
    latest = folder / LATEST_CHECKPOINT if Worker.current().is_rank0 else None
    return ResumePlan(start.spec, resume_from=broadcast_file_from_rank0(latest, folder))


def _trained_network(start: ResumePlan, boxes: CocoBoxes) -> MALNetwork:
    """Return the teacher of the checkpoint to resume, else a trained student.

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
        f"{boxes.path}: no annotation has a box, only points. Draw boxes for a "
        "tenth of the objects, start from a checkpoint of mal train for this network "
        "(train.pretrained_model_path), or freeze a pretrained ViT (model.freeze_backbone=true)."
    )
