"""Draw a lineage as one self-contained HTML page: one column for each generation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mal.artifacts import write_text
from mal.lineage.graph import LineageGraph, Node, shown_metadata

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
class NodeBox:
    """A node and the position of its box."""

    node: Node
    x: int
    y: int
    colour: str
    lines: tuple[str, str]
    metadata: Mapping[str, str]


def write_lineage_page(graph: LineageGraph, path: Path, *, title: str, focus: Node) -> None:
    """Draw a graph, with `focus` highlighted."""
    import jinja2

    boxes = layout_nodes(graph)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mal", "lineage"), autoescape=True, trim_blocks=True
    )
    text = environment.get_template("page.html.j2").render(
        title=title,
        nodes=boxes.values(),
        focus=focus.key,
        edges=[
            (boxes[parent], boxes[child.key], part)
            for child in graph.nodes.values()
            for parent, part in child.parents.items()
        ],
        width=max(p.x for p in boxes.values()) + BOX_WIDTH_PX + MARGIN_PX,
        height=max(p.y for p in boxes.values()) + BOX_HEIGHT_PX + MARGIN_PX,
        box_width=BOX_WIDTH_PX,
        box_height=BOX_HEIGHT_PX,
    )
    write_text(path, text)


def layout_nodes(graph: LineageGraph) -> dict[str, NodeBox]:
    """Position every node to the right of its parents."""
    generations = _generations(graph)
    boxes: dict[str, NodeBox] = {}
    for generation in range(max(generations.values()) + 1):
        column = [node for node in graph.nodes.values() if generations[node.key] == generation]
        column.sort(key=lambda node: _mean_height(node, boxes))
        for row, node in enumerate(column):
            boxes[node.key] = NodeBox(
                node,
                MARGIN_PX + generation * (BOX_WIDTH_PX + GAP_X_PX),
                MARGIN_PX + row * (BOX_HEIGHT_PX + GAP_Y_PX),
                COLOURS.get(node.kind, "#555"),
                (_shortened(node.title), _shortened(_summary(node))),
                shown_metadata(node),
            )
    return boxes


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
        key: _generation_of_root(graph, key, generations) if not node.parents else generations[key]
        for key, node in graph.nodes.items()
    }


def _generation_of_root(graph: LineageGraph, key: str, generations: Mapping[str, int]) -> int:
    """Return the generation just before that of the first child."""
    return min((generations[child.key] for child in graph.children_of(key)), default=1) - 1


def _mean_height(node: Node, boxes: Mapping[str, NodeBox]) -> float:
    heights = [boxes[key].y for key in node.parents if key in boxes]
    return sum(heights) / len(heights) if heights else 0.0


def _summary(node: Node) -> str:
    metadata = shown_metadata(node)
    metrics = [f"{name} {metadata[name]}" for name in _SUMMARY_KEYS if name in metadata]
    sha256 = str(node.metadata.get("sha256") or "")[:SHOWN_SHA_CHARS]
    return metrics[0] if metrics else sha256 or metadata.get("uri", "")


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_LINE_CHARS else f"{text[: MAX_LINE_CHARS - 1]}\u2026"
