"""Time per call of several contenders that take turns, so that a slow moment of the machine hits all of them alike.

A contender's turn is as many calls as take about 50 ms; the garbage collector is off during a turn (as in `timeit`) and
runs between turns. Reported are the median and the least of the turns' means.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count, islice, repeat

from benchmarks.table import number, text_table

Loop = Callable[[Iterable[int]], float]
"""Calls the function under test once per number and returns the seconds that took."""

HIT = 7
"""The argument of all calls that are to hit."""


_RANGES = count(10_000_000, 10_000_000)
"""Where each contender's fresh arguments begin: two that share a Redis never meet each other's keys."""


@dataclass(eq=False)
class Contender:
    """One way of doing it.

    Attributes:
        loop: Makes the calls.
        note: What a reader must know to compare it.
        close: Ends its connections.
    """

    name: str
    loop: Loop
    note: str = ""
    close: Callable[[], None] = lambda: None
    turns: list[float] = field(default_factory=list)
    _fresh: Iterable[int] = field(default_factory=lambda: count(next(_RANGES)))

    @property
    def median(self) -> float:
        """Seconds per call."""
        return statistics.median(self.turns)

    @property
    def least(self) -> float:
        """Seconds per call."""
        return min(self.turns)

    def take_turn(self, calls: int, *, fresh: bool) -> float:
        """Seconds per call of one turn; ``fresh`` gives every call an argument never used before."""
        numbers = list(islice(self._fresh, calls)) if fresh else repeat(HIT, calls)
        return self.loop(numbers) / calls


@dataclass(frozen=True)
class Absent:
    """A contender that cannot take part, and why."""

    name: str
    why: str


def timed(function: Callable[[int], object]) -> Loop:
    """The loop of a plain function."""

    def loop(numbers: Iterable[int]) -> float:
        began = time.perf_counter()
        for each in numbers:
            function(each)
        return time.perf_counter() - began

    return loop


def race(contenders: Sequence[Contender], *, quick: bool, fresh: bool = False) -> None:
    """Lets them take turns and fills in their times."""
    turn, rounds = (0.02, 7) if quick else (0.05, 25)
    calls = [_calls_in(contender, turn, fresh) for contender in contenders]
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for contender, many in zip(contenders, calls, strict=True):
                contender.turns.append(contender.take_turn(many, fresh=fresh))
                gc.collect()
    finally:
        gc.enable()


def _calls_in(contender: Contender, turn: float, fresh: bool) -> int:
    """Also the warm-up: connections, first compute, specialized bytecode."""
    calls, spent = 5, 0.0
    while (spent := contender.take_turn(calls, fresh=fresh) * calls) < turn / 4 and calls < 1_000_000:
        calls *= 4
    return max(int(calls * turn / spent), 5)


def show(
    contenders: Sequence[Contender | Absent], reference: Contender, extra: dict[str, dict[str, str]] | None = None
) -> None:
    """Prints the table: microseconds, and the medians' ratio to the reference.

    Args:
        extra: More columns: title to contender to cell.
    """
    extra = extra or {}
    rows = [_row(contender, reference, extra) for contender in contenders]
    head = ("contender", "median µs", "min µs", f"x {reference.name}", *extra, "note")
    print(text_table(head, rows))
    sys.stdout.flush()


def _row(contender: Contender | Absent, reference: Contender, extra: dict[str, dict[str, str]]) -> tuple[str, ...]:
    more = tuple(cells.get(contender.name, "-") for cells in extra.values())
    if isinstance(contender, Absent):
        return contender.name, "-", "-", "-", *more, contender.why
    ratio = contender.median / reference.median
    return (
        contender.name,
        number(contender.median * 1e6),
        number(contender.least * 1e6),
        f"{ratio:.2f}",
        *more,
        contender.note,
    )
