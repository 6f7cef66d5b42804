"""Reads the sources of a spec: YAML files, recipes and `key=value` overrides."""

from __future__ import annotations

import contextlib
import json
import os
import re
import typing
from collections.abc import Callable, Collection, Hashable, Mapping
from pathlib import Path
from typing import Any

import yaml

from mal.errors import SpecError
from mal.recipes import read_recipe
from mal.spec.convert import yaml_text

RECIPE_PREFIX = "recipe:"
VARIABLE_PREFIX = "env:"


class _SpecLoader(yaml.SafeLoader):
    """YAML loader for specs: `1e-6` is a number, a date is text, a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_SpecLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_SpecLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


class _TextLoader(_SpecLoader):
    """The same, but every scalar is text: `07` is the name of a file."""


_TextLoader.yaml_implicit_resolvers = {}

# YAML's other numbers, such as 010 (8), 1:30 (90) and 1_000, are rarely what a shell user means.
_JSON_LIKE = re.compile(
    r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|nan)|true|false|null",
    re.IGNORECASE,
)


def read_spec_source(text: str) -> Mapping[str, Any]:
    """Read a spec given as YAML text or as `recipe:NAME`, as pipelines pass it."""
    if text.strip().startswith(RECIPE_PREFIX):
        return read_spec_file(text.strip())
    return parse_spec_text(text, "the spec text")


def read_spec_file(source: str) -> Mapping[str, Any]:
    """Read a YAML file, `recipe:NAME`, or `env:VARIABLE` with YAML text.

    A pod gets its spec by a variable, without mounting a file.

    Raises:
        SpecError: It cannot be read, or is not a mapping.
    """
    if source.startswith(RECIPE_PREFIX):
        return parse_spec_text(read_recipe(source.removeprefix(RECIPE_PREFIX)), source)
    if source.startswith(VARIABLE_PREFIX):
        return parse_spec_text(_read_variable(source.removeprefix(VARIABLE_PREFIX)), source)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"spec file must be UTF-8 text, got another encoding or a binary file in {source}. "
            "Give a YAML file or recipe:NAME."
        ) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(
            f"spec file must be readable, got {source} ({reason}). Give a YAML file or recipe:NAME."
        ) from error
    return parse_spec_text(text, source)


def _read_variable(name: str) -> str:
    text = os.environ.get(name)
    if text is None:
        raise SpecError(
            f"spec variable must be set, got no {name}. Set it to the YAML text of the spec."
        )
    return text


def parse_spec_text(text: str, name: str) -> Mapping[str, Any]:
    """Parse the YAML text of a spec; `name` is its source in error messages."""
    content = parse_yaml(text, name)
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise SpecError(
            f"spec must be a mapping of sections, got a {type(content).__name__} in {name}. "
            "Write lines such as 'train:' and below it, indented, 'lr: 1e-4'."
        )
    return content


def parse_override(override: str, *, type_of: Callable[[str], Any] | None = None) -> dict[str, Any]:
    """Parse `dotted.key=value`; `type_of` returns the type of a key, None for an unknown one.

    A shell user writes a path as it is: `#`, `: `, `*` and `07` are YAML, and names of folders. So
    only a value that looks like JSON is YAML, and the value of a text key only where it is quoted.

    Raises:
        SpecError: It is not of this form.
    """
    key, separator, text = override.partition("=")
    key, text = key.strip(), text.strip()
    if not separator or not key:
        raise SpecError(
            f"override must read key=value, got {yaml_text(override)}. Write it like train.lr=1e-4."
        )
    value_type = type_of(key) if type_of else None
    try:
        return {
            key: _parse_text(text, value_type)
            if _is_of_texts(value_type)
            else parse_json_like(text)
        }
    except SpecError as error:
        raise SpecError(f"{key} must be a YAML value, got {yaml_text(text)}. Quote it.") from error


def parse_json_like(text: str) -> Any:
    """Parse a number, true, false, null, [..], {..} or a quoted text; another text is itself.

    Raises:
        SpecError: Brackets or quotes are not closed.
    """
    if not text.startswith(("[", "{", '"', "'")) and not _JSON_LIKE.fullmatch(text):
        return text
    return parse_yaml(text, "the value")


def _parse_text(text: str, value_type: Any) -> Any:
    """Parse the value of a key of text, or of a list of texts (or of either)."""
    takes_list = value_type is not str
    if takes_list and text.startswith("[") and text.endswith("]"):
        return parse_yaml(text, "the value", _TextLoader)
    if text == "null":
        return None
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        with contextlib.suppress(ValueError):  # YAML cannot read each JSON string
            return str(json.loads(text))
        with contextlib.suppress(SpecError):
            return parse_yaml(text, "the value")
    return text


def _is_of_texts(value_type: Any) -> bool:
    """Whether a type is `str`, a list of it, or a union of these."""
    arguments = typing.get_args(value_type)
    return all(map(_is_of_texts, arguments)) if arguments else value_type is str


def parse_yaml(text: str, name: str, loader: type[yaml.SafeLoader] = _SpecLoader) -> Any:
    """Parse YAML; a tag never constructs an object.

    Raises:
        SpecError: The text is not YAML.
    """
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, LookupError, TypeError, ValueError, RecursionError) as error:
        raise SpecError(
            f"spec must be valid YAML, got an error in {name} ({_reason(error)}). Fix it."
        ) from error


def _reason(error: Exception) -> str:
    """Return a parser's message on one line."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        position = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return f"{position}{error.problem or error.context}"
    return " ".join(str(error).split())


def flatten(
    content: Mapping[Any, Any], sections: Collection[str], prefix: str = ""
) -> dict[str, Any]:
    """Join nested keys by dots; a mapping that is not a section of the spec stays a value."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key in sections:
            flat.update(flatten(value, sections, f"{key}."))
        else:
            flat[key] = value
    return flat
