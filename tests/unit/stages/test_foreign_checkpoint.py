"""A checkpoint that TAO wrote labels and trains here as it does there, and runs nothing."""

import dataclasses
import json
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_sets import TINY_VIT, TinySet, training_overrides, training_spec, write_tiny_set
from torch import Tensor

from mal.cli import main
from mal.data.datamodule import open_image_set
from mal.errors import ArtifactError
from mal.labeling.load import prediction_settings
from mal.labeling.predictor import NetworkEnsemble, predict_masks
from mal.model.network import MALNetwork
from mal.spec import load_spec, spec_as_dict
from mal.spec.experiment import ExperimentSpec
from mal.stages import run_train

FOREIGN = {
    "omegaconf.dictconfig": "DictConfig",
    "tao_program.callbacks": "StatusLogger",
    "tao_program.config": "ExperimentConfig",
}
NETWORK = [*TINY_VIT, "train.mask_thres=[0.5]", "device=cpu", "dataset.num_workers_per_gpu=0"]


class Harm:
    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> Any:
        return Path.touch, (self.victim,)


@contextmanager
def foreign_classes() -> Iterator[dict[str, Any]]:
    """Classes of modules that can be imported while the file is written, and never after."""
    classes: dict[str, Any] = {}
    packages = {name.partition(".")[0] for name in FOREIGN}
    modules = {name: types.ModuleType(name) for name in [*packages, *FOREIGN]}
    sys.modules.update(modules)
    for name, class_name in FOREIGN.items():
        made = type(class_name, (), {"__module__": name, "__qualname__": class_name})
        setattr(modules[name], class_name, made)
        classes[class_name] = made
    try:
        yield classes
    finally:
        for name in modules:
            del sys.modules[name]


def write_foreign_checkpoint(path: Path, state: Mapping[str, Tensor], victim: Path) -> None:
    with foreign_classes() as classes:
        made: dict[str, Any] = {name: cls() for name, cls in classes.items()}
        made["DictConfig"].__dict__.update(_content={"arch": "vit-mae-tiny/16"}, _parent=None)
        content = {
            "epoch": 9,
            "global_step": 4210,
            "pytorch-lightning_version": "2.2.0",
            "tao_version": "5.5.0",
            "state_dict": dict(state),
            "hyper_parameters": {"cfg": made["DictConfig"], "experiment": made["ExperimentConfig"]},
            "hparams_name": "cfg",
            "callbacks": {"StatusLogger": made["StatusLogger"], "harm": Harm(victim)},
            "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}],
            "lr_schedulers": [],
            "loops": {"fit_loop": {"state_dict": {}}},
        }
        torch.save(content, path)


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in state.items()}


def with_other_head_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        key.replace("mask_head.convs.", "mask_head.block.").replace("roi_head.mlp", "roi_head.net"):
        value for key, value in state.items()
    }  # fmt: skip


