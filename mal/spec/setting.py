"""How a key of the spec is declared: its default, and what is known of its values."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

REQUIRED = "???"
MAX_WHOLE_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class SearchRange:
    """How AutoML may vary a setting; it bounds the search, not the spec."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Setting:
    """What is known of one spec key beside its type and default.

    Attributes:
        description: What it does, in a sentence or two.
        minimum: Least value, of each number of a list.
        exclusive_minimum: What every value lies above.
        maximum: Greatest value.
        exclusive_maximum: What every value lies below.
        is_odd: Whether even numbers are refused.
        choices: The known names; empty for any.
        choice_pattern: Regular expression of further names; '' for none.
        lengths: How many values a list may have; empty for any.
        option_weights: Odds of each choice in a search; 0: not tried. Empty: all alike.
        search: AutoML's range by default; None: not varied unless the user asks.
        is_searchable: Whether a user may ask AutoML to vary it.
        is_popular: Whether people often set it.
        is_ignored: Whether any value is taken, and none is kept.
    """

    description: str
    minimum: float | None = None
    exclusive_minimum: float | None = None
    maximum: float | None = None
    exclusive_maximum: float | None = None
    is_odd: bool = False
    choices: Collection[str] = ()
    choice_pattern: str = ""
    lengths: tuple[int, ...] = ()
    option_weights: tuple[float, ...] = ()
    search: SearchRange | None = None
    is_searchable: bool = True
    is_popular: bool = False
    is_ignored: bool = False

    def is_choice(self, value: object) -> bool:
        """Whether a value is one of the known names, or of the further ones."""
        return isinstance(value, str) and (
            value in self.choices
            or bool(self.choice_pattern and re.search(self.choice_pattern, value))
        )


def setting(default: Any, description: str, **facts: Any) -> Any:
    """Declare a spec key: `facts` are fields of `Setting`."""
    metadata = {"setting": Setting(description, **facts)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type[Any], description: str) -> Any:
    """Declare a nested section of the spec."""
    return dataclasses.field(
        default_factory=cls, metadata={"setting": Setting(description, is_searchable=False)}
    )
