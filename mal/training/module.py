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

from mal.data.batch import CropBatch, normalize_image
from mal.model.affinity import TokenAffinity
from mal.model.heads import resize_to
from mal.model.losses import dice_loss
from mal.model.network import MALNetwork
from mal.model.precision import without_autocast
from mal.model.pseudo_label import make_pseudo_label
from mal.model.teacher import TeacherUpdate, make_teacher
from mal.spec.experiment import ExperimentSpec
from mal.training.loss_terms import LOSS_TERMS, LossInputs
from mal.training.optimizer import build_optimizer, effective_lr, lr_factor
from mal.training.step_profile import CRF, STUDENT, TEACHER

_Encoded = tuple[list[Tensor], TokenAffinity]


class MALModule(LightningModule):
    """Trains the student; the teacher is its moving average.

    Args:
        student: The network to train.
        spec: The experiment.
        seed: Seed of dropout; a resumed run draws the same numbers as an uninterrupted one.
        steps_per_epoch: Optimiser steps per epoch.
        num_steps: Optimiser steps of the run.
        profiler: Measures the parts of a step.
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
        # Compiling the module would rename its weights in checkpoints.
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
        """Seed dropout by seed, epoch, batch and rank, so that a resumed run repeats it."""
        rank = [self.global_rank] if self.global_rank else []
        sequence = np.random.SeedSequence([self.seed, self.current_epoch, batch_idx, *rank])
        torch.manual_seed(int(sequence.generate_state(1)[0]))

    def on_train_start(self) -> None:
        """Set the modes: a run resumed inside an epoch gets no `on_train_epoch_start`."""
        self.set_training_modes()

    def on_train_epoch_start(self) -> None:
        """Set the modes again: validation at the end of the last epoch changed them."""
        self.set_training_modes()

    def set_training_modes(self) -> None:
        """Switch off dropout in the teacher and in a frozen backbone."""
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
            feature_maps = _cached_feature_maps(batch)
            is_cached = feature_maps is not None
            if feature_maps is None:
                feature_maps = self._encode(student_image)
            affinity = TokenAffinity(feature_maps[-1], batch.unit_box_B4)
            logits_BMM = self.student.decode(
                feature_maps, student_image, batch.unit_box_B4, batch.box_area_B, affinity
            )
        # With a frozen backbone the teacher has the same features of the same image.
        is_shared = is_cached or (
            batch.student_image_BCSS is None and self.teacher.backbone is self.student.backbone
        )
        encoded = (feature_maps, affinity) if is_shared else None
        make_label = functools.partial(self._make_pseudo_label, batch, student_image, encoded)
        loss = self._sum_of_terms(LossInputs(batch, logits_BMM, make_label))
        self._log_mean("train_loss", loss, batch)
        return loss

    def _sum_of_terms(self, inputs: LossInputs) -> Tensor:
        """Add up the loss terms that apply, each with its weight, and log their means."""
        train, batch = self.spec.train, inputs.batch
        loss = _mask_loss(inputs) if train.supervision == "mask" else None
        for term in LOSS_TERMS:
            weight = term.weight_at(train, self.global_step, self.num_steps)
            if not term.applies_to(batch, train, weight):
                continue
            mean = term.mean_of(inputs)
            self._log_mean(f"loss_{term.name}", mean, batch)
            loss = weight * mean if loss is None else loss + weight * mean
        assert loss is not None
        return loss

    def _make_pseudo_label(
        self,
        batch: CropBatch,
        student_image_BCSS: Tensor,
        encoded: _Encoded | None,
        prob_BMM: Tensor,
        box_mask_BMM: Tensor,
    ) -> Tensor:
        """Return the pseudo label of a batch, from the student's and the teacher's masks.

        Args:
            batch: The crops.
            student_image_BCSS: Normalised, with the student's augmentation.
            encoded: Features that student and teacher share; None: the teacher computes its own.
            prob_BMM: The student's mask.
            box_mask_BMM: 0 or 1.
        """
        train = self.spec.train
        with self.profiler.profile(TEACHER):
            teacher_image_BCSS = normalize_image(batch.image_BCSS)
            teacher_prob_BMM, affinity = self._teacher_predict(encoded, teacher_image_BCSS, batch)
        # In half precision neither colours nor token affinities are exact enough.
        with self.profiler.profile(CRF), without_autocast(prob_BMM.device):
            return make_pseudo_label(
                (prob_BMM.detach() + teacher_prob_BMM) / 2,
                box_mask_BMM,
                student_image_BCSS if train.crf_view == "student" else teacher_image_BCSS,
                affinity,
                train=train,
                point_BK3=batch.point_BK3,
            )

    def _log_mean(self, name: str, value: Tensor, batch: CropBatch) -> None:
        """Log the mean over the epoch and all ranks."""
        self.log(name, value, on_step=False, on_epoch=True, sync_dist=True, batch_size=len(batch))

    @torch.inference_mode()
    def _teacher_predict(
        self, encoded: _Encoded | None, image: Tensor, batch: CropBatch
    ) -> tuple[Tensor, TokenAffinity]:
        """Return the teacher's probabilities of the unaugmented crops, and its affinity."""
        if encoded is None:
            feature_maps = self.teacher.encode(image)
            encoded = feature_maps, TokenAffinity(feature_maps[-1], batch.unit_box_B4)
        feature_maps, affinity = encoded
        logits_BMM = self.teacher.decode(
            feature_maps, image, batch.unit_box_B4, batch.box_area_B, affinity
        )
        return logits_BMM.float().sigmoid(), affinity

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Update the student, then the teacher.

        Callbacks run before `on_train_batch_end`: if the teacher were updated there, a checkpoint
        written by a callback would hold the teacher of the previous step.
        """
        super().optimizer_step(*args, **kwargs)
        self._teacher_update(self.spec.model.teacher_momentum)

    @functools.cached_property
    def _teacher_update(self) -> TeacherUpdate:
        """Pair the tensors at the first step: moving to a device replaces buffers."""
        return TeacherUpdate(self.teacher, self.student)

    def transfer_batch_to_device(
        self, batch: CropBatch, device: torch.device, _dataloader_idx: int
    ) -> CropBatch:
        """Move a batch to the device, except the areas, by which the host groups the items."""
        return dataclasses.replace(batch.to(device), box_area_B=batch.box_area_B)


def _cached_feature_maps(batch: CropBatch) -> list[Tensor] | None:
    if batch.features_BLDhw is None:
        return None
    return list(batch.features_BLDhw.float().unbind(1))


def _mask_loss(inputs: LossInputs) -> Tensor:
    """Return dice plus cross-entropy against the true masks (`train.supervision=mask`)."""
    assert inputs.batch.true_mask_BSS is not None
    true_mask_B1SS = inputs.batch.true_mask_BSS[:, None].float()
    truth_BMM = resize_to(true_mask_B1SS, inputs.prob_BMM.shape[-2:])[:, 0]
    entropy = F.binary_cross_entropy_with_logits(inputs.logits_BMM, truth_BMM)
    loss: Tensor = dice_loss(inputs.prob_BMM, truth_BMM).mean() + entropy
    return loss
