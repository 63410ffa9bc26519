"""How long until the other processes' memory (L1) has lost an entry that was invalidated: 8 processes hold it.

The clock starts when a ninth process calls ``invalidate_tag`` and stops in each of the 8 when its L1 has acted on the
announcement; that the entry is a miss from then on is checked there. "until the last" is the slowest of the 8 in each
round. In the first row the processes are idle; in the second a thread of each goes on reading that entry, a thousand
times a second. "returned first" counts the copies that were still there when ``invalidate_tag`` had returned: an
eventual read could have had them.

Target: p50 at most 5 ms.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.fleet import TIMEOUT, Fleet
from benchmarks.server import redis_server
from benchmarks.subjects import connect, extension, memoized
from benchmarks.table import number, target, text_table
from celery_cachetiers import MISSING
from celery_cachetiers.events import Event

PROCESSES, PACE = 8, 0.001
TAG = "number:{number}"


def run(*, quick: bool) -> None:
    """Prints the table."""
    rounds = 20 if quick else 200
    measured = {name: list(_rounds(rounds, reading)) for name, reading in (("idle", False), ("reading", True))}
    rows = [_row(name, each) for name, each in measured.items()]
    head = ("processes", "p50 ms", "p99 ms", "worst ms", "until the last: p50 ms", "copies", "returned first")
    print(text_table(head, rows))
    for name, each in measured.items():
        print(target(f"{name}, p50", _centile(_flat(each), 50), 5, "ms"))


def _rounds(many: int, reading: bool) -> Iterator[list[tuple[float, bool]]]:
    """For each round and copy: seconds until it was lost, and whether the invalidation had returned before."""
    with redis_server() as server, Fleet(PROCESSES, member, server.url(), reading) as fleet:
        tiers = extension(server.url())
        for key in range(many + 1):
            fleet.order(("hold", key))
            fleet.replies()
            began = time.monotonic()
            tiers.invalidate_tag(f"number:{key}")
            returned = time.monotonic()
            fleet.order(("lost", key))
            lost = fleet.replies()
            if key:  # the first was the warm-up
                yield [(at - began, at > returned) for at in lost]
        tiers.reset()


def member(url: str, reading: bool) -> Callable[[tuple[str, int]], float]:
    """In each process: holds a key, and tells when it had lost it."""
    tiers = extension(url)
    task = memoized(tiers, "held", tags=[TAG])
    connect(tiers, task)
    state = _State(task)
    tiers.events.subscribe(state.heard, Event.HEARD)
    if reading:
        threading.Thread(target=state.read, daemon=True).start()

    def handle(order: tuple[str, int]) -> float:
        what, key = order
        return state.hold(key) if what == "hold" else state.lost(key)

    return handle


class _State:
    """What a process holds, and when it heard of which tag."""

    def __init__(self, task: Any) -> None:
        self._task, self._key = task, 0
        self._heard: dict[str, float] = {}
        self._changed = threading.Condition()

    def heard(self, event: Event, name: str, details: dict[str, Any]) -> None:
        now = time.monotonic()
        with self._changed:
            self._heard |= dict.fromkeys(details["names"], now)
            self._changed.notify_all()

    def hold(self, key: int) -> float:
        self._key = key
        while self._in_l1(key) is MISSING:
            self._task(key)
        return 0.0

    def lost(self, key: int) -> float:
        tag = TAG.format(number=key)
        with self._changed:
            if not self._changed.wait_for(lambda: tag in self._heard, TIMEOUT):
                raise RuntimeError("an announcement did not come")
        if self._in_l1(key) is not MISSING:
            raise RuntimeError("a copy was there after its announcement")
        return self._heard[tag]

    def read(self) -> None:
        while True:
            self._in_l1(self._key)
            time.sleep(PACE)

    def _in_l1(self, key: int) -> object:
        memoized = self._task.memoized
        return memoized.cache.recall(memoized.call((key,), {}))


def _flat(rounds: Sequence[Sequence[tuple[float, bool]]]) -> list[float]:
    return [seconds for each in rounds for seconds, _ in each]


def _centile(seconds: Sequence[float], percent: int) -> float:
    """Milliseconds."""
    return statistics.quantiles(seconds, n=100)[percent - 1] * 1e3


def _row(name: str, rounds: Sequence[Sequence[tuple[float, bool]]]) -> tuple[str, ...]:
    copies = _flat(rounds)
    last = statistics.median(max(seconds for seconds, _ in each) for each in rounds) * 1e3
    late = sum(was_late for each in rounds for _, was_late in each)
    cells = (_centile(copies, 50), _centile(copies, 99), max(copies) * 1e3, last)
    return name, *map(number, cells), f"{len(copies):,}", f"{late:,}"
