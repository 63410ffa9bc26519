"""A deployment for one test module: a Redis server, the app as producer, and workers and callers that run it."""

from __future__ import annotations

import json
import os
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, Self

from celery import Celery
from celery.result import AsyncResult
from celery.signals import before_task_publish

from celery_cachetiers import CacheTiers
from tests.integration.apps.worker_book import Book
from tests.integration.apps.worker_tasks import VARIABLE, build, configuration
from tests.processes import ROOT, Process, remove_directory, scratch_directory, wait_until
from tests.servers import RedisServer, RedisServers
from tests.workers import Worker

APP = "tests.integration.apps.worker_app"


def new_name() -> str:
    """An argument, and with it a key, a tag and a page of the book, that no other test uses."""
    return f"n{uuid.uuid4().hex[:10]}"


def let_go_of_results(app: Celery) -> None:
    """End what a Redis result backend does for results, while there still is a Redis; it takes no more of them.

    A result that is collected unsubscribes. Before Celery 5.7 it does so although it was fulfilled long ago: on a
    connection of its own that nobody closes, and for 20 s if the server has gone. Without the pub/sub it does nothing.
    """
    consumer = app.backend.result_consumer
    consumer.stop()
    consumer._pubsub = None


class Deployment:
    """The app as this process has it, and what it takes to run it elsewhere.

    Args:
        server: Databases 1 to 4 are broker, result backend, L2 and the book.
        broker: Another broker than the server.
        cache: Another way to L2, through a proxy for instance.

    Attributes:
        module: The app as `celery -A` takes it.
        build: Makes the same app here.
    """

    module: str = APP
    build: Callable[[Mapping[str, Any]], Celery] = staticmethod(build)

    def __init__(
        self, server: RedisServer, *, broker: str | None = None, cache: str | None = None, **conf: object
    ) -> None:
        self.server, self.namespace = server, f"t{uuid.uuid4().hex[:12]}"
        self.configuration = configuration(
            broker=broker or server.url(1),
            backend=server.url(2),
            cache=cache or server.url(3),
            book=server.url(4),
            namespace=self.namespace,
            **conf,
        )
        self.app: Celery = self.build(self.configuration)
        self.book: Book = self.app.book
        self.tiers = CacheTiers(self.app)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.tiers.reset()
        let_go_of_results(self.app)
        self.app.backend.client.close()
        self.app.close()
        self.book.close()

    def task(self, name: str) -> Any:
        return self.app.tasks[name]

    def environment(self, **conf: object) -> dict[str, str]:
        """For a process that runs the app; with other settings, if any are given."""
        given: dict[str, Any] = dict(self.configuration)
        given["conf"] = {**given["conf"], **conf}
        # Celery refuses pickle to root, who runs the tests in containers.
        return {VARIABLE: json.dumps(given), "C_FORCE_ROOT": "1"}

    def worker(self, *options: str, conf: Mapping[str, Any] | None = None, **keywords: Any) -> Worker:
        """A worker, not yet started; with other settings, if any are given."""
        return Worker(self.module, *options, env=self.environment(**(conf or {})), **keywords)

    @contextmanager
    def beat(self, *options: str, **conf: object) -> Iterator[Process]:
        """A `celery beat` process."""
        directory = scratch_directory("beat")
        command = [sys.executable, "-m", "celery", "-A", self.module, "beat", "--loglevel=DEBUG", "--max-interval=1"]
        command += [*options, f"--schedule={directory}/schedule", f"--pidfile={directory}/pid"]
        process = Process(command, log=directory / "log", env=_path(self.environment(**conf)), cwd=directory)
        process.start()
        try:
            yield process
        finally:
            process.stop()
            remove_directory(directory)

    def waiters(self, task: str, *args: object) -> int:
        """Processes that have registered to be woken for a key."""
        layout = self.tiers.cache.parts.store._layout  # the key's name, which is the protocol's and no port's
        with self.server.client(3) as client:
            return int(client.scard(layout.waiters(self.task(task).cache.key(*args))))

    def wait_for_held(self, count: int, task: str, *args: object) -> None:
        """Returns when workers have held so many requests of a key, since the test began."""
        name = f"held:{self.task(task).cache.key(*args)}"
        wait_until(
            lambda: int(self.book.client.get(name) or 0) >= count, timeout=20, message=f"{count} requests in the room"
        )

    def lease_key(self, task: str, *args: object) -> str:
        """Name of the Redis key that is the lease."""
        layout = self.tiers.cache.parts.store._layout
        return str(layout.lease(self.task(task).cache.key(*args)))

    def wait_for_waiters(self, count: int, task: str, *args: object) -> None:
        """Returns when so many processes wait for the leader of a key."""
        wait_until(lambda: self.waiters(task, *args) >= count, timeout=20, message=f"{count} waiting processes")


