"""Declares a key of the spec: its default, description and bounds."""

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
    """AutoML's default range of a key; it limits the search, not the spec."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Setting:
    """The declaration of a spec key beside its type and default.

    Bounds apply to each number of a list.

    Attributes:
        choices: Allowed names, also of each item of a list; empty for any.
        choice_pattern: Regular expression of further allowed names; '' for none.
        lengths: Allowed lengths of a list; empty for any.
        option_weights: Relative probability of each choice in a search; 0 excludes it; empty for
            equal ones.
        search: AutoML's default range; None if AutoML does not vary the key by default.
        is_searchable: Whether a user may add the key to a search.
        is_popular: Whether the key is often set.
        is_ignored: Whether any value is accepted and discarded.
        is_uri_list: Whether a list of texts is accepted; it becomes one text (`mal.spec.uri_list`).
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
    is_uri_list: bool = False

    def is_choice(self, value: object) -> bool:
        """Whether a value is one of the known names, or of the further ones."""
        return isinstance(value, str) and (
            value in self.choices
            or bool(self.choice_pattern and re.search(self.choice_pattern, value))
        )


def setting(
    default: Any,
    description: str,
    *,
    minimum: float | None = None,
    exclusive_minimum: float | None = None,
    maximum: float | None = None,
    exclusive_maximum: float | None = None,
    is_odd: bool = False,
    choices: Collection[str] = (),
    choice_pattern: str = "",
    lengths: tuple[int, ...] = (),
    option_weights: tuple[float, ...] = (),
    search: SearchRange | None = None,
    is_searchable: bool = True,
    is_popular: bool = False,
    is_ignored: bool = False,
    is_uri_list: bool = False,
) -> Any:
    """Declare a spec key; the arguments are the fields of `Setting`."""
    metadata = {
        "setting": Setting(
            description, minimum, exclusive_minimum, maximum, exclusive_maximum, is_odd, choices,
            choice_pattern, lengths, option_weights, search, is_searchable, is_popular, is_ignored,
            is_uri_list,
        )
    }  # fmt: skip
    if isinstance(default, list):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type[Any], description: str) -> Any:
    """Declare a nested section of the spec."""
    return dataclasses.field(
        default_factory=cls, metadata={"setting": Setting(description, is_searchable=False)}
    )
