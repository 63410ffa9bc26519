"""What write-behind costs who writes, how fast it reaches the database, and what waits in Redis meanwhile.

First: rows on their way into one SQLite table (WAL, no commit waits for the disk), through a real prefork worker, ``-c
2``, in batches of 500. Everything is sent beforehand, then the clock runs from the moment that the worker may begin
until the last row is committed. "one task per row" is a Celery task that does one ``INSERT ... ON CONFLICT`` and
commits, on a connection that stays open: what one writes without any of this. celery-batches hands 500 messages to one
task; its 0.11 asks for a Celery before 5.7, so that no extra of ours brings it. Ours is the journal, emptied by two
`celery_cachetiers.flush` tasks, one for each slot: once every write has a key of its own, once each key was written 20
times, of which the table needs the last. "writes/s" counts all writes that were made, "rows/s" what the sink was given;
"us per write" is what sending cost the writer, by ``.delay`` or in ``put_many`` of 500. Target: rows of distinct keys
at least 20 x one task per row.

Then one ``put`` of about 1 KB: plain, with its write behind it in a journal on the same server (one transaction), and
with a journal on a server of its own, beside a bare pipeline of redis-py with two ``SET`` that bring the server as many
bytes as the put with its write. Target: what write-behind adds to a plain put is at most 1.5 x that pipeline.

Last: what 100,000 pending writes take in the journal's Redis, beside the bytes of their values as JSON.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from celery import Celery

from benchmarks.server import Server, redis_server
from benchmarks.subjects import TEXT, profile
from benchmarks.table import number, target, text_table
from benchmarks.timing import Contender, race, show, timed
from benchmarks.worker import Worker, prefork_worker
from benchmarks.write_behind_app import BATCH, BATCHES, DATABASE_VARIABLE, OURS, STOCK, Table, make_app
from celery_cachetiers import CachedTask, CacheTiers, sink

CONCURRENCY, PER_KEY, LIMIT = 2, 20, 120.0
TIMES_FASTER, TIMES_PIPELINE = 20.0, 1.5


def run(*, quick: bool) -> None:
    """Prints the tables and the targets."""
    _drain(quick)
    print()
    _latency(quick)
    print()
    _memory(10_000 if quick else 100_000)


# -- into the database ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drained:
    """What one contender took."""

    name: str
    writes: int
    rows: int
    sending: float
    seconds: float

    def cells(self, reference: Drained) -> tuple[str, ...]:
        """A row of the table."""
        rates = (self.writes / self.seconds, self.rows / self.seconds)
        ratio = rates[0] / (reference.writes / reference.seconds)
        return self.name, *map(number, rates), f"{ratio:.1f}", number(self.sending / self.writes * 1e6), ""


def _drain(quick: bool) -> None:
    many = 4_000 if quick else 20_000
    stock = _per_message("one task per row", STOCK, 500 if quick else 2_000)
    drained = [
        _behind("ours, distinct keys", many, 1),
        _behind(f"ours, {PER_KEY} writes per key", many, PER_KEY),
    ]
    rows = [stock.cells(stock)]
    try:
        rows.append(_per_message(BATCHES, BATCHES, many // 4).cells(stock))
    except ImportError:
        rows.append((BATCHES, *["-"] * 4, "not installed: pip install --no-deps celery-batches"))
    rows += [each.cells(stock) for each in drained]
    head = ("contender", "writes/s", "rows/s", "writes x one task each", "us per write", "note")
    print(text_table(head, rows))
    times = (drained[0].rows / drained[0].seconds) / (stock.rows / stock.seconds)
    verdict = "met" if times >= TIMES_FASTER else "NOT met"
    print(f"target {verdict}: rows of distinct keys: {number(times)} x, at least {number(TIMES_FASTER)} x")


@contextmanager
def _worker(queue: str) -> Iterator[tuple[Worker, Table]]:
    """One that consumes nothing yet, and an empty table."""
    with redis_server() as server, tempfile.TemporaryDirectory(prefix="bench-") as directory:
        database = f"{directory}/rows"
        table = Table(database)
        table.create()
        app = make_app(queue, server.url().removesuffix("/0"), database)
        variables = {DATABASE_VARIABLE: database}
        with prefork_worker(app, "benchmarks.write_behind_app", CONCURRENCY, **variables) as worker:
            worker.consume(False)
            yield worker, table
        if queue == OURS:
            CacheTiers(app).reset()
        app.close()


def _per_message(name: str, queue: str, many: int) -> Drained:
    with _worker(queue) as (worker, table):
        task, value = worker.app.tasks[queue], profile(0)
        began = time.perf_counter()
        for each in range(many):
            task.delay(each, value)
        sending = time.perf_counter() - began
        seconds = _timed(lambda: worker.consume(True), lambda: table.count() == many)
        return Drained(name, many, many, sending, seconds)


def _behind(name: str, many: int, per_key: int) -> Drained:
    with _worker(OURS) as (worker, table):
        tiers, cache, value = CacheTiers(worker.app), worker.app.tasks[OURS].cache, profile(0)
        keys = many // per_key
        sent = [((each % keys,), value) for each in range(many)]
        tiers.writes.send_flush = lambda sink: None  # type: ignore[method-assign]  # the clock does not run yet
        cache.put_many(sent[:1])
        began = time.perf_counter()
        for at in range(0, many, BATCH):
            cache.put_many(sent[at : at + BATCH])
        sending = time.perf_counter() - began
        worker.app.control.purge()
        journal: Any = tiers.writes.journal
        for _ in range(CONCURRENCY):
            worker.app.tasks["celery_cachetiers.flush"].delay("bench")
        seconds = _timed(lambda: worker.consume(True), lambda: journal.backlog("bench").pending == 0)
        if table.count() != keys:
            raise RuntimeError(f"{table.count()} rows of {keys} are there")
        return Drained(name, many, keys, sending, seconds)


def _timed(begin: Callable[[], object], done: Callable[[], bool]) -> float:
    began = time.perf_counter()
    begin()
    while not done():
        if time.perf_counter() - began > LIMIT:
            raise RuntimeError("the rows did not come")
        time.sleep(0.005)
    return time.perf_counter() - began


# -- who writes -------------------------------------------------------------------------------------------------------


def _task(url: str, name: str, **settings: Any) -> Any:
    """A task with a value of 1 KB that is kept in L2 alone; a sink of that name that nobody flushes."""
    app = Celery("bench", broker="memory://", set_as_current=False)
    app.conf.update(cachetiers_url=url, cachetiers_timeout=5.0, cachetiers_namespace=name, **settings)
    options: dict[str, Any] = {}
    if name != "plain":
        sink(name, batch_size=1000, max_pending=10_000_000)(lambda writes: None)
        options = {"sink": name, "write": "behind"}
    return app.task(profile, base=CachedTask, name=name, shared=False, l1=False, **options)


def _latency(quick: bool) -> None:
    with redis_server() as server, redis_server() as other, redis.Redis(port=server.port, protocol=2) as client:
        plain, behind = _task(server.url(), "plain"), _task(server.url(), "behind")
        apart = _task(server.url(), "apart", cachetiers_journal_url=other.url())
        value = profile(0)
        payload = b"x" * (_bytes_of(server, lambda each: behind.cache.put((each,), value)) // 2)

        def bare(each: int) -> None:
            with client.pipeline(transaction=False) as pipe:
                pipe.set(f"one:{each}", payload).set(f"two:{each}", payload).execute()

        pipeline = Contender("bare pipeline", timed(bare), f"2 x {len(payload):,} bytes")
        first = Contender("plain put", timed(_putting(plain, value)))
        second = Contender("put behind", timed(_putting(behind, value)), "journal on the same server")
        third = Contender("put behind, apart", timed(_putting(apart, value)), "journal on a server of its own")
        race([pipeline, first, second, third], quick=quick, fresh=True)
        show([pipeline, first, second, third], pipeline)
        added = (second.median - first.median) / pipeline.median
        print(target("added to a plain put", added, TIMES_PIPELINE, "x bare pipeline"))
        for task in (plain, behind, apart):
            CacheTiers(task.app).reset()


def _putting(task: Any, value: object) -> Callable[[int], None]:
    cache = task.cache
    return lambda each: cache.put((each,), value)


def _bytes_of(server: Server, act: Callable[[int], object], many: int = 200) -> int:
    """What one call sends to the server; the connection is there, and the scripts are."""
    act(0)
    with server.client() as client:
        before = client.info("stats")["total_net_input_bytes"]
        for each in range(many):
            act(each)
        return int((client.info("stats")["total_net_input_bytes"] - before) / many)


# -- what waits -------------------------------------------------------------------------------------------------------


def _memory(many: int) -> None:
    with redis_server() as entries, redis_server() as journal:
        task = _task(entries.url(), "pending", cachetiers_journal_url=journal.url())
        value = profile(0)
        task.cache.put((0,), value)
        before = _used(journal)
        for at in range(1, many, BATCH):
            task.cache.put_many([((each,), value) for each in range(at, at + BATCH)])
        taken = _used(journal) - before
        writes: Any = CacheTiers(task.app).writes.journal
        pending = writes.backlog("pending").pending - 1
        CacheTiers(task.app).reset()
    each = taken / pending
    print(f"{pending:,} pending writes of {len(TEXT):,} bytes each take {number(taken / 2**20)} MiB:", end=" ")
    print(f"{number(each)} bytes each, {number(each - len(TEXT))} more than the value")


def _used(server: Server) -> int:
    with server.client() as client:
        return int(client.info("memory")["used_memory"])
