"""Write the generated files of the components, or check a component's folder."""

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

from mal.errors import EXIT_USER_ERROR, MissingExtraError

_SUFFIXES = {None: {".yaml", ".md"}, "compile": {".yaml"}, "readme": {".md"}}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m components", description=__doc__)
    parser.add_argument(
        "command",
        nargs="?",
        choices=("compile", "readme", "check"),
        help="write component.yaml, write README.md (both without a command), or check folders",
    )
    parser.add_argument("folders", nargs="*", type=Path, help="of check: folders of components")
    options = parser.parse_args(arguments)
    if bool(options.folders) != (options.command == "check"):
        parser.error("check needs folders of components; the other commands take none")
    try:
        return _check(options.folders) if options.folders else _write(_SUFFIXES[options.command])
    except ModuleNotFoundError as error:
        known = MissingExtraError.of(error)
        if known is None:
            raise
        sys.stderr.write(f"error: {known}\n")
        return EXIT_USER_ERROR


def _check(folders: Sequence[Path]) -> int:
    from .checks import check_component

    today = datetime.datetime.now(datetime.UTC).date()
    problems = [f"{f}: {line}" for f in folders for line in check_component(f, today=today)]
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    return EXIT_USER_ERROR if problems else 0


def _write(suffixes: set[str]) -> int:
    from ._generated import generated_files

    for path, text in generated_files().items():
        if path.suffix in suffixes:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
