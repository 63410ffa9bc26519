"""The app of `worker_cpu`'s workers: one task that does nothing, of stock Celery or cached, as the environment says."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task

from benchmarks.worker import QUEUE_VARIABLE, URL_VARIABLE, bare_app
from celery_cachetiers import CachedTask

STOCK, STOCK_LATE, CACHED = "stock", "stock-late", "cached"


def make_app(queue: str, url: str) -> Celery:
    """The app, with one task named after its queue; ``url`` as of `bare_app`."""
    app = bare_app(queue, url)
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
