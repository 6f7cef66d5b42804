"""Weights of every origin, and files that mean harm."""

import argparse
import logging
import math
import pickle
import re
import struct
import sys
import types
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mal.errors import ArtifactError, StorageError
from mal.model.backbone import build_backbone
from mal.model.checkpoint import (
    load_backbone_weights,
    load_network_weights,
    load_pretrained_weights,
    read_checkpoint,
    read_training_spec,
)
from mal.model.network import MALNetwork
from mal.spec.experiment import ModelSpec

ARCH = "vit-mae-tiny/16"
HYBRID = ModelSpec(arch="vit-hybrid-small/8", mask_head="pyramid")
TINY = ModelSpec(arch=ARCH, mask_head_hidden_channel=8, mask_head_out_channel=8)


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
    backbone = build_backbone(ModelSpec(ARCH), 32)
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


CUT_PICKLE = (
    b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}q\x00.\x80\x02X\x02"
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "readable"),
        (b"no checkpoint at all", "readable"),
        (b"PK\x03\x04 broken", "readable"),
        (CUT_PICKLE, "readable"),
        (None, "must exist"),
    ],
    ids=["empty", "text", "broken zip", "cut pickle", "missing"],
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


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("mmap: Cannot allocate memory (12)")]
)
def test_memory_that_runs_out_is_not_blamed_on_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    path = save(tmp_path, {"state_dict": {}})
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(type(error)) as caught:
        read_checkpoint(path)
    assert caught.value is error


def claiming(opcode: bytes, size_format: str, size: int = 1 << 40) -> bytes:
    """A pickle whose one value claims to be far longer than the file."""
    return b"\x80\x04" + opcode + struct.pack(size_format, size) + b"abc."


def with_a_huge_storage(path: Path, *, is_zip: bool) -> bytes:
    """A file of PyTorch whose one storage claims 4 TiB."""
    torch.save({"w": torch.arange(4.0)}, path, _use_new_zipfile_serialization=is_zip)
    few, many = b"K\x04", b"\x8a\x06" + (1 << 40).to_bytes(6, "little")
    if not is_zip:
        return path.read_bytes().replace(few + b"N", many + b"N")
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data.replace(few + b"tq", many + b"tq"))
    return path.read_bytes()


@pytest.mark.parametrize(
    "write",
    [
        lambda _: claiming(b"\x8e", "<Q"),
        lambda _: claiming(b"\x8d", "<Q"),
        lambda _: claiming(b"\x96", "<Q"),
        lambda _: claiming(b"\x95", "<Q"),
        lambda _: b"\x80\x02Nr" + struct.pack("<I", (1 << 32) - 1) + b".",
        lambda path: with_a_huge_storage(path, is_zip=False),
    ],
    ids=["bytes", "text", "byte array", "frame", "memo", "legacy storage"],
)
@pytest.mark.parametrize("read", [read_checkpoint, read_training_spec])
def test_a_claim_beyond_the_file_is_damage_and_no_shortage(
    tmp_path: Path, write: Any, read: Any
) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(write(path))
    with pytest.raises(ArtifactError, match=r"checkpoint must be readable .*x\.pth \(\w.* \w"):
        read(path)


def test_a_storage_that_claims_more_than_its_record_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(with_a_huge_storage(path, is_zip=True))
    with pytest.raises(ArtifactError, match=r"readable.*does not match"):
        read_checkpoint(path)
    assert read_training_spec(path) is None  # which leaves the storage alone


def test_damage_is_found_where_memory_runs_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(torch, "load", fail)
    content = save(tmp_path, {"w": torch.ones(2)}).read_bytes()
    (tmp_path / "cut.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="claims more bytes than it has"):
        read_checkpoint(tmp_path / "cut.pth")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(MemoryError):
        read_checkpoint(tmp_path / "old.pth")


def test_pytorch_warns_of_nothing_before_our_one_line(tmp_path: Path) -> None:
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"a": {1, 2}}, protocol=4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ArtifactError, match="readable"):
            read_checkpoint(path)


def test_a_long_reason_is_cut_between_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("checkpoints " * 40 + "\nsecond line")

    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ArtifactError, match=r"checkpoints \.\.\.\)") as caught:
        read_checkpoint(save_bytes(tmp_path))
    assert "second" not in str(caught.value)


