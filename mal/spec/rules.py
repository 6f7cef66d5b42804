"""Rules between several keys of the spec."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mal.spec.experiment import MIN_CROP_SIZE, ExperimentSpec

PATCH_SIZE_SEPARATOR = "/"

Finding = tuple[tuple[str, ...], str]


def patch_size_of(arch: str) -> int:
    """Return the stride of a backbone's features, px (the number behind the slash)."""
    return int(arch.rpartition(PATCH_SIZE_SEPARATOR)[2])


def is_hybrid(arch: str) -> bool:
    """Whether a backbone is the small hybrid for training from scratch."""
    return arch.startswith("vit-hybrid-")


def combination_problems(
    spec: ExperimentSpec, action: str, unusable_keys: Collection[str] = ()
) -> list[str]:
    """Return the problems of combinations of keys, each with its key and what to write.

    Args:
        spec: The spec; invalid keys have their default.
        action: The action whose section is checked.
        unusable_keys: Invalid keys; rules that depend on them are skipped.
    """
    findings = [
        *_dataset_findings(spec),
        *_model_findings(spec),
        *_prediction_findings(spec, action),
    ]
    return [message for keys, message in findings if not set(keys) & set(unusable_keys)]


def _dataset_findings(spec: ExperimentSpec) -> Iterator[Finding]:
    dataset, arch = spec.dataset, spec.model.arch
    patch = patch_size_of(arch)
    if dataset.crop_size % patch:
        below = dataset.crop_size // patch * patch
        nearest = [size for size in (below, below + patch) if size >= MIN_CROP_SIZE]
        yield (
            ("dataset.crop_size", "model.arch"),
            (
                f"dataset.crop_size must be a multiple of the patch size {patch} of {arch}, "
                f"got {dataset.crop_size}. Use {' or '.join(map(str, nearest))}."
            ),
        )
    if dataset.box_jitter and not dataset.window_rate:
        yield (
            ("dataset.box_jitter", "dataset.window_rate"),
            (
                "dataset.box_jitter must be 0 without dataset.window_rate, got "
                f"{dataset.box_jitter:g}."
                " Set dataset.window_rate, e.g. to [1.3, 2.2]."
            ),
        )


def _model_findings(spec: ExperimentSpec) -> Iterator[Finding]:
    model, train = spec.model, spec.train
    if train.cached_crops and not model.freeze_backbone:
        yield (
            ("train.cached_crops", "model.freeze_backbone"),
            (
                "train.cached_crops must be 0 unless model.freeze_backbone is true, got "
                f"{train.cached_crops}. Set model.freeze_backbone=true."
            ),
        )
    if train.cached_crops and is_hybrid(model.arch):
        yield (
            ("train.cached_crops", "model.arch"),
            (
                f"train.cached_crops must be 0 with {model.arch}, got {train.cached_crops}. "
                "Features are worth caching for a pretrained ViT only."
            ),
        )
    if is_hybrid(model.arch) != (model.mask_head == "pyramid"):
        yield (
            ("model.mask_head", "model.arch"),
            (
                "model.mask_head must be pyramid for a hybrid and only for it, got "
                f"{model.mask_head} with {model.arch}. Change one of the two."
            ),
        )


def _prediction_findings(spec: ExperimentSpec, action: str) -> Iterator[Finding]:
    if action == "train":
        return
    section = getattr(spec, action)
    if section.use_mixed_model_test and section.use_teacher_test:
        yield (
            (f"{action}.use_mixed_model_test", f"{action}.use_teacher_test"),
            (
                f"{action}.use_teacher_test must be false when {action}.use_mixed_model_test "
                "is true, got true. Choose one."
            ),
        )
    if getattr(section, "trt_engine", ""):
        yield (
            (f"{action}.trt_engine",),
            (
                f"{action}.trt_engine must be empty, got {section.trt_engine}: TensorRT engines "
                f"are not supported. Give the .onnx file as {action}.checkpoint."
            ),
        )
