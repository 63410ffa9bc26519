"""What ``cachetiers top`` shows: a few tables, all of them in plain columns, or fitted into the terminal for rich."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from celery_cachetiers.amounts import percent, size
from celery_cachetiers.cli.common import UNLIMITED
from celery_cachetiers.cli.fitting import Table, fitted
from celery_cachetiers.cli.intervals import Interval
from celery_cachetiers.cli.numbers import rate, sparkline
from celery_cachetiers.metrics.tally import Tally

ROWS: Final = 8
"""Tasks, keys and tags that are shown at most."""

BESIDE: Final = 34
"""Characters that stand beside the sparklines: of those that have less room, the latest part is shown."""

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


class Dashboard:
    """Draws the last interval, and sparklines of those before.

    Args:
        title: What is watched.
    """

    def __init__(self, title: str) -> None:
        self._title = title

    def lines(self, history: History, trouble: str | None, width: int = UNLIMITED) -> list[str]:
        """As plain text, of any height."""
        parts = [self._head(), *self._parts(history, trouble, width)]
        return [line.text for line in fitted(parts, width, UNLIMITED)]

    def drawn(self, history: History, trouble: str | None, width: int, height: int) -> Any:
        """For rich, in as many lines as the terminal has."""
        from rich.text import Text

        text = Text(self._head(), style="bold", no_wrap=True, overflow="ellipsis")
        for line in fitted(list(self._parts(history, trouble, width)), width, height - 1):
            text.append(f"\n{line.text}", style=line.style or "not bold")
        return text

    def _head(self) -> str:
        return f"cachetiers: {self._title}, {datetime.now().astimezone():%H:%M:%S}"

    def _parts(self, history: History, trouble: str | None, width: int) -> Iterator[Table | str]:
        """The trouble, if there is any, and the last interval that there was."""
        if trouble is not None:
            yield trouble
        last = next((each for each in reversed(history) if each is not None), None)
        if last is None:
            return
        yield _rates(list(history)[-max(width - BESIDE, 1) :], last)
        yield from filter(lambda table: table.rows, (_tasks(last), _keys(last), _tags(last), _writes(last)))
        yield _server(last)


def _rates(history: History, last: Interval) -> Table:
    rows = [_row(name, history, last, of) for name, of in RATES]
    ratios = [None if each is None else each.total.hit_ratio for each in history]
    rows.insert(0, ("hit ratio", percent(last.total.hit_ratio), sparkline(ratios, 1.0)))
    return Table(("", "per second", "so far"), rows, least=7)


def _row(name: str, history: History, last: Interval, of: Callable[[Tally], float]) -> tuple[str, ...]:
    rates = [None if each is None else each.per_second(of(each.total)) for each in history]
    return name, rate(last.per_second(of(last.total))), sparkline(rates)


def _tasks(last: Interval) -> Table:
    found = sorted(last.tasks.items(), key=lambda row: -_calls(row[1]))
    rows = [
        (name, rate(last.per_second(_calls(each))), percent(each.hit_ratio), rate(last.per_second(each.computes)))
        for name, each in found
    ]
    return Table(("task", "calls/s", "ratio", "computes/s"), rows, most=ROWS)


def _calls(tally: Tally) -> int:
    return tally.hits + tally.coalesced + tally.misses


def _keys(last: Interval) -> Table:
    rows = [(task, key, rate(last.per_second(calls))) for (task, key), calls in last.keys.items()]
    return Table(("hottest keys, of", "key", "calls/s"), rows, most=ROWS)


def _tags(last: Interval) -> Table:
    rows = [(name, str(count)) for name, count in last.invalidated.items()]
    return Table(("invalidated", "times"), rows, most=ROWS)


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
