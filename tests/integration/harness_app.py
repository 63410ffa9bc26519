"""The app with which `test_harness` tries the harness itself: no cache, nothing of the package."""

from __future__ import annotations

import os

from celery import Celery, shared_task

app = Celery("harness", broker=os.environ.get("HARNESS_BROKER"), backend=os.environ.get("HARNESS_BACKEND"))
app.conf.broker_connection_retry_on_startup = True


@shared_task
def square(number: int) -> int:
    print(f"squaring {number}")
    return number * number


@shared_task
def where() -> int:
    """Process id of the pool's process that runs this."""
    return os.getpid()
