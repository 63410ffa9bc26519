"""What ``cachetiers top`` shows: a few tables, drawn by rich or as plain columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from celery_cachetiers.cli.common import plain_table
from celery_cachetiers.cli.intervals import Interval
from celery_cachetiers.cli.numbers import percent, rate, size, sparkline
from celery_cachetiers.metrics.tally import Tally

ROWS: Final = 8
"""Tasks, keys and tags that are shown."""

RATES: Final[tuple[tuple[str, Callable[[Tally], float]], ...]] = (
    ("hits in L1", lambda tally: tally.l1_hits),
    ("hits in L2", lambda tally: tally.l2_hits),
    ("  stale of them", lambda tally: tally.stale_hits),
    ("hits in the journal", lambda tally: tally.journal_hits),
    ("coalesced", lambda tally: tally.coalesced),
    ("misses", lambda tally: tally.misses),
    ("computes", lambda tally: tally.computes),
    ("waits", lambda tally: tally.waits),
    ("seconds saved", lambda tally: tally.seconds_saved),
)

History = Sequence["Interval | None"]


@dataclass(frozen=True, slots=True)
class Table:
    """Titles and rows."""

    titles: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Dashboard:
    """Draws the last interval, and sparklines of those before.

    Args:
        title: What is watched.
    """

    def __init__(self, title: str) -> None:
        self._title = title

    def lines(self, history: History, trouble: str | None) -> list[str]:
        """As plain text."""
        lines = [self._head()]
        for each in self._parts(history, trouble):
            lines += ["", *([each] if isinstance(each, str) else plain_table(each.titles, each.rows))]
        return lines

    def drawn(self, history: History, trouble: str | None) -> Any:
        """For rich."""
        from rich.console import Group
        from rich.text import Text

        parts = self._parts(history, trouble)
        return Group(Text(self._head(), style="bold"), *(_drawn(each) for each in parts))

    def _head(self) -> str:
        return f"cachetiers: {self._title}, {datetime.now().astimezone():%H:%M:%S}"

    def _parts(self, history: History, trouble: str | None) -> Iterator[Table | str]:
        """The trouble, if there is any, and the last interval that there was."""
        if trouble is not None:
            yield trouble
        last = next((each for each in reversed(history) if each is not None), None)
        if last is None:
            return
        yield _rates(history, last)
        yield from filter(lambda table: table.rows, (_tasks(last), _keys(last), _tags(last), _writes(last)))
        yield _server(last)


def _rates(history: History, last: Interval) -> Table:
    rows = [_row(name, history, last, of) for name, of in RATES]
    ratios = [None if each is None else each.total.hit_ratio for each in history]
    rows.insert(0, ("hit ratio", percent(last.total.hit_ratio), sparkline(ratios, 1.0)))
    return Table(("", "per second", "so far"), rows)


def _row(name: str, history: History, last: Interval, of: Callable[[Tally], float]) -> tuple[str, ...]:
    rates = [None if each is None else each.per_second(of(each.total)) for each in history]
    return name, rate(last.per_second(of(last.total))), sparkline(rates)


def _tasks(last: Interval) -> Table:
    found = sorted(last.tasks.items(), key=lambda row: -_calls(row[1]))[:ROWS]
    rows = [
        (name, rate(last.per_second(_calls(each))), percent(each.hit_ratio), rate(last.per_second(each.computes)))
        for name, each in found
    ]
    return Table(("task", "calls/s", "ratio", "computes/s"), rows)


def _calls(tally: Tally) -> int:
    return tally.hits + tally.coalesced + tally.misses


def _keys(last: Interval) -> Table:
    rows = [(task, key, rate(last.per_second(calls))) for (task, key), calls in last.keys.items()]
    return Table(("hottest keys, of", "key", "calls/s"), rows[:ROWS])


def _tags(last: Interval) -> Table:
    found = list(last.invalidated.items())[:ROWS]
    return Table(("invalidated", "times"), [(name, str(count)) for name, count in found])


def _writes(last: Interval) -> Table:
    rows = [
        (name, *(("?", "?") if each is None else (str(each.pending), str(each.buried))))
        for name, each in last.last.writes.items()
    ]
    return Table(("sink", "pending", "given up"), rows)


def _server(last: Interval) -> str:
    info = last.last.server
    if info is None:
        return "Redis has refused to tell of itself."
    limit = f" of {size(info.maxmemory)}" if info.maxmemory else ""
    commands = "?" if last.commands is None else rate(last.per_second(last.commands))
    return f"Redis, everybody's use of it: {commands} commands/s, {size(info.used_memory)}{limit} used"


def _drawn(part: Table | str) -> Any:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    if isinstance(part, str):
        return Text(part)
    table = RichTable(*part.titles, box=box.SIMPLE_HEAD)
    for row in part.rows:
        table.add_row(*map(Text, row))  # not markup: values are anybody's
    return table
