"""200 duplicates at once: 4 processes of 16 threads each call one key whose compute takes 200 ms.

The asyncio caches run 16 coroutines at a time in each process instead. Reported over the rounds, each with a new key:
how often the body ran (median and most; one is right), the time from the start to the last return (the best possible
is 200 ms), and the commands that Redis ran for it, those inside scripts included. Every contender has a server of its
own, and locks over all processes in the way it offers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.fleet import Fleet, shared_counter
from benchmarks.peers import NOTES, Setup, build, not_installed
from benchmarks.server import Server, redis_server
from benchmarks.subjects import profile
from benchmarks.table import number, text_table

NAMES = ("ours", "recipe", "dogpile", "cashews", "aiocache")
PROCESSES, WIDTH, DUPLICATES, PAUSE = 4, 16, 200, 0.2


@dataclass(eq=False)
class Crowd:
    """One contender's processes, server and outcomes."""

    name: str
    fleet: Fleet
    server: Server
    computes: Any
    outcomes: list[tuple[int, float, int]] = field(default_factory=list)


def run(*, quick: bool) -> None:
    """Prints the table."""
    rounds = 3 if quick else 9
    with ExitStack() as stack:
        absent = {name: why for name in NAMES if (why := not_installed(name))}
        crowds = [_crowd(name, stack) for name in NAMES if name not in absent]
        for at in range(1, rounds + 2):
            for crowd in crowds:
                crowd.outcomes.append(_rush(crowd, at))
    rows = [_row(crowd) for crowd in crowds]
    rows += [(name, "-", "-", "-", "-", "-", why) for name, why in absent.items()]
    head = ("contender", "computes", "most", "wall ms", "slowest", "commands", "note")
    print(text_table(head, rows))


def _crowd(name: str, stack: ExitStack) -> Crowd:
    server, computes = stack.enter_context(redis_server()), shared_counter()
    fleet = stack.enter_context(Fleet(PROCESSES, member, name, server.url(), computes))
    return Crowd(name, fleet, server, computes)


def member(name: str, url: str, computes: Any) -> Callable[[tuple[int, float]], float]:
    """In each process: calls its share at the appointed instant, and returns when the last call has returned."""
    caller = build(name, Setup(url, pause=PAUSE, body=partial(_counted, computes)))
    caller.loop([0])

    def handle(order: tuple[int, float]) -> float:
        key, start_at = order
        time.sleep(max(start_at - time.monotonic(), 0))
        return max(caller.crowd([key] * (DUPLICATES // PROCESSES), WIDTH))

    return handle


def _counted(computes: Any, each: int) -> Any:
    with computes.get_lock():
        computes.value += 1
    return profile(each)


def _rush(crowd: Crowd, key: int) -> tuple[int, float, int]:
    """Computes, seconds, commands."""
    computes, commands = crowd.computes.value, crowd.server.commands()
    start_at = time.monotonic() + 0.1
    crowd.fleet.order((key, start_at))
    seconds = max(crowd.fleet.replies()) - start_at
    return crowd.computes.value - computes, seconds, crowd.server.commands() - commands


def _row(crowd: Crowd) -> tuple[str, ...]:
    computes, seconds, commands = zip(*crowd.outcomes[1:], strict=True)  # the first was the warm-up
    return (
        crowd.name,
        f"{statistics.median(computes):.0f}",
        str(max(computes)),
        number(statistics.median(seconds) * 1e3),
        number(max(seconds) * 1e3),
        number(statistics.median(commands)),
        NOTES.get(crowd.name, ""),
    )
