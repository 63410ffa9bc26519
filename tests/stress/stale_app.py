"""The app of the staleness test, and the process that reads: `python -m tests.stress.stale_app`, configured by JSON.

The source of truth is a counter per row in a Redis database of its own. ``done:<row>`` is the counter's value at the
last invalidation that has completed: a read that starts then must not return less.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Mapping
from typing import Any

import redis
from celery import Celery

from celery_cachetiers import CachedTask

VARIABLE = "CACHETIERS_STALE_TEST"
VARIANTS: Mapping[str, Mapping[str, Any]] = {"remote": {"l1": False}, "strict": {"consistency": "strict"}}


def build(given: Mapping[str, Any]) -> Celery:
    """The app with a task per variant; ``app.truth`` is the client of the source of truth.

    A row has several views, so that one key gives a tag a new version while another is still computed under the old.
    """
    app = Celery("stale", set_as_current=False)
    app.conf.update(
        cachetiers_url=given["cache"], cachetiers_namespace=given["namespace"], cachetiers_timeout=5.0,
        cachetiers_lease_ttl=0.5,
    )  # fmt: skip
    truth = app.truth = redis.Redis.from_url(given["truth"], socket_timeout=None)
    longest = given["longest_compute"]

    for variant, options in VARIANTS.items():

        def read(row: int, view: int) -> int:
            version = int(truth.get(f"row:{row}") or 0)
            time.sleep(longest * random.random() ** 3)  # the length of a compute is the input, not a rendezvous
            return version

        app.task(read, shared=False, name=variant, base=CachedTask, ttl=30, tags=["row:{row}"], **options)
    return app


def main() -> None:
    """Reads at random until told to stop, then reports what was older than it may be."""
    given = json.loads(os.environ[VARIABLE])
    app = build(given)
    task, truth, reports = app.tasks[given["variant"]], app.truth, []
    truth.rpush("ready", os.getpid())
    truth.blpop(["go"], timeout=60)
    threads = [
        threading.Thread(target=_read, args=(task, truth, given, thread, reports)) for thread in range(given["threads"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counted = task.cache.info()
    report = {
        "reads": sum(each["reads"] for each in reports),
        "stale": [line for each in reports for line in each["stale"]],
        "computes": counted.computes,
    }
    truth.rpush("reports", json.dumps(report))


def _read(task: Any, truth: Any, given: Mapping[str, Any], thread: int, reports: list[dict[str, Any]]) -> None:
    draw = random.Random(f"{given['seed']}:{given['process']}:{thread}")
    reads, stale, ends = 0, [], time.monotonic() + given["seconds"]
    while time.monotonic() < ends:
        row, view = draw.randrange(given["rows"]), draw.randrange(given["views"])
        least = int(truth.get(f"done:{row}") or 0)
        value = task(row, view)
        reads += 1
        if value < least:
            stale.append(f"row {row}: read {value} after {least} was invalidated")
    reports.append({"reads": reads, "stale": stale})


if __name__ == "__main__":
    main()
