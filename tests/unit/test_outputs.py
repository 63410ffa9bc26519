"""What commands print in the documentation was recorded: every recording is shown, and of a command that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from celery_cachetiers.cli import cachetiers

pytest.importorskip("rich", reason="the demo needs rich: install the extra [demo]")

from examples.storefront.demo import recording

DOCS = Path(__file__).resolve().parents[2] / "docs"
RECORDED = {**recording.WHILE_BUSY, **recording.AFTERWARDS, **recording.AFTER_A_RENAME}


def test_every_command_that_is_recorded_exists() -> None:
    assert {command[1] for command in RECORDED.values()} <= set(cachetiers.commands)


def test_every_recording_is_there_and_shown() -> None:
    pages = "\n".join(page.read_text() for page in DOCS.glob("*/*.md"))
    shown = set(re.findall(r"\.\./outputs/([a-z-]+\.[a-z]+)", pages))

    assert shown == {f"{name}.txt" for name in RECORDED} | {recording.PLOT}
    assert shown <= {path.name for path in (DOCS / "outputs").iterdir()}


def test_a_recording_begins_with_the_command_and_tells_nothing_of_the_machine() -> None:
    for name, command in RECORDED.items():
        text = (DOCS / "outputs" / f"{name}.txt").read_text()

        assert text.startswith(f"$ celery -A examples.storefront {' '.join(command[:2])}")
        assert not re.search(r"/tmp|/home|/work|/root|127\.0\.0\.1:(?!6379)", text)