class Callers:
    """Processes that call tasks directly, all at once if need be."""

    def __init__(self, deployment: Deployment, count: int, *, cache: str | None = None, first: int = 0) -> None:
        self._book = deployment.book
        self._directory = scratch_directory("callers")
        env = deployment.environment(**({"cachetiers_url": cache} if cache else {}))
        self._processes = [
            Process(
                [sys.executable, "-m", "tests.integration.apps.worker_caller", str(first + number)],
                log=self._directory / f"log{number}",
                env=_path(env),
                cwd=ROOT,
            )
            for number in range(count)
        ]
        for process in self._processes:
            process.start()
        for _ in self._processes:
            if self._book.client.blpop(["callers"], timeout=30) is None:
                raise TimeoutError(f"callers did not start\n{self.log_text()}")

    def close(self) -> None:
        for process in self._processes:
            process.kill()
        remove_directory(self._directory)

    def log_text(self) -> str:
        return "\n".join(process.log_text() for process in self._processes)

    def pid(self, number: int) -> int:
        return self._processes[number].pid

    def call(self, number: int, task: str, *args: object, threads: int = 1, start: str = "") -> Call:
        """Has a process call a task, in so many threads; they wait for the gate ``start`` if there is one."""
        reply = f"reply:{uuid.uuid4().hex}"
        order = {"task": task, "args": args, "threads": threads, "reply": reply, "start": start}
        self._book.client.rpush(f"orders:{number}", json.dumps(order))
        return Call(self._book, reply, threads)


class Call:
    """A call that a caller makes, and its answers."""

    def __init__(self, book: Book, reply: str, threads: int) -> None:
        self._book, self._reply, self._threads = book, reply, threads

    def wait_ready(self) -> None:
        """Returns when every thread is there."""
        for _ in range(self._threads):
            assert self._book.client.blpop([f"ready:{self._reply}"], timeout=20)

    def answers(self, timeout: float = 20.0) -> list[Any]:
        """What each thread got. Raises `TimeoutError` if one is still waiting, `RuntimeError` if one raised."""
        found = self.outcomes(timeout)
        if any("error" in each for each in found):
            raise RuntimeError(str(found))
        return [each["value"] for each in found]

    def outcomes(self, timeout: float = 20.0) -> list[dict[str, Any]]:
        """The same with errors as values."""
        found = []
        for _ in range(self._threads):
            popped: Any = self._book.client.blpop([self._reply], timeout=timeout)
            if popped is None:
                raise TimeoutError(f"{len(found)} of {self._threads} answers within {timeout} s")
            found.append(json.loads(popped[1]))
        return found

    def answer(self, timeout: float = 20.0) -> Any:
        (value,) = self.answers(timeout)
        return value


class Led:
    """A leader that computes, held at its gate, and requests that a worker holds for it.

    Attributes:
        pid: The process that computes.
    """

    def __init__(self, deployment: Deployment, task: str, name: str, followers: int = 2, **options: Any) -> None:
        self._deployment, self._task, self._name = deployment, task, name
        deployment.book.put_up_gate(name)
        self.leader = deployment.app.send_task(task, (name,), **options)
        _, self.pid = deployment.book.started(name)
        self.followers: list[AsyncResult[Any]] = []
        self.hold(followers)

    def send(self, count: int = 1, **options: Any) -> None:
        """So many more requests."""
        for _ in range(count):
            self.followers.append(self._deployment.app.send_task(self._task, (self._name,), **options))

    def hold(self, count: int = 1, **options: Any) -> None:
        """So many more requests, held when this returns."""
        self.send(count, **options)
        self._deployment.wait_for_held(len(self.followers), self._task, self._name)

    def values(self) -> list[Any]:
        """What the followers got."""
        return [follower.get(timeout=20) for follower in self.followers]


