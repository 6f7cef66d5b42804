"""Loads checkpoints and exported models as models that return probabilities."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mal.artifacts import LATEST_CHECKPOINT, companions_of
from mal.data.size_prior import SizePrior
from mal.errors import ArtifactError, SpecError, StorageError
from mal.labeling.onnx_model import OnnxModel
from mal.labeling.predictor import (
    NetworkEnsemble,
    PredictionSettings,
    ProbabilityModel,
    half_type,
)
from mal.model.checkpoint import (
    SIZE_PRIOR_KEY,
    SPEC_KEY,
    load_network_weights,
    read_checkpoint,
    read_size_prior,
)
from mal.model.network import MALNetwork
from mal.spec import load_spec
from mal.spec.backbones import backbone_entry
from mal.spec.experiment import (
    EvaluateSpec,
    ExperimentSpec,
    ExportSpec,
    PredictionSpec,
    TrainSpec,
)
from mal.storage import fetch_file
from mal.storage.uris import parse_remote_uri

log = logging.getLogger(__name__)

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the settings that belong to it.

    Attributes:
        crop_size: Side of the crops, px.
        path: The local file.
        spec: The user's spec, with the network and crop size of the model.
        has_settings: Whether the file carries thresholds and window margin.
        size_prior: Sizes of the objects that the model was trained on.
    """

    model: ProbabilityModel
    crop_size: int
    path: Path
    spec: ExperimentSpec
    has_settings: bool = True
    size_prior: SizePrior = SizePrior()


def load_model(section: PredictionSpec, spec: ExperimentSpec, device: torch.device) -> LoadedModel:
    """Load the model that `section.checkpoint` names.

    `model.*` and `dataset.crop_size` come from the checkpoint, if `mal train` wrote it.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    path = resolve_checkpoint(section.checkpoint)
    if path.suffix == ONNX_SUFFIX:
        _refuse_settings_of_networks(section)
        return _load_onnx(path, section.checkpoint, spec)
    networks, trained_spec = load_networks(path, section, spec)
    return LoadedModel(
        _ensemble_of(networks, section, trained_spec, device),
        trained_spec.dataset.crop_size,
        path,
        trained_spec,
        size_prior=read_size_prior(path),
    )


def load_model_alone(uri: str, device: torch.device) -> LoadedModel:
    """Load a model with the settings of its training or export.

    Raises:
        ArtifactError: The model cannot be loaded, or its file has no settings.
    """
    path = resolve_checkpoint(uri)
    if path.suffix == ONNX_SUFFIX:
        loaded = _load_onnx(path, uri, ExperimentSpec())
        if not loaded.has_settings:
            raise ArtifactError(
                f"Cannot load {uri}: {companions_of(path.name).sidecar} is not beside it. Copy "
                "both files of mal export."
            )
        return loaded
    content = read_checkpoint(path)
    if SPEC_KEY not in content:
        raise ArtifactError(
            f"Cannot load {uri} without a spec: another program wrote this checkpoint. Use mal "
            "inference with model.* set as in its training."
        )
    spec = load_spec("train", content[SPEC_KEY])
    networks = _build_networks(content, spec.inference, spec)
    ensemble = _ensemble_of(networks, spec.inference, spec, device)
    prior = SizePrior.from_json(content.get(SIZE_PRIOR_KEY))
    return LoadedModel(ensemble, spec.dataset.crop_size, path, spec, size_prior=prior)


def _ensemble_of(
    networks: list[MALNetwork], section: PredictionSpec, spec: ExperimentSpec, device: torch.device
) -> NetworkEnsemble:
    return NetworkEnsemble(
        networks,
        use_flip=section.use_flip_test,
        device=device,
        autocast_type=half_type(section.precision, use_amp=spec.train.use_amp, device=device),
        thresholds=spec.train.mask_thres,
    )


def _refuse_settings_of_networks(section: PredictionSpec) -> None:
    action = "evaluate" if isinstance(section, EvaluateSpec) else "inference"
    if section.precision not in ("auto", "fp32"):
        raise SpecError(
            f"{action}.precision must be auto or fp32 for an exported model, got "
            f"{section.precision}. Export it with export.precision=int8 to make it faster."
        )
    if section.crop_sizes:
        raise SpecError(
            f"{action}.crop_sizes must be [] for an exported model, got {section.crop_sizes}: its "
            "crop is fixed. Give the checkpoint instead."
        )


def _load_onnx(path: Path, uri: str, spec: ExperimentSpec) -> LoadedModel:
    """Load an exported model with its window, and its thresholds unless the spec sets them."""
    model = OnnxModel(path, _fetch_sidecar(uri), uri=uri)
    description = model.description
    dataset = dataclasses.replace(spec.dataset, crop_size=model.crop_size)
    if description:
        margin = float(description["margin_rate"])
        _log_differences(("train.test_margin_rate", spec.train.test_margin_rate[0], margin))
        train = dataclasses.replace(spec.train, test_margin_rate=[margin, margin])
        if train.mask_thres == TrainSpec().mask_thres:  # unset, as in `_prediction_keys`
            train = dataclasses.replace(train, mask_thres=list(description["thresholds"]))
        network = dataclasses.replace(spec.model, arch=str(description["arch"]))
        spec = dataclasses.replace(spec, train=train, model=network)
    spec = dataclasses.replace(spec, dataset=dataset)
    prior = SizePrior.from_json(description.get("size_prior"))
    return LoadedModel(
        model, model.crop_size, path, spec, has_settings=bool(description), size_prior=prior
    )


def _fetch_sidecar(uri: str) -> Path | None:
    """Fetch the description beside a remote model; OnnxModel finds that of a local one itself."""
    folder, separator, name = uri.rpartition("/")
    if parse_remote_uri(uri) is None:
        return None
    try:
        return fetch_file(f"{folder}{separator}{companions_of(name).sidecar}")
    except StorageError:
        return None


def resolve_checkpoint(uri: str) -> Path:
    """Return the local file of a checkpoint; a results folder means its latest one."""
    folder = Path(uri).expanduser()
    if parse_remote_uri(uri) is None and folder.is_dir():
        return fetch_file(str(folder / LATEST_CHECKPOINT))
    return fetch_file(uri)


def load_networks(
    path: Path, section: PredictionSpec | ExportSpec, spec: ExperimentSpec
) -> tuple[list[MALNetwork], ExperimentSpec]:
    """Load student, teacher or both, and the spec with the network's own keys."""
    content = read_checkpoint(path)
    trained_spec = spec_of_checkpoint(content, spec)
    return _build_networks(content, section, trained_spec), trained_spec


