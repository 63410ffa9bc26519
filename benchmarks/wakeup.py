"""From the end of a compute to a follower's return: 50 followers in 10 processes wait for one leader in another.

The clock starts when the leader's body returns, so the commit is part of it, and stops when the follower's call has
returned its value: median, 99th percentile and worst of all followers of all rounds. With polling, the recipe's every
100 ms, the median cannot be better than half the interval; the body lasts a random 300 to 400 ms, so that no phase of
the polling is favoured. "computed again" counts followers that ran the body themselves: none should.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from benchmarks.callers import Caller
from benchmarks.fleet import TIMEOUT, Fleet, shared_counter
from benchmarks.peers import Setup, build
from benchmarks.server import redis_server
from benchmarks.subjects import profile
from benchmarks.table import number, text_table

NOTES = {"ours": "pushed", "recipe": "polls every 100 ms"}
PROCESSES, WIDTH = 10, 5


@dataclass(eq=False)
class Race:
    """One contender: the leader here, the followers there, and the latencies so far."""

    name: str
    followers: Fleet
    waiting: Any
    again: Any
    leader: Caller | None = None
    ended: float = 0.0
    latencies: list[float] = field(default_factory=list)

    def lead(self, key: int) -> Any:
        """The leader's body: sends for the followers, waits until all of them wait, and a little longer."""
        if key:
            expected = self.waiting.value + PROCESSES * WIDTH
            self.followers.order(key)
            _wait(lambda: self.waiting.value >= expected)
            time.sleep(random.uniform(0.3, 0.4))
        self.ended = time.monotonic()
        return profile(key)


def run(*, quick: bool) -> None:
    """Prints the table."""
    rounds = 5 if quick else 30
    with ExitStack() as stack:
        races = [_race(name, stack) for name in NOTES]
        for key in range(1, rounds + 2):
            for race in races:
                latencies = _round(race, key)
                race.latencies += latencies if key > 1 else []  # the first was the warm-up
    print(
        text_table(
            ("contender", "p50 ms", "p99 ms", "worst ms", "waits", "computed again", "note"), list(map(_row, races))
        )
    )


def _race(name: str, stack: ExitStack) -> Race:
    server, waiting, again = stack.enter_context(redis_server()), shared_counter(), shared_counter()
    followers = stack.enter_context(Fleet(PROCESSES, member, name, server.url(), waiting, again))
    race = Race(name, followers, waiting, again)
    race.leader = build(name, Setup(server.url(), body=race.lead))
    stack.callback(race.leader.close)
    race.leader.loop([0])
    return race


def _round(race: Race, key: int) -> list[float]:
    assert race.leader is not None
    race.leader.loop([key])
    return [returned - race.ended for reply in race.followers.replies() for returned in reply]


def member(name: str, url: str, waiting: Any, again: Any) -> Callable[[int], Sequence[float]]:
    """In each process: five threads call the key; when each of them returned."""
    caller = build(name, Setup(url, body=partial(_raise_by_one, again)))
    caller.loop([-1])
    with again.get_lock():
        again.value = 0  # what the warm-up computed

    def handle(key: int) -> list[float]:
        with waiting.get_lock():
            waiting.value += WIDTH
        return caller.crowd([key] * WIDTH, WIDTH)

    return handle


def _raise_by_one(again: Any, key: int) -> Any:
    with again.get_lock():
        again.value += 1
    return profile(key)


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the followers did not come")
        time.sleep(0.005)


def _row(race: Race) -> tuple[str, ...]:
    centiles = statistics.quantiles(race.latencies, n=100)
    cells = (centiles[49], centiles[98], max(race.latencies))
    count = str(len(race.latencies))
    return race.name, *(number(each * 1e3) for each in cells), count, str(race.again.value), NOTES[race.name]
