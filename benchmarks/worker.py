"""A real prefork worker in a process of its own, around the app that a module here makes from its environment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis
from celery import Celery

QUEUE_VARIABLE, URL_VARIABLE = "BENCH_QUEUE", "BENCH_URL"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(eq=False)
class Worker:
    """A worker process that consumes only when told."""

    app: Celery
    pid: int

    @property
    def queue(self) -> str:
        return str(self.app.conf.task_default_queue)

    @property
    def node(self) -> str:
        return f"{self.queue}@bench"

    def consume(self, consume: bool) -> None:
        """Starts or stops consuming; returns when the worker has."""
        change = self.app.control.add_consumer if consume else self.app.control.cancel_consumer
        if not change(self.queue, destination=[self.node], reply=True, timeout=10.0, limit=1):
            raise RuntimeError(f"the worker {self.node} did not answer")


def bare_app(queue: str, url: str) -> Celery:
    """An app without tasks.

    Args:
        url: Redis without a database: 0 is the broker's, 1 the results', 2 the cache's.
    """
    app = Celery("bench", broker=f"{url}/0", backend=f"{url}/1", set_as_current=False)
    app.conf.update(task_default_queue=queue, broker_connection_retry_on_startup=True, worker_hijack_root_logger=False)
    app.conf.update(result_expires=600, worker_send_task_events=False)
    return app


@contextmanager
def prefork_worker(app: Celery, module: str, concurrency: int, **variables: str) -> Iterator[Worker]:
    """Starts one that consumes the app's queue; ends it with the block.

    Args:
        module: Importable; makes an equal app of `QUEUE_VARIABLE`, `URL_VARIABLE` and whatever ``variables`` add.
    """
    url = str(app.conf.broker_url).removesuffix("/0")
    with tempfile.TemporaryDirectory(prefix="bench-") as directory, open(f"{directory}/log", "wb") as log:
        named = {QUEUE_VARIABLE: app.conf.task_default_queue, URL_VARIABLE: url, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            _command(module, app.conf.task_default_queue, concurrency),
            stdout=log,
            stderr=log,
            env={**os.environ, **named, **variables},
            cwd=directory,
            start_new_session=True,
        )
        try:
            started = Worker(app, process.pid)
            _wait_ready(started, process, Path(log.name))
            yield started
        finally:
            process.terminate()
            process.wait(30)


def _command(module: str, queue: str, concurrency: int) -> list[str]:
    options = [f"--hostname={queue}@bench", "--pool=prefork", f"--concurrency={concurrency}", "--loglevel=WARNING"]
    quiet = ["--without-mingle", "--without-gossip"]
    return [sys.executable, "-m", "celery", "-A", module, "worker", *options, *quiet]


def _wait_ready(started: Worker, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if started.app.control.ping(destination=[started.node], timeout=1.0, limit=1):
                return
        except redis.ConnectionError:
            pass
    raise RuntimeError("the worker did not start:\n" + log.read_text()[-2000:])
