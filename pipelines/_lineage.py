"""`mal pipelines lineage`: what a model was made from, and what was made from it."""

import argparse
import sys
from pathlib import Path
from typing import Any

from mal.lineage.graph import lineage_lines, read_lineage
from mal.lineage.page import write_lineage_page

from ._runs import add_run_options, read_run, run_folder


def add_command(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "lineage", help="show what a model was made from, and what was made from it"
    )
    parser.add_argument(
        "uri",
        metavar="MODEL_OR_RUN",
        help="a run's folder (runs/latest), a model store, STORE/versions/VERSION, or with --host "
        "the id of a run on a cluster",
    )
    parser.add_argument(
        "--of",
        default="",
        metavar="NAME",
        help="an artifact: its title, version, URI or the first characters of its sha256; "
        "default: the newest version or model",
    )
    parser.add_argument(
        "-o", "--output", type=Path, default=Path("lineage.html"), help="default: lineage.html"
    )
    add_run_options(parser, is_host_required=False)
    parser.set_defaults(command=_lineage)


def _lineage(options: argparse.Namespace) -> int:
    uri = options.uri
    if options.host:
        uri = run_folder(options, read_run(options, options.uri))
    graph = read_lineage(uri)
    node = graph.find(options.of) if options.of else graph.main_node()
    sys.stdout.writelines(f"{line}\n" for line in lineage_lines(graph, node))
    write_lineage_page(graph, options.output, title=f"Lineage of {node.title}", focus=node)
    sys.stdout.write(f"{options.output}\n")
    return 0
