"""Flushers and their Redis are killed at any moment: every write that was acknowledged reaches the sink."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal.redis import RedisJournal
from tests.processes import Process, wait_until
from tests.servers import RedisServer, RedisServers
from tests.unit.flushing import SINK

ROOT = Path(__file__).resolve().parents[2]
CLAIM_SECONDS = 0.5
KEYS = 40

T = TypeVar("T")


class Fleet:
    """Two flushers, of which a killed one is replaced; a journal to write to."""

    def __init__(self, server: RedisServer, namespace: str, directory: Path) -> None:
        self.server, self.namespace, self.directory = server, namespace, directory
        self.flushers: list[Process] = []
        self.started = 0
        self.journal = RedisJournal(RedisClient(server.url(), 5.0, Breaker(0.0, SystemClock())), namespace)

    def start(self) -> None:
        self.started += 1
        lines = self.directory / f"lines-{self.started}"
        words = (self.server.url(), self.namespace, str(lines), str(CLAIM_SECONDS))
        log = self.directory / f"log-{self.started}"
        flusher = Process([sys.executable, "-m", "tests.stress.flush_app", *words], log=log, cwd=ROOT)
        flusher.start()
        self.flushers.append(flusher)

    def kill(self, flusher: Process) -> None:
        wait_until(lambda: "begins" in flusher.log_text(), timeout=30.0, message="a flusher", process=flusher)
        flusher.kill()
        self.flushers.remove(flusher)

    def close(self) -> None:
        for flusher in self.flushers:
            flusher.kill()
        self.journal.close()

    def sink(self) -> dict[str, tuple[int, str]]:
        """The highest sequence of each key, and its value."""
        rows: dict[str, tuple[int, str]] = {}
        for file in self.directory.glob("lines-*"):
            for line in file.read_text().splitlines():
                key, sequence, value = line.split()
                rows[key] = max(rows.get(key, (0, "")), (int(sequence), value))
        return rows


@pytest.fixture
def fleet(redis_factory: RedisServers, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    server = redis_factory("--appendonly", "yes", "--appendfsync", "always")
    fleet = Fleet(server, namespace, tmp_path)
    yield fleet
    fleet.close()


def persistently(act: Callable[[], T]) -> T:
    """Does it until Redis has acknowledged it."""
    while True:
        try:
            return act()
        except TierUnavailable:
            pass


@pytest.mark.slow
def test_no_acknowledged_write_is_lost_whoever_is_killed(fleet: Fleet) -> None:
    chance = random.Random(7)
    written: dict[str, tuple[int, str]] = {}
    for _ in range(2):
        fleet.start()
    for number in range(4000):
        key, value = f"k{chance.randrange(KEYS)}", str(number)
        [sequence] = persistently(lambda: fleet.journal.write(SINK, [(key, value.encode())], 1_000_000))  # noqa: B023  # runs at once
        written[key] = (sequence, value)
        if number % 250 == 100:
            fleet.kill(fleet.flushers[0])
            fleet.start()
        if number % 1000 == 500:
            fleet.server.kill()
            fleet.server.start()
    wait_until(
        lambda: persistently(lambda: fleet.journal.backlog(SINK).pending) == 0, timeout=60.0, message="an empty journal"
    )

    assert fleet.started == 2 + 16
    assert fleet.journal.backlog(SINK).buried == 0
    assert fleet.sink() == written


def test_what_a_killed_flusher_had_claimed_is_delivered_by_the_next_one(fleet: Fleet) -> None:
    keys = [f"k{number}" for number in range(200)]
    written = fleet.journal.write(SINK, [(key, b"v") for key in keys], 1_000_000)
    fleet.start()
    [first] = fleet.flushers
    lines = fleet.directory / "lines-1"
    wait_until(lambda: lines.exists() and lines.stat().st_size > 0, timeout=30.0, message="a line", process=first)
    fleet.kill(first)
    claimed = fleet.journal.backlog(SINK).pending
    fleet.start()
    wait_until(lambda: fleet.journal.backlog(SINK).pending == 0, timeout=30.0, message="an empty journal")

    assert claimed > 0
    assert fleet.sink() == {key: (sequence, "v") for key, sequence in zip(keys, written, strict=True)}
