"""The app of `worker_cpu`'s workers: one task that does nothing, of stock Celery or cached, as the environment says."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from celery_cachetiers import CachedTask

QUEUE_VARIABLE, URL_VARIABLE = "BENCH_QUEUE", "BENCH_URL"
STOCK, STOCK_LATE, CACHED = "stock", "stock-late", "cached"


def make_app(queue: str, url: str) -> Celery:
    """The app, with one task named after its queue.

    Args:
        url: Redis without a database: 0 is the broker's, 1 the results', 2 the cache's.
    """
    app = Celery("bench", broker=f"{url}/0", backend=f"{url}/1", set_as_current=False)
    app.conf.update(task_default_queue=queue, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    app.conf.update(result_expires=600, worker_send_task_events=False)
    options: dict[str, Any] = {"base": Task, "acks_late": queue == STOCK_LATE}
    if queue == CACHED:
        app.conf.cachetiers_url = f"{url}/2"
        options = {"base": CachedTask, "ttl": 600, "tags": ["number:{number}"]}
    app.task(name=queue, shared=False, **options)(_nothing)
    return app


def _nothing(number: int) -> int:
    return number


if URL_VARIABLE in os.environ:  # in a worker; the benchmark itself makes its own
    app = make_app(os.environ[QUEUE_VARIABLE], os.environ[URL_VARIABLE])