def as_written(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return dict(state)


@pytest.fixture
def data(tmp_path: Path, cache: Path) -> TinySet:
    return write_tiny_set(tmp_path / "set", num_images=2)


@pytest.fixture
def spec(data: TinySet) -> ExperimentSpec:
    return load_spec("train", {}, NETWORK)


@pytest.fixture
def network(spec: ExperimentSpec) -> MALNetwork:
    """A network with opinions: its masks are neither empty nor the box."""
    torch.manual_seed(5)
    network = MALNetwork(spec.model, spec.dataset.crop_size)
    torch.nn.init.normal_(network.backbone.get_parameter("pos_embed"), std=0.5)
    return network


def labels_in_memory(network: MALNetwork, spec: ExperimentSpec, data: TinySet) -> list[Any]:
    reader = open_image_set(
        str(data.annotations), str(data.images), key="inference", with_masks=False
    )
    model = NetworkEnsemble([network], use_flip=False, device=torch.device("cpu"))
    settings = prediction_settings(spec, spec.inference, spec.dataset.crop_size)
    masks = predict_masks(model, reader, np.arange(len(reader.boxes)), settings)
    return [json.loads(json.dumps(mask.rle, default=bytes.decode)) for mask in masks]


def label(checkpoint: Path, data: TinySet, folder: Path, *more: str) -> list[Any]:
    arguments = [
        f"inference.checkpoint={checkpoint}",
        f"inference.ann_path={data.annotations}",
        f"inference.img_dir={data.images}",
        f"inference.results_dir={folder}",
        "inference.label_dump_path=labels.json",
    ]
    assert main(["inference", *NETWORK, *arguments, *more]) == 0
    document = json.loads((folder / "labels.json").read_text())
    return [annotation["segmentation"] for annotation in document["annotations"]]


@pytest.mark.parametrize("rename", [as_written, with_other_head_names])
def test_it_gives_the_masks_of_the_network_that_wrote_it(
    data: TinySet,
    spec: ExperimentSpec,
    network: MALNetwork,
    tmp_path: Path,
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> None:
    state = rename(network.state_dict())
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    roles = prefixed("student.", state) | prefixed("teacher.", other)
    foreign, victim = tmp_path / "tao.pth", tmp_path / "harmed"
    write_foreign_checkpoint(foreign, roles, victim)
    with pytest.raises(Exception, match="weights_only"):
        torch.load(foreign, weights_only=True)
    ours = tmp_path / "ours.pth"
    own_state = prefixed("student.", network.state_dict())
    torch.save({"state_dict": own_state, "mal_spec": spec_as_dict(spec)}, ours)

    labels = label(foreign, data, tmp_path / "foreign")

    assert not victim.exists()
    assert labels == labels_in_memory(network, spec, data)
    assert labels == label(ours, data, tmp_path / "ours")
    assert len({rle["counts"] for rle in labels}) == len(labels)


def test_another_crop_than_that_of_its_training_will_do(
    data: TinySet, network: MALNetwork, tmp_path: Path
) -> None:
    path = tmp_path / "tao.pth"
    write_foreign_checkpoint(path, prefixed("student.", network.state_dict()), tmp_path / "harmed")
    labels = label(path, data, tmp_path / "out", "dataset.crop_size=48")
    assert len(labels) == 4


def test_another_backbone_than_its_own_is_named(
    data: TinySet, network: MALNetwork, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tao.pth"
    write_foreign_checkpoint(path, prefixed("student.", network.state_dict()), tmp_path / "harmed")
    arguments = [f"inference.checkpoint={path}", f"inference.ann_path={data.annotations}",
                 f"inference.img_dir={data.images}", f"results_dir={tmp_path}"]  # fmt: skip
    assert main(["inference", *NETWORK, *arguments, "model.arch=vit-mae-small/16"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("mal: weights of the student must")
    assert "Set model.arch" in error


@pytest.mark.parametrize("frozen", [False, True], ids=["trained", "frozen"])
def test_a_training_starts_from_its_student(
    data: TinySet, network: MALNetwork, tmp_path: Path, frozen: bool
) -> None:
    path = tmp_path / "tao.ckpt"
    state = network.state_dict()
    write_foreign_checkpoint(path, prefixed("student.", state), tmp_path / "harmed")
    spec = training_spec(
        data,
        tmp_path / "run",
        f"train.pretrained_model_path={path}",
        f"model.freeze_backbone={str(frozen).lower()}",
        "train.max_steps=1",
        "train.lr=0",
        "dataset.crop_size=48",
        network=TINY_VIT,
    )
    checkpoint = torch.load(run_train(spec).checkpoint, weights_only=True)
    for role in ("student", "teacher"):
        for key, value in state.items():
            if key != "backbone.pos_embed":
                assert torch.equal(checkpoint["state_dict"][f"{role}.{key}"], value), key
    assert checkpoint["global_step"] == 1


def test_a_champion_in_s3_is_fine_tuned(
    data: TinySet, spec: ExperimentSpec, network: MALNetwork, tmp_path: Path, s3: Any
) -> None:
    path = tmp_path / "champion.pth"
    content = {"state_dict": prefixed("student.", network.state_dict()),
               "mal_spec": spec_as_dict(spec)}  # fmt: skip
    torch.save(content, path)
    s3.upload_file(str(path), "bucket", "models/champion.pth")
    overrides = ["train.pretrained_model_path=s3://bucket/models/champion.pth", "train.lr=0"]
    fine_tuning = training_spec(data, tmp_path / "run", *overrides, network=TINY_VIT)
    state = torch.load(run_train(fine_tuning).checkpoint, weights_only=True)["state_dict"]
    mine = network.state_dict()
    assert all(torch.equal(state[f"student.{key}"], value) for key, value in mine.items())


def test_it_cannot_be_resumed_at_another_crop(
    data: TinySet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run_train(training_spec(data, tmp_path / "run", network=TINY_VIT))
    resume = f"train.resume_training_checkpoint_path={first.checkpoint}"
    elsewhere = [*training_overrides(data, tmp_path / "other"), resume]
    assert main(["train", *TINY_VIT, *elsewhere, "dataset.crop_size=48"]) == 2
    error = capsys.readouterr().err
    assert error.splitlines()[-1].startswith("mal: checkpoint to resume must")
    assert (
        "vit-mae-tiny/16 at dataset.crop_size 48, got vit-mae-tiny/16 at dataset.crop_size 32"
        in error
    )
    assert "train.pretrained_model_path" in error
    spec = training_spec(data, tmp_path / "other", resume, "train.num_epochs=3", network=TINY_VIT)
    changed = dataclasses.replace(spec, train=dataclasses.replace(spec.train, batch_size=1))
    assert run_train(changed).checkpoint.exists()


@pytest.mark.parametrize(
    ("saved", "key"),
    [
        ({"dataset": 3}, "dataset.crop_size"),
        ({}, "dataset.crop_size"),
        ({"dataset": {"crop_size": "wide"}}, "dataset.crop_size"),
        ({"dataset": {"crop_size": 32}, "model": "vit"}, "model.arch"),
        (
            {"dataset": {"crop_size": 32}, "model": {"arch": "x"}, "train": {"batch_size": None}},
            "train.batch_size",
        ),
    ],
    ids=["number", "empty", "text", "no section", "none"],
)
def test_it_cannot_be_resumed_with_a_spec_that_is_none(
    data: TinySet, tmp_path: Path, saved: Any, key: str
) -> None:
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {}, "mal_spec": saved}, path)
    for seed in (1, -1):
        spec = training_spec(
            data, tmp_path / "run", f"train.resume_training_checkpoint_path={path}",
            f"train.seed={seed}", network=TINY_VIT,
        )  # fmt: skip
        told = f"must contain its spec, got none with {key if seed > 0 else 'train.seed'} in"
        with pytest.raises(ArtifactError, match=rf"{told} {path}\."):
            run_train(spec)
