"""Plain text: aligned tables, and one line per target."""

from __future__ import annotations

from collections.abc import Sequence


def text_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; those that look like numbers to the right."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(head))]
    right = [all(_is_number(row[at]) for row in rows) for at in range(len(head))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(_line(line, widths, right) for line in (lines[0], rule, *lines[1:]))


def number(value: float) -> str:
    """Three digits that matter, thousands set apart.

    >>> number(1234.5), number(12.345), number(0.01234)
    ('1,234', '12.3', '0.012')
    """
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def target(what: str, measured: float, limit: float, unit: str) -> str:
    """One line: met or not, on this machine."""
    verdict = "met" if measured <= limit else "NOT met"
    return f"target {verdict}: {what}: {number(measured)} {unit}, at most {number(limit)} {unit}"


def _line(line: Sequence[str], widths: Sequence[int], right: Sequence[bool]) -> str:
    cells = (
        cell.rjust(width) if to else cell.ljust(width) for cell, width, to in zip(line, widths, right, strict=True)
    )
    return "  ".join(cells).rstrip()


def _is_number(cell: str) -> bool:
    return cell in ("", "-") or cell.replace(",", "").replace(".", "").isdigit()
