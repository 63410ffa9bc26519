"""Tasks for the ends that a leader can come to, and for what stands around those who wait for it."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery
from celery.exceptions import Ignore, Reject
from celery.signals import task_postrun, task_prerun, task_success
from pydantic import BaseModel

from celery_cachetiers import CachedTask
from tests.integration.apps.worker_book import FOREVER, Book

AWAY: dict[str, Any] = {"publish_hits": False, "ttl": 300, "lease_ttl": 60.0}
"""A task whose every call reaches the worker, with a lease that outlasts every test."""


class Order(BaseModel):
    name: str
    amount: int = 1


class Noting(CachedTask):
    """A base with handlers of its own, each of which writes down where it ran."""

    abstract = True

    def _note(self, what: str, task_id: str) -> None:
        self.app.book.client.rpush(f"handlers:{task_id}", f"{what}:{os.getpid()}")

    def before_start(self, task_id: str, args: Any, kwargs: Any) -> None:
        self._note("before_start", task_id)

    def on_success(self, retval: Any, task_id: str, args: Any, kwargs: Any) -> None:
        self._note("on_success", task_id)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._note("after_return", task_id)


class Lingering(CachedTask):
    """A base whose handlers take their time after the body: its lease is free, and the worker does not know it."""

    abstract = True

    def _linger(self, what: str, task_id: str) -> None:
        if self.app.book.client.sismember("lingering", task_id):
            self.app.book.client.blpop([f"{what}:{task_id}"], timeout=FOREVER)

    def on_retry(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._linger("on_retry", task_id)

    def on_failure(self, exc: BaseException, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        self._linger("on_failure", task_id)


def declare(app: Celery, book: Book) -> None:
    """Adds the tasks to an app."""
    _declare_ends(app, book)
    _declare_kinds(app, book)
    _note_signals(app, book)


def _declare_ends(app: Celery, book: Book) -> None:
    """Bodies that end as the gate of their compute says."""

    @app.task(shared=False, name="ends", bind=True, base=CachedTask, max_retries=3, **AWAY)
    def ends(self: Any, name: str) -> Any:
        return _run(self, name)

    @app.task(shared=False, name="ends.short", bind=True, base=CachedTask, **{**AWAY, "lease_ttl": 1.0})
    def short(self: Any, name: str) -> Any:
        return _run(self, name)

    @app.task(shared=False, name="ends.unshared", bind=True, base=CachedTask, share_errors=False, **AWAY)
    def unshared(self: Any, name: str) -> Any:
        return _run(self, name)

    retries: dict[str, Any] = {"autoretry_for": (ValueError,), "max_retries": 1, "default_retry_delay": 0}

    @app.task(shared=False, name="ends.autoretried", bind=True, base=CachedTask, **retries, **AWAY)
    def autoretried(self: Any, name: str) -> Any:
        return _run(self, name)

    @app.task(shared=False, name="ends.lingering", bind=True, base=Lingering, **retries, **AWAY)
    def lingering(self: Any, name: str) -> Any:
        return _run(self, name)

    @app.task(shared=False, name="ends.asking", base=CachedTask, **AWAY)
    def asking(name: str) -> str:
        number = book.compute(name)
        return f"{name}#{number}" if number > 1 else f"{name}#{number} of {asking(name)}"


def _run(task: Any, name: str) -> Any:
    """Notes under which id the body runs, then does what the gate says."""
    book: Book = task.app.book
    book.client.rpush(f"ids:{name}", str(task.request.id))
    number, outcome = book.outcome(name)
    match outcome:
        case "fail":
            raise ValueError(f"{name}#{number}")
        case "retry":
            raise task.retry(countdown=0.5)
        case "retry later":
            raise task.retry(countdown=2)
        case "ignore":
            raise Ignore
        case "reject":
            raise Reject("the gate said so", requeue=False)
        case "replace":
            raise task.replace(task.app.tasks["same"].s(f"replaced {name}#{number}"))
    return f"{name}#{number}"


def _declare_kinds(app: Celery, book: Book) -> None:
    """Tasks of every kind that Celery knows."""

    def work(name: str) -> str:
        return f"{name}#{book.compute(name)}"

    kinds: dict[str, dict[str, Any]] = {
        "kind.handlers": {"base": Noting},
        "kind.ignored": {"ignore_result": True},
        "kind.tracked": {"track_started": True},
        "kind.early": {"acks_late": False},
        "kind.grace": {"ttl": 0.2, "grace": 300},
    }
    for name, options in kinds.items():
        app.task(work, shared=False, name=name, **{"base": CachedTask, **AWAY, **options})

    @app.task(shared=False, name="kind.bound", bind=True, base=CachedTask, **AWAY)
    def bound(self: Any, name: str) -> str:
        return f"{name}#{book.compute(name)} {self.name}"

    @app.task(shared=False, name="kind.pydantic", base=CachedTask, pydantic=True, tags=["order:{order.name}"], **AWAY)
    def priced(order: Order) -> Order:
        return Order(name=order.name, amount=book.compute(order.name))

    # `pydantic=True` looks the annotations up in this module, where a function's own are strings.

    @app.task(shared=False, name="pid")
    def pid() -> int:
        return os.getpid()


def _note_signals(app: Celery, book: Book) -> None:
    """Every signal that a task of the app sends, and the process that sent it, by task id."""

    def note(what: str, sender: Any, task_id: str) -> None:
        if sender.app is app and sender.name.startswith(("ends", "kind")):
            book.client.rpush(f"signals:{task_id}", f"{what}:{os.getpid()}")

    def prerun(sender: Any, task_id: str, **_: Any) -> None:
        note("prerun", sender, task_id)

    def postrun(sender: Any, task_id: str, state: str, **_: Any) -> None:
        note(f"postrun {state}", sender, task_id)

    def success(sender: Any, **_: Any) -> None:
        note("success", sender, sender.request.id)

    app.book.receivers = (prerun, postrun, success)  # signals keep weak references
    task_prerun.connect(prerun)
    task_postrun.connect(postrun)
    task_success.connect(success)
