"""The app of the staleness test, and a process that reads and writes: `python -m tests.stress.stale_app`.

The source of truth is a version per row in SQLite. A writer raises it, commits, and invalidates; a reader calls a
cached task, directly or through a worker. Both note what they did, with the clock that all processes of a machine
share, in a file of their own: what was stale is judged afterwards, so that judging has no part in the race.
"""

from __future__ import annotations

import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import redis
from billiard.exceptions import WorkerLostError
from celery import Celery
from celery.exceptions import TimeoutError

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.events import Event
from tests.stress.mutations import MUTATIONS, dawdle

VARIABLE = "CACHETIERS_STALE_TEST"
LONGEST_COMPUTE, LOST = 0.05, 20.0
VIEWS = 2
"""A row has several, so that one key gives a tag a new version while another is still computed under the old."""

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "remote": {"l1": False, "ttl": 0.3, "grace": 30},  # old enough, it is served while a refresh runs
    "following": {"l1": False, "ttl": 60, "coalesce": "publish"},
    "strict": {"consistency": "strict", "ttl": 0.3, "grace": 30},
    "eventual": {"ttl": 60, "l1_ttl": 60},
}


class Rows:
    """The source of truth.

    Concurrency: a connection per thread, opened by the process that uses it: none may live across a fork.
    """

    def __init__(self, path: str) -> None:
        self._path, self._local = path, threading.local()

    @property
    def connection(self) -> sqlite3.Connection:
        """This thread's own."""
        if not hasattr(self._local, "connection"):
            self._local.connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            self._local.connection.execute("PRAGMA synchronous=OFF")  # no power fails here
        return self._local.connection  # type: ignore[no-any-return]

    def create(self, rows: int) -> None:
        """The table, in WAL mode: readers and a writer do not wait for each other."""
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("CREATE TABLE rows (row INTEGER PRIMARY KEY, version INTEGER)")
        self.connection.executemany("INSERT INTO rows VALUES (?, 0)", [(row,) for row in range(rows)])

    def read(self, row: int) -> int:
        """A row's version."""
        [(version,)] = self.connection.execute("SELECT version FROM rows WHERE row = ?", (row,)).fetchall()
        return int(version)

    def write(self, row: int, version: int) -> None:
        """Committed when it returns."""
        self.connection.execute("UPDATE rows SET version = ? WHERE row = ?", (version, row))

    def close(self) -> None:
        """Closes this thread's connection: one that is dropped unclosed may take a forked child's writes with it."""
        with closing(self.connection):
            del self._local.connection


