"""What made an artifact, and what was made from it: read from a run's folder or a model store.

Every artifact says in its metadata what it came from, by uri and sha256. Those of a local run are
in `<run>/<step>/executor_output.json`, those of a version in its `version.json`, those of a
cluster's run in the pages of its steps, of which the object store keeps
`<run>/<step>/<try>/summary`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mal.errors import ArtifactError
from mal.lineage.note import PAGE_OUTPUTS, read_note
from mal.registry.model_store import VERSION_FILE, ModelStore
from mal.registry.promotion import list_versions
from mal.storage import child_uri, fetch_file, list_files, read_document, redact_uri

EXECUTOR_OUTPUT = "executor_output.json"
SUMMARY_OUTPUT = "summary"

_SHOWN_SHA_CHARS = 12
_HIDDEN = frozenset({"display_name", "pipeline_name"})
# Of an artifact's metadata, which key names a parent, and what that is.
_PARENT_KEYS = {
    "dataset": "data set",
    "model": "model",
    "parent_model": "model",
    "snapshot": "snapshot",
    "train_annotations": "annotations",
    "train_images": "images",
    "val_annotations": "annotations",
    "val_images": "images",
    "label_annotations": "annotations",
    "source_annotations": "annotations",
    "evaluated_annotations": "annotations",
}


@dataclass
class Node:
    """Something that was made, or that something was made from.

    Attributes:
        key: Its sha256; its uri where that is not known.
        kind: annotations, images, data set, model, onnx, report, labels, version, ...
        title: For people.
        facts: Everything that is known of it.
        parents: Keys of what it was made from, with the part that each played.
    """

    key: str
    kind: str
    title: str
    facts: dict[str, Any] = field(default_factory=dict)
    parents: dict[str, str] = field(default_factory=dict)


class LineageGraph:
    """Nodes by key; one content is one node, wherever copies of it lie."""

    def __init__(self) -> None:
        self.nodes: dict[str, Node] = {}

    def add_artifact(self, kind: str, facts: Mapping[str, Any]) -> str:
        """Add an artifact with its metadata and what that names; returns its key."""
        own = str(facts.get("sha256") or facts.get("dataset_sha256") or facts.get("uri"))
        node = self._node(own, kind, str(facts.get("display_name") or kind))
        node.kind, node.facts = kind, {**node.facts, **facts}
        node.title = str(facts.get("display_name") or node.title)
        for name, parent_kind in _PARENT_KEYS.items():
            uri, sha256 = facts.get(f"{name}_uri"), facts.get(f"{name}_sha256")
            key = str(sha256 or uri or "")
            if key and key != own:
                file_name = redact_uri(str(uri or "")).rstrip("/").rpartition("/")[2]
                title = f"{name.replace('_', ' ')}: {file_name}"
                parent = self._node(key, parent_kind, title)
                parent.facts.setdefault("uri", uri)
                if sha256:
                    parent.facts.setdefault("sha256", sha256)
                node.parents.setdefault(key, name.replace("_", " "))
        self._add_recipe(node)
        return own

    def _add_recipe(self, node: Node) -> None:
        """Let spec and code of a model be parents like others: what they made is seen at a look.

        Those of other artifacts stay facts, or every box would hang on the same commit.
        """
        commit, spec = node.facts.get("git_sha"), node.facts.get("train_config")
        if not spec:
            return
        if commit:
            code = self._node(str(commit), "code", f"commit {str(commit)[:_SHOWN_SHA_CHARS]}")
            code.facts.setdefault("git_sha", commit)
            node.parents.setdefault(code.key, "code")
        sha256 = hashlib.sha256(str(spec).encode()).hexdigest()
        made_by = self._node(sha256, "spec", f"spec {sha256[:_SHOWN_SHA_CHARS]}")
        made_by.facts.setdefault("spec", spec)
        node.parents.setdefault(sha256, "spec")

    def children_of(self, key: str) -> list[Node]:
        """Return what was made from a node."""
        return [node for node in self.nodes.values() if key in node.parents]

    def find(self, text: str) -> Node:
        """Return the node of a title, a version, a uri, or the beginning of a sha256.

        Raises:
            ArtifactError: There is none, or several.
        """
        wanted = text.rstrip("/")
        found = [
            node
            for node in self.nodes.values()
            if node.key.startswith(wanted)
            or wanted in (node.title, node.facts.get("uri"), node.facts.get("version"))
        ]
        if len(found) != 1:
            raise ArtifactError(
                f"artifact must be one of the lineage, got {len(found)} for {text}. It has: "
                f"{'; '.join(sorted(node.title for node in self.nodes.values()))}."
            )
        return found[0]

    def main_node(self) -> Node:
        """Return the newest thing that people ask for: a version, else a model, else anything.

        Raises:
            ArtifactError: The graph is empty.
        """
        for kind in ("champion", "version", "model", "labels", "data set", "snapshot"):
            found = [node for node in self.nodes.values() if node.kind == kind and node.parents]
            if found:
                return found[-1]
        if not self.nodes:
            raise ArtifactError("lineage must have artifacts, got none. Give another place.")
        return next(iter(self.nodes.values()))

    def _node(self, key: str, kind: str, title: str) -> Node:
        return self.nodes.setdefault(key, Node(key, kind, title))


def read_lineage(place: str) -> LineageGraph:
    """Read the lineage of a run's folder, of a model store, or of one version of it.

    Any of them may be local or in an object store.

    Raises:
        ArtifactError: It is none of these.
        StorageError: It cannot be read.
    """
    graph = LineageGraph()
    outputs = sorted(Path(place).expanduser().rglob(EXECUTOR_OUTPUT)) if "://" not in place else []
    if outputs:
        for path in sorted(outputs, key=lambda path: path.stat().st_mtime_ns):
            for kind, facts in _artifacts_of(path):
                graph.add_artifact(kind, facts)
        return graph
    for record in _records_of(place):
        _add_version(graph, record)
    if not graph.nodes:
        for kind, facts in _noted_artifacts(place):
            graph.add_artifact(kind, facts)
    if not graph.nodes:
        raise ArtifactError(
            f"lineage must be of a run's folder, a model store or a version of it, got "
            f"{redact_uri(place)}. Give one of these; what it lacks is in Kubeflow's UI, at the "
            "artifacts of the run."
        )
    return graph


def _artifacts_of(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield kind and facts of what a step of a local run made, figures and summaries left out."""
    content = json.loads(path.read_bytes())
    for name, entry in content.get("artifacts", {}).items():
        for artifact in entry["artifacts"]:
            facts = artifact.get("metadata", {})
            if "pipeline_name" in facts and name != SUMMARY_OUTPUT:
                yield _kind_of(name), {"uri": artifact.get("uri"), **facts}


