"""Digests the inputs of a step by content: two steps with equal digests have equal results.

kfp's local cache is not enough: its key has URIs and metadata, such as the time of a snapshot, but
neither the content of files nor the code that a component calls.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

import mal
from mal.artifacts import sha256_of_file

from ._run_folder import RunFolder

EXECUTOR_INPUT_OPTION = "--executor_input"
_MAX_TEXT_BYTES = 1 << 20
_MAX_PATH_CHARS = 1024
_COMPUTING_PACKAGES = ("torch", "timm", "numpy", "onnx", "onnxruntime", "optuna")
_NO_CODE = ("__pycache__", "metadata")


@dataclass(frozen=True)
class StepOutputs:
    """The paths to which kfp makes a step write.

    Attributes:
        record: `executor_output.json`: artifacts and returned values.
        parameter_files: Output parameters that are files.
    """

    record: Path
    parameter_files: Sequence[Path]

    @property
    def folder(self) -> Path:
        """The step's folder."""
        return self.record.parent


def executor_input_of(command: Sequence[str]) -> Mapping[str, Any]:
    """Return the executor input of a step."""
    text = command[command.index(EXECUTOR_INPUT_OPTION) + 1]
    content: Mapping[str, Any] = json.loads(text)
    return content


def outputs_of(executor_input: Mapping[str, Any]) -> StepOutputs:
    """Return the output paths of a step."""
    outputs = executor_input["outputs"]
    parameters = outputs.get("parameters", {}).values()
    return StepOutputs(
        Path(outputs["outputFile"]), [Path(each["outputFile"]) for each in parameters]
    )


def digest_inputs(
    command: Sequence[str], variables: Mapping[str, str], run: RunFolder
) -> dict[str, str]:
    """Hash everything that determines a step's result, by the name of the input.

    Args:
        command: The command with the component's source and its executor input.
        variables: Environment variables of the step.
        run: The run; paths in the folders of runs are compared only by content.
    """
    executor_input = executor_input_of(command)
    inputs = executor_input.get("inputs", {})
    position = command.index(EXECUTOR_INPUT_OPTION)
    step = [*command[:position], *command[position + 2 :], sorted(variables.items())]
    digests = {"code": code_digest(), "component": _sha256(step)}
    for name, value in inputs.get("parameterValues", {}).items():
        text = run.without_run_folders(json.dumps(value, sort_keys=True).encode())
        behind = [digest_path(path, run) for path in iterate_paths(value)]
        digests[name] = _sha256([text.decode(), behind])
    for name, artifacts in inputs.get("artifacts", {}).items():
        digests[name] = _sha256([_digest_artifact(each, run) for each in artifacts["artifacts"]])
    return digests


def key_of(digests: Mapping[str, str]) -> str:
    """Return one digest of all inputs."""
    return _sha256(sorted(digests.items()))


@functools.cache
def code_digest() -> str:
    """Hash the sources of mal and the versions of numerical packages."""
    root = Path(mal.__file__).parent
    files = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not set(path.relative_to(root).parts) & set(_NO_CODE)
    )
    sources = [[str(path.relative_to(root)), sha256_of_file(path)] for path in files]
    installed = {each.name: each.version for each in metadata.distributions()}
    return _sha256([sources, [[name, installed.get(name)] for name in _COMPUTING_PACKAGES]])


def iterate_paths(value: Any) -> Iterator[Path]:
    """Yield the local files and folders that a parameter names.

    A path may be the parameter, the value of a `key=value` setting, or a value in YAML text.
    """
    if isinstance(value, Mapping):
        for each in value.values():
            yield from iterate_paths(each)
    elif isinstance(value, list):
        for each in value:
            yield from iterate_paths(each)
    elif isinstance(value, str):
        yield from _paths_in_text(value)


def _paths_in_text(text: str) -> Iterator[Path]:
    for candidate in (text, text.partition("=")[2]):
        if path := _existing_path(candidate):
            yield path
            return
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError):
        return
    if isinstance(content, Mapping | list):
        yield from iterate_paths(content)


def _existing_path(text: str) -> Path | None:
    if not text or "\n" in text or len(text) > _MAX_PATH_CHARS:
        return None
    try:
        path = Path(text).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):
        return None


def digest_path(path: Path, run: RunFolder) -> Any:
    """Hash a file, or a folder of a run, by content; other folders by names, sizes and times.

    A folder of the user may have too many images to read.
    """
    if path.is_file():
        return _digest_file(path, run)
    name = str(path).encode()
    is_of_run = run.without_run_folders(name) != name
    return sorted(
        [
            str(file.relative_to(path)),
            _digest_file(file, run) if is_of_run else _size_and_time(file),
        ]
        for file in path.rglob("*")
        if file.is_file()
    )


def _digest_artifact(artifact: Mapping[str, Any], run: RunFolder) -> Any:
    uri = artifact["uri"]
    if Path(uri).exists():
        return digest_path(Path(uri), run)
    return [uri, artifact.get("metadata")]  # in an object store; its metadata has digests


def _digest_file(path: Path, run: RunFolder) -> str:
    try:
        stat = path.stat()
        return _digest_unchanged_file(path, run, stat.st_size, stat.st_mtime_ns)
    except OSError as error:  # the step reports what cannot be read
        return str(error.strerror)


@functools.cache
def _digest_unchanged_file(path: Path, run: RunFolder, size: int, _mtime_ns: int) -> str:
    if size > _MAX_TEXT_BYTES:
        return sha256_of_file(path)
    return hashlib.sha256(run.without_run_folders(path.read_bytes())).hexdigest()


def _size_and_time(path: Path) -> list[int]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _sha256(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
