"""Weights of every origin, and files that mean harm."""

import argparse
import pickle
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mal.errors import ArtifactError, StorageError
from mal.model.backbone import ViTBackbone
from mal.model.checkpoint import load_backbone_weights, load_network_weights, read_checkpoint
from mal.model.network import MALNetwork
from mal.spec.experiment import ModelSpec

ARCH = "vit-mae-tiny/16"
HYBRID = ModelSpec(arch="vit-hybrid-small/8", mask_head="pyramid")


class Harm:
    """Runs a shell command when an ordinary unpickler reads it."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        import os

        return os.system, (f"touch {self.victim}",)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(1)
    backbone = ViTBackbone(ARCH, 32)
    return {key: torch.randn_like(value) for key, value in backbone.state_dict().items()}


def save(folder: Path, content: Any, name: str = "weights.pth") -> Path:
    path = folder / name
    torch.save(content, path)
    return path


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_a_malicious_file_does_nothing_and_its_tensors_are_read(
    tmp_path: Path, is_zip: bool
) -> None:
    victim = tmp_path / "harmed"
    path = tmp_path / "evil.pth"
    content = {"state_dict": {"w": torch.arange(3.0)}, "extra": Harm(victim), "step": 3}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    read = read_checkpoint(path)
    assert not victim.exists()
    assert torch.equal(read["state_dict"]["w"], torch.arange(3.0))
    assert read["step"] == 3


def test_a_bare_malicious_pickle_is_refused(tmp_path: Path) -> None:
    victim = tmp_path / "harmed"
    path = tmp_path / "evil.pth"
    path.write_bytes(pickle.dumps({"state_dict": Harm(victim)}))
    with pytest.raises(ArtifactError, match=r"evil\.pth"):
        read_checkpoint(path)
    assert not victim.exists()


def test_objects_of_programs_that_are_not_installed_are_skipped(tmp_path: Path) -> None:
    module = types.ModuleType("foreign_program")

    class Config(dict[str, int]):
        pass

    class State:
        def __init__(self) -> None:
            self.values = [1, 2]

        def __hash__(self) -> int:
            return 1

    for cls in (Config, State):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    sys.modules[module.__name__] = module
    content = {
        "state_dict": {"student.w": torch.ones(2)},
        "hyper_parameters": Config(a=1),
        "callbacks": {State(): [State()], "seen": {State()}},
        "args": argparse.Namespace(lr=1),
        "path": Path("/x"),
        "epoch": 7,
    }
    try:
        path = save(tmp_path, content)
    finally:
        del sys.modules[module.__name__]
    read = read_checkpoint(path)
    assert read["epoch"] == 7
    assert torch.equal(read["state_dict"]["student.w"], torch.ones(2))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "readable"),
        (b"no checkpoint at all", "readable"),
        (b"PK\x03\x04 broken", "readable"),
        (None, "must exist"),
    ],
    ids=["empty", "text", "broken zip", "missing"],
)
def test_what_is_no_checkpoint_is_named(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "x.pth"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_checkpoint_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dictionary, got list"):
        read_checkpoint(save(tmp_path, [1, 2]))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": {**w, "decoder_embed.weight": torch.ones(3), "mask_token": w["norm.bias"]}},  # noqa: E501
        lambda w: {"model": {**w, "head.weight": torch.ones(9, 192), "head.bias": torch.ones(9)}},
        lambda w: {"state_dict": prefixed("student.backbone.", w)},
        lambda w: {"model": prefixed("module.", w), "optimizer": {"lr": 1}},
        lambda w: {"state_dict": {"model": prefixed("encoder.", w)}},
        lambda w: {"state_dict": prefixed("backbone.", w) | {"neck.x": torch.ones(1)}},
    ],
    ids=["plain", "MAE", "DeiT", "MAL", "parallel", "nested", "detector"],
)  # fmt: skip
def test_backbones_of_every_origin_load(
    tmp_path: Path, weights: dict[str, Tensor], wrap: Any
) -> None:
    backbone = ViTBackbone(ARCH, 32)
    load_backbone_weights(backbone, str(save(tmp_path, wrap(weights))))
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_safetensors_load(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({key: value.half() for key, value in weights.items()}, path)
    backbone = ViTBackbone(ARCH, 32)
    load_backbone_weights(backbone, str(path))
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[key], weights[key].half().float()) for key in weights)


def test_broken_safetensors_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"x\.safetensors"):
        read_checkpoint(path)


@pytest.mark.parametrize(
    "num_prefix", [0, 1, 2, 5], ids=["none", "class", "distilled", "registers"]
)
def test_position_embeddings_are_resized_to_the_crop(
    tmp_path: Path, weights: dict[str, Tensor], num_prefix: int
) -> None:
    ramp = torch.linspace(0, 1, 14)[None, :, None, None].expand(1, 14, 14, 192)
    special = torch.full((1, num_prefix, 192), 5.0)
    embedding = torch.cat([special, ramp.reshape(1, 196, 192)], dim=1)
    backbone = ViTBackbone(ARCH, 64)
    load_backbone_weights(backbone, str(save(tmp_path, {**weights, "pos_embed": embedding})))
    position = backbone.pos_embed.detach()
    assert position.shape == (1, 17, 192)
    assert position[0, 0].unique().tolist() == [5.0 if num_prefix else 0.0]
    rows = position[0, 1:].unflatten(0, (4, 4)).mean((1, 2))
    assert (rows.diff() > 0.1).all()


def test_a_foreign_prefix_is_named_with_the_remedy(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = save(tmp_path, prefixed("tower.vision.", weights))
    with pytest.raises(ArtifactError, match=r"missing: .*Set model\.arch"):
        load_backbone_weights(ViTBackbone(ARCH, 32), str(path))


def test_another_size_is_named_with_the_remedy(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        backbone = ViTBackbone("vit-mae-small/16", 32)
    with pytest.raises(ArtifactError, match=r"192.*instead of.*384.*model\.arch"):
        load_backbone_weights(backbone, str(save(tmp_path, weights)))


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_student_and_teacher_are_told_apart(tmp_path: Path, role: str) -> None:
    torch.manual_seed(0)
    networks = {name: MALNetwork(HYBRID, 32) for name in ("student", "teacher")}
    state = {
        f"{name}.{key}": value
        for name, network in networks.items()
        for key, value in network.state_dict().items()
    }
    fresh = MALNetwork(HYBRID, 32)
    load_network_weights(fresh, read_checkpoint(save(tmp_path, {"state_dict": state})), role)
    wanted = networks[role].state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in fresh.state_dict().items())


def test_a_checkpoint_without_the_role_says_what_it_holds(tmp_path: Path) -> None:
    content = read_checkpoint(save(tmp_path, {"state_dict": {"encoder.w": torch.ones(1)}}))
    with pytest.raises(ArtifactError, match=r"'teacher\.\*', got encoder\.w.*mal train"):
        load_network_weights(MALNetwork(HYBRID, 32), content, "teacher")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, without network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HOME", raising=False)
    return tmp_path / "hub"


HUB_NAME = "vit_tiny_patch16_224.augreg_in21k"


def test_a_name_of_the_hub_loads_from_its_cache(hub: Path, weights: dict[str, Tensor]) -> None:
    repository = hub / f"models--timm--{HUB_NAME}"
    snapshot = repository / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    position = torch.randn(1, 197, 192)
    save_file({**weights, "pos_embed": position}, snapshot / "model.safetensors")
    backbone = ViTBackbone(ARCH, 64)
    load_backbone_weights(backbone, f"timm:{HUB_NAME}")
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items() if k != "pos_embed")
    assert torch.equal(loaded["pos_embed"][:, 0], position[:, 0])


@pytest.mark.parametrize("name", [HUB_NAME, "no_such_model"])
def test_an_unreachable_name_of_the_hub_says_what_to_do(hub: Path, name: str) -> None:
    with pytest.raises(StorageError, match=rf"timm:{name}.*download the file"):
        load_backbone_weights(ViTBackbone(ARCH, 32), f"timm:{name}")