def _noted_artifacts(place: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield kind and facts of what the pages of a run's steps note."""
    for name in sorted(list_files(place)):
        if name.rpartition("/")[2] in PAGE_OUTPUTS:
            page = fetch_file(child_uri(place, name)).read_text(encoding="utf-8")
            for output, facts in read_note(page):
                yield _kind_of(output), facts


def _kind_of(output: str) -> str:
    return {"dataset": "data set", "champion": "model"}.get(output, output)


def _records_of(place: str) -> Iterable[Mapping[str, Any]]:
    document = read_document(f"{place.rstrip('/')}/{VERSION_FILE}")
    if document is not None:
        root, _, version = place.rstrip("/").rpartition("/versions/")
        return [{**document.content, "store": root, "version": version}]
    store = ModelStore(place)
    records = [store.read_version(version) for version in list_versions(store)]
    known = [{**record, "store": store.uri} for record in records if record is not None]
    return sorted(known, key=lambda record: str(record["created_at"]))


def _add_version(graph: LineageGraph, record: Mapping[str, Any]) -> None:
    """Add the artifacts that a version came with, and the version itself."""
    keys = {
        name: graph.add_artifact(_kind_of(name), facts) for name, facts in record["lineage"].items()
    }
    version = str(record["version"])
    passed = bool(record["gate"]["is_passed"])
    uri = ModelStore(str(record["store"])).version_uri(version)
    node = Node(uri, "version", f"{version}, {'promoted' if passed else 'refused'}")
    node.facts = {
        "version": version,
        "uri": uri,
        "created_at": record["created_at"],
        "mIoU": record["metrics"].get("mIoU"),
    }
    node.parents = {keys[name]: name for name in ("model", "onnx", "report") if name in keys}
    graph.nodes[uri] = node


def lineage_lines(graph: LineageGraph, node: Node) -> list[str]:
    """Return the tree of a node as text: what made it, then what was made from it."""
    lines = [f"{node.title}"]
    lines += [f"    {name}: {value}" for name, value in shown_facts(node).items()]
    lines.append("made from")
    lines += _branch(graph, node, {node.key})
    lines.append("made from it")
    children = [f"  {child.title}" for child in graph.children_of(node.key)]
    return lines + (children or ["  nothing yet"])


def shown_facts(node: Node) -> dict[str, str]:
    """Return what a person wants to see of a node at first: short values, no repetition."""
    return {
        name: f"{value:.4g}" if isinstance(value, float) else str(value)
        for name, value in node.facts.items()
        if name not in _HIDDEN and value not in ("", None) and len(str(value)) <= 100
    }


def _branch(graph: LineageGraph, node: Node, seen: set[str], depth: int = 1) -> Iterator[str]:
    for key, part in node.parents.items():
        parent = graph.nodes[key]
        sha256 = str(parent.facts.get("sha256") or "")[:_SHOWN_SHA_CHARS]
        is_new = key not in seen
        repeated = "" if is_new or not parent.parents else " (see above)"
        lead = "  " * depth
        yield f"{lead}{part}: {parent.title} {sha256}{repeated}".rstrip()
        if is_new:
            seen.add(key)
            yield from _branch(graph, parent, seen, depth + 1)
