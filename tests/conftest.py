"""Fixtures that all tests share: real servers, real workers, the fault-injecting proxy, names of one's own."""

from __future__ import annotations

import logging
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import celery.app.builtins
import hypothesis
import pytest
import redis
from celery import _state

from tests.databases import MariaServer, PostgresServer
from tests.proxy import RedisProxy
from tests.rabbit import RabbitServer
from tests.servers import FLAVOURS, RedisServer, RedisServers
from tests.workers import Worker

# How long an example takes on a shared machine says nothing about the code.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")


CELERYS_OWN = frozenset(_state._on_app_finalizers)  # type: ignore[attr-defined]  # not in the stubs
"""What adds Celery's built-in tasks to each app; modules of tests and examples add theirs, which all apps share."""
assert celery.app.builtins


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--engine` is declared here, as pytest reads only the outermost conftest before the command line."""
    parser.addoption(
        "--engine",
        choices=("local", "docker"),
        default=os.environ.get("TEST_ENGINE", "local"),
        help="what runs the nodes of pytest-celery: processes of this machine (default) or Docker",
    )


def pytest_configure() -> None:
    """A run in the background of a shell has Ctrl-C ignored, and so would all that it starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs RabbitMQ, so that `-m "not rabbitmq"` leaves it out."""
    for item in items:
        if "rabbit_server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.rabbitmq)


@pytest.fixture(autouse=True)
def warnings_are_logged() -> None:
    """A worker that ran inside this process leaves the root logger at its own level, above warnings."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture
def own_sinks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process knows no sink but those of the test."""
    names: dict[str, Any] = {}
    monkeypatch.setattr("celery_cachetiers.sinks._names", names)
    yield
    for each in list(names.values()):
        each.sink.close()


@pytest.fixture
def own_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The apps that a test makes have no shared tasks but Celery's own and the test's."""
    monkeypatch.setattr(_state, "_on_app_finalizers", set(CELERYS_OWN))


@pytest.fixture
def namespace() -> str:
    """A prefix for keys, queues and tasks that no other test uses."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def redis_servers() -> Iterator[RedisServers]:
    """The servers that live as long as the run; tests ask for `redis_server` or `every_redis_server`."""
    servers = RedisServers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def redis_server(redis_servers: RedisServers) -> RedisServer:
    """One running server for all tests: the one on PATH, else the embedded one. Never break it."""
    return redis_servers.shared()


@pytest.fixture(scope="session", params=FLAVOURS)
def every_redis_server(request: pytest.FixtureRequest, redis_servers: RedisServers) -> RedisServer:
    """The test runs once per flavour, each time with a running server for all tests. Never break it."""
    return redis_servers.shared(request.param)


@pytest.fixture
def flushed_redis(redis_server: RedisServer) -> RedisServer:
    """`redis_server`, emptied before the test. What it holds from one test is gone in the next."""
    with redis_server.client() as client:
        client.flushall()
    return redis_server


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    """A client of `redis_server`."""
    with redis_server.client() as client:
        yield client


@pytest.fixture
def redis_factory() -> Iterator[RedisServers]:
    """`redis_factory(*arguments, flavour=None)` starts a server of one's own, to break and to configure."""
    servers = RedisServers()
    yield servers
    servers.close()


@pytest.fixture
def redis_proxy(redis_server: RedisServer) -> Iterator[RedisProxy]:
    """A counting, fault-injecting proxy before `redis_server`."""
    with RedisProxy(redis_server.port) as proxy:
        yield proxy


@pytest.fixture(scope="session")
def rabbit_server() -> Iterator[RabbitServer]:
    """One running RabbitMQ node for all tests. Never break it."""
    with RabbitServer() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One running PostgreSQL for all tests. Never break it."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaServer]:
    """One running MariaDB for all tests; skips where it is not installed. Never break it."""
    with MariaServer() as server:
        yield server


@pytest.fixture
def worker_factory() -> Iterator[Callable[..., Worker]]:
    """`worker_factory(app, *options, **keywords)` starts a `Worker` and returns it when it is ready.

    Its log is printed at the end, where pytest shows it if the test has failed.
    """
    workers: list[Worker] = []

    def start(app: str, *options: str, **keywords: object) -> Worker:
        worker = Worker(app, *options, **keywords)  # type: ignore[arg-type]  # handed on as they came
        workers.append(worker)
        worker.start()
        return worker.wait_ready()

    yield start
    for worker in workers:
        print(f"---- log of {worker!r}\n{worker.log_tail(60)}")
        worker.close()
