"""CPU that a worker spends per task: a real prefork worker, ``-c 2``, that drains a queue filled beforehand.

The task does nothing and gets another argument each time, so that for `CachedTask` every call is a miss that is leased
and stored under one tag. Results go to Redis, as ``.get()`` needs them. Reported are user and system seconds of the
worker's main process and its children over a drain, divided by the tasks, in ms. One worker per contender lives
throughout; they take turns, and whoever has no turn has an empty queue. "by name" is ``send_task``: the publisher does
not look, the worker makes 3 round trips. "by .delay" publishes through `CachedTask`, which looks first and tells the
worker so, which then makes 2; what that costs the publisher stands beside it. "stock, acks late" is stock Celery with
``acks_late=True``, which is CachedTask's default. Target: by name, at most 25 % over stock.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from benchmarks.cpu import PROC, seconds_of_tree
from benchmarks.server import Server, redis_server
from benchmarks.table import number, target, text_table
from benchmarks.worker import Worker, prefork_worker
from benchmarks.worker_app import CACHED, STOCK, STOCK_LATE, make_app

LIMIT = 1.25


@dataclass(eq=False)
class Variant:
    """One contender: a worker, and a way to publish."""

    name: str
    worker: Worker
    publish: Callable[[int], Any]
    worker_ms: list[float] = field(default_factory=list)
    publisher_ms: list[float] = field(default_factory=list)


def run(*, quick: bool) -> None:
    """Prints the table and the target."""
    if not (PROC / "self" / "stat").exists():
        print("left out: it reads /proc, which only Linux has")
        return
    tasks, rounds = (300, 3) if quick else (1000, 7)
    numbers = count()
    with redis_server() as server, ExitStack() as stack:
        variants = _variants(server, stack)
        for at in range(rounds + 1):  # the first is the warm-up
            for variant in variants:
                worker_ms, publisher_ms = _turn(variant, server, [next(numbers) for _ in range(tasks)])
                if at:
                    variant.worker_ms.append(worker_ms)
                    variant.publisher_ms.append(publisher_ms)
    _show(variants)


def _variants(server: Server, stack: ExitStack) -> list[Variant]:
    apps = [make_app(queue, server.url().removesuffix("/0")) for queue in (STOCK, STOCK_LATE, CACHED)]
    stock, late, cached = (stack.enter_context(prefork_worker(app, "benchmarks.worker_app", 2)) for app in apps)
    variants = [Variant(name, each, _by_name(each)) for name, each in (
        ("stock, by name", stock), ("stock, acks late", late), ("ours, by name", cached),
    )]  # fmt: skip
    delayed = [("stock, by .delay", stock), ("ours, by .delay", cached)]
    return variants + [Variant(name, each, each.app.tasks[each.queue].delay) for name, each in delayed]


def _by_name(worker: Worker) -> Callable[[int], Any]:
    def publish(each: int) -> Any:
        return worker.app.send_task(worker.queue, (each,), queue=worker.queue)

    return publish


def _turn(variant: Variant, server: Server, numbers: list[int]) -> tuple[float, float]:
    """Milliseconds of CPU per task: the worker's, and the publisher's."""
    worker = variant.worker
    worker.consume(False)
    began = time.process_time()
    for each in numbers:
        variant.publish(each)
    publisher = time.process_time() - began
    entries = _entries(server)
    spent = seconds_of_tree(worker.pid)
    worker.consume(True)
    _wait_drained(server, worker.queue)
    spent = seconds_of_tree(worker.pid) - spent
    if worker.queue == CACHED and _entries(server) - entries < len(numbers):
        raise RuntimeError("not every call was a miss that was stored")
    return spent / len(numbers) * 1e3, publisher / len(numbers) * 1e3


def _entries(server: Server) -> int:
    with server.client(db=2) as client:
        return int(client.dbsize())


def _wait_drained(server: Server, queue: str) -> None:
    deadline = time.monotonic() + 120
    with server.client() as client:
        while client.llen(queue) or client.hlen("unacked"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"the queue {queue} was not drained")
            time.sleep(0.02)
    time.sleep(0.1)  # the acknowledgement of the last task is not the last thing that a worker does for it


def _show(variants: list[Variant]) -> None:
    reference = statistics.median(variants[0].worker_ms)
    rows = []
    for variant in variants:
        median = statistics.median(variant.worker_ms)
        own = (number(median), number(min(variant.worker_ms)), f"{median / reference:.2f}")
        rows.append((variant.name, *own, number(statistics.median(variant.publisher_ms))))
    print(text_table(("contender", "worker ms", "min", f"x {variants[0].name}", "publisher ms"), rows))
    ratio = statistics.median(variants[2].worker_ms) / reference
    print(target("ours, by name", ratio, LIMIT, "x stock"))
