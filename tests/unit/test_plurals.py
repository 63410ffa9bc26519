"""What the commands print counts one thing as one, and two as two."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from celery_cachetiers.control import _said
from celery_cachetiers.doctor import on_journal
from celery_cachetiers.doctor.facts import Facts
from celery_cachetiers.doctor.findings import Finding
from celery_cachetiers.journal_port import Backlog


@pytest.mark.parametrize(
    ("levels", "last"),
    [
        (["ok", "ok", "warning", "warning", "error"], "1 error, 2 warnings, 2 ok"),
        (["info", "info", "warning", "error", "error"], "2 errors, 1 warning, 2 info"),
    ],
)
def test_findings_are_counted_by_level(capsys: pytest.CaptureFixture[str], levels: list[str], last: str) -> None:
    module = importlib.import_module("celery_cachetiers.cli.doctor")
    module._print([Finding(level, "code", "found", "") for level in levels])

    assert capsys.readouterr().out.splitlines()[-1] == last


@pytest.mark.parametrize(
    ("entries", "processes", "said"),
    [(1, 1, "1 entry dropped, L1 is empty in 1 process"), (2, 3, "2 entries dropped, L1 is empty in 3 processes")],
)
def test_entries_that_were_dropped_are_counted(entries: int, processes: int, said: str) -> None:
    assert _said(entries, processes, []) == said


@pytest.mark.parametrize(
    ("number", "waits", "gone"),
    [(1, "1 write waits", "1 write that was given up"), (2, "2 writes wait", "2 writes that were given up")],
)
def test_the_writes_of_a_sink_are_counted(number: int, waits: str, gone: str) -> None:
    subject: Any = SimpleNamespace(behind={"rows": None}, settings=SimpleNamespace(flush_every=5.0))
    found = on_journal.backlogs(subject, Facts(100.0, backlogs={"rows": Backlog(number, 99.0, number)}))

    assert [finding.found for finding in found] == [f"rows: {waits}", f"rows has {gone}"]
