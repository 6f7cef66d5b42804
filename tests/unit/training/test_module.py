"""The training step: nothing waits for a device, and each shortcut gives the same numbers."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from mal.data.batch import CropBatch
from mal.model.network import MALNetwork
from mal.model.teacher import TeacherUpdate
from mal.spec import ExperimentSpec, load_spec
from mal.training.module import MALModule
from mal.training.optimizer import build_optimizer

pytestmark = pytest.mark.filterwarnings("ignore:.*self.log.*", "ignore:.*self.trainer.*")

NETWORKS = {
    "convolutional": {"arch": "vit-mae-tiny/16", "mask_head_hidden_channel": 8},
    "fused": {"arch": "vit-mae-tiny/16", "mask_head": "fused", "object_pooling": "box"},
    "pyramid": {"arch": "vit-hybrid-small/8", "mask_head": "pyramid"},
}
AREAS_PX2 = [100.0, 5000.0, 50_000.0]


def spec_of(name: str, **changes: Any) -> ExperimentSpec:
    train = {
        "loss_mil_step": 0,
        "loss_crf_step": 0,
        "crf_num_iter": 3,
        "crf_start_thres": 0.4,
        "crf_color_space": "lab",
        "prior_weight": 0.25,
        "affinity_weight": 0.5,
        "lr": 1e-3,
        **changes.pop("train", {}),
    }
    model = NETWORKS[name] | changes.pop("model", {})
    return load_spec("train", {"model": model, "train": train, "dataset": {"crop_size": 32}})


def module_of(spec: ExperimentSpec, device: str = "cpu") -> MALModule:
    torch.manual_seed(0)
    with torch.device(device):
        student = MALNetwork(spec.model, spec.dataset.crop_size)
    module = MALModule(student, spec, seed=0, steps_per_epoch=9, num_steps=9)
    module.set_training_modes()
    return module


def batch_of(num_items: int = 3, *, has_student_image: bool = True) -> CropBatch:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (num_items, 3, 32, 32), generator=generator, dtype=torch.uint8)
    return CropBatch(
        image_BCSS=image,
        unit_box_B4=torch.tensor([[0.2, 0.2, 0.8, 0.8]]).repeat(num_items, 1),
        box_area_B=torch.tensor(AREAS_PX2[:num_items]),
        index_B=torch.arange(num_items),
        student_image_BCSS=image.flip(1).contiguous() if has_student_image else None,
    )


def step(module: MALModule, batch: CropBatch) -> Tensor:
    optimizer = build_optimizer(module.student, module.spec.train, 1e-3)
    loss = module.training_step(batch, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    module.optimizer_step(0, 0, optimizer, lambda: loss)
    return loss.detach()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("supervision", ["box", "mask"])
def test_no_figure_of_a_step_is_read_back_from_the_device(name: str, supervision: str) -> None:
    # Tensors of the device `meta` have no values: whatever asks for one fails.
    module = module_of(spec_of(name, train={"supervision": supervision}), "meta")
    batch = batch_of()
    if supervision == "mask":
        batch = dataclasses.replace(batch, true_mask_BSS=torch.ones(3, 32, 32, dtype=torch.uint8))
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.image_BCSS.is_meta
    loss = module.training_step(moved, 0)
    loss.backward()  # type: ignore[no-untyped-call]
    TeacherUpdate(module.teacher, module.student)(0.5)
    assert loss.is_meta


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_on_cuda_never_waits_for_the_device(name: str) -> None:
    module = module_of(spec_of(name)).to("cuda")
    batch = module.transfer_batch_to_device(batch_of().pin_memory(), torch.device("cuda"), 0)
    step(module, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss = module.training_step(batch, 0)
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16])
def test_a_step_in_half_precision_gives_nearly_the_same_loss(precision: torch.dtype) -> None:
    module = module_of(spec_of("convolutional")).to("cuda")
    batch = module.transfer_batch_to_device(batch_of(), torch.device("cuda"), 0)
    expected = module.training_step(batch, 0)
    with torch.autocast("cuda", precision):
        found = module.training_step(batch, 0)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("area_px2", AREAS_PX2)
@pytest.mark.parametrize("supervision", ["box", "mask"])
@pytest.mark.parametrize(
    "model",
    [
        {},
        {"not_adjust_scale": True},
        {"frozen_stages": [3], "object_pooling": "box"},
        {"freeze_backbone": True},
        {"vit_dpr": 0.9},
    ],
)
def test_every_trained_weight_gets_a_gradient_in_every_step(
    name: str, area_px2: float, supervision: str, model: dict[str, Any]
) -> None:
    # Plain DDP waits for all of them.
    if name == "pyramid" and ({"frozen_stages", "freeze_backbone"} & set(model)):
        pytest.skip("the hybrid is trained whole")
    train = {"loss_crf_step": 100, "supervision": supervision}
    module = module_of(spec_of(name, model=model, train=train))
    batch = dataclasses.replace(
        batch_of(1),
        box_area_B=torch.tensor([area_px2]),
        true_mask_BSS=torch.ones(1, 32, 32, dtype=torch.uint8),
    )
    module.training_step(batch, 0).backward()  # type: ignore[no-untyped-call]
    trained = {k: p for k, p in module.student.named_parameters() if p.requires_grad}
    assert [name for name, weight in trained.items() if weight.grad is None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_in_bf16_gives_nearly_the_same_loss(name: str) -> None:
    module = module_of(spec_of(name, train={"supervision": "box"}))
    expected = module.training_step(batch_of(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = module.training_step(batch_of(), 0)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


def test_the_teacher_keeps_nothing_for_a_backward_pass() -> None:
    module = module_of(spec_of("fused"))
    image = torch.zeros(3, 3, 32, 32)
    prob, affinity = module._teacher_predict(None, image, batch_of())
    assert prob.is_inference()
    assert affinity.tokens_BDhw.is_inference()
    assert step(module, batch_of()).isfinite()


def test_a_frozen_backbone_sees_an_image_without_colour_changes_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = spec_of("fused", model={"freeze_backbone": True})
    losses: list[Tensor] = []
    calls: list[Tensor] = []
    encode = MALNetwork.encode

    def counted(network: MALNetwork, image: Tensor) -> list[Tensor]:
        calls.append(image)
        return encode(network, image)

    monkeypatch.setattr(MALNetwork, "encode", counted)
    for has_student_image in (False, True):
        batch = batch_of(has_student_image=has_student_image)
        if has_student_image:
            batch.student_image_BCSS = batch.image_BCSS
        losses.append(step(module_of(spec), batch))
    assert len(calls) == 1 + 2
    assert torch.equal(*losses)


def test_the_areas_of_boxes_stay_on_the_host() -> None:
    module = module_of(spec_of("convolutional"))
    moved = module.transfer_batch_to_device(batch_of(), torch.device("meta"), 0)
    assert moved.box_area_B.device.type == "cpu"
    assert moved.unit_box_B4.is_meta


def can_compile() -> bool:
    try:
        torch.compile(torch.square)(torch.ones(8))
    except Exception:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not can_compile(), reason="nothing can be compiled here")
def test_a_compiled_step_gives_the_same_weights_under_the_same_names() -> None:
    plain = module_of(spec_of("convolutional"))
    compiled = module_of(spec_of("convolutional", train={"compile": True}))
    for _ in range(2):
        losses = [step(module, batch_of()) for module in (plain, compiled)]
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-5)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
