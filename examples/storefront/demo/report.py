"""What the demo prints at its end: the table of the pages, the verdict on what they showed, and the counts."""

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
from examples.storefront.demo.ledger import Count
from examples.storefront.demo.names import Names
from examples.storefront.demo.visitors import PAGES, Calls, Visitors

COMMANDS = (
    ("cachetiers", "stats"),
    ("cachetiers", "why", "examples.storefront.tasks.profile", "--args", "[1]"),
)
"""What the demo asks at its end, as an operator would."""


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


@dataclass(frozen=True, slots=True)
class Written:
    """What became of everything that was written behind.

    Attributes:
        in_hands: Writes that the worker which was killed had in its hands.
        waited: Writes that waited when the last visitor had gone, and the seconds until SQLite had them.
        left: Writes that it does not have yet.
        stale_stocks: Products whose page shows another stock than SQLite.
    """

    counts: Sequence[Count]
    orders: int
    in_hands: int
    waited: tuple[int, float]
    left: int
    stale_stocks: int

    @property
    def right(self) -> bool:
        return not (self.left or self.stale_stocks or any(count.wrong for count in self.counts))


def show_written(console: Console, written: Written) -> None:
    """Prints the counts."""
    table = _empty_table("written behind", "acknow-\nledged", "in\nSQLite", "wrong", "batches", "came\ntwice")
    for count in written.counts:
        numbers = count.acknowledged, count.stored, count.wrong, count.batches, count.again
        table.add_row(count.facts, *map("{:,}".format, numbers))
    console.print()
    console.print(table)
    console.print()
    console.print(f"The flushing worker was killed (kill -9) with {written.in_hands:,} writes in its hands.")
    waited, seconds = written.waited
    console.print(f"{waited:,} writes waited when the visitors had gone; SQLite had them {seconds:.1f} s later.")
    console.print(f"{written.orders:,} orders; {written.stale_stocks} product pages show another stock than SQLite.")
    if not written.right:
        console.print(f"The counts are wrong; {written.left} writes still wait.", style="bold red")


def show_commands(console: Console, commands: Sequence[tuple[str, str]]) -> None:
    """Prints what was asked from outside, and the answers."""
    for command, printed in commands:
        console.print(f"\n$ celery -A examples.storefront {command}", style="bold", markup=False, soft_wrap=True)
        console.print(printed.rstrip(), markup=False, soft_wrap=True)


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
    table = _empty_table(*(header for header, _ in columns))
    table.show_footer, table.footer_style = True, "bold"
    for column, (_, total) in zip(table.columns, columns, strict=True):
        column.footer = total
    for line in lines:
        table.add_row(*line.cells())
    return table


def _empty_table(*headers: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for number, header in enumerate(headers):
        justify: JustifyMethod = "right" if number else "left"
        table.add_column(header, justify=justify, no_wrap=True, vertical="bottom")
    return table


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds) * 1000:,.2f}" if seconds else "-"
