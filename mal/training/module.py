"""The training step of MAL: student, teacher, losses.

Shape letters: B items, S crop side (px), M side of the mask map.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.profilers import PassThroughProfiler, Profiler
from torch import Tensor
from torch.nn import functional as F

from mal.data.batch import CropBatch, box_mask_from_unit_box, normalize_image
from mal.model.affinity import TokenAffinity
from mal.model.heads import resize_to
from mal.model.losses import dice_loss, mil_loss, point_loss
from mal.model.network import MALNetwork
from mal.model.precision import without_autocast
from mal.model.pseudo_label import make_pseudo_label
from mal.model.teacher import TeacherUpdate, make_teacher
from mal.spec.experiment import ExperimentSpec
from mal.training.optimizer import (
    build_optimizer,
    effective_lr,
    lr_factor,
    warmup_factor,
    window_factor,
)
from mal.training.step_profile import CRF, STUDENT, TEACHER

_Encoded = tuple[list[Tensor], TokenAffinity]


class MALModule(LightningModule):
    """Trains the student; the teacher follows.

    Args:
        student: The network to train.
        spec: The experiment.
        seed: Seed of dropout and the like: drawn anew each step, so that a resumed run goes on
            alike.
        steps_per_epoch: Optimiser steps of an epoch.
        num_steps: Optimiser steps of the run.
        profiler: Is told what a step does.
    """

    def __init__(
        self,
        student: MALNetwork,
        spec: ExperimentSpec,
        *,
        seed: int,
        steps_per_epoch: int,
        num_steps: int,
        profiler: Profiler | None = None,
    ) -> None:
        super().__init__()
        self.student = student.to(memory_format=torch.channels_last)
        self.teacher = make_teacher(student)
        self.spec = spec
        self.seed = seed
        self.steps_per_epoch = steps_per_epoch
        self.num_steps = num_steps
        self.profiler = profiler or PassThroughProfiler()
        # The function and not the module: a compiled module's weights have other names.
        self._encode = (
            torch.compile(student.encode, dynamic=False) if spec.train.compile else student.encode
        )

    def configure_optimizers(self) -> Any:
        """Return AdamW and its warm-up and cosine."""
        train = self.spec.train
        peak_lr = effective_lr(train, self.trainer.world_size)
        # A fused optimiser unscales gradients itself; Lightning then refuses to clip them.
        is_fused = not (train.clip_grad_norm and "mixed" in str(self.trainer.precision))
        optimizer = build_optimizer(self.student, train, peak_lr, is_fused=is_fused)

        def factor(step: int) -> float:
            return lr_factor(
                step,
                steps_per_epoch=self.steps_per_epoch,
                num_steps=self.num_steps,
                peak_lr=peak_lr,
                train=train,
            )

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    def on_train_batch_start(self, _batch: CropBatch, batch_idx: int) -> None:
        """Make dropout a function of seed and place in the run, another one on each rank."""
        rank = [self.global_rank] if self.global_rank else []
        place = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, *rank])
        torch.manual_seed(int(place.generate_state(1)[0]))

    def on_train_start(self) -> None:
        """Set the modes also where a run goes on inside an epoch, whose start is not repeated."""
        self.set_training_modes()

    def on_train_epoch_start(self) -> None:
        """Set the modes anew after whatever the epoch's end did."""
        self.set_training_modes()

    def set_training_modes(self) -> None:
        """Keep a frozen backbone from dropping paths; the teacher never does."""
        self.student.train()
        if self.spec.model.freeze_backbone:
            self.student.backbone.eval()
        self.teacher.eval()

    def training_step(self, batch: CropBatch, _batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        student_image = normalize_image(
            batch.image_BCSS if batch.student_image_BCSS is None else batch.student_image_BCSS
        )
        with self.profiler.profile(STUDENT):
            levels = self._cached_levels(batch)
            is_cached = levels is not None
            if levels is None:
                levels = self._encode(student_image)
            affinity = TokenAffinity(levels[-1], batch.unit_box_B4)
            logits_BMM = self.student.decode(
                levels, student_image, batch.unit_box_B4, batch.box_area_B, affinity
            )
        prob_BMM = logits_BMM.float().sigmoid()
        if self.spec.train.supervision == "mask":
            loss = _mask_loss(logits_BMM.float(), prob_BMM, batch)
        else:
            # A frozen backbone gives the teacher the same features of the same image.
            is_shared = is_cached or (
                batch.student_image_BCSS is None and self.teacher.backbone is self.student.backbone
            )
            loss = self._box_loss(
                prob_BMM, student_image, (levels, affinity) if is_shared else None, batch
            )
        if batch.point_BK3 is not None:
            loss = loss + self._point_loss(logits_BMM.float(), batch.point_BK3, batch)
        self._log_mean("train_loss", loss, batch)
        return loss

    def _box_loss(
        self,
        prob_BMM: Tensor,
        student_image_BCSS: Tensor,
        shared: _Encoded | None,
        batch: CropBatch,
    ) -> Tensor:
        train = self.spec.train
        box_mask_BMM = box_mask_from_unit_box(batch.unit_box_B4, prob_BMM.shape[-1])
        mil = mil_loss(prob_BMM, box_mask_BMM).mean()
        self._log_mean("loss_mil", mil, batch)
        loss: Tensor = train.loss_mil_weight * self._mil_factor() * mil
        crf_weight = train.loss_crf_weight * self._crf_factor()
        if crf_weight > 0:
            with self.profiler.profile(TEACHER):
                teacher_image_BCSS = normalize_image(batch.image_BCSS)
                teacher_prob_BMM, affinity = self._teacher_view(shared, teacher_image_BCSS, batch)
            # In half precision neither colours nor token affinities are exact enough.
            with self.profiler.profile(CRF), without_autocast(prob_BMM.device):
                label_BMM = make_pseudo_label(
                    (prob_BMM.detach() + teacher_prob_BMM) / 2,
                    box_mask_BMM,
                    student_image_BCSS if train.crf_view == "student" else teacher_image_BCSS,
                    affinity,
                    train=train,
                    point_BK3=batch.point_BK3,
                )
            crf = dice_loss(prob_BMM, label_BMM).mean()
            self._log_mean("loss_crf", crf, batch)
            loss = loss + crf_weight * crf
        return loss

    def _point_loss(self, logits_BMM: Tensor, point_BK3: Tensor, batch: CropBatch) -> Tensor:
        """Return the weighted loss of the labelled points."""
        points = point_loss(logits_BMM, point_BK3).mean()
        self._log_mean("loss_point", points, batch)
        return self.spec.train.loss_point_weight * points

    def _log_mean(self, name: str, value: Tensor, batch: CropBatch) -> None:
        """Log the mean over the epoch and all ranks."""
        self.log(name, value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))

    @torch.inference_mode()
    def _teacher_view(
        self, shared: _Encoded | None, image: Tensor, batch: CropBatch
    ) -> tuple[Tensor, TokenAffinity]:
        """Return the teacher's probabilities of the clean crops, and its tokens' affinity."""
        if shared is None:
            levels = self.teacher.encode(image)
            affinity = TokenAffinity(levels[-1], batch.unit_box_B4)
        else:
            levels, affinity = shared
        logits_BMM = self.teacher.decode(
            levels, image, batch.unit_box_B4, batch.box_area_B, affinity
        )
        return logits_BMM.float().sigmoid(), affinity

    def _cached_levels(self, batch: CropBatch) -> list[Tensor] | None:
        if batch.features_BLDhw is None:
            return None
        return list(batch.features_BLDhw.float().unbind(1))

    def _mil_factor(self) -> float:
        return warmup_factor(self.global_step, self.spec.train.loss_mil_step)

    def _crf_factor(self) -> float:
        train = self.spec.train
        if train.loss_crf_window:
            return window_factor(self.global_step, self.num_steps, train.loss_crf_window)
        return warmup_factor(self.global_step, train.loss_crf_step)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the teacher follow.

        Here and not in `on_train_batch_end`: callbacks run before that hook, and a checkpoint
        written by one would hold the teacher of the step before.
        """
        super().optimizer_step(*args, **kwargs)
        self._teacher_update(self.spec.model.teacher_momentum)

    @functools.cached_property
    def _teacher_update(self) -> TeacherUpdate:
        """Pair the tensors at the first step: moving to a device makes buffers anew."""
        return TeacherUpdate(self.teacher, self.student)

    def transfer_batch_to_device(
        self, batch: CropBatch, device: torch.device, _dataloader_idx: int
    ) -> CropBatch:
        """Move a batch to the device, but for the areas: the host chooses by them."""
        return dataclasses.replace(batch.to(device), box_area_B=batch.box_area_B)


def _mask_loss(logits_BMM: Tensor, prob_BMM: Tensor, batch: CropBatch) -> Tensor:
    """Return dice plus cross-entropy against the true masks: the upper bound of box supervision."""
    assert batch.true_mask_BSS is not None
    truth_BMM = resize_to(batch.true_mask_BSS[:, None].float(), prob_BMM.shape[-2:])[:, 0]
    entropy = F.binary_cross_entropy_with_logits(logits_BMM, truth_BMM)
    loss: Tensor = dice_loss(prob_BMM, truth_BMM).mean() + entropy
    return loss