def save_bytes(folder: Path) -> Path:
    path = folder / "any.pth"
    path.write_bytes(b"any")
    return path


def test_a_checkpoint_without_a_dictionary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="dictionary, got list"):
        read_checkpoint(save(tmp_path, [1, 2]))


def decoder_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What MAE's pretraining saves beside the encoder."""
    block = {k: v for k, v in weights.items() if k.startswith("blocks.0.")}
    return {
        **{f"decoder_{key}": value for key, value in block.items()},
        "mask_token": torch.ones(1, 1, 192),
        "decoder_embed.weight": torch.ones(512, 192),
        "decoder_pos_embed": torch.ones(1, 5, 512),
        "decoder_norm.weight": torch.ones(512),
        "decoder_pred.bias": torch.ones(768),
    }


def pooled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What MAE's fine-tuning makes of the last norm, with a classifier."""
    renamed = {k.replace("norm.", "fc_norm.") if k.startswith("norm.") else k: v
               for k, v in weights.items()}  # fmt: skip
    return {**renamed, "head.weight": torch.ones(9, 192), "head.bias": torch.ones(9)}


def distilled(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """DeiT's second token, between class and grid, and both classifiers."""
    position = weights["pos_embed"]
    second = torch.full((1, 1, 192), 7.0)
    return {
        **weights,
        "dist_token": second,
        "pos_embed": torch.cat([position[:, :1], second, position[:, 1:]], dim=1),
        "head.weight": torch.ones(9, 192),
        "head_dist.weight": torch.ones(9, 192),
    }


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: w,
        lambda w: {"model": {**w, **decoder_of(w)}},
        lambda w: {"model": pooled(w), "optimizer": {"lr": 1}, "epoch": 99,
                   "args": argparse.Namespace(blr=1e-3)},
        lambda w: {"model": {**w, "head.weight": torch.ones(9, 192), "head.bias": torch.ones(9)}},
        lambda w: {"model": distilled(w)},
        lambda w: {"state_dict": prefixed("student.backbone.", w)
                   | prefixed("teacher.backbone.", dict.fromkeys(w, torch.zeros(1)))},
        lambda w: {"state_dict": prefixed("model.student.backbone.", w)},
        lambda w: {"model": prefixed("module.", w), "optimizer": {"lr": 1}},
        lambda w: {"state_dict": {"model": prefixed("encoder.", w)}},
        lambda w: {"state_dict": prefixed("backbone.", w) | {"neck.x": torch.ones(1)}},
    ],
    ids=["plain", "MAE", "MAE fine-tuned", "DeiT", "DeiT distilled", "MAL", "wrapped MAL",
         "parallel", "nested", "detector"],
)  # fmt: skip
def test_backbones_of_every_origin_load(
    tmp_path: Path, weights: dict[str, Tensor], wrap: Any
) -> None:
    backbone = build_backbone(ModelSpec(ARCH), 32)
    load_backbone_weights(backbone, str(save(tmp_path, wrap(weights))))
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


