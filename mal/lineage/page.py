"""A lineage as one self-contained page: a column a generation, lines from parent to child."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import write_text
from mal.lineage.graph import LineageGraph, Node, shown_facts

BOX_WIDTH_PX, BOX_HEIGHT_PX = 250, 58
GAP_X_PX, GAP_Y_PX, MARGIN_PX = 44, 16, 8
MAX_LINE_CHARS = 31
SHOWN_SHA_CHARS = 12

COLOURS: Mapping[str, str] = {
    "annotations": "#8a6d1d",
    "images": "#8a6d1d",
    "snapshot": "#8a6d1d",
    "spec": "#555555",
    "code": "#555555",
    "data set": "#1d6b8a",
    "model": "#7a2f8f",
    "onnx": "#2f7d4f",
    "report": "#2f7d4f",
    "labels": "#2f7d4f",
    "version": "#b03030",
}
_SUMMARY_KEYS = ("mIoU", "train_num_boxes", "val_mIoU", "parity_max_abs_diff", "num_instances")


@dataclass(frozen=True)
class PlacedNode:
    """A node and where it is drawn."""

    node: Node
    x: int
    y: int
    colour: str
    lines: tuple[str, str]
    facts: Mapping[str, str]


def write_lineage_page(graph: LineageGraph, path: Path, *, title: str, focus: Node) -> None:
    """Draw a graph; `focus` stands out."""
    import jinja2

    placed = place_nodes(graph)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mal", "lineage"), autoescape=True, trim_blocks=True
    )
    text = environment.get_template("page.html.j2").render(
        title=title,
        nodes=placed.values(),
        focus=focus.key,
        edges=[
            (placed[parent], placed[child.key], part)
            for child in graph.nodes.values()
            for parent, part in child.parents.items()
        ],
        width=max(p.x for p in placed.values()) + BOX_WIDTH_PX + MARGIN_PX,
        height=max(p.y for p in placed.values()) + BOX_HEIGHT_PX + MARGIN_PX,
        box_width=BOX_WIDTH_PX,
        box_height=BOX_HEIGHT_PX,
    )
    write_text(path, text)


def place_nodes(graph: LineageGraph) -> dict[str, PlacedNode]:
    """Give every node a place right of all that it was made from."""
    generations = _generations(graph)
    placed: dict[str, PlacedNode] = {}
    for generation in range(max(generations.values()) + 1):
        column = [node for node in graph.nodes.values() if generations[node.key] == generation]
        column.sort(key=lambda node: _mean_height(node, placed))
        for row, node in enumerate(column):
            placed[node.key] = PlacedNode(
                node,
                MARGIN_PX + generation * (BOX_WIDTH_PX + GAP_X_PX),
                MARGIN_PX + row * (BOX_HEIGHT_PX + GAP_Y_PX),
                COLOURS.get(node.kind, "#555"),
                (_shortened(node.title), _shortened(_summary(node))),
                shown_facts(node),
            )
    return placed


def _generations(graph: LineageGraph) -> dict[str, int]:
    generations: dict[str, int] = {}

    def generation_of(key: str, above: frozenset[str]) -> int:
        if key not in generations:
            parents = [p for p in graph.nodes[key].parents if p not in above]
            ages = [generation_of(parent, above | {key}) + 1 for parent in parents]
            generations[key] = max(ages, default=0)
        return generations[key]

    for key in graph.nodes:
        generation_of(key, frozenset({key}))
    return {
        key: _place_of_source(graph, key, generations) if not node.parents else generations[key]
        for key, node in graph.nodes.items()
    }


def _place_of_source(graph: LineageGraph, key: str, generations: Mapping[str, int]) -> int:
    """What was made from nothing stands close to the first thing that was made from it."""
    return min((generations[child.key] for child in graph.children_of(key)), default=1) - 1


def _mean_height(node: Node, placed: Mapping[str, PlacedNode]) -> float:
    heights = [placed[key].y for key in node.parents if key in placed]
    return sum(heights) / len(heights) if heights else 0.0


def _summary(node: Node) -> str:
    facts = shown_facts(node)
    figures = [f"{name} {facts[name]}" for name in _SUMMARY_KEYS if name in facts]
    sha256 = str(node.facts.get("sha256") or "")[:SHOWN_SHA_CHARS]
    return figures[0] if figures else sha256 or facts.get("uri", "")


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_LINE_CHARS else f"{text[: MAX_LINE_CHARS - 1]}\u2026"
