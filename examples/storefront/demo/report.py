"""What the demo prints at its end: the table of the pages, and the verdict on what they showed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, JustifyMethod
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

    @property
    def counts(self) -> tuple[int, int, int, int, int]:
        """Calls, L1 hits, L2 hits, those answered by the worker, computes."""
        return self.calls.count, self.l1_hits, self.l2_hits, len(self.calls.by_worker), self.computations.count

    def cells(self) -> list[str]:
        """The row, as text."""
        p50s = _milliseconds(self.calls.hits), _milliseconds(self.computations.seconds)
        return [self.page, *map("{:,}".format, self.counts), *p50s, f"{self.seconds_saved:,.1f}"]


def lines(visitors: Visitors) -> list[Line]:
    """The table's lines. Needs the shop, so ask before its directory goes."""
    return [Line.of(page, calls) for page, calls in visitors.calls.items()]


def show(console: Console, table: Sequence[Line], names: Names, beat_asked: int) -> None:
    """Prints everything."""
    console.print()
    console.print(_table(table))
    console.print()
    calls, computes = sum(line.calls.count for line in table), sum(line.computations.count for line in table)
    hits = sum(len(line.calls.hits) for line in table)
    console.print(f"{calls:,} calls, {computes:,} computes; {hits / max(calls, 1):.1%} answered with no message.")
    if not CacheTiers(app).settings.enabled:
        console.print("CACHETIERS_ENABLED is off: this was the shop without a cache.", style="bold")
    console.print(f"Beat asked {beat_asked} times for top_users: a message only when it is not fresh.")
    console.print(f"{names.renames} renames, {names.checked:,} pages checked afterwards, {names.stale} stale pages.")
    if names.late:
        console.print(
            f"{names.late} lists of top_users, which is eventual, were late: by {names.latest * 1000:.0f} ms at most."
        )
    if names.first_stale is not None:
        console.print(f"The first stale page: {names.first_stale}", style="bold red")


def _table(lines: Sequence[Line]) -> Table:
    totals = [sum(column) for column in zip(*(line.counts for line in lines), strict=True)]
    saved = sum(line.seconds_saved for line in lines)
    columns = [
        ("page", "all"),
        *zip(("calls", "L1\nhits", "L2\nhits", "by the\nworker", "computes"), map("{:,}".format, totals), strict=True),
        ("hit\np50, ms", ""),
        ("compute\np50, ms", ""),
        ("seconds\nsaved", f"{saved:,.1f}"),
    ]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True, show_footer=True)
    table.footer_style = "bold"
    for header, total in columns:
        justify: JustifyMethod = "left" if header == "page" else "right"
        table.add_column(header, total, justify=justify, no_wrap=True, vertical="bottom")
    for line in lines:
        table.add_row(*line.cells())
    return table


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:,.2f}" if seconds else "-"
