"""Run benches by name (all without one), keep their results, and write docs/performance.md's table.

    python tests/bench/run.py [CASE ...] [--table]

Each case runs in a process of its own, on one thread; `results.jsonl` keeps the last result of
every part on every machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from string import ascii_uppercase
from typing import Any

FOLDER = Path(__file__).parent
RESULTS_FILE = FOLDER / "results.jsonl"
PAGE = FOLDER.parents[1] / "docs" / "performance.md"
BEGIN, END = "<!-- begin of the generated table -->", "<!-- end of the generated table -->"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def main() -> int:
    """Run the named cases; returns 1 if a requirement is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(list_cases()))
    parser.add_argument("--table", action="store_true", help="only write the table of the page")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.cases) - set(list_cases())
    if unknown:
        parser.error(f"CASE must be one of {', '.join(list_cases())}, got {', '.join(unknown)}")
    if options.inside:
        run_case(options.cases[0])
        return 0
    codes = [] if options.table else [run_apart(case) for case in options.cases or list_cases()]
    write_table()
    return max(codes, default=0)


def list_cases() -> list[str]:
    """Return the names of all cases."""
    return sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def run_apart(case: str) -> int:
    """Run a case in a process of its own."""
    command = [sys.executable, __file__, case, "--inside"]
    return subprocess.run(command, env={**os.environ, **ONE_THREAD}, check=False).returncode


def run_case(case: str) -> None:
    """Run a case here, print its results and keep them."""
    from harness import record_of

    for result in importlib.import_module(f"bench_{case}").run():
        record = record_of(case, result)
        keep(record)
        baseline = "" if result.baseline is None else f"literal {result.baseline:.4g}, "
        ratio = "" if result.ratio is None else f", ratio {result.ratio:.2f}"
        asked = f" (at least {result.required})" if result.required else ""
        asked += f" (at most {result.limit})" if result.limit else ""
        print(
            f"{case}: {result.part}: {baseline}ours {result.ours:.4g} {result.unit}{ratio}{asked}"
            f" {'ok' if result.is_met else 'MISSED'} {result.facts or ''}",
            flush=True,
        )


def keep(record: dict[str, Any]) -> None:
    """Put a result into the file, in the place of an earlier one of the same part and machine."""
    records = {(r["case"], r["part"], r["machine"]): r for r in read_results()}
    records[record["case"], record["part"], record["machine"]] = record
    text = "".join(json.dumps(r) + "\n" for _, r in sorted(records.items()))
    RESULTS_FILE.write_text(text, encoding="utf-8")


def read_results() -> list[dict[str, Any]]:
    """Return all kept results."""
    if not RESULTS_FILE.exists():
        return []
    return [json.loads(line) for line in RESULTS_FILE.read_text(encoding="utf-8").splitlines()]


def write_table() -> None:
    """Write the results between the marks of the page."""
    lines = [
        "| case | part | machine | literal | ours | ratio | asked | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    results = read_results()
    machines = sorted({r["machine"] for r in results})
    letters = dict(zip(machines, ascii_uppercase, strict=False))
    for r in results:
        asked = f"{r['required']:g}x" if r["required"] else ""
        asked += f"<= {r['limit']:g} {r['unit']}" if r["limit"] else ""
        baseline = "" if r["baseline"] is None else f"{r['baseline']:.3g} {r['unit']}"
        ratio = "" if r["ratio"] is None else f"{r['ratio']:.1f}x"
        facts = ", ".join(f"{name} {value}" for name, value in r["facts"].items())
        met = ("yes" if r["is_met"] else "**no**") if asked else ""
        cells = (
            r["case"], r["part"], letters[r["machine"]],
            baseline, f"{r['ours']:.3g} {r['unit']}", ratio, f"{asked} {met}".strip(), facts,
        )  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    page = PAGE.read_text(encoding="utf-8")
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    named = ", ".join(f"{letter}: {name}" for name, letter in letters.items())
    table = "\n".join([*lines, "", f"Machines: {named}."])
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
