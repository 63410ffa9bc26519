"""The apps of `write_behind`'s workers: one row per task, rows by celery-batches, or rows by our flush, into SQLite."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Sequence
from typing import Any

from celery import Celery, Task

from benchmarks.worker import QUEUE_VARIABLE, URL_VARIABLE, bare_app
from celery_cachetiers import CachedTask, Write, sink

DATABASE_VARIABLE = "BENCH_DATABASE"
STOCK, BATCHES, OURS = "stock", "celery-batches", "ours"
BATCH, INTERVAL = 500, 0.2
UPSERT = (
    "INSERT INTO rows VALUES (?, ?, ?) ON CONFLICT (number) DO UPDATE SET value = excluded.value, "
    "sequence = excluded.sequence WHERE sequence < excluded.sequence"
)

Row = tuple[int, str, int]


class Table:
    """The table, through one connection of the process that uses it: kept open, whoever writes."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None

    def open(self) -> sqlite3.Connection:
        """Connects, once."""
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, timeout=60, isolation_level=None, check_same_thread=False)
            self._connection.execute("PRAGMA synchronous=NORMAL")  # in WAL mode: no commit waits for the disk
        return self._connection

    def create(self) -> None:
        """Makes it, empty."""
        self.open().execute("PRAGMA journal_mode=WAL")
        self.open().execute("DROP TABLE IF EXISTS rows")
        self.open().execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, value TEXT, sequence BIGINT)")

    def upsert(self, rows: Sequence[Row]) -> None:
        """One transaction."""
        connection = self.open()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(UPSERT, rows)
        connection.execute("COMMIT")

    def count(self) -> int:
        """Rows that are there."""
        [[found]] = self.open().execute("SELECT count(*) FROM rows").fetchall()
        return int(found)


class TableSink(Table):
    """The same as a sink."""

    def write(self, writes: list[Write]) -> None:
        """Takes a batch."""
        self.upsert([(write.args[0], json.dumps(write.value), write.sequence) for write in writes])

    def close(self) -> None:
        """Disconnects."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def make_app(queue: str, url: str, database: str) -> Celery:
    """The app, with one task named after its queue; ``url`` as of `bare_app`.

    Raises:
        ImportError: celery-batches is not installed.
    """
    app, table = bare_app(queue, url), Table(database)
    app.conf.task_ignore_result = True

    def save(number: int, value: Any) -> None:
        table.upsert([(number, json.dumps(value), 1)])

    def save_all(requests: Sequence[Any]) -> None:
        table.upsert([(request.args[0], json.dumps(request.args[1]), 1) for request in requests])

    def produce(number: int) -> Any:
        raise NotImplementedError

    if queue == OURS:
        app.conf.update(cachetiers_url=f"{url}/2", cachetiers_timeout=5.0)
        sink("bench", batch_size=BATCH, max_pending=10_000_000)(TableSink(database))
        app.task(produce, name=queue, shared=False, base=CachedTask, sink="bench", write="behind", l1=False)
    elif queue == BATCHES:
        from celery_batches import Batches

        # Its worker holds a batch unacknowledged: it needs that many prefetched.
        app.conf.worker_prefetch_multiplier = BATCH
        app.task(save_all, name=queue, shared=False, base=Batches, flush_every=BATCH, flush_interval=INTERVAL)
    else:
        app.task(save, name=queue, shared=False, base=Task)
    return app


if URL_VARIABLE in os.environ:  # in a worker; the benchmark itself makes its own
    app = make_app(os.environ[QUEUE_VARIABLE], os.environ[URL_VARIABLE], os.environ[DATABASE_VARIABLE])
