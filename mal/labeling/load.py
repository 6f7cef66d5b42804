"""From a checkpoint or an exported model to something that gives probabilities."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mal.errors import ArtifactError
from mal.labeling.predictor import NetworkEnsemble, PredictionSettings, ProbabilityModel
from mal.model.checkpoint import SPEC_KEY, load_network_weights, read_checkpoint
from mal.model.network import MALNetwork
from mal.spec import load_spec
from mal.spec.experiment import ExperimentSpec, ExportSpec, PredictionSpec
from mal.storage import fetch_file

log = logging.getLogger(__name__)

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class LoadedModel:
    """A model, and the settings that belong to it.

    Attributes:
        model: The probability model.
        crop_size: S.
        path: The local file.
        spec: The experiment it was trained with, or the user's for a foreign checkpoint.
    """

    model: ProbabilityModel
    crop_size: int
    path: Path
    spec: ExperimentSpec


def load_model(
    section: PredictionSpec | ExportSpec, spec: ExperimentSpec, device: torch.device
) -> LoadedModel:
    """Load what `section.checkpoint` names.

    A checkpoint of ours knows its network: `model.*` and `dataset.crop_size` are taken from it.

    Raises:
        ArtifactError: It cannot be loaded.
    """
    path = resolve_checkpoint(section.checkpoint)
    if path.suffix == ONNX_SUFFIX:
        from mal.export.runtime import OnnxModel

        onnx_model = OnnxModel(path)
        return LoadedModel(onnx_model, onnx_model.crop_size, path, spec)
    networks, trained_spec = load_networks(path, section, spec)
    ensemble = NetworkEnsemble(
        networks, use_flip=getattr(section, "use_flip_test", False), device=device
    )
    return LoadedModel(ensemble, trained_spec.dataset.crop_size, path, trained_spec)


def resolve_checkpoint(uri: str) -> Path:
    """Return the local file of a checkpoint uri; a result folder stands for its latest one."""
    from mal.artifacts import LATEST_CHECKPOINT

    folder = Path(uri)
    return fetch_file(str(folder / LATEST_CHECKPOINT) if folder.is_dir() else uri)


def load_networks(
    path: Path, section: PredictionSpec | ExportSpec, spec: ExperimentSpec
) -> tuple[list[MALNetwork], ExperimentSpec]:
    """Load student, teacher or both as the section asks.

    Returns:
        The networks, and the spec with the network's own keys.
    """
    content = read_checkpoint(path)
    trained_spec = spec_of_checkpoint(content, spec)
    if section.use_mixed_model_test:
        roles = ["student", "teacher"]
    else:
        roles = ["teacher" if section.use_teacher_test else "student"]
    networks = []
    for role in roles:
        network = MALNetwork(trained_spec.model, trained_spec.dataset.crop_size)
        load_network_weights(network, content, role)
        networks.append(network)
    if len(networks) > 1 and trained_spec.model.freeze_backbone:
        networks[1].backbone = networks[0].backbone
    return networks, trained_spec


def spec_of_checkpoint(content: Mapping[str, Any], spec: ExperimentSpec) -> ExperimentSpec:
    """Return the spec with the network that the checkpoint was trained with."""
    saved = content.get(SPEC_KEY)
    if not isinstance(saved, Mapping):
        log.info("the checkpoint does not say its network: model.* of the spec is used")
        return spec
    trained = load_spec("train", saved)
    for key, mine, theirs in (
        ("model.arch", spec.model.arch, trained.model.arch),
        ("dataset.crop_size", spec.dataset.crop_size, trained.dataset.crop_size),
    ):
        if mine != theirs:
            log.info("%s is %s as in the checkpoint (the spec says %s)", key, theirs, mine)
    dataset = dataclasses.replace(spec.dataset, crop_size=trained.dataset.crop_size)
    return dataclasses.replace(spec, model=trained.model, dataset=dataset)


def prediction_settings(spec: ExperimentSpec, section: Any, crop_size: int) -> PredictionSettings:
    """Return how an action cuts boxes and makes masks."""
    return PredictionSettings(
        crop_size=crop_size,
        margin_rate=spec.train.test_margin_rate[0],
        thresholds=spec.train.mask_thres,
        batch_size=section.batch_size,
        num_workers=spec.dataset.num_workers_per_gpu,
    )
