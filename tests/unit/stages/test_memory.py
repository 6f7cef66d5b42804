"""What to try next when memory runs out, as tables."""

import errno
import itertools
from typing import Any

import pytest
import torch

from mal.distributed import NodeTopology
from mal.distributed.workers import Worker
from mal.errors import ArtifactError
from mal.spec import load_spec
from mal.spec.backbones import BACKBONES
from mal.stages.memory import (
    is_out_of_memory,
    iterate_fallbacks,
    memory_keys,
    prediction_shortage,
    smaller_training,
    training_shortage,
    with_changes,
)

CPU_ERROR = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_ERROR = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB of "
    "which 1.10 GiB is free."
)
CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def spec_of(*overrides: str) -> Any:
    return load_spec("train", {}, overrides)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (CUDA_ERROR, True),
        (CPU_ERROR, True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("unable to mmap 9 bytes from file <x>: Cannot allocate memory (12)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("shapes do not match"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_memory_that_ran_out_is_recognised(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def chain(*errors: BaseException, is_explicit: bool = True) -> BaseException:
    """The first of the errors, which came from the second, and so on."""
    for error, origin in itertools.pairwise(errors):
        if is_explicit:
            error.__cause__ = origin
        else:
            error.__context__ = origin
    return errors[0]


@pytest.mark.parametrize("is_explicit", [True, False], ids=["cause", "context"])
@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([RuntimeError("export failed"), ValueError(), MemoryError()], True),
        ([RuntimeError("export failed"), ValueError("shapes")], False),
        ([ArtifactError("checkpoint must be readable"), MemoryError()], False),
        ([RuntimeError("x"), ArtifactError("y"), MemoryError()], False),
        ([OSError(errno.ENOSPC, "No space left on device"), MemoryError()], False),
        ([KeyboardInterrupt(), MemoryError()], False),
    ],
    ids=["wrapped", "another", "damage", "wrapped damage", "disk", "interrupted"],
)
def test_what_an_error_came_from_counts(
    errors: list[BaseException], expected: bool, is_explicit: bool
) -> None:
    assert is_out_of_memory(chain(*errors, is_explicit=is_explicit)) is expected


def test_a_context_that_was_suppressed_or_a_ring_is_no_shortage() -> None:
    error = chain(RuntimeError("x"), MemoryError(), is_explicit=False)
    error.__suppress_context__ = True
    assert not is_out_of_memory(error)
    left, right = RuntimeError("left"), RuntimeError("right")
    left.__cause__, right.__cause__ = right, left
    assert not is_out_of_memory(left)


def test_a_wrapped_shortage_is_told_as_the_one_inside() -> None:
    error = chain(RuntimeError("Failed to export on CUDA"), CPU_ERROR)
    shortage = prediction_shortage("export", spec_of(), error, CUDA)
    assert str(shortage) == (
        "export failed: out of memory (tried to allocate 400000000000 bytes) on "
        "cpu. Use a device with more memory."
    )


def test_the_cpu_allocator_speaks_as_we_expect() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    ("arch", "crop_size", "batch_size", "expected"),
    [
        ("vit-mae-base/16", 1024, 4, {"dataset.crop_size": 384}),
        ("vit-mae-base/16", 512, 4, {"dataset.crop_size": 384}),
        ("vit-mae-base/16", 384, 4, {"dataset.crop_size": 256}),
        ("vit-mae-base/16", 320, 4, {"dataset.crop_size": 256}),
        ("vit-mae-base/16", 256, 4, {"model.arch": "vit-mae-small/16"}),
        ("vit-mae-base/16", 224, 4, {"model.arch": "vit-mae-small/16"}),
        ("vit-mae-huge/14", 518, 4, {"dataset.crop_size": 378}),
        ("vit-mae-huge/14", 378, 4, {"dataset.crop_size": 252}),
        (
            "vit-mae-huge/14", 252, 4,
            {"model.arch": "vit-mae-large/16", "dataset.crop_size": 240},
        ),
        ("vit-mae-huge/14", 224, 4, {"model.arch": "vit-mae-large/16"}),
        ("vit-mae-large/16", 256, 4, {"model.arch": "vit-mae-base/16"}),
        ("vit-mae-small/16", 256, 4, {"model.arch": "vit-mae-tiny/16"}),
        ("vit-mae-tiny/16", 256, 5, {"train.batch_size": 2}),
        ("vit-mae-tiny/16", 256, 1, {}),
        ("vit-deit-base/16", 256, 1, {"model.arch": "vit-deit-small/16"}),
        ("vit-deit-small/16", 256, 1, {"model.arch": "vit-deit-tiny/16"}),
        ("vit-deit-tiny/16", 256, 1, {}),
        ("vit-dinov2-base/14", 518, 1, {"dataset.crop_size": 378}),
        ("vit-dinov2-base/14", 252, 1, {"model.arch": "vit-dinov2-small/14"}),
        ("vit-dinov2-small/14", 252, 2, {"train.batch_size": 1}),
    ],
)  # fmt: skip
def test_the_next_smaller_training(
    arch: str, crop_size: int, batch_size: int, expected: dict[str, Any]
) -> None:
    spec = spec_of(
        f"model.arch={arch}", f"dataset.crop_size={crop_size}", f"train.batch_size={batch_size}"
    )
    assert smaller_training(spec) == expected


