"""The tasks of the worker tests; one function builds the app, for workers, callers, beat and the test itself."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.events import Event
from tests.integration.apps import worker_ends, worker_writers
from tests.integration.apps.worker_book import Book

VARIABLE = "CACHETIERS_TEST_APP"
"""Environment variable with the app's configuration, as JSON."""

WORKS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"lease_ttl": 10.0},
    "short": {"lease_ttl": 0.5},
    "long": {"lease_ttl": 60.0},
    "limited": {"lease_ttl": 10.0, "wait_limit": 1.0},
    "message": {"publish_hits": False, "lease_ttl": 2.0},
    "remote": {"l1": False},
    "strict": {"consistency": "strict"},
    "quiet": {"ignore_result": True},
    "published": {"coalesce": "publish", "lease_ttl": 10.0},
    "published_short": {"coalesce": "publish", "lease_ttl": 0.5},
    "unshared": {"publish_hits": False, "lease_ttl": 60.0, "share_errors": False},
}
"""The variants of one body, by name: options of the task."""


def configuration(
    *, broker: str, backend: str, cache: str, book: str, namespace: str, **conf: object
) -> dict[str, object]:
    """What `build` takes, as a test wants it."""
    settings = {
        "broker_url": broker,
        "result_backend": backend,
        "cachetiers_url": cache,
        "cachetiers_namespace": namespace,
        "cachetiers_timeout": 5.0,  # the machine is shared: a slow answer is not a dead server
        "task_default_queue": f"{namespace}-queue",
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {"polling_interval": 0.1},
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        **conf,
    }
    return {"book": book, "conf": settings}


def build(given: Mapping[str, Any] | None = None) -> Celery:
    """The app with its tasks; ``app.book`` is the ledger.

    The tasks are not shared: one process may build several of these apps, each with its own book.
    """
    given = json.loads(os.environ[VARIABLE]) if given is None else given
    app = Celery("worker", set_as_current=False)
    app.conf.update(given["conf"])
    book = app.book = Book(given["book"])
    CacheTiers(app).events.subscribe(lambda event, task, details: book.held(str(details["key"])), Event.HELD)

    for variant, options in WORKS.items():

        def work(name: str) -> str:
            return f"{name}#{book.compute(name)}"

        app.task(work, shared=False, name=f"work.{variant}", base=CachedTask, ttl=300, tags=["name:{name}"], **options)

    @app.task(shared=False, name="profile", base=CachedTask, ttl=300, tags=["user:{user_id}"])
    def profile(user_id: str) -> dict[str, object]:
        return {"user": user_id, "compute": book.compute(user_id), "roles": ("a", "b")}

    _declare_nested(app, book)
    _declare_canvas(app, book)
    worker_ends.declare(app, book)
    worker_writers.declare(app, book)
    app.finalize()
    return app


def _declare_nested(app: Celery, book: Book) -> None:
    """Bodies that call memoized tasks."""

    @app.task(shared=False, name="nested.own", base=CachedTask, ttl=300, lease_ttl=30.0)
    def own(name: str) -> str:
        return "inner" if book.compute(name) > 1 else f"outer of {own(name)}"

    @app.task(shared=False, name="nested.left", base=CachedTask, ttl=300, lease_ttl=1.0)
    def left(name: str) -> str:
        if book.compute(f"left {name}") > 1:
            return "l"
        book.rendezvous(name, 2)
        return "L" + right(name)

    @app.task(shared=False, name="nested.right", base=CachedTask, ttl=300, lease_ttl=1.0)
    def right(name: str) -> str:
        if book.compute(f"right {name}") > 1:
            return "r"
        book.rendezvous(name, 2)
        return "R" + left(name)


def _declare_canvas(app: Celery, book: Book) -> None:
    """What stands around memoized tasks in a canvas, and memoized tasks that do what Celery allows a body to do."""

    @app.task(shared=False, name="same")
    def same(value: object) -> object:
        return value

    @app.task(shared=False, name="listed")
    def listed(values: list[object]) -> list[object]:
        return list(values)

    @app.task(shared=False, name="noted")
    def noted(value: object, name: str) -> None:
        book.client.rpush(f"noted:{name}", str(value))

    @app.task(shared=False, name="noted_stamps", bind=True)
    def noted_stamps(self: Any, value: object, name: str) -> None:
        book.client.rpush(f"noted:{name}", json.dumps([value, self.request.stamps, self.request.stamped_headers]))

    @app.task(shared=False, name="noted_error")
    def noted_error(request: Any, error: BaseException, traceback: object, name: str) -> None:
        book.client.rpush(f"noted:{name}", repr(error))

    @app.task(shared=False, name="replaced", bind=True)
    def replaced(self: Any, name: str) -> None:
        raise self.replace(app.tasks["work.plain"].s(name))

    @app.task(shared=False, name="replacing", bind=True, base=CachedTask, ttl=300)
    def replacing(self: Any, name: str) -> None:
        book.compute(f"replacing {name}")
        raise self.replace(app.tasks["work.plain"].s(name))

    retries = {"autoretry_for": (ValueError,), "max_retries": 3, "default_retry_delay": 0}

    @app.task(shared=False, name="autoretried", base=CachedTask, ttl=300, **retries)
    def autoretried(name: str) -> str:
        number = book.compute(name)
        if number == 1:
            raise ValueError("the first one always fails")
        return f"{name}#{number}"

    @app.task(shared=False, name="retried", bind=True, base=CachedTask, ttl=300, max_retries=3)
    def retried(self: Any, name: str) -> str:
        number = book.compute(name)
        if self.request.retries == 0 and number == 1:
            raise self.retry(countdown=0.2)
        return f"{name}#{number}"
