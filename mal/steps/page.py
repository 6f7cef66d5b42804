"""The layout of a step's page in Kubeflow's UI: what matters first, digests last.

KFP 2.17 shows the page with markdown-to-jsx 7.7 in a frame of about 450 px (MarkdownViewer.tsx):
text between two underscores becomes emphasis also within words, and a long word widens the page
past the frame. So names are escaped, URIs are link targets, and digests are short.
"""

from __future__ import annotations

import html
import re
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mal.markdown import escaped, short_value, table
from mal.storage import redact_uri

MAX_PICTURES = 2
MAX_PICTURE_BYTES = 60_000  # KFP cuts a page at 400,000 characters

DIGEST_SUFFIX = "_sha256"
_DIGESTS = {"sha256": "content", "git_sha": "commit", "image_digest": "image"}
_SHORT_DIGEST_CHARS = 12
_PICTURE = re.compile(r'<img src="(data:image/jpeg;base64,[^"]+)"[^>]* alt="([^"]*)"')


@dataclass(frozen=True)
class StepPage:
    """A page, in the order in which it is read.

    Attributes:
        title: The result in a few words.
        numbers: The numbers that matter, by name; at most three.
        notice: A warning or an explanation.
        pictures: Markdown of pictures.
        next_step: What to do with the result.
        links: URIs by their name.
        tables: Markdown tables with details.
        digests: sha256 and commits by their name; shown short.
    """

    title: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    notice: str = ""
    pictures: str = ""
    next_step: str = ""
    links: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[str] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    def markdown(self) -> str:
        """Return the page as Markdown."""
        numbers = {name: f"**{_cell(value)}**" for name, value in self.numbers.items()}
        links = [f"[{escaped(name)}]({_target(uri)})" for name, uri in self.links.items() if uri]
        digests = [
            f"{escaped(name)} `{digest.removeprefix('sha256:')[:_SHORT_DIGEST_CHARS]}`"
            for name, digest in self.digests.items()
            if digest
        ]
        blocks = (
            f"## {escaped(self.title)}",
            table([*map(escaped, numbers)], [[*numbers.values()]]) if numbers else "",
            self.notice,
            self.pictures,
            f"**Next:** {self.next_step}" if self.next_step else "",
            " · ".join(links),
            *self.tables,
            f"Digests: {', '.join(digests)}" if digests else "",
        )
        return "\n\n".join(filter(None, blocks)) + "\n"


def page_table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table for KFP's page; numbers have four digits."""
    return table(
        [escaped(name) for name in header], [[_cell(each) for each in row] for row in rows]
    )


def pictures_of_report(report: Path) -> str:
    """Return the first and the last picture of a report, with their captions.

    A report shows masks from one end of its ranking to the other, drawn on their images.
    """
    found = _PICTURE.findall(report.read_text(encoding="utf-8")) if report.is_file() else []
    small = [each for each in found if len(each[0]) <= MAX_PICTURE_BYTES]
    chosen = small if len(small) <= MAX_PICTURES else [small[0], small[-1]]
    captions = [html.unescape(alt).replace(": mask drawn on the image", "") for _, alt in chosen]
    drawn = [
        f"![{escaped(caption)}]({data})"
        for (data, _), caption in zip(chosen, captions, strict=True)
    ]
    return "\n\n".join([" ".join(drawn), escaped("; ".join(captions))]) if drawn else ""


def digests_of(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the digests in an artifact's metadata, by a short name."""
    digests = {text: str(metadata.get(name, "")) for name, text in _DIGESTS.items()}
    return digests | {
        name.removesuffix(DIGEST_SUFFIX): str(value)
        for name, value in metadata.items()
        if name.endswith(DIGEST_SUFFIX)
    }


def _cell(value: object) -> str:
    return escaped(short_value(value))


def _target(uri: str) -> str:
    return urllib.parse.quote(redact_uri(uri), safe="/:?&=%~+,;@")
