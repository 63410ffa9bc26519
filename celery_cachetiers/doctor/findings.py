"""One finding, and how findings are ranked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final

LEVELS: Final = ("ok", "info", "warning", "error")
"""From good to bad."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found.

    Attributes:
        level: One of `LEVELS`.
        code: Names the check, and stays the same over versions.
        found: In plain words.
        remedy: What to do about it; empty where there is nothing to do.
    """

    level: str
    code: str
    found: str
    remedy: str = ""

    @property
    def rank(self) -> int:
        """0 for the best level."""
        return LEVELS.index(self.level)

    def as_dict(self) -> dict[str, str]:
        """All of it, for JSON."""
        return asdict(self)


def ok(code: str, found: str) -> Finding:
    """As it should be."""
    return Finding("ok", code, found)


def info(code: str, found: str, remedy: str = "") -> Finding:
    """Worth knowing; nothing is wrong."""
    return Finding("info", code, found, remedy)


def warning(code: str, found: str, remedy: str) -> Finding:
    """Works, and will hurt under some circumstances."""
    return Finding("warning", code, found, remedy)


def error(code: str, found: str, remedy: str) -> Finding:
    """Does not work, or loses something."""
    return Finding("error", code, found, remedy)


def unknown(code: str, reason: str, remedy: str = "") -> Finding:
    """It could not be looked at."""
    return info(code, f"not checked: {reason}", remedy)


def worst(findings: Iterable[Finding]) -> str:
    """The worst level among some findings.

    >>> worst([ok("a", ""), warning("b", "", ""), info("c", "")])
    'warning'
    """
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def some(names: Iterable[str], many: int = 5) -> str:
    """Names in a sentence: the first ones, and how many more.

    >>> some(["b", "a", "c"], 2)
    'a, b and 1 more'
    """
    each = sorted(names)
    rest = len(each) - many
    return ", ".join(each[:many]) + (f" and {rest} more" if rest > 0 else "")
