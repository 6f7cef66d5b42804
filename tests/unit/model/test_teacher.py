"""The teacher follows the student and is never trained."""

import pytest
import torch
from torch import nn

from mal.model.network import MALNetwork
from mal.model.teacher import TeacherUpdate, make_teacher
from mal.spec.experiment import ModelSpec

HYBRID = ModelSpec(arch="vit-hybrid-small/8", mask_head="pyramid")


def student_of(*, freeze_backbone: bool = False) -> MALNetwork:
    torch.manual_seed(0)
    model = ModelSpec(HYBRID.arch, mask_head="pyramid", freeze_backbone=freeze_backbone)
    return MALNetwork(model, 32)


def move(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))


def test_it_starts_as_a_copy_without_gradients() -> None:
    student = student_of()
    teacher = make_teacher(student)
    mine, theirs = student.state_dict(), teacher.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    shared = {p.data_ptr() for p in student.parameters()} & {
        p.data_ptr() for p in teacher.parameters()
    }
    assert not shared


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.996, 1.0])
def test_it_moves_by_the_formula(momentum: float) -> None:
    student = student_of()
    teacher = make_teacher(student)
    move(student)
    before = {name: p.clone() for name, p in teacher.named_parameters()}
    now = dict(student.named_parameters())
    TeacherUpdate(teacher, student)(momentum)
    for name, parameter in teacher.named_parameters():
        expected = momentum * before[name] + (1 - momentum) * now[name]
        torch.testing.assert_close(parameter, expected.detach(), rtol=1e-5, atol=1e-6)
        assert parameter.grad_fn is None


def test_running_statistics_stay_finite_and_counted() -> None:
    student = student_of()
    teacher = make_teacher(student)
    student.train()
    student(torch.randn(2, 3, 32, 32), torch.rand(2, 4), torch.ones(2))
    for _ in range(3):
        TeacherUpdate(teacher, student)(0.5)
    mine, theirs = dict(student.named_buffers()), dict(teacher.named_buffers())
    for name, buffer in theirs.items():
        if not buffer.is_floating_point():
            assert torch.equal(buffer, mine[name]), name
        assert buffer.isfinite().all()


def test_a_frozen_backbone_is_shared() -> None:
    student = student_of(freeze_backbone=True)
    teacher = make_teacher(student)
    assert teacher.backbone is student.backbone
    before = {key: value.clone() for key, value in student.backbone.state_dict().items()}
    move(student)
    TeacherUpdate(teacher, student)(0.5)
    assert all(torch.equal(v, before[k]) for k, v in student.backbone.state_dict().items())
    assert teacher.mask_head is not student.mask_head
