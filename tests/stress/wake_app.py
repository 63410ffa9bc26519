"""A process of the wake-up test: calls one key after the other, as do all others: `python -m tests.stress.wake_app`.

Whoever comes to a key first computes; the others wait, are woken together, and meet again at the next key.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from typing import Any

import redis
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers

VARIABLE = "CACHETIERS_WAKE_TEST"


def build(given: Mapping[str, Any]) -> Celery:
    """The app with its task; a lease lives so long that a lost wake-up cannot be taken for a slow one."""
    app = Celery("wake", set_as_current=False)
    app.conf.update(
        cachetiers_url=given["cache"], cachetiers_namespace=given["namespace"], cachetiers_timeout=5.0,
        cachetiers_lease_ttl=given["lease_ttl"],
    )  # fmt: skip

    def slow(number: int) -> int:
        time.sleep(given["compute"])  # the length of a compute is the input, not a rendezvous
        return number

    app.task(slow, shared=False, name="slow", base=CachedTask, ttl=600, l1=False)
    return app


def main() -> None:
    """Calls all keys, then reports how often it waited and how long the longest call took."""
    given = json.loads(os.environ[VARIABLE])
    app = build(given)
    book: Any = redis.Redis.from_url(given["book"], socket_timeout=None)
    backplane = CacheTiers(app).cache.parts.backplane
    assert backplane is not None
    backplane.start()
    assert backplane.wait_connected(20)
    book.rpush("ready", os.getpid())
    book.blpop(["go"], timeout=60)
    longest: list[float] = []
    threads = [
        threading.Thread(target=_call, args=(app.tasks["slow"], given, longest)) for _ in range(given["threads"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = app.tasks["slow"].cache.info()
    report = {"waits": counted.coalesced, "computes": counted.computes, "longest": max(longest)}
    book.rpush("reports", json.dumps(report))


def _call(task: Any, given: Mapping[str, Any], longest: list[float]) -> None:
    worst = 0.0
    for number in range(given["keys"]):
        began = time.monotonic()
        assert task(number) == number
        worst = max(worst, time.monotonic() - began)
    longest.append(worst)


if __name__ == "__main__":
    main()
