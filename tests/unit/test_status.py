from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from mal.status import Status, StatusLog


def lines_of(log: StatusLog) -> list[str]:
    text = log.path.read_text()
    assert text.endswith("\n")
    return text.splitlines()


def test_a_line_says_when_what_and_how_much(tmp_path: Path) -> None:
    log = StatusLog(tmp_path / "new" / "train")
    log.write(Status.STARTED, "train started")
    log.write(Status.RUNNING, "epoch 1", kpi={"mIoU": 0.5, "loss": None}, verbosity="WARNING")
    first, second = map(json.loads, lines_of(log))
    assert list(first) == ["date", "time", "status", "verbosity", "message", "kpi"]
    assert re.fullmatch(r"\d\d/\d\d/\d{4}", first["date"])
    assert re.fullmatch(r"\d\d:\d\d:\d\d", first["time"])
    assert (first["status"], first["verbosity"], first["kpi"]) == ("STARTED", "INFO", {})
    assert (second["status"], second["verbosity"]) == ("RUNNING", "WARNING")
    assert second["kpi"] == {"mIoU": 0.5, "loss": None}


def test_a_message_of_several_lines_stays_one(tmp_path: Path) -> None:
    log = StatusLog(tmp_path)
    log.write(Status.FAILURE, "a\nb\r\nü\u2028")
    (line,) = log.path.read_text().splitlines()
    assert json.loads(line)["message"] == "a\nb\r\nü\u2028"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_is_null(value: float, tmp_path: Path) -> None:
    log = StatusLog(tmp_path)
    log.write(Status.RUNNING, "epoch 1", kpi={"mIoU": value})
    assert json.loads(lines_of(log)[0])["kpi"] == {"mIoU": None}


def test_a_half_written_last_line_is_closed(tmp_path: Path) -> None:
    log = StatusLog(tmp_path)
    log.write(Status.STARTED, "train started")
    with log.path.open("a") as file:
        file.write('{"date": "0')
    StatusLog(tmp_path).write(Status.SUCCESS, "train finished")
    first, half, last = lines_of(log)
    assert json.loads(first)["status"] == "STARTED"
    assert half == '{"date": "0'
    assert json.loads(last)["status"] == "SUCCESS"


def test_a_line_that_a_full_disk_cuts_is_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = StatusLog(tmp_path)
    log.write(Status.STARTED, "train started")
    before = log.path.read_text()
    write = os.write

    def write_half(descriptor: int, data: Any) -> int:
        return write(descriptor, data[: len(data) // 2])

    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(OSError, match="No space left"):
        log.write(Status.RUNNING, "epoch 1")
    assert log.path.read_text() == before


def test_a_restart_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for _ in range(2):
        StatusLog(tmp_path).write(Status.STARTED, "train started")
    assert len(lines_of(StatusLog(tmp_path))) == 2
