"""Where the generated files about `mal` lie: names below their folder, and the packaged folder."""

from __future__ import annotations

from importlib import resources
from importlib.resources.abc import Traversable

SKILL_INFO_FILE = "references/skill_info.yaml"


def schema_file(action: str) -> str:
    """Return the name of an action's JSON Schema."""
    return f"schemas/{action}.schema.json"


def template_file(action: str) -> str:
    """Return the name of an action's spec template."""
    return f"references/spec_template_{action}.yaml"


def packaged_metadata_folder() -> Traversable:
    """Return the folder of the files that this installation carries."""
    return resources.files("mal").joinpath("metadata")
