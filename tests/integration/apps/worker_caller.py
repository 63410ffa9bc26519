"""A process that calls memoized tasks directly, as it is told: orders come over a Redis list, answers go to another.

python -m tests.integration.apps.worker_caller NUMBER
"""

from __future__ import annotations

import json
import sys
import threading
from typing import Any

from celery_cachetiers import CacheTiers
from tests.integration.apps.worker_tasks import build


def run(number: str) -> None:
    """Takes orders until it is killed."""
    app = build()
    backplane = CacheTiers(app).cache.parts.backplane
    assert backplane is not None
    backplane.start()
    assert backplane.wait_connected(20)
    app.book.client.rpush("callers", number)
    while True:
        popped: Any = app.book.client.blpop([f"orders:{number}"], timeout=0)
        threading.Thread(target=_obey, args=(app, json.loads(popped[1])), daemon=True).start()


def _obey(app: Any, order: dict[str, Any]) -> None:
    """Calls in so many threads, which start together when the gate is opened."""
    client, reply, start = app.book.client, order["reply"], threading.Event()

    def call() -> None:
        client.rpush(f"ready:{reply}", 1)
        start.wait()
        try:
            answer = {"value": app.tasks[order["task"]](*order["args"])}
        except Exception as error:
            answer = {"error": repr(error)}
        client.rpush(reply, json.dumps(answer))

    threads = [threading.Thread(target=call, daemon=True) for _ in range(order["threads"])]
    for thread in threads:
        thread.start()
    if order["start"]:
        client.blmove(order["start"], order["start"], timeout=60)
    start.set()


if __name__ == "__main__":
    run(sys.argv[1])