def test_what_is_loaded_missing_and_ignored_is_one_line(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    incomplete = {k: v for k, v in weights.items() if k != "norm.bias"}
    path = save(tmp_path, {**incomplete, "head.bias": torch.ones(9)})
    with pytest.raises(ArtifactError, match=r"missing: norm\.bias"):
        load_backbone_weights(build_backbone(ModelSpec(ARCH), 32), str(path))
    name = f"the backbone from {path}"
    assert caplog.messages == [
        f"{name}: {len(weights) - 1} weights loaded, 1 missing (norm.bias), 1 ignored (head.bias)"
    ]


def test_a_network_that_gets_its_weights_and_no_others_is_one_short_line(
    tmp_path: Path, weights: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    path = save(tmp_path, weights)
    load_backbone_weights(build_backbone(ModelSpec(ARCH), 32), str(path))
    assert caplog.messages == [f"the backbone from {path}: {len(weights)} weights loaded"]


def test_weights_of_timm_are_ours_by_name(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", num_classes=9)
    backbone = build_backbone(ModelSpec(ARCH), 224)
    load_backbone_weights(backbone, str(save(tmp_path, model.state_dict())))
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = model.eval().forward_features(image)[:, 1:]
        ours = backbone.eval()(image)[0]
    assert torch.allclose(ours.flatten(2).transpose(1, 2), tokens, atol=1e-5)


def test_safetensors_load(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({key: value.half() for key, value in weights.items()}, path)
    backbone = build_backbone(ModelSpec(ARCH), 32)
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
    backbone = build_backbone(ModelSpec(ARCH), 64)
    load_backbone_weights(backbone, str(save(tmp_path, {**weights, "pos_embed": embedding})))
    position: Any = backbone.get_parameter("pos_embed").detach()
    assert position.shape == (1, 17, 192)
    assert position[0, 0].unique().tolist() == [5.0 if num_prefix else 0.0]
    rows = position[0, 1:].unflatten(0, (4, 4)).mean((1, 2))
    assert (rows.diff() > 0.1).all()


@pytest.mark.parametrize(
    "num_tokens",
    [0, 7, 14 * 20, 1 + 14 * 20, 1 + (1 << 40)],
    ids=["none", "few", "oblong", "oblong with class", "huge"],
)
@pytest.mark.parametrize(
    "load",
    [
        lambda network, path: load_network_weights(network, read_checkpoint(path), "student"),
        lambda network, path: load_pretrained_weights(network, str(path)),
        lambda network, path: load_backbone_weights(network.backbone, str(path)),
    ],
    ids=["whole", "student", "backbone"],
)
def test_position_embeddings_of_no_square_grid_are_named_with_their_shape(
    tmp_path: Path, num_tokens: int, load: Any
) -> None:
    embedding = torch.zeros(1, min(num_tokens, 1), 192).expand(1, num_tokens, 192)
    network = network_of()
    state = prefixed("student.", network.state_dict() | {"backbone.pos_embed": embedding})
    path = save(tmp_path, {"state_dict": state})
    told = re.escape(f"got shape (1, {num_tokens}, 192)")
    with pytest.raises(ArtifactError, match=rf"pos_embed must be a square grid.*{told}"):
        load(network, path)


def test_position_embeddings_of_a_huge_batch_are_not_resized(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    embedding = torch.zeros(1, 197, 192).expand(1 << 30, 197, 192)
    path = save(tmp_path, {**weights, "pos_embed": embedding})
    with pytest.raises(ArtifactError, match=r"pos_embed of \(1073741824, 197, 192\) instead of"):
        load_backbone_weights(build_backbone(ModelSpec(ARCH), 32), str(path))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("key", ["norm.bias", "pos_embed"])
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (Tensor.to_sparse, "sparse"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "quantised"),
        (lambda v: v.to("meta"), "meta"),
    ],
    ids=["sparse", "quantised", "meta"],
)
def test_a_weight_that_is_no_plain_tensor_is_named(
    tmp_path: Path, weights: dict[str, Tensor], key: str, make: Any, kind: str
) -> None:
    path = save(tmp_path, {**weights, key: make(weights[key])})
    told = rf"must be plain dense tensors, got a {kind} tensor.* in {key}\."
    with pytest.raises(ArtifactError, match=told):
        load_backbone_weights(build_backbone(ModelSpec(ARCH), 64), str(path))
    state = network_of().state_dict()
    content = prefixed("student.", state | {"roi_head.x": make(torch.ones(2))})
    with pytest.raises(ArtifactError, match=rf"a {kind} tensor.* in roi_head\.x"):
        load_network_weights(network_of(), read_checkpoint(save(tmp_path, content)), "student")


@pytest.mark.parametrize(
    ("value", "told"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "inf"), (1e300, "inf")]
)
def test_weights_that_are_no_numbers_are_named(tmp_path: Path, value: float, told: str) -> None:
    state = network_of().state_dict()
    state["mask_head.convs.0.weight"] = state["mask_head.convs.0.weight"].double()
    state["mask_head.convs.0.weight"][0, 0, 1, 1] = value
    path = save(tmp_path, {"state_dict": prefixed("student.", state)})
    message = rf"weights of the student must be finite, got {told} in mask_head\.convs\.0\.weight\."
    fresh = network_of(seed=4)
    untouched = {key: value.clone() for key, value in fresh.state_dict().items()}
    with pytest.raises(ArtifactError, match=message):
        load_network_weights(fresh, read_checkpoint(path), "student")
    assert is_equal(fresh, untouched)


def test_a_foreign_prefix_is_named_with_the_remedy(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = save(tmp_path, prefixed("tower.vision.", weights))
    with pytest.raises(ArtifactError, match=r"missing: .*Set model\.arch"):
        load_backbone_weights(build_backbone(ModelSpec(ARCH), 32), str(path))


def test_another_size_is_named_with_the_remedy(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with torch.device("meta"):
        backbone = build_backbone(ModelSpec("vit-mae-small/16"), 32)
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


def network_of(model: ModelSpec = TINY, crop_size: int = 32, seed: int = 3) -> MALNetwork:
    torch.manual_seed(seed)
    return MALNetwork(model, crop_size)


def renamed_heads(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same layers under another program's names."""
    pairs = (("mask_head.convs.", "mask_head.layer"), ("roi_head.mlp.", "roi_head.fc_"))
    renamed = {}
    for key, value in state.items():
        new = key
        for ours, theirs in pairs:
            new = new.replace(ours, theirs)
        renamed[new] = value
    return renamed


def is_equal(network: MALNetwork, state: Mapping[str, Tensor]) -> bool:
    mine = network.state_dict()
    return all(torch.equal(mine[key], state[key]) for key in mine)


@pytest.mark.parametrize(
    "prefix", ["student.", "model.student.", "module.student.", "student.module."]
)
def test_a_wrapped_program_gives_its_student(tmp_path: Path, prefix: str) -> None:
    state = network_of().state_dict()
    content = {"state_dict": prefixed(prefix, state) | {"mean_field.kernel": torch.ones(3)}}
    fresh = network_of(seed=4)
    load_network_weights(fresh, read_checkpoint(save(tmp_path, content)), "student")
    assert is_equal(fresh, state)


def test_a_network_of_half_precision_and_another_crop_loads(tmp_path: Path) -> None:
    state = {k: v.half() for k, v in network_of(crop_size=224).state_dict().items()}
    fresh = network_of(crop_size=64)
    content = read_checkpoint(save(tmp_path, {"state_dict": prefixed("student.", state)}))
    load_network_weights(fresh, content, "student")
    mine = fresh.state_dict()
    same = [key for key in mine if key != "backbone.pos_embed"]
    assert all(torch.equal(mine[key], state[key].float()) for key in same)
    assert mine["backbone.pos_embed"].shape == (1, 17, 192)
    class_token = state["backbone.pos_embed"][:, 0].float()
    assert torch.equal(mine["backbone.pos_embed"][:, 0], class_token)


def test_heads_of_other_names_are_matched_by_order_and_shape(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    state = network_of().state_dict()
    content = {"state_dict": prefixed("student.", renamed_heads(state))}
    fresh = network_of(seed=4)
    load_network_weights(fresh, read_checkpoint(save(tmp_path, content)), "student")
    assert is_equal(fresh, state)
    matched = [line for line in caplog.messages if "by order and shape" in line]
    assert len(matched) == 2
    assert "mask_head.layer0.weight is mask_head.convs.0.weight" in matched[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: dict(reversed(s.items())), "must be complete"),
        (lambda s: s | {"mask_head.layer9.weight": torch.ones(8, 8, 3, 3)}, "must be complete"),
        (lambda s: s | {"mask_head.convs.0.bias": torch.ones(8)}, "must be complete"),
    ],
    ids=["another order", "a layer more", "some names ours"],
)
def test_ambiguous_heads_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    state = change(renamed_heads(network_of().state_dict()))
    content = read_checkpoint(save(tmp_path, {"state_dict": prefixed("student.", state)}))
    with pytest.raises(ArtifactError, match=rf"{message}.*mask_head"):
        load_network_weights(network_of(), content, "student")


def test_a_deeper_head_is_not_cut_to_ours(tmp_path: Path) -> None:
    deeper = ModelSpec(
        arch=ARCH,
        mask_head_num_convs=6,
        mask_head_hidden_channel=8,
        mask_head_out_channel=8,
    )
    state = prefixed("student.", network_of(deeper).state_dict())
    content = read_checkpoint(save(tmp_path, {"state_dict": state}))
    with pytest.raises(ArtifactError, match=r"mask_head\.convs\.4\.weight.*model\.\*"):
        load_network_weights(network_of(), content, "student")


@pytest.mark.parametrize("rename", [dict, renamed_heads], ids=["ours", "renamed"])
@pytest.mark.parametrize("name", ["champion.pth", "champion.ckpt"])
def test_a_new_student_starts_from_a_whole_one(tmp_path: Path, name: str, rename: Any) -> None:
    networks = {"student": network_of(), "teacher": network_of(seed=9)}
    state: dict[str, Tensor] = {}
    for role, network in networks.items():
        state |= prefixed(f"{role}.", rename(network.state_dict()))
    fresh = network_of(seed=4)
    assert load_pretrained_weights(fresh, str(save(tmp_path, {"state_dict": state}, name)))
    assert is_equal(fresh, networks["student"].state_dict())


def test_heads_that_do_not_fit_start_anew_and_the_log_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mal")
    wider = ModelSpec(arch=ARCH, mask_head_hidden_channel=16, mask_head_out_channel=8)
    champion = network_of(wider, crop_size=64).state_dict()
    path = save(tmp_path, {"state_dict": prefixed("student.", champion)})
    fresh, untouched = network_of(seed=4), network_of(seed=4).state_dict()
    assert not load_pretrained_weights(fresh, str(path))
    mine = fresh.state_dict()
    for key, value in mine.items():
        if key != "backbone.pos_embed":
            origin = champion if key.startswith("backbone.") else untouched
            assert torch.equal(value, origin[key]), key
    assert "start anew" in caplog.messages[-1]
    assert "mask_head.convs.0.weight of (16, 192, 3, 3) instead of (8," in caplog.messages[-1]


def test_a_new_student_takes_a_plain_backbone(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    fresh = network_of()
    assert not load_pretrained_weights(fresh, str(save(tmp_path, {"model": weights})))
    assert torch.equal(fresh.backbone.state_dict()["norm.bias"], weights["norm.bias"])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.tlt", b"\x9f\x13 encrypted"),
        ("model.hdf5", b"\x89HDF\r\n\x1a\n"),
        ("model.pth", {"state_dict": b"\x9f\x13", "state_dict_encrypted": True, "epoch": 9}),
    ],
    ids=["tlt", "hdf5", "pth"],
)
def test_files_that_tao_encrypted_name_the_remedy(tmp_path: Path, name: str, content: Any) -> None:
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(ArtifactError, match=rf"{name}.*empty encryption_key") as caught:
        read_checkpoint(path)
    assert "encrypted" in str(caught.value)


def test_attributes_that_a_program_hung_on_its_tensors_are_dropped(tmp_path: Path) -> None:
    class Mark:
        pass

    Mark.__module__, Mark.__qualname__ = "foreign_marks", "Mark"
    module = types.ModuleType("foreign_marks")
    module.Mark = Mark  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    plain, parameter = torch.arange(2.0), torch.nn.Parameter(torch.arange(3.0))
    plain.mark, parameter.mark = Mark(), Mark()  # type: ignore[attr-defined]
    try:
        path = save(tmp_path, {"state_dict": {"a": plain, "b": parameter}})
    finally:
        del sys.modules[module.__name__]
    state = read_checkpoint(path)["state_dict"]
    assert torch.equal(state["a"], torch.arange(2.0))
    assert torch.equal(state["b"].detach(), torch.arange(3.0))


@pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
def test_the_spec_of_a_checkpoint_is_read_alone(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "x.pth"
    content = {"state_dict": {"w": torch.ones(2)}, "mal_spec": {"train": {"seed": 1}}}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    assert read_training_spec(path) == {"train": {"seed": 1}}
    assert read_training_spec(save(tmp_path, {"state_dict": {}}, "foreign.pth")) is None


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
    backbone = build_backbone(ModelSpec(ARCH), 64)
    load_backbone_weights(backbone, f"timm:{HUB_NAME}")
    loaded = backbone.state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in weights.items() if k != "pos_embed")
    assert torch.equal(loaded["pos_embed"][:, 0], position[:, 0])


@pytest.mark.parametrize("name", [HUB_NAME, "no_such_model"])
def test_an_unreachable_name_of_the_hub_says_what_to_do(hub: Path, name: str) -> None:
    with pytest.raises(StorageError, match=rf"timm:{name}.*download the file"):
        load_backbone_weights(build_backbone(ModelSpec(ARCH), 32), f"timm:{name}")
