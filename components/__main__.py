"""Write the generated files of the components."""

import argparse
import sys
from collections.abc import Sequence

from mal.errors import MissingExtraError

from ._generated import generated_files

EXIT_USER_ERROR = 2

_SUFFIX_BY_COMMAND = {"compile": ".yaml", "readme": ".md"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the compiled files, the READMEs or both; return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m components", description=__doc__)
    parser.add_argument(
        "commands", nargs="*", metavar="compile|readme", help="what to write; both by default"
    )
    options = parser.parse_args(arguments)
    unknown = set(options.commands) - set(_SUFFIX_BY_COMMAND)
    if unknown:
        parser.error(f"command must be compile or readme, got {', '.join(sorted(unknown))}")
    suffixes = {_SUFFIX_BY_COMMAND[name] for name in options.commands or _SUFFIX_BY_COMMAND}
    try:
        files = generated_files()
    except ModuleNotFoundError as error:
        known = MissingExtraError.of(error)
        if known is None:
            raise
        sys.stderr.write(f"error: {known}\n")
        return EXIT_USER_ERROR
    for path, text in files.items():
        if path.suffix in suffixes:
            path.write_text(text, encoding="utf-8")
            sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
