"""How the sections of ``cachetiers top`` share the height of a terminal.

Each has its titles, some rows, and a line that says how many more there are. Texts are shown whole. A line that is too
long goes on in the next one: nothing is cut short.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from celery_cachetiers.cli.common import plain_table

TITLES: Final = "bold cyan"


@dataclass(frozen=True, slots=True)
class Table:
    """Titles and rows.

    Attributes:
        least: Rows that are shown where height is scarce, as far as others are left one.
        most: Rows that are shown however high the terminal is; all without.
    """

    titles: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    least: int = 1
    most: int | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the terminal, and how rich is to write it."""

    text: str
    style: str = ""


def fitted(parts: Sequence[Table | str], width: int, height: int) -> list[Line]:
    """The lines of all parts, with a blank one between them if there is room for that."""
    sections = [_Section(part, width) for part in parts]
    gaps = len(sections) - 1
    if _height(sections, [section.most for section in sections]) + gaps <= height:
        lines = [line for section in sections for line in (*section.lines(section.most), Line(""))]
        return lines[:-1]
    shown = _shares(sections, height)
    return [line for section, rows in zip(sections, shown, strict=True) for line in section.lines(rows)][:height]


class _Section:
    """A part in lines of the width."""

    def __init__(self, part: Table | str, width: int) -> None:
        titles, *rows = plain_table(part.titles, part.rows) if isinstance(part, Table) else (part,)
        self.titles, self.rows = _folded(titles, width), [_folded(row, width) for row in rows]
        least, most, self.style = (part.least, part.most, TITLES) if isinstance(part, Table) else (0, 0, "")
        self.most = len(rows) if most is None else min(most, len(rows))
        self.least = min(least, self.most)

    def height(self, rows: int) -> int:
        """Lines that so many rows take."""
        return len(self.titles) + sum(map(len, self.rows[:rows])) + (rows < len(self.rows))

    def lines(self, rows: int) -> Iterator[Line]:
        """So many rows, and how many more there are."""
        yield from (Line(text, self.style) for text in self.titles)
        yield from (Line(text) for row in self.rows[:rows] for text in row)
        if rows < len(self.rows):
            yield Line(f"... {len(self.rows) - rows} more", "dim")


def _shares(sections: Sequence[_Section], height: int) -> list[int]:
    """Rows of each section: one more to each in turn, as long as there is room."""
    shown = [section.least for section in sections]
    while _height(sections, shown) > height and max(shown, default=0) > 1:
        shown[shown.index(max(shown))] -= 1
    grown = True
    while grown:
        grown = False
        for at, section in enumerate(sections):
            more = [*shown[:at], shown[at] + 1, *shown[at + 1 :]]
            if shown[at] < section.most and _height(sections, more) <= height:
                shown, grown = more, True
    return shown


def _height(sections: Sequence[_Section], shown: Sequence[int]) -> int:
    return sum(section.height(rows) for section, rows in zip(sections, shown, strict=True))


def _folded(text: str, width: int) -> list[str]:
    return [text[at : at + width] for at in range(0, len(text), width)] or [""]
