"""The page about a search."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fake_searches import plan_in, search, study_of, use_fake_trials

from mal.automl.leaderboard import leaderboard_csv, markdown_from_csv
from mal.automl.report import write_search_report
from mal.automl.settings import Budget, SearchSettings
from mal.automl.study import SearchStudy

MAX_PAGE_BYTES = 3_000_000


def write_page(path: Path, study: SearchStudy, facts: dict[str, str]) -> None:
    write_search_report(path, study.records(), study.study, has_baseline=True, details=facts)


def test_the_page_of_a_search_is_self_contained_and_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_fake_trials(monkeypatch)
    settings = SearchSettings(ranges=("train.lr=1e-6:5e-3:log",), budget=Budget(num_trials=6))
    study = search(plan_in(tmp_path / "search", settings))
    write_page(tmp_path / "report.html", study, {"algorithm": "<bayesian>"})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page) < MAX_PAGE_BYTES
    assert page.count('src="data:image/svg+xml;base64,') == 4
    assert not re.search(r"<script|https?://|<bayesian>", page)
    best = study.best()
    assert best is not None
    assert f"{best.mean_iou:.3f}" in page
    assert page.count("<tr>") == 7


def test_a_search_that_has_only_begun_has_a_page_that_says_what_is_missing(
    tmp_path: Path,
) -> None:
    study = study_of(plan_in(tmp_path / "search", SearchSettings()))
    study.ask()
    write_page(tmp_path / "report.html", study, {})
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Plots need two complete trials" in page


def test_the_leaderboard_in_markdown_has_a_row_a_trial(tmp_path: Path) -> None:
    study = study_of(plan_in(tmp_path, SearchSettings()))
    trial, _ = study.ask()
    study.fail(trial, "a | b\nc")
    header, rule, row = markdown_from_csv(leaderboard_csv(study.records())).splitlines()
    assert header.startswith("| rank | trial | state | mIoU | train.lr | train.wd |")
    assert rule.count("---") == 9
    assert row.startswith("| 1 | 0 | failed |")
    assert "a \\| b c" in row
