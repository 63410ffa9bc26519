"""The app of the tests of counters: an observer keeps the truth in the book, event by event, beside the counters.

The truth knows nothing of the counters: it is written to Redis in the moment in which something happens.
"""

from __future__ import annotations

import os
import random
import sys  # noqa: F401 - for the code that tests run here
from typing import Any

from celery.signals import task_success

from celery_cachetiers import CachedResult, CacheTiers
from celery_cachetiers.events import Event
from tests.integration.apps.worker_tasks import VARIABLE, build

TASK, KEYS = "work.plain", 400
SECONDS = "CACHETIERS_TEST_MERGE_SECONDS"
"""Environment variable: how often a process merges."""


class Observer:
    """Writes down what happens, under the counters' names."""

    def __init__(self, app: Any) -> None:
        self._app = app

    def note(self, name: str, by: int = 1) -> None:
        self._app.book.client.hincrby("truth", name, by)

    def __call__(self, event: Event, task: str, details: dict[str, Any]) -> None:
        if task != TASK:
            return
        match event:
            case Event.HIT:
                self.note(f"{details['tier']}_hits")
                self.note("stale_hits", int(details["stale"]))
            case Event.STORED:
                self.note("stores")
                self.note("stored_bytes", details["size"])
            case Event.MISS | Event.COALESCED | Event.COMPUTED | Event.HELD | Event.WAITED | Event.UNPUBLISHED:
                self.note(NAMES[event])

    def ran(self, sender: Any = None, **_: object) -> None:
        if sender.name == TASK:
            self.note("ran")


NAMES = {
    Event.MISS: "misses",
    Event.COALESCED: "coalesced",
    Event.COMPUTED: "computes",
    Event.HELD: "held",
    Event.WAITED: "waits",
    Event.UNPUBLISHED: "publish_hits",
}


def observed() -> Any:
    """The app with its observer."""
    app = build()
    tiers, observer = CacheTiers(app), Observer(app)
    tiers.events.subscribe(observer)
    tiers.events.subscribe_to_l1_hits(observer)
    tiers.counting.merger._seconds = float(os.environ.get(SECONDS, "1"))
    task_success.connect(observer.ran, weak=False)
    return app


app: Any = observed() if VARIABLE in os.environ else None  # the tests want no more than the names


def run(seed: int, calls: int) -> None:
    """Makes so many calls, a third of them directly, and waits for what they give.

    The last quarter waits for the list ``restarted`` to have something in it.
    """
    chance, task, book = random.Random(seed), app.tasks[TASK], app.book
    observer, sent = Observer(app), []
    for number in range(calls):
        if number == 3 * calls // 4:
            book.client.blmove("restarted", "restarted", timeout=120)
        name = f"k{int(KEYS * chance.random() ** 3)}"
        if chance.random() < 0.01:
            CacheTiers(app).invalidate_tag(f"name:{name}")
        if chance.random() < 1 / 3:
            task(name)
            observer.note("direct")
        else:
            result = task.delay(name)
            observer.note("answered" if isinstance(result, CachedResult) else "sent")
            sent.append(result)
        book.client.incr("progress")
    for result in sent:
        result.get(timeout=120)
