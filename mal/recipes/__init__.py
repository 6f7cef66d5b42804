"""Packaged recipes: partial specs with which one command reproduces a documented result."""

from __future__ import annotations

from importlib import resources

from mal.errors import SpecError


def list_recipes() -> dict[str, str]:
    """Return the first comment line of each packaged recipe by its name."""
    files = sorted(
        (file for file in resources.files(__name__).iterdir() if file.name.endswith(".yaml")),
        key=lambda file: file.name,
    )
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        .partition("\n")[0]
        .lstrip("# ")
        for file in files
    }


def read_recipe(name: str) -> str:
    """Return a recipe's YAML text.

    Raises:
        SpecError: There is no recipe of that name.
    """
    known = list_recipes()
    if name not in known:
        raise SpecError(f"recipe must be packaged, got {name}. Use one of {', '.join(known)}.")
    return (resources.files(__name__) / f"{name}.yaml").read_text(encoding="utf-8")
