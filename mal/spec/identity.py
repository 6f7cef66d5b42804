"""The keys of the spec that identify a run, and those that may change between its attempts.

`KEY_ROLES` classifies every key; a test checks that it is complete.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from mal.spec.experiment import ExperimentSpec
from mal.spec.load import iterate_settings


class Role(StrEnum):
    """What a key determines in a training."""

    IDENTITY = "identity"
    """The weights: another value is another run."""
    MEASURE = "measure"
    """The choice of the best model: another value is another run, if there is a validation set."""
    DATA = "data"
    """Data or weights: identified by content, not by path."""
    LENGTH = "length"
    """The length: a run may be extended."""
    MACHINE = "machine"
    """Devices and processes: another attempt may get others."""
    RECORD = "record"
    """What is written, cached, logged, and where."""
    NONE = "none"
    """Nothing of a training."""


_ROLE_NAMES: Mapping[Role, str] = {
    Role.IDENTITY: """
        dataset: min_obj_size max_obj_size min_obj_side crop_size window_rate box_jitter
            photometric_rate shuffle_pool_mib max_image_mpx
        model: arch frozen_stages freeze_backbone mask_head mask_head_num_convs
            mask_head_hidden_channel mask_head_out_channel mask_scale_ratio mask_scale_ratio_pre
            not_adjust_scale object_pooling teacher_momentum vit_dpr
        train: seed batch_size accum_grad_batches clip_grad_norm use_amp precision supervision
            cached_crops optim_type lr min_lr min_lr_rate num_wave warmup_epochs warmup_rate wd
            optim_eps optim_betas margin_rate test_margin_rate mask_thres loss_mil_weight
            loss_mil_step loss_crf_weight loss_crf_step loss_crf_window loss_point_weight crf_zeta
            crf_kernel_size crf_dilations crf_num_iter crf_size_ratio crf_value_high_thres
            crf_value_low_thres crf_color_space crf_view crf_start crf_start_thres prior_weight
            affinity_weight affinity_temperature
    """,
    Role.MEASURE: """
        dataset: load_mask
        train: max_val_boxes
        evaluate: use_flip_test use_mixed_model_test use_teacher_test crop_sizes comp_clustering
            min_box_area min_box_side
    """,
    Role.DATA: """
        dataset: train_ann_path train_img_dir val_ann_path val_img_dir
        train: pretrained_model_path
    """,
    Role.LENGTH: "train: num_epochs max_steps",
    Role.MACHINE: """
        : device
        dataset: num_workers_per_gpu
        train: num_gpus gpu_ids num_nodes compile oom_fallback
        train.cudnn: benchmark deterministic
    """,
    Role.RECORD: """
        : results_dir
        train: results_dir overwrite resume_training_checkpoint_path checkpoint_interval
            checkpoint_interval_unit validation_interval feature_cache_gib profile
        storage: retry_s upload_interval_s
        wandb: enable project entity group name run_id reinit save_code sync_tensorboard tags
    """,
    Role.NONE: """
        : model_name encryption_key
        dataset: type
        train: optim_momentum
        evaluate: checkpoint batch_size num_gpus gpu_ids num_nodes results_dir trt_engine precision
            training_free
    """,
}  # fmt: skip
_OTHER_ACTIONS = ("inference", "export")


def _iterate_names(names: str) -> Iterator[str]:
    section = ""
    for word in names.split():
        if word.endswith(":"):
            section = word.removesuffix(":")
        else:
            yield f"{section}.{word}".lstrip(".")


KEY_ROLES: Mapping[str, Role] = MappingProxyType(
    {key: role for role, names in _ROLE_NAMES.items() for key in _iterate_names(names)}
)
DATA_KEYS = tuple(key for key, role in KEY_ROLES.items() if role is Role.DATA)
LENGTH_KEYS = tuple(key for key, role in KEY_ROLES.items() if role is Role.LENGTH)


def is_of_training(key: str) -> bool:
    """Whether a key lies in a section that a training reads."""
    return key.partition(".")[0] not in _OTHER_ACTIONS


def role_of(key: str) -> Role:
    """Return what a key decides; one that nobody has classified decides what is learned."""
    return KEY_ROLES.get(key, Role.IDENTITY) if is_of_training(key) else Role.NONE


def identity_values(spec: ExperimentSpec, *, is_measured: bool) -> dict[str, Any]:
    """Return what makes a training this one, by dotted key; data are not among it.

    Args:
        spec: As it was asked for.
        is_measured: Whether there is a validation set with masks to be read.
    """
    roles = {Role.IDENTITY, Role.MEASURE} if is_measured else {Role.IDENTITY}
    keys = (key for key, *_ in iterate_settings(ExperimentSpec) if role_of(key) in roles)
    return {key: functools.reduce(getattr, key.split("."), spec) for key in keys}
