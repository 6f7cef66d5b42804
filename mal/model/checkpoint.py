"""Reads weights: our checkpoints, TAO's and NVlabs', MAE's, DeiT's, timm's and safetensors.

Our checkpoint is Lightning's dictionary, with keys as in TAO (`student.backbone...`,
`student.mask_head...`, `student.roi_head...`, `teacher...`) under `state_dict`, and the resolved
spec under `mal_spec`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mal.data.size_prior import SizePrior
from mal.errors import ArtifactError, StorageError
from mal.model.backbone import Backbone
from mal.model.network import MALNetwork
from mal.model.pickles import read_pickled_checkpoint, reason_of
from mal.model.weight_names import (
    State,
    adapt_network,
    head_names,
    network_state,
    tensors_of,
    weights_of,
)
from mal.storage import fetch_file

log = logging.getLogger(__name__)

HUB_PREFIX = "timm:"
SPEC_KEY = "mal_spec"
SIZE_PRIOR_KEY = "mal_size_prior"
MAX_NAMED_KEYS = 4
_ENCRYPTED_KEY = "state_dict_encrypted"  # TAO marks encrypted checkpoints with it


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file as tensors and plain values.

    Raises:
        ArtifactError: It is missing, unreadable, encrypted or holds no dictionary.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_pickled_checkpoint(path)
    if not isinstance(content, Mapping):
        raise ArtifactError(
            f"checkpoint must hold a dictionary, got {type(content).__name__} in {path}. "
            "Give a .pth file of mal train."
        )
    if content.get(_ENCRYPTED_KEY):
        raise ArtifactError(
            f"checkpoint must not be encrypted, got weights that TAO encrypted in {path}. Train or "
            "convert it there with an empty encryption_key."
        )
    return dict(content)


def read_training_spec(path: Path) -> Mapping[str, Any] | None:
    """Return the spec in a checkpoint of mal train, None for any other; tensors stay on disk.

    Raises:
        ArtifactError: It is missing or unreadable.
    """
    return _read_entry(path, SPEC_KEY)


def read_size_prior(path: Path) -> SizePrior:
    """Return the sizes of the objects it was trained on; empty if the checkpoint has none.

    Raises:
        ArtifactError: It is missing or unreadable.
    """
    return SizePrior.from_json(_read_entry(path, SIZE_PRIOR_KEY))


def _read_entry(path: Path, key: str) -> Mapping[str, Any] | None:
    if path.suffix == ".safetensors":
        return None
    content = read_pickled_checkpoint(path, leaves_tensors_on_disk=True)
    saved = content.get(key) if isinstance(content, Mapping) else None
    return saved if isinstance(saved, Mapping) else None


def load_network_weights(network: nn.Module, content: Mapping[str, Any], role: str) -> None:
    """Load the student or the teacher of a checkpoint; positions are resized to the crop.

    Args:
        network: Gets the weights.
        content: A checkpoint as `read_checkpoint` returns it.
        role: student or teacher.

    Raises:
        ArtifactError: The checkpoint has no such network, misses weights, has other heads, or has
            weights that are not finite.
    """
    state = tensors_of(content)
    mine = network_state(state, role)
    if not mine:
        raise ArtifactError(
            f"checkpoint must hold keys '{role}.*', got {_name_some(list(state))}. "
            "Give a checkpoint of mal train, or set train.pretrained_model_path for a backbone."
        )
    wanted = network.state_dict()
    _require_plain(mine, f"the {role}")
    mine = adapt_network(mine, wanted)
    _load_checked(network, mine, f"the {role}")
    surplus = StateDictDiff(wanted, weights_of(mine, head_names(wanted))).unexpected
    if surplus:
        raise ArtifactError(
            f"weights of the {role} must be this network's, got heads with more: "
            f"{_name_some(surplus)}. Set the model.* keys as they were in training."
        )


def load_pretrained_weights(network: MALNetwork, source: str) -> bool:
    """Load the weights that a source has for a new student.

    A MAL checkpoint gives its student, with the heads if both fit (one reads the other's channels);
    anything else gives the backbone.

    Args:
        network: Gets the weights.
        source: A local or s3:// .pth, .ckpt or .safetensors file, or `timm:NAME` of the hub.

    Returns:
        Whether the heads are the source's too.

    Raises:
        ArtifactError: Nothing, or not all, of the backbone is in it.
        StorageError: There is no such source.
    """
    state, wanted = _read_source(source), network.state_dict()
    student = network_state(state, "student")
    _require_plain(student, f"the student from {source}")
    student = adapt_network(student, wanted)
    parts = head_names(wanted)
    heads = StateDictDiff(weights_of(wanted, parts), weights_of(student, parts))
    if heads.given and not heads.describe():
        _load_checked(network, student, f"the student from {source}")
        return True
    _load_backbone(network.backbone, state, source)
    if heads.given:
        log.info("the heads start anew, those of %s are others: %s", source, heads.describe())
    return False


def load_backbone_weights(backbone: Backbone, source: str) -> None:
    """Load pretrained weights into a backbone; position embeddings are resized to its crop.

    Args:
        backbone: Gets the weights.
        source: As for `load_pretrained_weights`.

    Raises:
        ArtifactError: Nothing, or not all, of the backbone is in it.
        StorageError: There is no such source.
    """
    _load_backbone(backbone, _read_source(source), source)


def _load_backbone(backbone: Backbone, state: State, source: str) -> None:
    name = f"the backbone from {source}"
    state = network_state(state, "student") or state
    _require_plain(state, name)
    _load_checked(backbone, backbone.adapt_weights(state), name)


def _require_plain(state: State, name: str) -> None:
    for key, value in state.items():
        if kind := _special_kind_of(value):
            raise ArtifactError(
                f"weights of {name} must be plain dense tensors, got {kind} in {key}. Save them as "
                "such (to_dense, dequantize)."
            )


def _special_kind_of(value: Tensor) -> str:
    """Name the kind of a tensor that is not a plain dense one; '' if it is."""
    if value.is_meta:
        return "a meta tensor, without values,"
    if value.is_quantized:
        return f"a quantised tensor ({value.dtype})"
    if value.is_nested:
        return "a nested tensor"
    return "" if value.layout == torch.strided else f"a sparse tensor ({value.layout})"


def _require_finite(module: nn.Module, state: State, name: str) -> None:
    """Refuse NaN and infinity, also those that converting to the module's dtype makes."""
    for key, wanted in module.state_dict().items():
        if not wanted.is_floating_point() or not wanted.numel():
            continue
        extremes = torch.stack(torch.aminmax(state[key].detach().to(wanted.dtype)))  # NaN if any is
        if not extremes.isfinite().all():
            kind = "nan" if extremes.isnan().any() else "inf"
            raise ArtifactError(
                f"weights of {name} must be finite, got {kind} in {key}. Give a checkpoint from "
                "before its training broke."
            )


@dataclass(frozen=True)
class StateDictDiff:
    """How given weights differ from those that a module needs."""

    wanted: State
    given: State

    @property
    def shape_mismatches(self) -> list[str]:
        return [k for k, v in self.given.items() if k in self.wanted and v.shape != self._shape(k)]

    @property
    def missing(self) -> list[str]:
        return [key for key in self.wanted if key not in self.given]

    @property
    def unexpected(self) -> list[str]:
        return [key for key in self.given if key not in self.wanted]

    def describe_shape_mismatches(self) -> str:
        """Name the first of them, and the number of the others."""
        key, num_others = self.shape_mismatches[0], len(self.shape_mismatches) - 1
        shapes = f"{tuple(self.given[key].shape)} instead of {tuple(self._shape(key))}"
        return f"{key} of {shapes} and {num_others} more"

    def describe(self) -> str:
        """Name the first difference; '' if there is none."""
        if self.shape_mismatches:
            return self.describe_shape_mismatches()
        if self.missing:
            return f"without {_name_some(self.missing)}"
        return f"with {_name_some(self.unexpected)}" if self.unexpected else ""

    def _shape(self, key: str) -> Any:
        return self.wanted[key].shape


def _load_checked(module: nn.Module, state: State, name: str) -> None:
    diff = StateDictDiff(module.state_dict(), state)
    mismatches = set(diff.shape_mismatches)
    fitting = {k: v for k, v in state.items() if k in diff.wanted and k not in mismatches}
    others = "".join(
        f", {len(keys)} {what} ({_name_some(keys)})"
        for what, keys in (("missing", diff.missing), ("ignored", diff.unexpected))
        if keys
    )
    log.info("%s: %d weights loaded%s", name, len(fitting), others)
    if mismatches:
        raise ArtifactError(
            f"weights of {name} must have this network's shapes, got "
            f"{diff.describe_shape_mismatches()}. "
            "Set model.arch, the other model.* keys and dataset.crop_size as they were in training."
        )
    if diff.missing:
        raise ArtifactError(
            f"weights of {name} must be complete, got {len(fitting)} of {len(diff.wanted)}; "
            f"missing: {_name_some(diff.missing)}. Set model.arch to the network in the file."
        )
    _require_finite(module, fitting, name)
    module.load_state_dict(fitting, strict=False)


def _read_source(source: str) -> dict[str, Tensor]:
    if source.startswith(HUB_PREFIX):
        return _hub_weights(source.removeprefix(HUB_PREFIX))
    return tensors_of(read_checkpoint(fetch_file(source)))


def _hub_weights(name: str) -> dict[str, Tensor]:
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        raise StorageError(
            f"train.pretrained_model_path must name a reachable timm model, got {HUB_PREFIX}{name} "
            f"({reason_of(error)}). Check the name and the network, or download the file and give "
            "its path."
        ) from error
    state: dict[str, Tensor] = model.state_dict()
    return state


def _read_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(
            f"weights must be a readable safetensors file, got {path} ({reason_of(error)}). "
            "Copy it again."
        ) from error
    return {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }


def _name_some(keys: list[str]) -> str:
    named = ", ".join(keys[:MAX_NAMED_KEYS]) or "none"
    return named + (f" and {len(keys) - MAX_NAMED_KEYS} more" if len(keys) > MAX_NAMED_KEYS else "")
