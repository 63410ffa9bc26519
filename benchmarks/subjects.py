"""What is called: a body that returns about 1 KB of JSON, and celery-cachetiers around it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers

TTL = 3600
PATIENCE = 5.0
"""Seconds until our client gives Redis up: a busy machine must not turn a benchmark into one of the breaker."""

TEXT = json.dumps(
    {
        "id": 7,
        "name": "Ada Lovelace",
        "email": "ada@example.org",
        "active": True,
        "score": 4.75,
        "roles": ["admin", "author", "reviewer"],
        "address": {"street": "12 St James's Square", "city": "London", "zip": "SW1Y", "country": "GB"},
        "orders": [{"id": 9000 + n, "total": 19.5 + n, "state": "shipped", "items": n} for n in range(10)],
        "about": "An account as a profile page shows it, with a few lines of prose in it. " * 3,
    }
)


def profile(number: int) -> dict[str, Any]:
    """The body without its work: a new dict each time, 1 KB as JSON."""
    return json.loads(TEXT)  # type: ignore[no-any-return]


def extension(url: str | None, **settings: Any) -> CacheTiers:
    """An app of its own with the extension, listening on the backplane at the first call."""
    app = Celery("bench", set_as_current=False)
    app.conf.update(cachetiers_url=url, cachetiers_l1_ttl=TTL, cachetiers_timeout=PATIENCE, **settings)
    return CacheTiers(app)


def memoized(tiers: CacheTiers, name: str, body: Callable[[int], Any] = profile, **options: Any) -> Any:
    """A task as users hold it: the proxy that ``@app.task`` returns."""

    def run(number: int) -> Any:
        return body(number)

    return tiers.app.task(base=CachedTask, name=name, shared=False, ttl=TTL, **options)(run)


def tags(many: int) -> list[str]:
    """So many templates over the argument."""
    return [f"tag{at}:{{number}}" for at in range(many)]


def tagged(many: int) -> str:
    """In words."""
    return f"{many} tag" if many == 1 else f"{many} tags"


def connect(tiers: CacheTiers, task: Any) -> None:
    """Makes the first call, and waits until the process hears the backplane, without which L1 keeps nothing."""
    task(0)
    backplane = tiers.cache.parts.backplane
    if backplane is not None and not backplane.wait_connected(5):
        raise RuntimeError("the backplane did not connect: calls would be measured uncached")


def check(*tasks: Any) -> None:
    """Says so if calls went on without Redis: their times are not what the table says."""
    for task in tasks:
        if failed := task.cache.info().failed_open:
            print(f"WARNING: {failed} calls of {task.name} went on without Redis; the numbers are void")
