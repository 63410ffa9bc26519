"""What the demo prints at its end: the table of the pages, and the verdict on what they showed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table

from celery_cachetiers import CacheTiers
from examples.storefront import shop
from examples.storefront.app import app
from examples.storefront.demo.names import Names
from examples.storefront.demo.visitors import PAGES, Calls, Visitors


@dataclass(frozen=True, slots=True)
class Line:
    """One page in the table.

    Attributes:
        l1_hits, l2_hits: Answered in the calling process, without a message, by the cache's own count.
        computations: Every run of the body in any process, by the shop's count; beat's requests are among them.
    """

    page: str
    calls: Calls
    l1_hits: int
    l2_hits: int
    computations: shop.Computations

    @classmethod
    def of(cls, page: str, calls: Calls) -> Line:
        """The line as things stand now."""
        info = PAGES[page].cache.info()
        return cls(page, calls, info.l1_hits, info.l2_hits, shop.computations(page))

    @property
    def seconds_saved(self) -> float:
        """What the calls would have taken if each had run the body, less what ran: (calls - computes) x mean."""
        return (self.calls.count - self.computations.count) * self.computations.mean

    def cells(self) -> list[str]:
        """The row, as text."""
        counts = (self.calls.count, self.l1_hits, self.l2_hits, len(self.calls.by_worker), self.computations.count)
        return [
            self.page,
            *(f"{count:,}" for count in counts),
            _milliseconds(self.calls.hits),
            _milliseconds(self.computations.seconds),
            f"{self.seconds_saved:,.1f} s",
        ]


def lines(visitors: Visitors) -> list[Line]:
    """The table's lines. Needs the shop, so ask before its directory goes."""
    return [Line.of(page, calls) for page, calls in visitors.calls.items()]


def show(console: Console, table: Sequence[Line], names: Names, beat_asked: int) -> None:
    """Prints everything."""
    console.print()
    console.print(_table(table))
    calls, computes = sum(line.calls.count for line in table), sum(line.computations.count for line in table)
    hits = sum(len(line.calls.hits) for line in table)
    console.print(f"{calls:,} calls, {computes:,} computes, {hits / calls if calls else 0:.1%} answered with no message.")
    if not CacheTiers(app).settings.enabled:
        console.print("CACHETIERS_ENABLED is off: this was the shop without a cache.")
    console.print(f"Beat asked {beat_asked} times for top_users; it sends a message only if the list is not fresh.")
    console.print()
    console.print(f"{names.renames} renames, {names.checked:,} pages checked afterwards, {names.stale} stale pages.")
    if names.late:
        console.print(
            f"{names.late} more lists showed the old name for up to {names.latest * 1000:.1f} ms: top_users is"
            ' "eventual", so an L1 may lag by the delay of the backplane; profile is "strict".'
        )
    if names.first_stale is not None:
        console.print(f"The first stale page: {names.first_stale}", style="bold red")


def _table(lines: Sequence[Line]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, show_footer=True, footer_style="bold")
    totals = ["all", *(f"{sum(column):,}" for column in zip(*map(_counts, lines), strict=True)), "", ""]
    totals.append(f"{sum(line.seconds_saved for line in lines):,.1f} s")
    headers = ["page", "calls", "L1\nhits", "L2\nhits", "by the\nworker", "computes", "hit\np50", "compute\np50"]
    headers.append("saved")
    for header, total in zip(headers, totals, strict=True):
        numeric = header != "page"
        table.add_column(header, total, justify="right" if numeric else "left", no_wrap=True, vertical="bottom")
    for line in lines:
        table.add_row(*line.cells())
    return table


def _counts(line: Line) -> tuple[int, ...]:
    return line.calls.count, line.l1_hits, line.l2_hits, len(line.calls.by_worker), line.computations.count


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:,.2f} ms" if seconds else "-"
