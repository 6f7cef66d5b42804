"""An exported model agrees with its checkpoint and says what it is."""

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sets import TINY_VIT, Trained, training_spec

from mal.artifacts import sha256_of_file
from mal.errors import ArtifactError, SpecError
from mal.export.graph_file import write_graph
from mal.export.int8 import attention_as_one_operator, decode_by_size
from mal.export.onnx import ExportedGraph, centred_unit_box, parity_inputs
from mal.export.prompted import PromptDecoder, PromptEncoder
from mal.labeling.load import load_model
from mal.labeling.onnx_model import OnnxModel
from mal.model.backbone import ViTBackbone
from mal.model.network import MALNetwork
from mal.model.prompt import refine_by_points
from mal.spec import ExperimentSpec, load_spec
from mal.stages import ExportResult, run_export

pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")

INT8_BOUND = 0.1


def test_the_description_has_every_key_of_the_contract(trained: Trained, exported: Path) -> None:
    facts = json.loads(exported.with_name("mal_model.json").read_text())
    assert facts["arch"] == "vit-hybrid-small/8"
    assert (facts["crop_size"], facts["map_size"]) == (32, 16)
    assert facts["thresholds"] == [0.45]
    assert facts["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    assert facts["opset"] == 18
    assert facts["sha256"] == hashlib.sha256(exported.read_bytes()).hexdigest()
    assert 0 <= facts["max_abs_diff"] < 1e-3


def test_exports_of_several_names_share_a_folder(
    trained: Trained, exported: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sub"
    names = ("mal_model.onnx", "mal_model.json", "mal_encoder.onnx", "mal_decoder.onnx")
    folder.mkdir()
    for name in names:
        shutil.copy(exported.with_name(name), folder)
    overrides = [
        f"export.checkpoint={trained.result.results_dir}",
        f"export.results_dir={tmp_path}",
        "export.onnx_file=sub/foo.onnx",
        "export.use_mixed_model_test=true",
    ]
    spec = load_spec("export", str(trained.result.results_dir / "experiment.yaml"), overrides)
    result = run_export(spec)
    own = {"foo.onnx", "foo.json", "foo_encoder.onnx", "foo_decoder.onnx"}
    assert {path.name for path in folder.iterdir()} == own | set(names)
    for name in names:
        assert (folder / name).read_bytes() == exported.with_name(name).read_bytes()
        (folder / name).unlink()
    assert result.sidecar == folder / "foo.json"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["inputs"]["export.checkpoint"]["sha256"] == sha256_of_file(
        trained.result.checkpoint
    )
    image, area = parity_inputs(2, 32)
    points = torch.tensor([[[0.5, 0.5, 1.0]], [[0.4, 0.6, 0.0]]])
    found, expected = (
        OnnxModel(path)(image, torch.zeros(2, 4), area, points) for path in (result.onnx, exported)
    )
    torch.testing.assert_close(found, expected)


def test_any_number_of_items_can_be_given(exported: Path) -> None:
    image, area = parity_inputs(7, 32)
    model = OnnxModel(exported)
    together = model(image, torch.zeros(7, 4), area)
    assert together.shape == (7, 16, 16)
    assert 0 <= together.min() <= together.max() <= 1
    alone = torch.cat([model(image[i : i + 1], image, area[i : i + 1]) for i in range(7)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_fixed_batch_of_a_network_scaled_by_size(tmp_path: Path, trained: Trained) -> None:
    spec = training_spec(trained.data, tmp_path, network=TINY_VIT)
    network = MALNetwork(spec.model, 32).eval()
    state = {f"student.{key}": value for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "tiny.pth")
    overrides = [
        *TINY_VIT,
        f"export.checkpoint={tmp_path / 'tiny.pth'}",
        f"export.results_dir={tmp_path / 'export'}",
        "export.batch_size=2",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        result = run_export(load_spec("export", {}, overrides))
    assert result.max_abs_diff < 1e-3
    image, area = parity_inputs(5, 32)
    found = OnnxModel(result.onnx)(image, torch.zeros(5, 4), area)
    with torch.inference_mode():
        expected = network(image, centred_unit_box(0.6).expand(5, 4), area).sigmoid()
    np.testing.assert_allclose(found.numpy(), expected.numpy(), atol=1e-4)


def test_what_is_no_onnx_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match=r"x\.onnx"):
        OnnxModel(tmp_path / "x.onnx")


def run_int8(tmp_path: Path, spec: ExperimentSpec, overrides: Sequence[str]) -> ExportResult:
    network = MALNetwork(spec.model, 32).eval()
    state = {f"student.{key}": value for key, value in network.state_dict().items()}
    state |= {f"teacher.{key}": value * 1.1 for key, value in network.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "tiny.pth")
    paths = [
        f"export.checkpoint={tmp_path / 'tiny.pth'}",
        f"export.results_dir={tmp_path / 'export'}",
        "export.precision=int8",
    ]
    return run_export(load_spec("export", {}, [*TINY_VIT, *paths, *overrides]))


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["export.use_mixed_model_test=true"]])
def test_eight_bits_differ_a_little_and_say_so(
    tmp_path: Path, trained: Trained, extra: list[str]
) -> None:
    result = run_int8(tmp_path, training_spec(trained.data, tmp_path, network=TINY_VIT), extra)
    facts = json.loads(result.sidecar.read_text())
    assert facts["precision"] == "int8"
    assert 0 < facts["max_abs_diff"] == result.max_abs_diff < INT8_BOUND
    model = OnnxModel(result.onnx)
    image, area = parity_inputs(7, 32)
    together = model(image, torch.zeros(7, 4), area)
    alone = torch.cat([model(image[i : i + 1], image, area[i : i + 1]) for i in range(7)])
    # Activations are quantised with the range that they have in the batch.
    torch.testing.assert_close(together, alone, atol=INT8_BOUND, rtol=0)
    plain = onnx.load(result.onnx)
    operators = {node.op_type for node in plain.graph.node}
    assert {"MatMulInteger", "NonZero"} <= operators
    assert result.onnx.stat().st_size < (tmp_path / "tiny.pth").stat().st_size / 3
    assert not list(result.onnx.parent.glob(".*"))


def test_grouping_by_size_gives_the_logits_of_the_network(tmp_path: Path, trained: Trained) -> None:
    spec = training_spec(trained.data, tmp_path, network=TINY_VIT)
    network = MALNetwork(spec.model, 32).eval()
    image, area = parity_inputs(5, 32)
    unit_box = centred_unit_box(0.6).expand(5, 4)
    with torch.inference_mode():
        levels = network.encode(image)
        for areas in (area, area[[0, 0, 0, 0, 0]]):
            expected = network.decode(levels, image, unit_box, areas)
            found = decode_by_size(network, levels, image, unit_box, areas)
            torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head", ["convolutional", "fused"])
def test_in_two_parts_networks_are_what_they_are_in_one(
    head: str, tmp_path: Path, trained: Trained
) -> None:
    spec = training_spec(trained.data, tmp_path, f"model.mask_head={head}", network=TINY_VIT)
    first, second, third, fourth = (MALNetwork(spec.model, 32).eval() for _ in range(4))
    third.backbone, fourth.backbone = first.backbone, second.backbone
    image, area = parity_inputs(3, 32)
    for networks in ([first], [first, third], [first, second], [first, second, third, fourth]):
        graph, encoder = ExportedGraph(networks, 0.6), PromptEncoder(networks)
        decoder = PromptDecoder(
            encoder, unit_box=graph.unit_box, crop_size=32, thresholds=[0.5], decode=graph.decode
        )
        num_levels = len(first.backbone.feature_channels)
        num_backbones = len({id(network.backbone) for network in networks})
        assert len(decoder.shapes) == 1 + num_levels * num_backbones
        with torch.inference_mode():
            found = decoder(encoder(image), area, torch.zeros(3, 1, 2), torch.full((3, 1), -1.0))
            torch.testing.assert_close(found, graph(image, area), atol=1.1e-4, rtol=0)


def with_two_blocks(spec: ExperimentSpec) -> MALNetwork:
    """Return a network whose ViT is traced in seconds."""
    network = MALNetwork(spec.model, 32).eval()
    backbone = network.backbone
    assert isinstance(backbone, ViTBackbone)
    backbone.blocks = backbone.blocks[:2]
    backbone.feature_blocks = [0, 1][-len(backbone.feature_channels) :]
    return network


def traced(module: torch.nn.Module, *inputs: torch.Tensor) -> tuple[int, tuple[int, ...]]:
    """Return how many attentions a trace has, and the shape of what it returns."""
    program = torch.export.export(module.eval(), inputs)
    nodes = program.graph.nodes
    num_attentions = sum("scaled_dot_product" in str(node.target) for node in nodes)
    return num_attentions, tuple(program.module()(*inputs).shape)


@pytest.mark.parametrize("head", ["convolutional", "fused"])
def test_a_backbone_that_networks_share_is_traced_once(
    head: str, tmp_path: Path, trained: Trained
) -> None:
    """The exporter sees two objects where two networks hold one module."""
    spec = training_spec(trained.data, tmp_path, f"model.mask_head={head}", network=TINY_VIT)
    first, second = (with_two_blocks(spec) for _ in range(2))
    second.backbone = first.backbone
    image, area = parity_inputs(3, 32)
    graph, encoder = ExportedGraph([first, second], 0.6), PromptEncoder([first, second])
    assert traced(graph, image, area) == (2, (3, first.map_size, first.map_size))
    with torch.inference_mode():
        expected = encoder(image).shape
    assert traced(encoder, image) == (2, expected)


def write_nothing(
    _module: object, _inputs: object, _output: object, path: Path, **_: object
) -> None:
    path.write_bytes(b"nothing")


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        (
            "mal.export.prompted.refine_by_points",
            lambda *given: 0.9 * refine_by_points(*given),
            "must agree with PyTorch",
        ),
        ("mal.export.onnx.write_graph", write_nothing, "export.opset_version=18. Use another"),
    ],
    ids=["a cut that changes the model", "a file that ONNX Runtime refuses"],
)
def test_what_is_not_exported_leaves_the_earlier_export(  # noqa: PLR0917 - a table and fixtures
    name: str,
    replacement: object,
    message: str,
    exported: Path,
    tmp_path: Path,
    trained: Trained,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files that do what their modules do may both be wrong."""
    earlier = {file.name: file.read_bytes() for file in exported.parent.glob("mal_*")}
    assert len(earlier) == 4
    for file_name, content in earlier.items():
        (tmp_path / file_name).write_bytes(content)
    monkeypatch.setattr(name, replacement)
    overrides = [
        f"export.checkpoint={trained.result.checkpoint}",
        f"export.results_dir={tmp_path}",
    ]
    spec = load_spec("export", str(trained.result.results_dir / "experiment.yaml"), overrides)
    with pytest.raises(ArtifactError, match=message):
        run_export(spec)
    assert {file.name: file.read_bytes() for file in tmp_path.glob("mal_*")} == earlier
    assert not list(tmp_path.glob("**/*.part"))


def test_an_opset_that_the_exporter_replaces_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"export\.opset_version .* got 99 \(it wrote \d+\)"):
        write_graph(
            torch.nn.Linear(2, 2), {"input": torch.zeros(1, 2)}, "output", tmp_path / "x.onnx",
            opset_version=99, dynamic_axes=None,
        )  # fmt: skip


def test_a_graph_of_another_program_is_refused(tmp_path: Path) -> None:
    write_graph(
        torch.nn.Linear(2, 2), {"input": torch.zeros(1, 2)}, "output", tmp_path / "x.onnx",
        opset_version=18, dynamic_axes=None,
    )  # fmt: skip
    with pytest.raises(ArtifactError, match="must take image and box_area, got input"):
        OnnxModel(tmp_path / "x.onnx")


def test_an_encoder_of_another_export_is_refused(exported: Path, tmp_path: Path) -> None:
    for file in exported.parent.glob("mal_*"):
        shutil.copy(file, tmp_path)
    write_graph(
        torch.nn.Flatten(), {"input": torch.zeros(2, 3, 32, 32)}, "features",
        tmp_path / "mal_encoder.onnx", opset_version=18, dynamic_axes=None,
    )  # fmt: skip
    _, area = parity_inputs(2, 32)
    points = torch.tensor([[[0.5, 0.5, 1.0]], [[0.4, 0.6, 0.0]]])
    with pytest.raises(ArtifactError, match=r"mal_decoder\.onnx must be of one export, got 3072"):
        OnnxModel(tmp_path / "mal_model.onnx").decode(
            [torch.zeros(2, 3072)], torch.zeros(2, 4), area, points
        )


def test_attention_is_itself_again_after_the_export() -> None:
    original = torch.nn.functional.scaled_dot_product_attention
    with pytest.raises(ZeroDivisionError), attention_as_one_operator():
        raise ZeroDivisionError
    assert torch.nn.functional.scaled_dot_product_attention is original


@pytest.mark.parametrize(
    ("override", "key"),
    [("precision=bf16", "evaluate.precision"), ("crop_sizes=[32]", "evaluate.crop_sizes")],
)
def test_settings_of_a_network_are_refused_for_an_exported_model(
    exported: Path, override: str, key: str
) -> None:
    spec = load_spec("evaluate", {}, [f"evaluate.checkpoint={exported}", f"evaluate.{override}"])
    with pytest.raises(SpecError, match=key):
        load_model(spec.evaluate, spec, torch.device("cpu"))
