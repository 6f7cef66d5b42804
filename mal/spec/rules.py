"""Rules that join several keys of the spec."""

from __future__ import annotations

from mal.spec.experiment import ExperimentSpec

PATCH_SIZE_SEPARATOR = "/"


def patch_size_of(arch: str) -> int:
    """Return the stride of a backbone's features, px (the number behind the slash)."""
    return int(arch.rpartition(PATCH_SIZE_SEPARATOR)[2])


def is_hybrid(arch: str) -> bool:
    """Whether a backbone is the small hybrid for training from scratch."""
    return arch.startswith("vit-hybrid-")


def combination_problems(spec: ExperimentSpec) -> list[str]:
    """Check what no single key can tell; each problem names its key and the remedy."""
    problems = []
    dataset, model, train = spec.dataset, spec.model, spec.train
    patch = patch_size_of(model.arch)
    if dataset.crop_size % patch:
        below = dataset.crop_size // patch * patch
        problems.append(
            f"dataset.crop_size must be a multiple of the patch size {patch} of {model.arch}, "
            f"got {dataset.crop_size}. Use {below} or {below + patch}."
        )
    if dataset.min_obj_size >= dataset.max_obj_size:
        problems.append(
            f"dataset.min_obj_size must be below dataset.max_obj_size, got "
            f"{dataset.min_obj_size:g} and {dataset.max_obj_size:g}."
        )
    if train.crf_kernel_size % 2 == 0:
        problems.append(f"train.crf_kernel_size must be odd, got {train.crf_kernel_size}. Use 3 or 5.")
    if not 0 < train.crf_value_low_thres < train.crf_value_high_thres < 1:
        problems.append(
            "train.crf_value_low_thres must lie between 0 and train.crf_value_high_thres < 1, got "
            f"{train.crf_value_low_thres:g} and {train.crf_value_high_thres:g}."
        )
    for key, pair in (
        ("train.margin_rate", train.margin_rate),
        ("dataset.window_rate", dataset.window_rate),
        ("train.loss_crf_window", train.loss_crf_window),
    ):
        if pair and pair[0] > pair[1]:
            problems.append(f"{key} must rise, got {pair}. Swap its values.")
    if dataset.window_rate and dataset.window_rate[0] < 1:
        problems.append(f"dataset.window_rate must start at 1 or more, got {dataset.window_rate}.")
    if train.cached_crops and not model.freeze_backbone:
        problems.append(
            "train.cached_crops must be 0 unless model.freeze_backbone is true, got "
            f"{train.cached_crops}. Set model.freeze_backbone=true."
        )
    if is_hybrid(model.arch) != (model.mask_head == "pyramid"):
        problems.append(
            f"model.mask_head must be pyramid for a hybrid and only for it, got {model.mask_head} "
            f"with {model.arch}. Change one of the two."
        )
    for name in ("evaluate", "inference", "export"):
        section = getattr(spec, name)
        if section.use_mixed_model_test and section.use_teacher_test:
            problems.append(
                f"{name}.use_teacher_test must be false when {name}.use_mixed_model_test is true. "
                "Choose one."
            )
        if getattr(section, "trt_engine", ""):
            problems.append(
                f"{name}.trt_engine must be empty, got {section.trt_engine}: TensorRT engines are "
                f"not supported. Give the .onnx file as {name}.checkpoint."
            )
    return problems
