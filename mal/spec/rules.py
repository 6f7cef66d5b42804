"""Rules that join several keys of the spec."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mal.spec.backbones import BackboneEntry, backbone_entry
from mal.spec.experiment import MIN_CROP_SIZE, ExperimentSpec

Finding = tuple[tuple[str, ...], str]


def combination_problems(
    spec: ExperimentSpec, action: str, unusable_keys: Collection[str] = ()
) -> list[str]:
    """Check rules that join several keys; each problem names its key and the fix.

    Args:
        spec: Unusable keys have their default.
        action: Its own section is checked.
        unusable_keys: Keys with a problem of their own; rules that need them are skipped.
    """
    findings = [
        *_dataset_findings(spec),
        *_model_findings(spec),
        *_prediction_findings(spec, action),
    ]
    return [message for keys, message in findings if not set(keys) & set(unusable_keys)]


def _dataset_findings(spec: ExperimentSpec) -> Iterator[Finding]:
    dataset = spec.dataset
    if problem := crop_size_problem(backbone_entry(spec.model.arch), dataset.crop_size):
        yield ("dataset.crop_size", "model.arch"), problem
    if dataset.box_jitter and not dataset.window_rate:
        yield (
            ("dataset.box_jitter", "dataset.window_rate"),
            (
                "dataset.box_jitter must be 0 without dataset.window_rate, got "
                f"{dataset.box_jitter:g}."
                " Set dataset.window_rate, e.g. to [1.3, 2.2]."
            ),
        )


def crop_size_problem(entry: BackboneEntry, crop_size: int) -> str:
    """Say why a backbone cannot read crops of a size, px; '' if it can, or if it is not known."""
    step_px = entry.crop_multiple_px
    if not step_px or crop_size % step_px == 0:
        return ""
    below = crop_size // step_px * step_px
    nearest = [size for size in (below, below + step_px) if size >= MIN_CROP_SIZE]
    return (
        f"dataset.crop_size must be a multiple of the patch size {step_px} of {entry.arch}, "
        f"got {crop_size}. Use {' or '.join(map(str, nearest))}."
    )


def _model_findings(spec: ExperimentSpec) -> Iterator[Finding]:
    model, train = spec.model, spec.train
    entry = backbone_entry(model.arch)
    if train.cached_crops and not model.freeze_backbone:
        yield (
            ("train.cached_crops", "model.freeze_backbone"),
            (
                "train.cached_crops must be 0 unless model.freeze_backbone is true, got "
                f"{train.cached_crops}. Set model.freeze_backbone=true."
            ),
        )
    if train.cached_crops and not entry.can_cache_features:
        yield (
            ("train.cached_crops", "model.arch"),
            (
                f"train.cached_crops must be 0 with {model.arch}, got {train.cached_crops}. "
                "Use a pretrained ViT: its features can be cached."
            ),
        )
    if model.mask_head not in entry.mask_heads:
        yield (
            ("model.mask_head", "model.arch"),
            (
                f"model.mask_head must be {' or '.join(entry.mask_heads)} with {model.arch}, got "
                f"{model.mask_head}. Change one of the two."
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
