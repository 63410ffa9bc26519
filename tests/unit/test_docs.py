"""What the documentation says of the tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "explanation" / "write-behind.md"


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """The names of all tests, those in the conformance suites included."""
    files = [*(ROOT / "tests").rglob("test_*.py"), *(ROOT / "celery_cachetiers" / "testing").rglob("*.py")]
    return {name for file in files for name in re.findall(r"def (test_\w+)\(", file.read_text())}


def test_every_test_that_backs_a_promise_of_write_behind_exists(tests: set[str]) -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE.read_text()))

    assert len(named) > 20
    assert named - tests == set()
