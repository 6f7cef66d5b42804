"""The generated files of every component: `component.yaml` and `README.md`."""

import importlib
import inspect
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import docstring_parser
import yaml

from mal.markdown import markdown_table

COMPONENTS_DIR = Path(__file__).parent
_NOTICE = "<!-- Generated from component.py and metadata.yaml by `make compile`; do not edit. -->"
_LOADING = '{name} = components.load_component_from_file("component.yaml")'


def list_components() -> list[str]:
    """Return the names of all components."""
    return [path.parent.name for path in sorted(COMPONENTS_DIR.glob("*/component.py"))]


def import_component(name: str) -> Any:
    """Return the decorated function of a component."""
    return getattr(importlib.import_module(f".{name}.component", __package__), name)


def generated_files() -> dict[Path, str]:
    """Return the content of every generated file by its path."""
    files: dict[Path, str] = {}
    for name in list_components():
        component = import_component(name)
        metadata = yaml.safe_load(
            (COMPONENTS_DIR / name / "metadata.yaml").read_text(encoding="utf-8")
        )
        files[COMPONENTS_DIR / name / "component.yaml"] = compiled_yaml(component)
        files[COMPONENTS_DIR / name / "README.md"] = render_readme(component, metadata)
    return files


def compiled_yaml(component: Any) -> str:
    """Compile a component or a pipeline to YAML text."""
    from kfp import compiler

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "compiled.yaml"
        compiler.Compiler().compile(component, str(path))
        return path.read_text(encoding="utf-8")


def render_readme(component: Any, metadata: Mapping[str, Any]) -> str:
    """Return the README of a component."""
    spec = component.component_spec
    doc = docstring_parser.parse(inspect.getdoc(component.python_func) or "")
    described = {param.arg_name: param.description or "" for param in doc.params}
    name = metadata["name"]
    needs = ", ".join(f"{e['name']} {e['version']}" for e in metadata["dependencies"]["kubeflow"])
    parts = [
        _NOTICE,
        f"# {name}",
        "\n\n".join(filter(None, (doc.short_description, doc.long_description))),
        f"Stability: {metadata['stability']}. Needs {needs}. Tags: {', '.join(metadata['tags'])}.",
        f"Image: `{spec.implementation.container.image}`.",
        "## Inputs",
        markdown_table(
            ("name", "type", "default", "description"),
            (
                (f"`{key}`", _type_name(value.type), _default(value), described[key])
                for key, value in spec.inputs.items()
            ),
        ),
        "## Outputs",
        markdown_table(
            ("name", "type", "description"),
            (
                (f"`{key}`", _type_name(value.type), described[key])
                for key, value in spec.outputs.items()
            ),
        ),
        "## Use",
        f"```python\nfrom mal.kfp.components.{name} import {name}\n```",
        "or, without this repository,",
        f"```python\nfrom kfp import components\n\n{_LOADING.format(name=name)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _type_name(kfp_type: str) -> str:
    return kfp_type.partition("@")[0].removeprefix("system.")


def _default(value: Any) -> str:
    return f"`{value.default!r}`" if value.optional else "required"
