"""A walk through every script of the journal, for the page that says which rights they need."""

from __future__ import annotations

import logging

from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, Write, sink
from celery_cachetiers.journal_port import Exhumed

taken: list[object] = []


def tour(app: Celery) -> None:
    """Writes, flushes, buries, digs up and drops; fails where the journal refuses a step, or a write goes past it."""
    sink("tour", attempts=1, backoff=0.0)(_save)
    taken.clear()

    @app.task(base=CachedTask, sink="tour", write="behind", name="proj.row")
    def row(number: int) -> int:
        return number

    row.cache.invalidate(3)
    row.cache.put((1,), "one")
    row.cache.put((2,), "poison")
    assert row(3) == 3
    assert taken == [], taken
    logging.disable(logging.ERROR)  # a write is buried on purpose
    flushed = CacheTiers(app).writes.flush("tour")["tour"]
    logging.disable(logging.NOTSET)
    assert (flushed.taken, flushed.buried) == (2, 1), flushed
    assert taken == ["one", 3], taken
    assert row.cache.info().failed_open == 0
    _dead_letter(app)
    CacheTiers(app).reset()


def _save(writes: list[Write]) -> None:
    if any(write.value == "poison" for write in writes):
        raise ValueError("poison")
    taken.extend(write.value for write in writes)


def _dead_letter(app: Celery) -> None:
    journal = CacheTiers(app).writes.journal
    assert journal is not None
    assert journal.unsafe() is None
    assert journal.backlog("tour").buried == 1
    assert journal.sequence("tour") > 0
    [grave] = journal.buried("tour", 0, 10)
    key = grave.record.key
    assert journal.begin("tour", key)[0] is None
    assert journal.exhume("tour", [key]) == Exhumed(1)
    [record] = journal.claim("tour", "token", 10, 10.0)
    assert journal.renew("tour", "token", [key], 10.0) == 1
    assert journal.stands("tour", [(key, record.sequence)]) == [True]
    journal.give_back("tour", "token", [(key, record.sequence)], 10.0, failed=True)
    [record] = journal.claim("tour", "token", 1, 10.0, key)
    assert record.attempts == 1
    assert journal.bury("tour", "token", record, "reason", "details")
    assert journal.drop("tour", [key]) == 1
    journal.note("tour", [(key, record.sequence)])
    assert journal.overtaken("tour", [(key, record.sequence)]) == [True]
    assert journal.announce(1.0)
    journal.arrived()
