"""Check a component's folder: the rules of this repository and of Kubeflow's component catalogue.

The rules for metadata.yaml are those of scripts/validate_metadata/validate_metadata.py of
kubeflow/pipelines-components at commit fab64a9; a comment names the lines of each.
"""

import ast
import datetime
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from mal.errors import MalError

from ._generated import compiled_yaml
from ._images import COMPONENT_IMAGE, CONTROL_IMAGE, TRAIN_IMAGE

MAX_BODY_LINES = 24
REQUIRED_FIELDS = ["name", "stability", "dependencies", "lastVerified"]
OPTIONAL_FIELDS = {"tags", "ci", "links"}
STABILITY = ("experimental", "alpha", "beta", "stable")
MAX_AGE_DAYS = 365

_NUMBER = r"(?:0|[1-9][0-9]*)"
_VERSION = re.compile(
    rf"(?:>=|<=|==)?{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:-[0-9A-Za-z.-]+)?(?:\+[0-9A-Za-z.-]+)?"
)


class ComponentError(MalError):
    """A folder that is not a component."""


def load_component(folder: Path) -> Any:
    """Return the component of a folder, loaded as if the folder lay beside this file.

    Raises:
        ComponentError: component.py fails, or has no component of the folder's name.
    """
    folder = folder.resolve()
    module_name = f"{__package__}.{folder.name}.component"
    spec = importlib.util.spec_from_file_location(module_name, folder / "component.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        component = getattr(module, folder.name)
        _ = component.component_spec
    except Exception as error:
        raise ComponentError(
            f"Cannot load {folder / 'component.py'}: {type(error).__name__}: {error}. It must "
            f"define the function {folder.name} with the decorator @dsl.component."
        ) from error
    return component


def check_component(folder: Path, *, today: datetime.date | None = None) -> list[str]:
    """Return every problem of a component's folder, with its remedy.

    Args:
        folder: Has component.py and metadata.yaml; its name is the component's name.
        today: Also check that the component was verified within a year of this day.
    """
    missing = [name for name in ("component.py", "metadata.yaml") if not (folder / name).is_file()]
    if missing:
        return [f"{folder} has no {name}. Add it." for name in missing]
    problems = list(_metadata_problems(folder, today))
    source_problems = list(_source_problems(folder))
    if source_problems:  # kfp's own message for such a file names no remedy
        return problems + source_problems
    try:
        component = load_component(folder)
    except ComponentError as error:
        return [*problems, str(error)]
    return problems + list(_interface_problems(component))


def _source_problems(folder: Path) -> Iterator[str]:
    """Check what kfp does to a component: it copies the function's text, without the module."""
    try:
        tree = ast.parse((folder / "component.py").read_text(encoding="utf-8"))
    except SyntaxError as error:
        yield f"component.py line {error.lineno} is not Python: {error.msg}."
        return
    for module, line in _module_imports(tree):
        if module == "__future__":
            yield (
                f"component.py line {line}: kfp cannot read annotations that "
                "`from __future__ import annotations` turns into text. Remove the import."
            )
        elif module.rpartition(".")[2] != "_images" and module.partition(".")[0] not in {
            "kfp",
            *sys.stdlib_module_names,
        }:
            yield (
                f"component.py line {line}: {module} is imported at module level, and kfp runs the "
                "function without its module. Import it in the function."
            )
    functions = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == folder.name]
    if len(functions) != 1:
        yield f"component.py must define one function {folder.name}, got {len(functions)}. Add it."
        return
    body = functions[0].body[1:] if ast.get_docstring(functions[0]) else functions[0].body
    num_lines = (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0
    if num_lines > MAX_BODY_LINES:
        yield (
            f"The body of {folder.name} must have at most {MAX_BODY_LINES} lines, got {num_lines}. "
            "Move its work into mal, where it has types and tests."
        )


def _module_imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ".", node.lineno


def _interface_problems(component: Any) -> Iterator[str]:
    executors = yaml.safe_load(compiled_yaml(component))["deploymentSpec"]["executors"]
    for executor in executors.values():
        image = executor["container"]["image"]
        if image not in {TRAIN_IMAGE, COMPONENT_IMAGE, CONTROL_IMAGE}:
            yield (
                f"base_image must be an image of _images.py, got {image}. Use CONTROL_IMAGE, or "
                "COMPONENT_IMAGE for a step that needs torch."
            )
        if "pip install" in " ".join(executor["container"]["command"]):
            yield (
                "The step installs packages when it starts. Set packages_to_install=[] and "
                "install_kfp_package=False; the image has what it needs."
            )
    function = component.python_func
    described = {
        parameter.arg_name
        for parameter in docstring_parser.parse(inspect.getdoc(function) or "").params
        if parameter.description
    }
    spec = component.component_spec
    for name in (*(spec.inputs or {}), *(spec.outputs or {})):
        if name not in described:
            yield f"The docstring does not describe {name}. Add it below Args:."
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is None and not _is_artifact(spec.inputs[name]):
            yield f"{name} must not be None by default: KFP has no such value. Use '' / 0 / -1."


def _is_artifact(value: Any) -> bool:
    """Whether an input is an artifact: kfp's types of artifacts have a namespace and a version."""
    return "@" in str(value.type)


def _metadata_problems(folder: Path, today: datetime.date | None) -> Iterator[str]:
    try:
        metadata = yaml.safe_load((folder / "metadata.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        yield f"metadata.yaml is not YAML ({error})."
        return
    if not isinstance(metadata, dict):
        yield "metadata.yaml must be a mapping. Copy that of another component."
        return
    fields = [name for name in metadata if name not in OPTIONAL_FIELDS]  # lines 216-247
    if fields != REQUIRED_FIELDS:
        yield (
            f"metadata.yaml must have the fields {', '.join(REQUIRED_FIELDS)} in this order, got "
            f"{', '.join(map(str, fields))}. Only {', '.join(sorted(OPTIONAL_FIELDS))} may be "
            "added."
        )
    if (
        metadata.get("name", folder.name) != folder.name
    ):  # lines 223-231 require a string; equality is ours
        yield f"metadata.yaml: name must be {folder.name}, got {metadata.get('name')}."
    if metadata.get("stability", STABILITY[0]) not in STABILITY:  # lines 253-259
        yield (
            f"metadata.yaml: stability must be one of {', '.join(STABILITY)}, got "
            f"{metadata.get('stability')}."
        )
    if "dependencies" in metadata:
        yield from _dependency_problems(metadata["dependencies"])
    tags = metadata.get("tags", [])  # lines 308-318
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        yield f"metadata.yaml: tags must be a list of texts, got {tags}."
    ci = metadata.get("ci", {"skip_dependency_probe": None})  # lines 319-337
    if not isinstance(ci, dict) or set(ci) != {"skip_dependency_probe"}:
        yield f"metadata.yaml: ci may only have skip_dependency_probe, got {ci}."
    if not isinstance(metadata.get("links", {}), dict):  # lines 339-345
        yield "metadata.yaml: links must be a mapping."
    if "lastVerified" not in metadata:
        return
    verified = metadata["lastVerified"]
    if not isinstance(verified, datetime.datetime) or verified.tzinfo is None:  # lines 178-196
        yield (
            f"metadata.yaml: lastVerified must read YYYY-MM-DDT00:00:00Z, got {verified}. Write "
            "the day on which the component last ran."
        )
    elif today is not None and abs((today - verified.date()).days) >= MAX_AGE_DAYS:  # 197-201
        yield f"metadata.yaml: lastVerified is older than a year ({verified}). Run the component."


def _dependency_problems(dependencies: Any) -> Iterator[str]:
    """Apply lines 261-306 and 348-371."""
    lists = dependencies if isinstance(dependencies, Mapping) else {}
    if "kubeflow" not in lists or not set(lists) <= {"kubeflow", "external_services"}:
        yield "metadata.yaml: dependencies must have kubeflow, and may have external_services."
        return
    for kind, entries in lists.items():
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            yield f"metadata.yaml: dependencies.{kind} must be a list of name and version."
            return
        for entry in entries:
            if "name" not in entry or not _VERSION.fullmatch(str(entry.get("version"))):
                yield (
                    f"metadata.yaml: a dependency must have a name and a version such as "
                    f"'>=2.17.0', got {entry}."
                )
    if not any(entry.get("name") == "Pipelines" for entry in lists["kubeflow"]):
        yield "metadata.yaml: dependencies.kubeflow must name Pipelines."
