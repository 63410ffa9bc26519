"""A process that flushes until it is killed: ``python -m tests.stress.flush_app URL NAMESPACE FILE CLAIM_SECONDS``.

Its sink appends a line for every write to the file. It tells on stdout when it begins.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Events
from celery_cachetiers.flush import Flusher
from celery_cachetiers.journal.redis import RedisJournal
from celery_cachetiers.leases.repeat import repeating
from celery_cachetiers.writes import Write
from tests.unit.flushing import SINK, unpack


class FileSink:
    """Appends what it is given, slowly enough to be killed between two lines."""

    name, batch_size, attempts, backoff = SINK, 20, 1_000_000, 0.01

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, writes: list[Write]) -> None:
        for write in writes:
            os.write(self._file, f"{write.key} {write.sequence} {write.value}\n".encode())
            time.sleep(0.001)


def main(url: str, namespace: str, path: str, claim_seconds: str) -> None:
    clock = SystemClock()
    journal = RedisJournal(RedisClient(url, 5.0, Breaker(0.0, clock)), namespace)
    flusher = Flusher(
        journal, FileSink(path), unpack, lambda tags: None,
        repeat=repeating, clock=clock, events=Events(), claim_seconds=float(claim_seconds),
    )  # fmt: skip
    print("begins", flush=True)
    while True:
        with suppress(TierUnavailable):
            flusher.flush(1.0)
        time.sleep(0.005)


if __name__ == "__main__":
    main(*sys.argv[1:])