def _build_networks(
    content: Mapping[str, Any], section: PredictionSpec | ExportSpec, spec: ExperimentSpec
) -> list[MALNetwork]:
    roles = ["teacher" if section.use_teacher_test else "student"]
    if section.use_mixed_model_test:
        roles = ["student", "teacher"]
    networks = []
    for role in roles:
        network = MALNetwork(spec.model, spec.dataset.crop_size)
        load_network_weights(network, content, role)
        networks.append(network)
    if len(networks) > 1 and spec.model.freeze_backbone:
        networks[1].backbone = networks[0].backbone
    return networks


def spec_of_checkpoint(content: Mapping[str, Any], spec: ExperimentSpec) -> ExperimentSpec:
    """Return the spec with the network of the checkpoint."""
    saved = content.get(SPEC_KEY)
    if not isinstance(saved, Mapping):
        log.info("the checkpoint has no spec: model.* of this run's spec is used")
        return spec
    trained = load_spec("train", saved)
    _log_differences(
        ("model.arch", spec.model.arch, trained.model.arch),
        ("dataset.crop_size", spec.dataset.crop_size, trained.dataset.crop_size),
    )
    dataset = dataclasses.replace(
        spec.dataset,
        crop_size=trained.dataset.crop_size,
        train_ann_path=spec.dataset.train_ann_path or trained.dataset.train_ann_path,
    )
    train = dataclasses.replace(spec.train, **_prediction_keys(spec.train, trained.train))
    return dataclasses.replace(spec, model=trained.model, dataset=dataset, train=train)


def _prediction_keys(mine: TrainSpec, theirs: TrainSpec) -> dict[str, Any]:
    """Return window margin and threshold: of the spec if it sets them, else of the training.

    A threshold fits one network. TAO's default would enlarge the masks of a short run.
    """
    chosen: dict[str, Any] = {}
    default = TrainSpec()
    for key in ("test_margin_rate", "mask_thres"):
        set_here, trained = getattr(mine, key), getattr(theirs, key)
        chosen[key] = trained if set_here == getattr(default, key) else set_here
        if set_here != trained:
            log.info("train.%s is %s (in training it was %s)", key, chosen[key], trained)
    return chosen


def _log_differences(*values: tuple[str, Any, Any]) -> None:
    for key, mine, theirs in values:
        if mine != theirs:
            log.info("%s is %s as in the checkpoint (the spec has %s)", key, theirs, mine)


def prediction_settings(
    spec: ExperimentSpec, section: PredictionSpec, crop_size: int
) -> PredictionSettings:
    """Return how an action cuts crops and computes masks.

    Raises:
        SpecError: A crop size does not fit the network.
    """
    _check_crop_sizes(section.crop_sizes, spec.model.arch)
    return PredictionSettings(
        crop_size=crop_size,
        margin_rate=spec.train.test_margin_rate[0],
        thresholds=spec.train.mask_thres,
        keep_largest_part=getattr(section, "comp_clustering", False),
        batch_size=section.batch_size,
        num_workers=spec.dataset.num_workers_per_gpu,
        crop_sizes=section.crop_sizes,
    )


def _check_crop_sizes(crop_sizes: list[int], arch: str) -> None:
    entry = backbone_entry(arch)
    if crop_sizes and not entry.takes_any_crop:
        raise SpecError(
            f"crop_sizes must be [] for {arch}, got {crop_sizes}: its crop is fixed. Use a ViT."
        )
    patch = entry.crop_multiple_px
    if unsuited := [size for size in crop_sizes if size % patch]:
        raise SpecError(
            f"crop_sizes must be multiples of the patch size {patch} of {arch}, got {unsuited}. "
            f"Use {sorted({max(size // patch, 1) * patch for size in unsuited})}."
        )
