"""Parses `-p key=value` to the typed arguments of a pipeline."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mal.errors import MalError, SpecError
from mal.kfp.components._images import TRAIN_IMAGE
from mal.redaction import holds_secret_anywhere, redact_text
from mal.spec.sources import parse_json_like

from ._registry import Parameter, Pipeline
from ._target import images_of

_PATH_PARAMETER = re.compile(r"(\w+_)?(images|annotations|store|work_dir)|model")
_TYPES: Mapping[str, tuple[type, ...]] = {
    "LIST": (list,),
    "STRUCT": (dict,),
    "BOOLEAN": (bool,),
    "NUMBER_INTEGER": (int,),
    "NUMBER_DOUBLE": (int, float),
}


class ArgumentError(MalError):
    """Invalid arguments of a pipeline, with all problems."""


def parse_arguments(pipeline: Pipeline, assignments: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` pairs.

    Numbers, true and false are read as in the overrides of a spec. A list may be given as a whole
    (`overrides=[a=1, b=2]`) or item by item (`overrides=a=1`, repeated). Relative paths of data,
    models and stores become absolute; `spec` may name a file.

    Raises:
        ArgumentError: With all problems found.
    """
    arguments: dict[str, Any] = {}
    problems: list[str] = []
    for assignment in assignments:
        name, separator, text = assignment.partition("=")
        parameter = pipeline.parameters.get(name)
        if not separator:
            problems.append(f"-p must read key=value, got '{assignment}'.")
        elif parameter is None:
            problems.append(_unknown(name, pipeline))
        else:
            _assign(arguments, parameter, text, problems)
    missing = [
        parameter.name
        for parameter in pipeline.parameters.values()
        if parameter.is_required and not arguments.get(parameter.name)
    ]
    problems += [f"{name} must be given. Write -p {name}=..." for name in missing]
    if problems:
        raise ArgumentError("\n".join(problems))
    return arguments


def image_arguments(pipeline: Pipeline) -> dict[str, str]:
    """Return the image of a pipeline's training jobs, as the environment sets it.

    Raises:
        MalError: The environment is invalid.
    """
    return {
        parameter.name: images_of().put_in(parameter.default)
        for parameter in pipeline.parameters.values()
        if parameter.default == TRAIN_IMAGE
    }


def _assign(
    arguments: dict[str, Any], parameter: Parameter, text: str, problems: list[str]
) -> None:
    if holds_secret_anywhere(text):  # Kubeflow records every argument
        problems.append(
            f"{parameter.name} must not contain credentials, got some in {redact_text(text)}. "
            "Give a URI without user and signature."
        )
        return
    if parameter.type == "STRING":
        try:
            arguments[parameter.name] = _text_value(parameter.name, text)
        except OSError as error:
            problems.append(
                f"{parameter.name} must be a readable file, got {text} ({error.strerror})."
            )
        return
    if parameter.type == "LIST" and not text.lstrip().startswith("["):
        arguments.setdefault(parameter.name, []).append(text)
        return
    value = _value_of(parameter, text)
    if parameter.type == "NUMBER_DOUBLE" and type(value) is int:
        value = float(value)
    accepted = _TYPES.get(parameter.type, (object,))
    if (
        not isinstance(value, accepted)
        or (isinstance(value, bool) and bool not in accepted)
        or (isinstance(value, list) and not all(isinstance(item, str) for item in value))
    ):
        problems.append(f"{parameter.name} must be a {parameter.type}, got '{text}'.")
    elif isinstance(value, list):
        arguments.setdefault(parameter.name, []).extend(value)
    else:
        arguments[parameter.name] = value


def _value_of(parameter: Parameter, text: str) -> Any:
    """Parse a value that is not text; None for one that cannot be parsed."""
    try:
        if parameter.type == "LIST":  # of texts: `dataset.val_img_dir=07` is not changed
            return yaml.load(text, Loader=yaml.BaseLoader)
        return yaml.safe_load(text) if parameter.type == "STRUCT" else parse_json_like(text.strip())
    except (yaml.YAMLError, SpecError, ValueError):
        return None


def is_path_parameter(name: str) -> bool:
    """Whether a parameter is a path or URI that the steps read or write."""
    return bool(_PATH_PARAMETER.fullmatch(name))


def _text_value(name: str, text: str) -> str:
    if is_path_parameter(name) and text and "://" not in text:
        return str(Path(text).expanduser().resolve())
    if name == "spec" and "\n" not in text and text.endswith((".yaml", ".yml")):
        return Path(text).expanduser().read_text(encoding="utf-8")
    return text


def _unknown(name: str, pipeline: Pipeline) -> str:
    nearest = difflib.get_close_matches(name, pipeline.parameters, n=1)
    remedy = (
        f"Did you mean {nearest[0]}?" if nearest else f"It has {', '.join(pipeline.parameters)}."
    )
    return f"{name} is not a parameter of {pipeline.name}. {remedy}"
