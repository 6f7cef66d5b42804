"""Runs an exported model with ONNX Runtime."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mal.artifacts import OnnxCompanions, companions_of
from mal.errors import ArtifactError, MissingExtraError, StorageError
from mal.labeling.predictor import normalized_on
from mal.storage import fetch_file


class OnnxModel:
    """An exported model as a probability model.

    Attributes:
        crop_size: Side of the input, px.
        description: The content of `mal_model.json`, or {} where it is absent.

    Args:
        path: The .onnx file.
        sidecar: Its `mal_model.json` where that does not lie beside it.
        num_threads: CPU threads; 0: one per core.
        uri: Where the file came from; encoder and decoder lie beside it. They are opened when
            points are given.
    """

    def __init__(
        self,
        path: Path,
        sidecar: Path | None = None,
        num_threads: int = 0,
        uri: str = "",
    ) -> None:
        self._uri = uri or str(path)
        self._num_threads = num_threads
        self._session = _open_session(path, num_threads)
        _require_inputs(self._session, path, ("image", "box_area"))
        self.crop_size = int(self._session.get_inputs()[0].shape[2])
        self._fixed_batch = self._session.get_inputs()[0].shape[0]
        sidecar = sidecar or path.with_name(companions_of(path.name).sidecar)
        self.description = _read_sidecar(sidecar)

    def __call__(
        self,
        image_BCSS: Tensor,
        unit_box_B4: Tensor,
        box_area_B: Tensor,
        point_BK3: Tensor | None = None,
    ) -> Tensor:
        """Return probabilities, (B, M, M)."""
        if point_BK3 is not None and (point_BK3[:, :, 2] >= 0).any():
            return self.decode(self.encode(image_BCSS), unit_box_B4, box_area_B, point_BK3)
        image = normalized_on(torch.device("cpu"), image_BCSS).contiguous().numpy()
        area = box_area_B.cpu().numpy()
        if not isinstance(self._fixed_batch, int):
            return torch.from_numpy(self._run(image, area))
        parts = []
        for first in range(0, len(image), self._fixed_batch):
            part = image[first : first + self._fixed_batch], area[first : first + self._fixed_batch]
            missing = self._fixed_batch - len(part[1])
            padded = [np.concatenate([p, np.repeat(p[:1], missing, axis=0)]) for p in part]
            parts.append(self._run(*padded)[: len(part[1])])
        return torch.from_numpy(np.concatenate(parts))

    def encode(self, image_BCSS: Tensor) -> list[Tensor]:
        """Return the features of crops, as `mal_encoder.onnx` gives them."""
        image = normalized_on(torch.device("cpu"), image_BCSS).contiguous()
        return [torch.from_numpy(_run_session(self._encoder, {"image": image}))]

    def decode(
        self,
        encoded: Sequence[Tensor],
        _unit_box_B4: Tensor,
        box_area_B: Tensor,
        point_BK3: Tensor | None = None,
    ) -> Tensor:
        """Return probabilities, (B, M, M), by `mal_decoder.onnx`."""
        if point_BK3 is None:
            point_BK3 = torch.full((len(box_area_B), 1, 3), -1.0)
        inputs = {
            "features": encoded[0],
            "box_area": box_area_B.cpu(),
            "points": point_BK3[:, :, :2] * self.crop_size,
            "point_labels": point_BK3[:, :, 2],
        }
        return torch.from_numpy(_run_session(self._decoder, inputs))

    @functools.cached_property
    def _encoder(self) -> Any:
        return self._open_beside(self._companions.encoder)

    @functools.cached_property
    def _decoder(self) -> Any:
        names = self._companions
        decoder = self._open_beside(names.decoder)
        given = self._encoder.get_outputs()[0].shape[1]
        wanted = decoder.get_inputs()[0].shape[1]
        if given != wanted:
            raise ArtifactError(
                f"{names.encoder} and {names.decoder} must be of one export, got {given} features "
                f"for a decoder of {wanted} beside {self._uri}. Export again."
            )
        return decoder

    @property
    def _companions(self) -> OnnxCompanions:
        return companions_of(self._uri.rpartition("/")[2])

    def _open_beside(self, name: str) -> Any:
        """Open a graph that mal export wrote with this one.

        Raises:
            ArtifactError: It is not there.
        """
        folder, separator, _ = self._uri.rpartition("/")
        try:
            path = fetch_file(f"{folder}{separator}{name}")
        except StorageError as error:
            raise ArtifactError(
                f"points need {name} beside the exported model, got none beside {self._uri}. "
                "Copy all files of mal export."
            ) from error
        return _open_session(path, self._num_threads)

    def _run(self, image: NDArray[np.float32], area: NDArray[np.float32]) -> NDArray[np.float32]:
        (prob,) = self._session.run(None, {"image": image, "box_area": area})
        result: NDArray[np.float32] = prob
        return result


def run_file(path: Path, inputs: Mapping[str, Tensor]) -> NDArray[np.float32]:
    """Run a model file once; returns its only output."""
    return _run_session(_open_session(path), inputs)


def _run_session(session: Any, inputs: Mapping[str, Tensor]) -> NDArray[np.float32]:
    arrays = {name: tensor.contiguous().numpy() for name, tensor in inputs.items()}
    (found,) = session.run(None, arrays)
    result: NDArray[np.float32] = found
    return result


def _require_inputs(session: Any, path: Path, wanted: tuple[str, ...]) -> None:
    given = tuple(value.name for value in session.get_inputs())
    if given != wanted:
        raise ArtifactError(
            f"model file must take {' and '.join(wanted)}, got {', '.join(given) or 'no inputs'} "
            f"in {path}. Give a model of mal export."
        )


def _read_sidecar(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        facts: dict[str, Any] = json.loads(path.read_bytes())
        missing = {"arch", "margin_rate", "thresholds"} - facts.keys()
    except (ValueError, AttributeError) as error:
        raise ArtifactError(
            f"description of an exported model must be as mal export wrote it, got {path} "
            f"({error}). Export again."
        ) from error
    if missing:
        raise ArtifactError(
            f"description of an exported model must say {', '.join(sorted(missing))}, got {path}. "
            "Export again."
        )
    return facts


def _open_session(path: Path, num_threads: int = 0) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "export") from error
    available = onnxruntime.get_available_providers()
    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[provider for provider in wanted if provider in available]
        )
    except Exception as error:
        raise ArtifactError(
            f"model file must be a readable ONNX model, got {path} ({error}). Export it again."
        ) from error
