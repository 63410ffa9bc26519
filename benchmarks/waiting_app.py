"""The app of `waiting`'s workers: a slow task as each contender declares it, stock tasks beside it, and what they did.

Slots are timed by the signals around each slow task, in the worker's children only: what the main process answers costs
no slot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import redis
from celery import Celery, Task
from celery.signals import task_postrun, task_prerun

from benchmarks.worker import QUEUE_VARIABLE, URL_VARIABLE, bare_app
from celery_cachetiers import CachedTask

SECONDS_VARIABLE = "BENCH_SECONDS"
OURS, BLOCKING, STOCK, SINGLETON, ONCE = "ours", "ours-blocking", "stock", "celery-singleton", "celery-once"
OTHER_SECONDS = 0.05
WAITING_ROOM = "celery_cachetiers.waiting_room"
"""Where the consumer bootstep is defined without which followers wait in their slots."""


class Counts:
    """What happened under each argument of the slow tasks, in a database of Redis that nobody else uses."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(f"{url}/3", decode_responses=True)

    def add(self, number: int, **amounts: float) -> None:
        """Adds to the named sums."""
        for name, amount in amounts.items():
            self._client.hincrbyfloat(f"slow:{number}", name, amount)

    def of(self, number: int) -> dict[str, float]:
        """``bodies``, their ``body_seconds`` and all ``slot_seconds``, as far as there were any."""
        return {name: float(amount) for name, amount in self._client.hgetall(f"slow:{number}").items()}


def make_app(queue: str, url: str, seconds: float = 0.0) -> Celery:
    """The app of one contender, which is named after its queue.

    Args:
        url: As of `bare_app`; the counts are in 3.
        seconds: How long the slow body takes; of interest to a worker only.
    """
    app, counts = bare_app(queue, url), Counts(url)
    options = {"shared": False, **DECLARATIONS[queue](app, url)}
    app.task(name="slow", **options)(_slow(counts, seconds))
    app.task(name="retried", bind=True, **options)(_retried(counts))
    app.task(name="other", base=Task, shared=False)(_other)
    app.task(name="total", base=Task, shared=False)(_total)
    app.finalize()
    if queue == BLOCKING:
        steps = app.steps["consumer"]
        steps -= {step for step in steps if str(step).startswith(WAITING_ROOM)}
    _time_slots(app.tasks["slow"], counts)
    return app


def value_of(number: int) -> int:
    """What a slow task returns."""
    return number * 10


def _slow(counts: Counts, seconds: float) -> Callable[[int], int]:
    def slow(number: int) -> int:
        began = time.monotonic()
        counts.add(number, bodies=1)
        time.sleep(seconds)
        counts.add(number, body_seconds=time.monotonic() - began)
        return value_of(number)

    return slow


def _retried(counts: Counts) -> Callable[[Any, int], int]:
    def retried(self: Any, number: int) -> int:
        counts.add(number, bodies=1)
        if not self.request.retries:
            raise self.retry(countdown=0)
        return value_of(number)

    return retried


def _other(number: int) -> int:
    time.sleep(OTHER_SECONDS)
    return number


def _total(values: list[int]) -> int:
    return sum(values)


def _time_slots(task: Any, counts: Counts) -> None:
    main, began = os.getpid(), {}

    def enter(task_id: str, **_: Any) -> None:
        if os.getpid() != main:
            began[task_id] = time.monotonic()

    def leave(task_id: str, args: Any, **_: Any) -> None:
        if task_id in began:
            counts.add(args[0], slot_seconds=time.monotonic() - began.pop(task_id))

    task_prerun.connect(enter, sender=task, weak=False)
    task_postrun.connect(leave, sender=task, weak=False)


def _cached(app: Celery, url: str) -> dict[str, Any]:
    app.conf.cachetiers_url = f"{url}/2"
    return {"base": CachedTask, "ttl": 600}


def _stock(app: Celery, url: str) -> dict[str, Any]:
    return {"base": Task}


def _singleton(app: Celery, url: str) -> dict[str, Any]:
    from celery_singleton import Singleton

    app.conf.singleton_backend_url = f"{url}/2"
    return {"base": Singleton}


def _once(app: Celery, url: str) -> dict[str, Any]:
    from celery_once import QueueOnce

    app.conf.ONCE = {"backend": "celery_once.backends.Redis", "settings": {"url": f"{url}/2", "default_timeout": 3600}}
    return {"base": QueueOnce}


DECLARATIONS: dict[str, Callable[[Celery, str], dict[str, Any]]] = {
    OURS: _cached,
    BLOCKING: _cached,
    STOCK: _stock,
    SINGLETON: _singleton,
    ONCE: _once,
}

if URL_VARIABLE in os.environ:  # in a worker; the benchmark itself makes its own
    app = make_app(os.environ[QUEUE_VARIABLE], os.environ[URL_VARIABLE], float(os.environ[SECONDS_VARIABLE]))