@pytest.mark.parametrize("arch", BACKBONES)
def test_every_ladder_ends_with_crops_of_whole_patches(arch: str) -> None:
    hybrid = ["model.mask_head=pyramid"] if "hybrid" in arch else []
    crop_size = 512 // BACKBONES[arch].stride_px * BACKBONES[arch].stride_px
    spec = spec_of(f"model.arch={arch}", f"dataset.crop_size={crop_size}", "train.batch_size=8",
                   *hybrid)  # fmt: skip
    steps = list(iterate_fallbacks(spec))
    assert len({memory_keys(step) for step in steps}) == len(steps)
    for step in steps:
        assert step.dataset.crop_size % BACKBONES[step.model.arch].stride_px == 0
        assert step.dataset.crop_size >= 240
    assert steps[-1].train.batch_size == 1
    assert not BACKBONES[steps[-1].model.arch].smaller


@pytest.mark.parametrize("key", ["pretrained_model_path", "resume_training_checkpoint_path"])
def test_no_backbone_is_changed_by_itself_where_weights_are_given(key: str) -> None:
    spec = spec_of("dataset.crop_size=512", f"train.{key}=weights.pth")
    assert [memory_keys(step)[:2] for step in iterate_fallbacks(spec)] == [
        (384, "vit-mae-base/16"),
        (256, "vit-mae-base/16"),
    ]


@pytest.mark.parametrize(
    ("overrides", "error", "device", "checkpoint", "expected"),
    [
        (
            ["dataset.crop_size=512", "train.batch_size=4"], CUDA_ERROR, CUDA, "",
            (
                "train failed: CUDA out of memory (tried to allocate 2.00 GiB) "
                "at dataset.crop_size 512 and train.batch_size 4 on cuda:0. Run again with "
                "dataset.crop_size=384, or set train.oom_fallback=true."
            ),
        ),
        (
            ["dataset.crop_size=512"], CPU_ERROR, CUDA, "s3://b/run/mal_model_latest.pth",
            (
                "train failed: out of memory (tried to allocate 400000000000 "
                "bytes) at dataset.crop_size 512 and train.batch_size 1 on cpu. Run again with "
                "dataset.crop_size=384, another train.results_dir and "
                "train.pretrained_model_path=s3://b/run/mal_model_latest.pth, or set "
                "train.oom_fallback=true."
            ),
        ),
        (
            ["dataset.crop_size=256", "train.pretrained_model_path=mae.pth"], MemoryError(), CPU,
            "",
            (
                "train failed: out of memory at dataset.crop_size 256 and "
                "train.batch_size 1 on cpu. Run again with model.arch=vit-mae-small/16 and its "
                "weights as train.pretrained_model_path."
            ),
        ),
        (
            ["dataset.crop_size=256", "train.oom_fallback=true"], MemoryError(), CPU, "x.pth",
            (
                "train failed: out of memory at dataset.crop_size 256 and "
                "train.batch_size 1 on cpu. Run again with model.arch=vit-mae-small/16 and another "
                "train.results_dir."
            ),
        ),
        (
            ["dataset.crop_size=256", "model.arch=vit-mae-tiny/16", "train.batch_size=2"],
            MemoryError(), CPU, "x.pth",
            (
                "train failed: out of memory at dataset.crop_size 256 and "
                "train.batch_size 2 on cpu. Run again with train.batch_size=1, another "
                "train.results_dir and train.pretrained_model_path=x.pth, or set "
                "train.oom_fallback=true."
            ),
        ),
        (
            ["dataset.crop_size=256", "model.arch=vit-mae-tiny/16", "train.oom_fallback=true"],
            MemoryError(), CPU, "",
            (
                "train failed: out of memory at dataset.crop_size 256 and "
                "train.batch_size 1 on cpu. Use a device with more memory."
            ),
        ),
    ],
    ids=["crop", "crop with a checkpoint", "arch with weights", "arch with a checkpoint", "batch",
         "nothing left"],
)  # fmt: skip
def test_the_message_of_a_training_names_what_to_run_next(
    overrides: list[str],
    error: Exception,
    device: torch.device,
    checkpoint: str,
    expected: str,
) -> None:
    assert str(training_shortage(spec_of(*overrides), error, device, checkpoint)) == expected


def test_several_processes_are_not_told_to_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(NodeTopology(devices_per_node=2))
    for name, value in worker.environment().items():
        monkeypatch.setenv(name, value)
    told = str(training_shortage(spec_of(), CUDA_ERROR, CUDA, checkpoint=""))
    assert told.endswith("Run again with dataset.crop_size=384.")


@pytest.mark.parametrize(
    ("batch_size", "error", "device", "expected"),
    [
        (
            3, CUDA_ERROR, CUDA,
            (
                "inference failed: CUDA out of memory (tried to allocate 2.00 "
                "GiB) at inference.batch_size 3 on cuda:0. Run again with inference.batch_size=1."
            ),
        ),
        (
            1, CUDA_ERROR, CUDA,
            (
                "inference failed: CUDA out of memory (tried to allocate 2.00 "
                "GiB) at inference.batch_size 1 on cuda:0. Run again with device=cpu."
            ),
        ),
        (
            1, MemoryError(), CUDA,
            (
                "inference failed: out of memory at inference.batch_size 1 on "
                "cpu. Use a device with more memory."
            ),
        ),
    ],
    ids=["batch", "one box on CUDA", "one box on CPU"],
)  # fmt: skip
def test_the_message_of_a_prediction_names_what_to_run_next(
    batch_size: int, error: Exception, device: torch.device, expected: str
) -> None:
    spec = with_changes(spec_of(), {"inference.batch_size": batch_size})
    assert str(prediction_shortage("inference", spec, error, device)) == expected


def test_the_message_of_an_export_names_no_batch() -> None:
    shortage = prediction_shortage("export", spec_of(), MemoryError(), CPU)
    assert str(shortage) == ("export failed: out of memory on cpu. Use a device with more memory.")
