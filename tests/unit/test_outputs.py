"""What commands print in the documentation was recorded: every recording is shown, and of a command that there is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from celery_cachetiers.cli import cachetiers

pytest.importorskip("rich", reason="the demo needs rich: install the extra [demo]")

DOCS = Path(__file__).resolve().parents[2] / "docs"
PLOT = "hit-ratio.png"


@cache
def recorded() -> dict[str, list[str]]:
    """Name and command of each; asked in a process of its own, as the storefront's tasks are every app's."""
    code = """
import json
from examples.storefront.demo import recording as r
assert r.PLOT == "hit-ratio.png"
print(json.dumps({**r.WHILE_BUSY, **r.AFTERWARDS, **r.AFTER_A_RENAME}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=DOCS.parent, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout))


def test_every_command_that_is_recorded_exists() -> None:
    assert {command[1] for command in recorded().values()} <= set(cachetiers.commands)


def test_every_recording_is_there_and_shown() -> None:
    pages = "\n".join(page.read_text() for page in DOCS.glob("*/*.md"))
    shown = set(re.findall(r"\.\./outputs/([a-z-]+\.[a-z]+)", pages))

    assert shown == {f"{name}.txt" for name in recorded()} | {PLOT}
    assert shown <= {path.name for path in (DOCS / "outputs").iterdir()}


def test_a_recording_begins_with_the_command_and_tells_nothing_of_the_machine() -> None:
    for name, command in recorded().items():
        text = (DOCS / "outputs" / f"{name}.txt").read_text()

        assert text.startswith(f"$ celery -A examples.storefront {' '.join(command[:2])}")
        assert not re.search(r"/tmp|/home|/work|/root|127\.0\.0\.1:(?!6379)", text)
