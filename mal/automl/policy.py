"""Decides whether a training request starts an AutoML search or a plain training.

The policy is a setting of the run; the packaged metadata only state what is possible. `mal train`
and the component `train` always train plainly.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources.abc import Traversable
from typing import Any

import yaml

from mal.errors import SpecError
from mal.spec.packaged import (
    SKILL_INFO_FILE,
    packaged_metadata_folder,
    schema_file,
    template_file,
)
from mal.tao.automl_intent import parse_automl_intent

SCHEMA_FILE, TEMPLATE_FILE = schema_file("train"), template_file("train")
SEARCHED_KEY = "automl_default_parameters"


class Policy(StrEnum):
    """The AutoML policy of a run."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


class Route(StrEnum):
    """The route of a training request."""

    SEARCH = "search"
    PLAIN = "plain"


@dataclass(frozen=True)
class AutoMLSupport:
    """What the packaged metadata allow.

    Attributes:
        automl_enabled: The switch in `skill_info.yaml`.
        problems: Why the search cannot run, one sentence per unusable file.
    """

    automl_enabled: bool
    problems: tuple[str, ...] = ()

    @property
    def is_runnable(self) -> bool:
        """Whether a search can run."""
        return self.automl_enabled and not self.problems


@dataclass(frozen=True)
class RouteDecision:
    """The route of a request.

    Attributes:
        policy: The policy after parsing the explicit value and the text of the request.
        reason: One line for the log.
    """

    route: Route
    policy: Policy
    reason: str


def decide_route(
    policy: str | bool | None = "auto", request: str = "", *, support: AutoMLSupport
) -> RouteDecision:
    """Decide between the search and plain training, for this run only.

    Args:
        policy: `automl_policy`; on and off override the text of the request. YAML parses them as
            True and False.
        request: The text of the request, or ''.
        support: What the packaged metadata allow.

    Raises:
        SpecError: The policy is unknown.
    """
    given = _policy_from(policy)
    resolved, source = given, f"automl_policy is {given}"
    if given is Policy.AUTO and (intent := parse_automl_intent(request)) is not None:
        resolved = Policy.ON if intent else Policy.OFF
        source = f"the request turns AutoML {resolved}"
    if resolved is Policy.OFF:
        return RouteDecision(Route.PLAIN, resolved, f"training plainly: {source}")
    if support.is_runnable:
        return RouteDecision(Route.SEARCH, resolved, f"searching with AutoML: {source}")
    obstacles = support.problems or (f"automl_enabled is false in {SKILL_INFO_FILE}",)
    reason = f"training plainly: {source}, but {'; '.join(obstacles)}"
    return RouteDecision(Route.PLAIN, resolved, reason)


def _policy_from(value: str | bool | None) -> Policy:
    if isinstance(value, bool):
        return Policy.ON if value else Policy.OFF
    name = "" if value is None else str(value).strip().lower()
    aliases = {"": Policy.AUTO, "true": Policy.ON, "false": Policy.OFF}
    if name in aliases:
        return aliases[name]
    try:
        return Policy(name)
    except ValueError:
        shown = name if name.isprintable() and len(name) <= 80 else f"{name[:77]!r}..."
        raise SpecError(
            f"automl_policy must be a known policy, got {shown}. Use one of {', '.join(Policy)}."
        ) from None


def packaged_automl_support(root: Traversable | None = None) -> AutoMLSupport:
    """Read from the packaged metadata whether a search can run; a missing file is no error.

    Args:
        root: The metadata folder; None is the one packaged with `mal`.
    """
    folder = packaged_metadata_folder() if root is None else root
    problems: list[str] = []
    skill = _read_mapping(folder, SKILL_INFO_FILE, "YAML mapping", yaml.safe_load, problems)
    schema = _read_mapping(folder, SCHEMA_FILE, "JSON object", json.loads, problems)
    _read_mapping(folder, TEMPLATE_FILE, "YAML mapping", yaml.safe_load, problems)
    if schema is not None and SEARCHED_KEY not in schema:
        problems.append(f"{SCHEMA_FILE} has no {SEARCHED_KEY}")
    is_enabled = skill is not None and skill.get("automl_enabled") is True
    return AutoMLSupport(is_enabled, tuple(problems))


def _read_mapping(
    folder: Traversable,
    name: str,
    kind: str,
    parse: Callable[[str], Any],
    problems: list[str],
) -> dict[Any, Any] | None:
    """Return a file's content, or add a problem."""
    try:
        content = parse(folder.joinpath(name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        problems.append(f"{name} is missing")
        return None
    except OSError as error:
        problems.append(f"{name} cannot be read ({error.strerror})")
        return None
    except (ValueError, RecursionError, yaml.YAMLError):
        content = None
    if isinstance(content, dict):
        return content
    problems.append(f"{name} does not parse as a {kind}")
    return None
