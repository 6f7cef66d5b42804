"""The training step as published: what the figures of ours are measured against.

Student and teacher are networks of ours, so that both sides compute the same function; around
them stands what docs/performance.md says of the existing implementations: plain attention, a
teacher with a graph, one optimiser over both and over an unused classifier, an average written as
a loop, box masks as full images, a mean field of products. All in float32.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings

import torch
from bench_mean_field import literal_mean_field
from timm.models.vision_transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from mal.data.batch import CropBatch, box_mask_from_unit_box, normalize_image
from mal.model.network import MALNetwork
from mal.spec.experiment import ExperimentSpec
from mal.training.module import MALModule
from mal.training.optimizer import build_optimizer

LEARNING_RATE = 1e-6
NUM_CLASSES = 1000
MANY_STEPS = 1000


class LiteralTraining:
    """One step of the published algorithm a call; returns the loss."""

    def __init__(self, spec: ExperimentSpec) -> None:
        torch.manual_seed(0)
        self.student = MALNetwork(spec.model, spec.dataset.crop_size)
        backbone = self.student.backbone
        backbone.unused_head = nn.Linear(backbone.feature_channels[-1], NUM_CLASSES)
        for module in backbone.modules():
            if isinstance(module, Attention):
                module.fused_attn = False
        self.teacher = copy.deepcopy(self.student)
        self.optimizer = torch.optim.AdamW(
            [*self.student.parameters(), *self.teacher.parameters()], lr=LEARNING_RATE
        )
        self.train = spec.train
        self.momentum = spec.model.teacher_momentum

    def __call__(self, batch: CropBatch) -> Tensor:
        self.optimizer.zero_grad(set_to_none=False)
        loss = self._loss(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for mine, theirs in zip(
                self.teacher.parameters(), self.student.parameters(), strict=True
            ):
                mine.data = self.momentum * mine.data + (1 - self.momentum) * theirs.data
        return loss.detach()

    def _loss(self, batch: CropBatch) -> Tensor:
        assert batch.student_image_BCSS is not None
        image = normalize_image(batch.student_image_BCSS).contiguous()
        clean_image = normalize_image(batch.image_BCSS).contiguous()
        student_prob, teacher_prob = (
            network(view, batch.unit_box_B4, batch.box_area_B).sigmoid()
            for network, view in ((self.student, image), (self.teacher, clean_image))
        )
        size = student_prob.shape[-2:]
        full_mask = box_mask_from_unit_box(batch.unit_box_B4, image.shape[-1])
        box_mask = F.interpolate(full_mask[:, None], size=size, mode="area")[:, 0].round()
        rows = literal_dice(student_prob.amax(2), box_mask.amax(2))
        columns = literal_dice(student_prob.amax(1), box_mask.amax(1))
        colours = F.interpolate(image, size=size, mode="bilinear", antialias=True)
        with torch.no_grad():
            label = literal_mean_field(
                colours,
                (student_prob + teacher_prob) / 2,
                box_mask,
                num_iters=self.train.crf_num_iter,
            )
        crf = literal_dice(student_prob, label)
        return (
            self.train.loss_mil_weight * (rows + columns) + self.train.loss_crf_weight * crf
        ).mean()


def literal_dice(pred: Tensor, target: Tensor) -> Tensor:
    pred, target = pred.flatten(1), target.flatten(1)
    sizes = (pred * pred).sum(1) + (target * target).sum(1) + 0.002
    return 1 - 2 * (pred * target).sum(1) / sizes


class OurTraining:
    """One step of `mal train` a call, as Lightning's loop makes it; returns the loss."""

    def __init__(self, spec: ExperimentSpec) -> None:
        warnings.filterwarnings("ignore", message=".*self.trainer.*|.*self.log.*")
        spec = dataclasses.replace(
            spec, train=dataclasses.replace(spec.train, loss_mil_step=0, loss_crf_step=0)
        )
        torch.manual_seed(0)
        student = MALNetwork(spec.model, spec.dataset.crop_size)
        self.module = MALModule(
            student, spec, seed=0, steps_per_epoch=MANY_STEPS, num_steps=MANY_STEPS
        )
        self.module.set_training_modes()
        self.optimizer = build_optimizer(student, spec.train, LEARNING_RATE)
        self.clip_norm = spec.train.clip_grad_norm
        self.is_half = spec.train.precision == "bf16"

    def __call__(self, batch: CropBatch) -> Tensor:
        def closure() -> Tensor:
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.is_half):
                loss = self.module.training_step(batch, 0)
            loss.backward()  # type: ignore[no-untyped-call]
            if self.clip_norm:
                nn.utils.clip_grad_norm_(self.module.student.parameters(), self.clip_norm)
            return loss

        loss = closure()
        self.module.optimizer_step(0, 0, self.optimizer, lambda: loss)
        return loss.detach()


def draw_batch(num_items: int, crop_size: int, *, area_px2: float = 20_000) -> CropBatch:
    """Return smooth noise as crops, and the box of a training window; large objects."""
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(num_items, 3, 8, 8, generator=generator)
    image = F.interpolate(cells, size=(crop_size, crop_size), mode="bilinear").mul(255).byte()
    return CropBatch(
        image_BCSS=image,
        unit_box_B4=torch.tensor([[0.2, 0.15, 0.8, 0.75]]).repeat(num_items, 1),
        box_area_B=torch.full((num_items,), area_px2),
        index_B=torch.arange(num_items),
        student_image_BCSS=image.flip(2).contiguous(),
    )