def assert_ends(result: AsyncResult[Any], state: str, timeout: float = 20) -> None:
    """Returns when the result has come to a state. Raises `TimeoutError`."""
    wait_until(lambda: result.state == state, timeout=timeout, message=f"{state} of {result!r}")


@contextmanager
def leading_here(deployment: Deployment, task: str, name: str) -> Iterator[None]:
    """A direct call in this process computes, until its gate is opened."""
    deployment.book.put_up_gate(name)
    thread = threading.Thread(target=deployment.task(task), args=(name,))
    thread.start()
    deployment.book.started(name)
    try:
        yield
    finally:
        deployment.book.open_gate(name)
        thread.join()


def room(deployment: Deployment, worker: Worker) -> dict[str, int]:
    """What `celery inspect stats` says of the waiting room."""
    found = deployment.app.control.inspect([worker.hostname], timeout=5).stats()
    return dict(found[worker.hostname]["waiting_room"])


def runs(deployment: Deployment, task_id: str) -> int:
    """Times that a task has run to success, wherever."""
    notes = deployment.book.client.lrange(f"signals:{task_id}", 0, -1)
    return sum(note.startswith("success:") for note in notes)


Start = Callable[..., tuple[Deployment, Worker]]


@contextmanager
def starter(servers: RedisServers, kind: type[Deployment] = Deployment) -> Iterator[Start]:
    """`start(*options, settings={}, broker=None, cache=None, **keywords)`: a deployment and its ready worker.

    Everything is in the servers' shared one, unless a test says otherwise.
    """
    with ExitStack() as stack:

        def start(*options: str, settings: Mapping[str, Any] | None = None, broker: str | None = None,
                  cache: str | None = None, **keywords: Any) -> tuple[Deployment, Worker]:  # fmt: skip
            deployment = stack.enter_context(kind(servers.shared(), broker=broker, cache=cache, **(settings or {})))
            worker = deployment.worker(*options, **{"concurrency": 2, **keywords})
            stack.enter_context(worker)
            stack.callback(lambda: print(f"---- log of {worker!r}\n{worker.log_tail(200)}"))
            return deployment, worker

        yield start


@contextmanager
def events(deployment: Deployment) -> Iterator[dict[str, list[str]]]:
    """The types of the task events that come meanwhile, by task id. The worker sends them with ``-E``."""
    found: dict[str, list[str]] = {}
    ready, over, heard = threading.Event(), threading.Event(), threading.Event()

    def note(event: dict[str, Any]) -> None:
        if event["type"].startswith("task-"):
            found.setdefault(event["uuid"], []).append(event["type"])
        elif event["type"] == "cache-probe":
            heard.set()

    def hear() -> None:
        with deployment.app.connection_for_read() as connection:
            receiver = deployment.app.events.Receiver(connection, handlers={"*": note})
            with receiver.consumer_context() as (drained, _, _):
                ready.set()
                while not over.is_set():
                    with suppress(TimeoutError):
                        drained.drain_events(timeout=0.2)

    thread = threading.Thread(target=hear)
    thread.start()
    assert ready.wait(10)
    try:
        with deployment.app.events.default_dispatcher() as dispatcher:  # it listens some time after it says so
            wait_until(lambda: dispatcher.send("cache-probe") or heard.wait(0.1), timeout=20, message="the receiver")
        yield found
    finally:
        over.set()
        thread.join()


@contextmanager
def published() -> Iterator[list[str]]:
    """The names of the tasks for which this process publishes a message meanwhile."""
    names: list[str] = []

    def note(sender: str, **_: object) -> None:
        names.append(sender)

    before_task_publish.connect(note, weak=False)
    try:
        yield names
    finally:
        before_task_publish.disconnect(note)


def _path(env: dict[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **env}
