#!/usr/bin/env python3
"""Run `make demo` as README.md says, and check what it shows: exit code, table, named files.

In a clone that nothing was installed in. It needs what the demo needs: Python, and make.
"""

import csv
import json
import re
import subprocess
import sys
import time
from pathlib import Path

OUTPUTS = ("dataset", "model", "metrics", "report", "labels", "onnx")
ALARMING = re.compile("Traceback|No module named|WARNING|DEPRECATION|telemetry")
GOLDEN = Path("mal/recipes/golden/metrics.csv")
MAX_DIFFERENCE = 0.01  # another processor rounds differently


def run_make(*targets: str) -> list[str]:
    """Run make and show its lines; return them."""
    started_s = time.monotonic()
    lines = []
    with subprocess.Popen(
        ["make", *targets], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            sys.stdout.write(line)
            sys.stdout.flush()
            lines.append(line.rstrip())
    command = " ".join(["make", *targets])
    if process.returncode:
        sys.exit(f"{command} must end with 0, got {process.returncode}")
    sys.stdout.write(f"{command}: {time.monotonic() - started_s:.0f} s\n")
    return lines


def problems_of(lines: list[str]) -> list[str]:
    """Return what is not as README.md promises."""
    problems = [line for line in lines if ALARMING.search(line)]
    rows = [[cell.strip() for cell in line.split("│")] for line in lines]
    measured = [row[2:5] for row in rows if "all, mean over objects" in row]
    if not measured:
        problems.append("there is no table with the IoU of all objects")
    for row in measured:
        mask, box, ellipse = map(float, row)
        if abs(mask - golden_iou()) > MAX_DIFFERENCE:
            problems.append(f"masks must have the IoU of {GOLDEN}, {golden_iou()}, got {mask}")
        if mask < max(box, ellipse):
            problems.append(f"masks must be better than boxes and ellipses, got {row}")
    named = dict(line.split(maxsplit=1) for line in lines if line.count("/") and " /" in line)
    for name in OUTPUTS:
        path = Path(named.get(name, "/nowhere"))
        if not path.exists() or (path.is_file() and not path.stat().st_size):
            problems.append(f"{name} must be named and be there, got {named.get(name)}")
    return problems or problems_of_content({name: Path(named[name]) for name in OUTPUTS})


def golden_iou() -> float:
    """Return the mean mask IoU on record of the recipe `demo`."""
    with GOLDEN.open(encoding="utf-8", newline="") as file:
        return next(float(row["value"]) for row in csv.DictReader(file) if row["recipe"] == "demo")


def problems_of_content(paths: dict[str, Path]) -> list[str]:
    """Return what the named files lack."""
    labels = json.loads(paths["labels"].read_text(encoding="utf-8"))["annotations"]
    report = paths["report"].read_text(encoding="utf-8")
    checks = {
        "every label must have a mask": all(label["segmentation"] for label in labels) and labels,
        "the report must be a page with pictures": "<html" in report and "data:image/" in report,
        "the model's folder must hold weights": any(paths["model"].glob("*.pth")),
        "the ONNX file must be there": any(paths["onnx"].rglob("*.onnx"))
        or paths["onnx"].suffix == ".onnx",
    }
    return [problem for problem, is_good in checks.items() if not is_good]


def main() -> int:
    """Run and check; return the exit code."""
    if Path(".venv").exists():
        sys.exit("the demo must be tried in a clone that nothing was installed in")
    if not any("make demo" in line for line in run_make()):
        sys.exit("make alone must list the commands")
    problems = problems_of(run_make("demo"))
    for problem in problems:
        sys.stderr.write(f"check_demo: {problem}\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
