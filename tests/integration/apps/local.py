"""Apps of one test: an own namespace, `memory://` as broker and as result backend, and what was published."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from celery import Celery
from celery.contrib.testing.worker import start_worker
from kombu import Connection

from celery_cachetiers import CachedTask, CacheTiers
from tests.processes import ROOT, wait_until

BACKEND = "cache+memory://"


class LocalCelery(Celery):
    """Keeps its tasks to itself: `app.task` offers a task to every app of the process unless told not to."""

    def task(self, *args: Any, **options: Any) -> Any:
        return super().task(*args, **{"shared": False, **options})


def cached_app(namespace: str, url: str | None = None, **conf: Any) -> Celery:
    """An app whose cache is at `url` and whose messages stay in its own queue, `namespace`."""
    app = LocalCelery(namespace, broker="memory://", backend=conf.pop("result_backend", BACKEND), set_as_current=False)
    app.conf.update(
        cachetiers_namespace=namespace,
        task_default_queue=namespace,
        task_always_eager=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"polling_interval": 0.05},
    )
    if url is not None:
        app.conf.cachetiers_url = url
    app.conf.update(conf)
    return app


def profile_of(app: Celery) -> Any:
    """A cached task of the app, with a tag."""

    @app.task(base=CachedTask, name="profile", tags=["user:{user}"])
    def profile(user: int) -> int:
        return user

    return profile


def close(app: Celery) -> None:
    """End the threads and connections of an app's cache and the app's own pools."""
    CacheTiers(app).reset()
    app.close()


@contextmanager
def closing(app: Celery) -> Iterator[Celery]:
    """The app, closed at the end of the block."""
    try:
        yield app
    finally:
        close(app)


def wait_listening(app: Celery, timeout: float = 10.0) -> None:
    """Return when the app hears its backplane, so that L1 is trusted."""
    cache = CacheTiers(app).cache
    backplane = cache.parts.backplane
    assert backplane is not None
    backplane.start()
    wait_until(
        lambda: backplane.connected() and cache.parts.l1.trusted(), timeout=timeout, message="a trusted backplane"
    )


def published(app: Celery) -> list[Any]:
    """Takes all messages out of the app's queue."""
    found = []
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[app.conf.task_default_queue](connection.default_channel)
        queue.declare()
        while (message := queue.get(no_ack=True)) is not None:
            found.append(message)
    return found


def run_published(app: Celery) -> list[Any]:
    """Runs each message that waits, in this thread, as the worker's tracer would; returns the `EagerResult`s."""
    results = []
    for message in published(app):
        args, kwargs, _ = message.payload
        task = app.tasks[message.headers["task"]]
        results.append(task.apply(args, kwargs, task_id=message.headers["id"], headers=message.headers))
    return results


@contextmanager
def worker_of(app: Celery, **options: Any) -> Iterator[Any]:
    """A real worker in a thread of this process, which looks ten times a second whether it is to end (Celery: 0.5)."""
    app.finalize()
    drain = Connection.drain_events

    def drain_events(self: Connection, timeout: float | None = None, **more: Any) -> Any:
        return drain(self, timeout=0.1 if timeout == 2.0 else timeout, **more)

    keywords = {"pool": "solo", "shutdown_timeout": 30, **options}
    with (
        mock.patch.object(Connection, "drain_events", drain_events),
        start_worker(app, perform_ping_check=False, **keywords) as worker,
    ):
        yield worker


class Count:
    """Counts how often a body ran, and with what."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def __call__(self, *args: Any) -> int:
        """Notes a call; returns how many there were before it and with it."""
        self.calls.append(args)
        return len(self.calls)

    def __len__(self) -> int:
        return len(self.calls)


def run_python(code: str, *, timeout: float = 60.0, **env: str) -> str:
    """Runs a program in a process of its own, with warnings as errors; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1", **env},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
