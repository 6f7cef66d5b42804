"""`model.arch=timm:NAME`: one small model of each family, from training to ONNX."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from mal import Predictor
from mal.data.batch import IMAGENET_MEAN, IMAGENET_STD
from mal.data.synthetic import generate_demo_dataset
from mal.errors import SpecError
from mal.model.backbone import build_backbone, describe_backbone
from mal.model.checkpoint import load_backbone_weights
from mal.model.network import MALNetwork
from mal.spec import load_spec
from mal.spec.experiment import ModelSpec
from mal.stages import run_export, run_inference, run_train

FAMILIES = {
    "ViT": "vit_tiny_patch16_224",
    "DINOv3": "vit_tiny_patch16_dinov3_qkvb",
    "SAM-ViT": "samvit_base_patch16",
    "Hiera": "hiera_tiny_224",
    "TinyViT": "tiny_vit_5m_224",
}
IN_CI = {"ViT", "Hiera"}
each_family = pytest.mark.parametrize("name", FAMILIES.values(), ids=FAMILIES.keys())


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "head"),
    [
        pytest.param(name, head, id=family, marks=[] if family in IN_CI else [pytest.mark.thorough])
        for (family, name), head in zip(
            FAMILIES.items(),
            ("convolutional", "fused", "convolutional", "fused", "fused"),
            strict=True,
        )
    ],
)
def test_a_model_of_each_family_trains_predicts_and_exports(
    name: str, head: str, tmp_path: Path
) -> None:
    demo = generate_demo_dataset(tmp_path / "demo", num_images=6, seed=1)
    overrides = [
        "device=cpu", f"model.arch=timm:{name}", f"model.mask_head={head}",
        "model.mask_head_hidden_channel=16", "model.mask_head_out_channel=16",
        "dataset.crop_size=64", "dataset.min_obj_size=0", "dataset.num_workers_per_gpu=0",
        f"dataset.train_ann_path={demo.train_file}", f"dataset.train_img_dir={demo.image_dir}",
        "train.max_steps=2", "train.batch_size=2", "train.loss_crf_step=0", "train.crf_num_iter=2",
        "wandb.enable=false", f"results_dir={tmp_path / 'out'}",
    ]  # fmt: skip
    checkpoint = run_train(load_spec("train", {}, overrides)).checkpoint

    labelled = run_inference(load_spec("inference", {}, [
        *overrides, f"inference.checkpoint={checkpoint}", f"inference.ann_path={demo.val_file}",
        f"inference.img_dir={demo.image_dir}",
    ]))  # fmt: skip
    document = json.loads(Path(labelled.labels).read_text())
    assert all("segmentation" in annotation for annotation in document["annotations"])

    exported = run_export(load_spec("export", {}, [*overrides, f"export.checkpoint={checkpoint}"]))
    assert exported.max_abs_diff < 1e-3
    image = np.random.default_rng(0).integers(0, 255, (96, 96, 3), np.uint8)
    boxes = np.array([[10.0, 12, 60, 70], [30, 30, 90, 90]])
    masks = [Predictor(path).predict(image, boxes) for path in (checkpoint, exported.onnx)]
    assert (masks[0] != masks[1]).mean() < 1e-3


@each_family
@pytest.mark.parametrize("head", ["convolutional", "fused"])
def test_every_trained_weight_gets_a_gradient(name: str, head: str) -> None:
    """Several processes wait for the gradient of every weight: an unused one would stop them."""
    network = MALNetwork(ModelSpec(f"timm:{name}", mask_head=head), 64).train()
    box = torch.tensor([[0.2, 0.2, 0.8, 0.8]] * 2)
    network(torch.randn(2, 3, 64, 64), box, torch.tensor([500.0, 5000.0])).mean().backward()
    assert [key for key, value in network.named_parameters() if value.grad is None] == []


@each_family
def test_frozen_stages_are_the_embeddings_and_the_blocks(name: str) -> None:
    network = MALNetwork(ModelSpec(f"timm:{name}", frozen_stages=[0, 1]), 64)
    trained = {key: value.requires_grad for key, value in network.backbone.named_parameters()}
    first_block = min(key for key in trained if ".blocks.0." in key or ".stages.0." in key)
    assert not trained[first_block]
    assert not any(is_trained for key, is_trained in trained.items() if ".patch_embed." in key)
    assert any(trained.values())


@pytest.mark.parametrize(
    ("frozen_stages", "message"),
    [([2, 1], "must rise"), ([0, 13], "must end at 12 or below")],
    ids=["falling", "too many"],
)
def test_stages_that_do_not_exist_are_refused(frozen_stages: list[int], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        MALNetwork(ModelSpec(f"timm:{FAMILIES['ViT']}", frozen_stages=frozen_stages), 64)


@each_family
def test_weights_of_timm_load_at_another_crop_size(name: str, tmp_path: Path) -> None:
    published = timm.create_model(name, num_classes=0)
    torch.save(published.state_dict(), tmp_path / "weights.pth")
    backbone = build_backbone(ModelSpec(f"timm:{name}"), 96)
    load_backbone_weights(backbone, str(tmp_path / "weights.pth"))
    loaded, given = backbone.state_dict(), published.state_dict()
    same = [key for key in loaded if torch.equal(loaded[key], given[key.removeprefix("model.")])
            if loaded[key].shape == given[key.removeprefix("model.")].shape]  # fmt: skip
    assert len(same) > 0.9 * len(loaded)


def test_normalised_crops_are_converted_to_the_models_mean_and_deviation() -> None:
    name = "vit_tiny_patch16_224"  # of mean and deviation 0.5
    backbone: Any = build_backbone(ModelSpec(f"timm:{name}"), 64).eval()
    rgb = torch.rand(1, 3, 64, 64)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.inference_mode():
        (found,) = backbone((rgb - mean) / std)
        expected = backbone.model.forward_intermediates(
            (rgb - 0.5) / 0.5, indices=[11], norm=True, intermediates_only=True
        )[0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "stride_px", "crop_step_px", "licence"),
    [
        ("vit_tiny_patch16_224", 16, 16, "apache-2.0"),
        ("vit_tiny_patch16_dinov3_qkvb", 16, 16, "fair-noncommercial-research-license"),
        ("samvit_base_patch16", 16, 16, "apache-2.0"),
        ("hiera_tiny_224", 16, 32, "cc-by-nc-4.0"),
        ("tiny_vit_5m_224", 16, 32, "apache-2.0"),
        ("vit_base_patch32_224", 32, 32, "apache-2.0"),
    ],
)
def test_timm_tells_stride_and_licence(
    name: str, stride_px: int, crop_step_px: int, licence: str
) -> None:
    entry = describe_backbone(f"timm:{name}")
    found = entry.stride_px, entry.crop_multiple_px, entry.weights_licence
    assert found == (stride_px, crop_step_px, licence)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vit_tny_patch16_224", r"a model of timm .* Use the nearest: timm:vit_tiny_patch16_224"),
        ("inception_v4", r"timm:inception_v4: of a crop of 64 px it gives \(2, 2\) cells instead"),
        ("hiera_tiny_224.nothing", "Use the nearest: timm:hiera_tiny_224"),
    ],
    ids=["misspelt", "other grid", "unknown weights"],
)  # fmt: skip
def test_a_model_that_cannot_be_used_is_named_with_the_nearest_that_can(
    name: str, message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        MALNetwork(ModelSpec(f"timm:{name}"), 64)


def test_a_model_without_feature_maps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(timm.models.VisionTransformer, "forward_intermediates")
    with pytest.raises(SpecError, match="vit_tiny_patch16_384: it has no forward_intermediates"):
        MALNetwork(ModelSpec("timm:vit_tiny_patch16_384"), 64)


def test_a_crop_that_a_model_cannot_read_is_refused() -> None:
    with pytest.raises(SpecError, match="multiple of the patch size 32 of timm:hiera_tiny_224"):
        MALNetwork(ModelSpec("timm:hiera_tiny_224"), 48)
