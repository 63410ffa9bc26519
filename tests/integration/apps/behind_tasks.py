"""The tasks of the write-behind tests, and their sink, whose database is the book."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, Write, sink
from celery_cachetiers.events import Event
from tests.integration.apps.worker_book import Book
from tests.integration.apps.worker_setup import Deployment
from tests.integration.apps.worker_tasks import VARIABLE


def build(given: Mapping[str, Any] | None = None) -> Celery:
    """The app with its tasks; ``app.book`` is the ledger.

    Of the settings, ``behind_sink`` are the sink's options (``None``: there is none), and ``behind_schedule`` is
    assigned as ``beat_schedule`` when everything else is done.
    """
    given = json.loads(os.environ[VARIABLE]) if given is None else given
    app = Celery("behind", set_as_current=False)
    app.conf.update(given["conf"])
    book = app.book = Book(given["book"])
    place, options = given["conf"]["cachetiers_namespace"], given["conf"].get("behind_sink", {})
    if options is not None:
        _declare_sink(book, place, options)
    CacheTiers(app).events.subscribe(lambda event, task, details: book.held(str(details["key"])), Event.HELD)
    _declare(app, book, place)
    app.finalize()
    if "behind_schedule" in given["conf"]:
        app.conf.beat_schedule = given["conf"]["behind_schedule"]
    return app


def _declare_sink(book: Book, place: str, options: Mapping[str, Any]) -> None:
    @sink(place, **options)
    def save(writes: list[Write]) -> None:
        book.compute(f"save {place}")
        with book.client.pipeline() as pipe:
            for write in writes:
                note = [write.args[0], write.value, write.deleted, write.sequence, os.getpid()]
                pipe.rpush(f"saved:{place}", json.dumps(note))
                pipe.hset(f"table:{place}", write.args[0], json.dumps(None if write.deleted else write.value))
            pipe.execute()


def _declare(app: Celery, book: Book, place: str) -> None:
    behind: dict[str, Any] = {"shared": False, "base": CachedTask, "ttl": 300, "sink": place, "write": "behind"}

    def order(row: str) -> str:
        return f"{row}#{book.compute(row)}"

    app.task(order, name="order", tags=["row:{row}"], **behind)
    app.task(order, name="order.through", **{**behind, "write": "through"})
    app.task(order, name="order.unkept", cache_if=lambda value: False, **behind)
    app.task(order, name="order.message", publish_hits=False, **behind)

    @app.task(name="order.retried", bind=True, max_retries=2, **behind)
    def retried(self: Any, row: str) -> str:
        number = book.compute(row)
        if number == 1:
            raise self.retry(countdown=0)
        return f"{row}#{number}"

    @app.task(name="order.read", **behind)
    def read(row: str) -> Any:
        """What the database has."""
        book.compute(f"read {row}")
        return row_of(book, place, row)

    @app.task(name="change", invalidates=["total:{row}"], **behind)
    def change(row: str, value: str) -> str:
        return value

    app.task(change.run, name="change.through", invalidates=["total:{row}"], **{**behind, "write": "through"})

    @app.task(name="total", shared=False, base=CachedTask, ttl=300, tags=["total:{row}"])
    def total(row: str) -> Any:
        return row_of(book, place, row)

    @app.task(name="nap", shared=False)
    def nap() -> str:
        return "slept"


def row_of(book: Book, place: str, row: str) -> Any:
    """A row in the database."""
    return json.loads(book.client.hget(f"table:{place}", row) or "null")


class BehindDeployment(Deployment):
    """The app as this process has it.

    Its sink and its database are named like its namespace: sinks belong to the process, whatever its apps.
    """

    module = "tests.integration.apps.behind_app"
    build = staticmethod(build)

    @property
    def sink(self) -> str:
        """Name of the sink."""
        return self.namespace

    @property
    def saving(self) -> str:
        """What a batch is called in the book: where the sink waits and fails."""
        return f"save {self.namespace}"

    def row(self, row: str) -> Any:
        """What the database has."""
        return row_of(self.book, self.namespace, row)

    def saved(self, row: str | None = None) -> list[list[Any]]:
        """What the sink has got: row, value, deleted, sequence and process of each write."""
        everything = [json.loads(note) for note in self.book.client.lrange(f"saved:{self.sink}", 0, -1)]
        return [note for note in everything if row is None or note[0] == row]

    def values(self, row: str) -> list[Any]:
        """The values that the sink has got of a row, in their order."""
        return [note[1] for note in self.saved(row)]

    def pending(self) -> int:
        """Records that wait."""
        assert self.tiers.writes.journal is not None
        return self.tiers.writes.journal.backlog(self.sink).pending

    def flush(self) -> None:
        """Here and now."""
        self.tiers.writes.flush(self.sink)
