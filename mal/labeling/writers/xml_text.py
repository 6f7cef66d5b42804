"""Text and attributes of XML, without the characters that XML 1.0 cannot hold."""

from __future__ import annotations

import re
from xml.sax.saxutils import escape, quoteattr

_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Return the text of an element."""
    return escape(_NOT_XML.sub("?", text))


def xml_attributes(**values: object) -> str:
    """Return attributes, each with a space before it."""
    return "".join(
        f" {name}={quoteattr(_NOT_XML.sub('?', _as_text(value)))}" for name, value in values.items()
    )


def _as_text(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)