class Log:
    """Lines of JSON, ``[kind, instant, ...]``, in one file per process, unbuffered: who is killed has told all."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._open()
        os.register_at_fork(after_in_child=self._open)

    def _open(self) -> None:
        self._file = os.open(self._directory / f"{os.getpid()}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self.note("started")

    def note(self, kind: str, *details: Any, at: float | None = None) -> None:
        """Writes a line; the instant is now unless given."""
        line = json.dumps([kind, time.monotonic() if at is None else at, *details])
        os.write(self._file, line.encode() + b"\n")

    def event(self, event: Event, task: str, details: Mapping[str, Any]) -> None:
        """The engine has acted on an invalidation, or on a gap, or has computed."""
        self.note(event.value, *details.get("names", ()))


def build(given: Mapping[str, Any]) -> Celery:
    """The app, with a task for each variant and kind of tags; a value is pairs of row and version.

    What is called "nested" calls the eventual task in its body: it must not store what that has in its L1.
    """
    app = Celery("stale", broker=given["broker"], backend=given["backend"], set_as_current=False)
    app.conf.update(
        cachetiers_url=given["cache"], cachetiers_namespace=given["namespace"], cachetiers_timeout=5.0,
        cachetiers_lease_ttl=0.5, task_default_queue=given["namespace"], task_reject_on_worker_lost=True,
        broker_connection_retry_on_startup=True,
    )  # fmt: skip
    rows = app.rows = Rows(given["rows_at"])

    def by_argument(row: int, view: int) -> list[list[int]]:
        version = rows.read(row)
        pause()
        return [[row, version]]

    def by_result(row: int, view: int) -> list[list[int]]:
        """What a row says tells which row to show beside it."""
        first = rows.read(row)
        pause()
        other = (row + 1 + first % (given["by_key"] - 1)) % given["by_key"]
        second = rows.read(other)
        pause()
        return [[row, first], [other, second]]

    def nested(row: int, view: int) -> Any:
        return app.tasks["eventual by argument"](row, view)

    for name, options in VARIANTS.items():
        declare = partial(app.task, shared=False, base=CachedTask, **options)
        declare(by_argument, name=f"{name} by argument", tags=["row:{row}"])
        declare(by_result, name=f"{name} by result", tags_from=lambda value: [f"row:{row}" for row, _ in value])
    app.task(nested, shared=False, name="remote nested", base=CachedTask, tags=["row:{row}"], **VARIANTS["remote"])
    return app


def pause() -> None:
    """The length of a compute is the input here, not a rendezvous."""
    time.sleep(LONGEST_COMPUTE * random.random() ** 3)


class Actor:
    """What a process does, each thread of it at random moments."""

    def __init__(self, app: Celery, log: Log, given: Mapping[str, Any]) -> None:
        self._app, self._log, self._given = app, log, given
        self._names = [name for name in app.tasks if name.split()[0] in given["variants"]]
        self._versions = dict.fromkeys(range(given["rows"]), 0)

    def read(self, draw: random.Random, through: str) -> None:
        """Calls a task, and notes when that began and which versions it showed."""
        name, view = draw.choice(self._names), draw.randrange(VIEWS)
        row = draw.choice([row for row in self._versions if name in self._names_for(row)])
        task, began = self._app.tasks[name], time.monotonic()
        try:
            value = self._ask(task, (row, view), through, refresh=draw.random() < 0.03)
        except (TimeoutError, WorkerLostError) as error:
            self._log.note("lost", repr(error))
            return
        self._log.note("read", name, through, value, at=began)

    def _ask(self, task: Any, args: tuple[int, int], through: str, *, refresh: bool) -> Any:
        if through == "worker":
            return task.apply_async(args, cache_mode="refresh" if refresh else "use").get(timeout=LOST)
        return task.cache.refresh(*args) if refresh else task(*args)

    def write(self, draw: random.Random, row: int) -> None:
        """Raises a row's version, commits, invalidates, and notes when that was complete."""
        self._versions[row] = version = self._versions[row] + 1
        self._app.rows.write(row, version)
        tags = [f"row:{row}", f"row:{row}:{version}"]  # the second tells those who hear it which version that was
        if row == self._given["by_key"]:
            for name in self._names_for(row):
                for view in range(VIEWS):
                    self._app.tasks[name].cache.invalidate(row, view)
        elif self._given["worker"] and draw.random() < 0.1:
            try:
                self._app.tasks["celery_cachetiers.invalidate_tags"].delay(tags).get(timeout=LOST)
            except (TimeoutError, WorkerLostError) as error:
                self._log.note("lost", repr(error))
                return
        else:
            CacheTiers(self._app).invalidate_tags(tags)
        self._log.note("complete", row, version)

    def _names_for(self, row: int) -> list[str]:
        """By key goes only what names its row in the arguments, and depends on no other entry."""
        if row != self._given["by_key"]:
            return self._names
        return [name for name in self._names if name in ("remote by argument", "strict by argument")]

    def repeat(self, act: Callable[[random.Random], None], longest: float, number: int) -> None:
        """Acts at random moments until the time is over."""
        draw = random.Random(f"{self._given['seed']}:{self._given['process']}:{number}")
        ends = time.monotonic() + self._given["seconds"]
        try:
            while time.monotonic() < ends:
                act(draw)
                time.sleep(draw.uniform(0.0, longest))
        finally:
            self._app.rows.close()


def main(app: Celery, log: Log, given: Mapping[str, Any]) -> None:
    """Reads and writes until the time is over; every row has one writer in one process."""
    actor = Actor(app, log, given)
    acts: list[tuple[Callable[[random.Random], None], float]] = [(partial(actor.read, through="call"), 0.004)] * 3
    acts += [(partial(actor.read, through="worker"), 0.004)] * given["worker"]
    own = range(given["process"], given["rows"], given["processes"])
    acts += [(partial(actor.write, row=row), 2 * given["write_every"]) for row in own]
    with redis.Redis.from_url(given["backend"], socket_timeout=None) as client:
        client.rpush("ready", os.getpid())
        client.blpop(["go"], timeout=60)
    with ThreadPoolExecutor(len(acts)) as pool:
        acting = [pool.submit(actor.repeat, *act, number) for number, act in enumerate(acts)]
        for each in acting:
            each.result()
    CacheTiers(app).reset()
    app.close()


if VARIABLE in os.environ:  # in a process of the test, and in its worker; not in the test itself
    _given = json.loads(os.environ[VARIABLE])
    dawdle()
    MUTATIONS[_given["mutation"]]()
    _log, app = Log(_given["log"]), build(_given)
    CacheTiers(app).events.subscribe(_log.event, Event.HEARD, Event.INVALIDATED, Event.GAP, Event.COMPUTED)

if __name__ == "__main__":
    main(app, _log, _given)
