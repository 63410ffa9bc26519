"""What the commands print counts one thing as one, and two as two."""

from __future__ import annotations

import importlib

import pytest

from celery_cachetiers.control import _said
from celery_cachetiers.doctor.findings import Finding


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
