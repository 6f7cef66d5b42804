"""Renames and resizes the weights of other programs to ours.

`mal.model.checkpoint` reads the files and checks that weights are complete.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from mal.errors import ArtifactError

log = logging.getLogger(__name__)

BACKBONE = "backbone."
_WRAPPERS = ("state_dict", "model", "model_state", "module")
_PREFIXES = ("backbone.", "module.", "model.", "encoder.", "_orig_mod.")
_POSITIONS = "pos_embed"
_NUM_PREFIX_TOKENS = (0, 1, 2, 5)  # none, class, class and distillation, class and four registers
_MAX_GRID_SIDE = 256  # crops of 4096 px: a larger grid is a damaged file's
_POOLED_NORM, _NORM = "fc_norm.", "norm."

State = Mapping[str, Tensor]


def tensors_of(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a checkpoint, from inside whatever wraps them."""
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            return tensors_of(inner)
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def network_state(state: State, role: str) -> dict[str, Tensor]:
    """Return the weights of the student or the teacher without the prefix they lie under.

    A program that wraps the module (`model.student...`, `module.student...`) adds to the prefix;
    of several the one with the most weights counts.
    """
    found = [(f".{key}".partition(f".{role}."), value) for key, value in state.items()]
    inside = [(before, after, value) for (before, mark, after), value in found if mark]
    counts = Counter(before for before, _, _ in inside)
    if not counts:
        return {}
    outer = counts.most_common(1)[0][0]
    return {after: value for before, after, value in inside if before == outer}


def strip_prefix(state: State, wanted: Iterable[str]) -> dict[str, Tensor]:
    """Remove the prefix under which most of the wanted keys lie."""
    keys = list(wanted)

    def num_found(prefix: str) -> int:
        return sum(f"{prefix}{key}" in state for key in keys)

    best = max(("", *_PREFIXES), key=num_found)
    return {key.removeprefix(best): value for key, value in state.items()}


def adapt_network(state: State, wanted: State) -> dict[str, Tensor]:
    """Return the weights of a whole network under our names, positions on its token grid."""
    adapted = strip_prefix(state, wanted)
    positions = f"{BACKBONE}{_POSITIONS}"
    if positions in adapted and positions in wanted:
        adapted[positions] = _resize_positions(adapted[positions], wanted[positions])
    for part in head_names(wanted):
        adapted = _match_by_order(adapted, wanted, f"{part}.")
    return adapted


def adapt_backbone(state: State, wanted: State) -> dict[str, Tensor]:
    """Return the weights of a backbone under our names, positions on its token grid."""
    adapted = strip_prefix(state, wanted)
    if f"{_NORM}weight" in wanted and f"{_NORM}weight" not in adapted:
        # MAE's fine-tuned models pool before their last norm, and name it for that.
        adapted = {
            f"{_NORM}{key.removeprefix(_POOLED_NORM)}" if key.startswith(_POOLED_NORM) else key: v
            for key, v in adapted.items()
        }
    if _POSITIONS in adapted and _POSITIONS in wanted:
        adapted[_POSITIONS] = _resize_positions(adapted[_POSITIONS], wanted[_POSITIONS])
    return adapted


def head_names(wanted: State) -> list[str]:
    """Return what a network has beside its backbone."""
    parts = dict.fromkeys(key.partition(".")[0] for key in wanted)
    return [part for part in parts if f"{part}." != BACKBONE]


def weights_of(state: State, parts: Collection[str]) -> dict[str, Tensor]:
    """Return the weights of some parts of a network."""
    return {key: value for key, value in state.items() if key.partition(".")[0] in parts}


def _match_by_order(state: State, wanted: State, part: str) -> dict[str, Tensor]:
    """Rename the weights of a head whose layers have other names but are the same in a row.

    Only if no name is known, and kind (weight, bias) and shape agree for every weight; the check of
    names refuses anything else.
    """
    theirs = [key for key in state if key.startswith(part)]
    ours = [key for key in wanted if key.startswith(part)]
    has_our_names = not set(theirs).isdisjoint(ours)
    is_same_row = [_kind_and_shape(k, state[k]) for k in theirs] == [
        _kind_and_shape(k, wanted[k]) for k in ours
    ]
    if not theirs or has_our_names or not is_same_row:
        return dict(state)
    log.info("layers of %s matched by order and shape: %s is %s, ...", part, theirs[0], ours[0])
    our_name = dict(zip(theirs, ours, strict=True))
    return {our_name.get(key, key): value for key, value in state.items()}


def _kind_and_shape(key: str, value: Tensor) -> tuple[str, torch.Size]:
    return key.rpartition(".")[2], value.shape


def _resize_positions(have: Tensor, wanted: Tensor) -> Tensor:
    """Interpolate position embeddings (1, prefix + side * side, D) to another token grid.

    Raises:
        ArtifactError: They are no square grid.
    """
    is_of_this_width = have.shape[::2] == wanted.shape[::2] and have.ndim == wanted.ndim
    if have.shape == wanted.shape or not is_of_this_width:
        return have
    num_prefix, num_given = _num_prefix_tokens(wanted), _num_prefix_tokens(have)
    prefix, grid = have[:, :num_given], have[:, num_given:]
    missing = torch.zeros_like(grid[:, : max(num_prefix - num_given, 0)])
    kept = torch.cat([missing, prefix[:, :num_prefix], grid], dim=1).float()
    side = math.isqrt(wanted.shape[1] - num_prefix)
    log.info("position embeddings resized from %d to %d tokens a side",
             math.isqrt(grid.shape[1]), side)  # fmt: skip
    resized: Tensor = resample_abs_pos_embed(kept, [side, side], num_prefix_tokens=num_prefix)
    return resized


def _num_prefix_tokens(position_embedding: Tensor) -> int:
    """Return how many tokens (class, distillation, registers) come before the square grid.

    Raises:
        ArtifactError: No such split is plausible.
    """
    num_tokens = position_embedding.shape[1]
    side = math.isqrt(num_tokens)
    num_prefix = num_tokens - side**2
    if num_prefix not in _NUM_PREFIX_TOKENS or not 0 < side <= _MAX_GRID_SIDE:
        raise ArtifactError(
            f"{_POSITIONS} must be a square grid of at most {_MAX_GRID_SIDE} tokens a side after "
            f"0, 1, 2 or 5 others, got shape {tuple(position_embedding.shape)}. Give weights of a "
            "ViT for square images."
        )
    return num_prefix
