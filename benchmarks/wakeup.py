"""From the end of a compute to a follower's return: 50 followers in 10 processes wait for one leader in another.

The clock starts when the leader's body returns, so the commit is part of it, and stops when the follower's call has
returned its value: median, 99th percentile and worst of all followers of all rounds. With polling, the recipe's every
100 ms, the median cannot be better than half the interval; the body goes on for 200 ms and a random 300 to 400 ms, so
that no phase of the polling is favoured. "computed again" counts followers that ran the body themselves: none should.
"commands" are those that Redis ran in the last 300 to 400 ms of each wait, all rounds together, without the PUBLISH of
heartbeats.

Targets: p50 at most 6 ms, p99 at most 15 ms, and 0 commands while all wait.
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
from benchmarks.server import Server, redis_server
from benchmarks.subjects import profile
from benchmarks.table import number, target, text_table

NOTES = {"ours": "pushed", "recipe": "polls every 100 ms"}
PROCESSES, WIDTH = 10, 5
SETTLE = 0.2
"""Seconds that followers have from being sent for to waiting."""


@dataclass(eq=False)
class Race:
    """One contender: the leader here, the followers there, and the latencies so far."""

    name: str
    server: Server
    followers: Fleet
    waiting: Any
    again: Any
    leader: Caller | None = None
    ended: float = 0.0
    commands: int = 0
    latencies: list[float] = field(default_factory=list)

    def lead(self, key: int) -> Any:
        """The leader's body: sends for the followers, waits until all of them wait, and a little longer."""
        if key:
            expected = self.waiting.value + PROCESSES * WIDTH
            self.followers.order(key)
            _wait(lambda: self.waiting.value >= expected)
            time.sleep(SETTLE)
            before = self._commands()
            time.sleep(random.uniform(0.3, 0.4))
            self.commands += self._commands() - before
        self.ended = time.monotonic()
        return profile(key)

    def _commands(self) -> int:
        return self.server.commands(without=("publish",))

    def centile(self, percent: int) -> float:
        """Milliseconds."""
        return statistics.quantiles(self.latencies, n=100)[percent - 1] * 1e3


def run(*, quick: bool) -> None:
    """Prints the table."""
    rounds = 5 if quick else 30
    with ExitStack() as stack:
        races = [_race(name, stack) for name in NOTES]
        for key in range(1, rounds + 2):
            for race in races:
                latencies = _round(race, key)
                race.latencies += latencies if key > 1 else []  # the first was the warm-up
    head = ("contender", "p50 ms", "p99 ms", "worst ms", "waits", "computed again", "commands", "note")
    print(text_table(head, [_row(race) for race in races]))
    ours = races[0]
    print(target("ours, p50", ours.centile(50), 6, "ms"))
    print(target("ours, p99", ours.centile(99), 15, "ms"))
    print(target("ours, while all wait", ours.commands, 0, "commands"))


def _race(name: str, stack: ExitStack) -> Race:
    server, waiting, again = stack.enter_context(redis_server()), shared_counter(), shared_counter()
    followers = stack.enter_context(Fleet(PROCESSES, member, name, server.url(), waiting, again))
    race = Race(name, server, followers, waiting, again)
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
    cells = (race.centile(50), race.centile(99), max(race.latencies) * 1e3)
    counts = (len(race.latencies), race.again.value, race.commands)
    return race.name, *map(number, cells), *map(str, counts), NOTES[race.name]
