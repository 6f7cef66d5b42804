"""Weights in and out: our checkpoints, TAO's and NVlabs', MAE's, DeiT's, timm's and safetensors.

Our checkpoint is Lightning's dictionary, with keys as in TAO (`student.backbone...`,
`student.mask_head...`, `student.roi_head...`, `teacher...`) under `state_dict`, and the resolved
spec under `mal_spec`.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from mal.errors import ArtifactError, StorageError
from mal.model.pickles import read_pickled_checkpoint
from mal.storage import fetch_file

log = logging.getLogger(__name__)

HUB_PREFIX = "timm:"
SPEC_KEY = "mal_spec"
MAX_NAMED_KEYS = 4
_WRAPPERS = ("state_dict", "model", "model_state", "module")
_PREFIXES = ("student.backbone.", "backbone.", "module.", "model.", "encoder.")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint file as tensors and plain values.

    Raises:
        ArtifactError: It is missing, unreadable or holds no dictionary.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = read_pickled_checkpoint(path)
    if not isinstance(content, Mapping):
        raise ArtifactError(
            f"checkpoint must hold a dictionary, got {type(content).__name__} in {path}. "
            "Give a .pth file of mal train."
        )
    return dict(content)


def load_network_weights(network: nn.Module, content: Mapping[str, Any], role: str) -> None:
    """Load the student or the teacher of a checkpoint.

    Args:
        network: What gets the weights.
        content: A read checkpoint.
        role: student or teacher.

    Raises:
        ArtifactError: The checkpoint has no such network, or not all of its weights.
    """
    state = _unwrap(content)
    prefix = f"{role}."
    mine = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    if not mine:
        raise ArtifactError(
            f"checkpoint must hold keys '{prefix}*', got {_name_some(list(state))}. "
            "Give a checkpoint of mal train, or set train.pretrained_model_path for a backbone."
        )
    _load_checked(network, mine, f"the {role}")


def load_backbone_weights(backbone: nn.Module, source: str) -> None:
    """Load pretrained weights into a backbone; position embeddings are resized to its crop.

    Args:
        backbone: What gets the weights.
        source: A local or s3:// .pth, .ckpt or .safetensors file, or `timm:NAME` of the hub.

    Raises:
        ArtifactError: Nothing, or not all, of the backbone is in it.
    """
    if source.startswith(HUB_PREFIX):
        state = _hub_weights(source.removeprefix(HUB_PREFIX))
    else:
        state = _unwrap(read_checkpoint(fetch_file(source)))
    wanted = backbone.state_dict()
    state = _strip_prefix(state, wanted)
    if "pos_embed" in state and "pos_embed" in wanted:
        state["pos_embed"] = _resize_position_embedding(state["pos_embed"], wanted["pos_embed"])
    _load_checked(backbone, state, f"the backbone from {source}")


def _load_checked(module: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    wanted = module.state_dict()
    fitting = {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}
    misfits = [k for k in state if k in wanted and k not in fitting]
    missing = [k for k in wanted if k not in fitting and k not in misfits]
    ignored = [k for k in state if k not in wanted]
    log.info("%s: %d weights loaded", name, len(fitting))
    if ignored:
        log.info("%s: %d weights ignored: %s", name, len(ignored), _name_some(ignored))
    if misfits:
        key = misfits[0]
        raise ArtifactError(
            f"weights of {name} must have this network's shapes, got {key} of "
            f"{tuple(state[key].shape)} instead of {tuple(wanted[key].shape)} "
            f"and {len(misfits) - 1} more. Set model.arch, the other model.* keys and "
            "dataset.crop_size as they were in training."
        )
    if missing:
        raise ArtifactError(
            f"weights of {name} must be complete, got {len(fitting)} of {len(wanted)}; missing: "
            f"{_name_some(missing)}. Set model.arch to the network that the file holds."
        )
    module.load_state_dict(dict(fitting), strict=False)


def _unwrap(content: Mapping[str, Any]) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            return _unwrap(inner)
    return {str(k): v for k, v in content.items() if isinstance(v, Tensor)}


def _strip_prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix under which most of the wanted keys lie."""

    def num_found(prefix: str) -> int:
        return sum(f"{prefix}{key}" in state for key in wanted)

    best = max(("", *_PREFIXES), key=num_found)
    return {k.removeprefix(best): v for k, v in state.items() if k.startswith(best)}


def _resize_position_embedding(have: Tensor, wanted: Tensor) -> Tensor:
    """Interpolate position embeddings (1, 1 + h * w, D) to another token grid."""
    if have.shape == wanted.shape:
        return have
    num_prefix, num_given = _num_prefix_tokens(wanted), _num_prefix_tokens(have)
    prefix, grid = have[:, :num_given], have[:, num_given:]
    missing = torch.zeros_like(grid[:, : max(num_prefix - num_given, 0)])
    kept = torch.cat([missing, prefix[:, :num_prefix], grid], dim=1).float()
    side = math.isqrt(wanted.shape[1] - num_prefix)
    resized: Tensor = resample_abs_pos_embed(kept, [side, side], num_prefix_tokens=num_prefix)
    return resized


def _num_prefix_tokens(position_embedding: Tensor) -> int:
    """Return how many tokens (class, distillation, registers) come before the square grid."""
    num_tokens = position_embedding.shape[1]
    return num_tokens - math.isqrt(num_tokens) ** 2


def _hub_weights(name: str) -> dict[str, Tensor]:
    import timm

    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:
        reason = str(error).partition("\n")[0][:160]
        raise StorageError(
            f"train.pretrained_model_path must name a reachable timm model, got {HUB_PREFIX}{name} "
            f"({reason}). Check the name and the network, or download the file and give its path."
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
            f"weights must be a readable safetensors file, got {path} ({error}). Copy it again."
        ) from error
    return {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }


def _name_some(keys: list[str]) -> str:
    named = ", ".join(keys[:MAX_NAMED_KEYS]) or "none"
    return named + (f" and {len(keys) - MAX_NAMED_KEYS} more" if len(keys) > MAX_NAMED_KEYS else "")
