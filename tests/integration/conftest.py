"""Servers for each module; and pytest-celery on processes of this machine, or with `--engine=docker` on containers.

Everything below `docker_client` is plain pytest-celery and the same in both modes: one worker, Redis as broker and as
result backend. A test adds its tasks by overriding `default_worker_tasks`.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import docker
import pytest
import pytest_docker_tools.wrappers.container as container_wrapper
from celery import Celery
from docker.errors import DockerException
from pytest_celery import (
    DEFAULT_WORKER_CONTAINER_TIMEOUT,
    DEFAULT_WORKER_VOLUME,
    CeleryBackendCluster,
    CeleryBrokerCluster,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBackend,
)
from pytest_docker_tools import build, container, fxtr

from tests.integration.apps.worker_setup import let_go_of_results
from tests.local_engine import LocalEngine
from tests.processes import ROOT
from tests.servers import RedisServers


@pytest.fixture(scope="module")
def servers() -> Iterator[RedisServers]:
    """Servers of a module's own, which its tests may share, and break."""
    servers = RedisServers()
    yield servers
    servers.close()


@pytest.fixture(scope="session")
def docker_client(pytestconfig: pytest.Config) -> Iterator[Any]:
    """The one fixture through which pytest-celery reaches an engine, hence the only one that knows the mode."""
    if pytestconfig.getoption("--engine") == "docker":
        client = _docker()
        yield client
        client.close()
        return
    with LocalEngine() as engine:
        yield engine


def _docker() -> Any:
    try:
        return docker.from_env(timeout=60)  # asks the engine for its version
    except DockerException as error:
        reason = f"--engine=docker: no Docker engine answers ({error})"
    with warnings.catch_warnings():
        # What failed is not ours to close: the SDK leaves the socket to the garbage collector, which says so.
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    pytest.fail(reason, pytrace=False)  # not a skip: it was asked for by name


@pytest.fixture(scope="session", autouse=True)
def _published_ports_are_right() -> Iterator[None]:
    """Some virtual machines are unpacked images and keep /.dockerenv, which pytest-docker-tools takes for a container
    that shares a network with the nodes. Published ports are right there too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(container_wrapper, "tests_inside_container", lambda: False)
        yield


class WorkerContainer(CeleryWorkerContainer):
    """The worker of the tests: the Celery that runs pytest, two children, nothing that delays its start."""

    @classmethod
    def version(cls) -> str:
        return version("celery")

    @classmethod
    def command(cls, *args: str, **options: Any) -> list[str]:
        command: list[str] = super().command(
            "--concurrency=2", "--without-gossip", "--without-mingle", *args, **options
        )
        return command


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return WorkerContainer


@pytest.fixture(scope="session")
def default_worker_container_session_cls() -> type[CeleryWorkerContainer]:
    return WorkerContainer


celery_base_worker_image = build(
    path=str(ROOT),
    dockerfile="tests/integration/worker.Dockerfile",
    tag="celery-cachetiers-tests:latest",
    buildargs={"CELERY_VERSION": fxtr("default_worker_celery_version")},
)

# pytest-celery's own declaration with our class: overriding default_worker_container_cls alone does not change the
# class of the object that tests get.
default_worker_container = container(
    image="{celery_base_worker_image.id}",
    ports=fxtr("default_worker_ports"),
    environment=fxtr("default_worker_env"),
    network="{default_pytest_celery_network.name}",
    volumes={"{default_worker_volume.name}": DEFAULT_WORKER_VOLUME},
    wrapper_class=WorkerContainer,
    timeout=DEFAULT_WORKER_CONTAINER_TIMEOUT,
    command=fxtr("default_worker_command"),
)


# The plugin's default is every vendor it knows, in a set: a random order, and containers that we do not need.
@pytest.fixture
def celery_broker_cluster(celery_redis_broker: CeleryTestBroker) -> Iterator[CeleryBrokerCluster]:
    cluster = CeleryBrokerCluster(celery_redis_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_redis_backend(default_redis_backend: RedisContainer) -> Iterator[RedisTestBackend]:
    """As the plugin's, which at its end asks every object of the process what it is.

    Django's settings, which a test may have imported and not configured, answer that with an error.
    """
    backend = RedisTestBackend(default_redis_backend)
    yield backend
    settings = getattr(sys.modules.get("django.conf"), "settings", None)
    with pytest.MonkeyPatch.context() as patch:
        if settings is not None and not settings.configured:
            patch.setitem(settings.__dict__, "_wrapped", object())
        backend.teardown()


@pytest.fixture
def celery_backend_cluster(celery_redis_backend: CeleryTestBackend) -> Iterator[CeleryBackendCluster]:
    cluster = CeleryBackendCluster(celery_redis_backend)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_setup_app(celery_setup_app: Celery) -> Iterator[Celery]:
    yield celery_setup_app
    let_go_of_results(celery_setup_app)
