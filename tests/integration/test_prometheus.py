"""Prometheus: what a scrape says is what has happened, whether Redis is there or not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from celery import Celery
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError, sink
from celery_cachetiers.metrics.exported import METRICS
from celery_cachetiers.prometheus import CacheTiersCollector, serving
from tests.integration.apps.behind_tasks import BehindDeployment
from tests.integration.apps.command_line import command_line
from tests.integration.apps.local import cached_app, closing, profile_of, run_python, wait_listening
from tests.processes import ROOT
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers

pytestmark = pytest.mark.usefixtures("own_sinks")

Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url(), cachetiers_timeout=2.0, cachetiers_breaker_window=60)) as app:
        yield app


@pytest.fixture
def task(app: Celery) -> Any:
    return profile_of(app)


def scrape(*collectors: CacheTiersCollector) -> Scrape:
    registry = CollectorRegistry()
    for collector in collectors:
        registry.register(collector)
    return parsed(generate_latest(registry).decode())


def parsed(text: str) -> Scrape:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def one(found: Scrape, name: str, **labels: str) -> float:
    return found[f"cachetiers_{name}", tuple(sorted(labels.items()))]


def load(app: Celery, task: Any) -> dict[str, float]:
    """Three misses, two hits in memory, one in Redis, one invalidation; returns what is to be told of it."""
    wait_listening(app)
    for user in (1, 1, 1, 2, 2):
        task(user)
    wait_listening(app)
    CacheTiers(app).invalidate_tag("user:1")
    task(1)
    return {"misses": 3, "hits": 3, "invalidated": 1}


@pytest.mark.parametrize("source", ["all", "process"])
def test_a_scrape_tells_what_has_happened(app: Celery, task: Any, source: Any) -> None:
    truth = load(app, task)

    found = scrape(CacheTiersCollector(app, source))

    tiers = {tier: one(found, "hits_total", task="profile", tier=tier) for tier in ("l1", "l2", "journal")}
    assert sum(tiers.values()) == truth["hits"]
    assert tiers["l1"] == truth["hits"]
    assert one(found, "misses_total", task="profile") == truth["misses"]
    assert one(found, "computes_total", task="profile") == truth["misses"]
    assert one(found, "stores_total", task="profile") == truth["misses"]
    assert one(found, "stored_bytes_total", task="profile") > 0
    assert one(found, "invalidated_total", pattern="user:*") == truth["invalidated"]
    counters = CacheTiers(app).counters.snapshot()["profile"]
    assert one(found, "saved_seconds_total", task="profile") == pytest.approx(counters.seconds_saved)
    assert one(found, "compute_seconds_total", task="profile") == pytest.approx(counters.compute_seconds)


def test_the_sums_are_those_of_all_processes(namespace: str, app: Celery, task: Any, redis_server: RedisServer) -> None:
    task(1)
    code = f"""
        from celery_cachetiers import CachedTask, CacheTiers
        from tests.integration.apps.local import profile_of, cached_app, close
        app = cached_app({namespace!r}, {redis_server.url()!r})
        @app.task(name="profile", base=CachedTask)
        def task(user):
            return user
        task(2), task(3)
        CacheTiers(app).counting.end()
        close(app)
    """
    run_python(code)

    assert one(scrape(CacheTiersCollector(app)), "misses_total", task="profile") == 3
    assert one(scrape(CacheTiersCollector(app, "process")), "misses_total", task="profile") == 1


def test_the_process_alone_asks_redis_nothing(app: Celery, task: Any, redis_proxy: RedisProxy) -> None:
    load(app, task)
    asked: list[Any] = []
    redis_proxy.on_command = lambda command: asked.append(command) if command[0] != b"PUBLISH" else None  # heartbeats
    collector = CacheTiersCollector(app, "process")

    CacheTiers(app).counting.merger.stop()
    found = scrape(collector)

    assert asked == []
    assert one(found, "l1_entries") == 2
    assert one(found, "l1_bytes") > 0
    assert one(found, "l1_trusted") == 1
    assert one(found, "breaker_open") == 0
    assert not any(name.startswith(("cachetiers_server", "cachetiers_up", "cachetiers_pending")) for name, _ in found)


def test_an_open_breaker_is_told(app: Celery, task: Any, redis_proxy: RedisProxy) -> None:
    task(1)
    redis_proxy.refuse()
    task(2)

    found = scrape(CacheTiersCollector(app, "process"))

    assert one(found, "breaker_open") == 1
    assert one(found, "breaker_opened_total") == 1
    assert one(found, "failed_open_total", task="profile") >= 1


@pytest.mark.parametrize("how", ["refuse", "hang"])
def test_a_scrape_without_redis_says_so(app: Celery, task: Any, redis_proxy: RedisProxy, how: str) -> None:
    app.conf.cachetiers_timeout = 0.2
    CacheTiers(app).reset()
    collector = CacheTiersCollector(app)
    task(1)
    assert one(scrape(collector), "up") == 1
    getattr(redis_proxy, how)()

    away = scrape(collector)

    assert away == {("cachetiers_up", ()): 0}
    redis_proxy.heal()
    assert one(scrape(collector), "misses_total", task="profile") == 1


def test_the_server_is_told_of(app: Celery, task: Any, redis_server: RedisServer) -> None:
    task(1)
    found = scrape(CacheTiersCollector(app))

    with redis_server.client() as client:
        info = client.info()
    assert one(found, "server_memory_limit_bytes") == info["maxmemory"]
    assert one(found, "server_memory_used_bytes") > 100_000
    assert 0 < one(found, "server_keyspace_misses_total") <= info["keyspace_misses"]
    assert one(found, "server_uptime_seconds") <= info["uptime_in_seconds"]


def test_a_server_that_tells_nothing_of_itself_is_up(app: Celery, redis_server: RedisServer, namespace: str) -> None:
    with redis_server.client() as client:
        client.acl_setuser(namespace, enabled=True, nopass=True, categories=["+@all"], commands=["-info"],
                           keys=["*"], channels=["*"])  # fmt: skip
        app.conf.cachetiers_url = redis_server.url().replace("//", f"//{namespace}:x@")
        try:
            found = scrape(CacheTiersCollector(app))
        finally:
            client.acl_deluser(namespace)

    assert one(found, "up") == 1
    assert not any(name.startswith("cachetiers_server") for name, _ in found)


def test_writes_that_wait_and_those_that_were_given_up_are_gauges(app: Celery) -> None:
    @sink("rows", attempts=1)
    def rows(writes: list[Any]) -> None:
        if any(write.value == "a" for write in writes):
            raise ValueError("never")

    @app.task(base=CachedTask, name="order", sink="rows", write="behind")
    def order(row: str) -> str:
        return row

    for row in ("a", "taken"):
        order.cache.put((row,), row)
    CacheTiers(app).writes.flush("rows")
    order.cache.put(("b",), "b")
    order.cache.put(("c",), "c")

    found = scrape(CacheTiersCollector(app))

    assert one(found, "pending_writes", sink="rows") == 2
    assert one(found, "dead_letters", sink="rows") == 1
    assert one(found, "journal_up") == 1
    assert 0 <= one(found, "oldest_pending_write_seconds", sink="rows") < 60


def test_a_journal_that_is_away_hides_nothing_else(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    sink("rows")(lambda writes: None)
    journal = redis_factory()
    app.conf.cachetiers_journal_url = journal.url()
    task(1)
    journal.kill()

    found = scrape(CacheTiersCollector(app))

    assert one(found, "journal_up") == 0
    assert one(found, "up") == 1
    assert one(found, "misses_total", task="profile") == 1


def test_a_flush_of_redis_is_a_reset_to_zero(app: Celery, task: Any, redis_factory: RedisServers) -> None:
    server = redis_factory()
    app.conf.cachetiers_url = server.url()
    CacheTiers(app).reset()
    collector = CacheTiersCollector(app)
    task(1), task(2)
    assert one(scrape(collector), "misses_total", task="profile") == 2

    with server.client() as client:
        client.flushall()
    assert ("cachetiers_misses_total", (("task", "profile"),)) not in scrape(collector)
    task(3)

    assert one(scrape(collector), "misses_total", task="profile") == 1


def test_the_number_of_tasks_that_are_told_apart_is_bounded(app: Celery) -> None:
    def body(user: int) -> int:
        return user

    tasks = [app.task(body, name=f"task{number}", base=CachedTask) for number in range(5)]
    for each in tasks:
        each(1)

    found = scrape(CacheTiersCollector(app, max_tasks=2))

    assert {dict(labels)["task"] for name, labels in found if name == "cachetiers_misses_total"} == {
        "task0", "task1", "other",
    }  # fmt: skip
    assert one(found, "misses_total", task="other") == 3


def test_nothing_of_a_key_or_a_tag_is_told(app: Celery, task: Any) -> None:
    secret = 7_403_112
    task(secret)
    CacheTiers(app).invalidate_tag(f"user:{secret}")
    registry = CollectorRegistry()
    registry.register(CacheTiersCollector(app))

    text = generate_latest(registry).decode()

    assert str(secret) not in text
    assert task.cache.key(secret) not in text


def test_registering_a_collector_asks_nobody(app: Celery, redis_proxy: RedisProxy) -> None:
    CollectorRegistry(auto_describe=True).register(CacheTiersCollector(app))

    assert redis_proxy.connections == 0


def test_all_that_is_described_has_a_help_text_and_all_that_is_told_is_described(app: Celery, task: Any) -> None:
    load(app, task)

    for source in ("all", "process"):
        collector = CacheTiersCollector(app, source)  # type: ignore[arg-type]
        described = {family.name: family for family in collector.describe()}
        assert {family.name for family in collector.collect()} <= described.keys()
        assert described.keys() <= {metric.name for metric in METRICS}
        assert all(len(family.documentation) > 10 for family in described.values())


@pytest.mark.parametrize("wrong", [{"source": "everything"}, {"max_tasks": 0}, {"max_tasks": True}])
def test_an_argument_that_cannot_be_is_named(app: Celery, wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        CacheTiersCollector(app, **wrong)


def test_a_process_that_was_forked_has_connections_of_its_own(app: Celery, task: Any) -> None:
    collector = CacheTiersCollector(app)
    task(1)
    scrape(collector)
    ours = collector._readings._server
    read, write = os.pipe()

    pid = os.fork()
    if pid == 0:
        try:
            told = one(scrape(collector), "misses_total", task="profile")
            os.write(write, f"{told} {collector._readings._server is ours}".encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)

    assert os.read(read, 100) == b"1.0 False"
    os.close(read), os.close(write)


def test_scrapes_at_once_agree(app: Celery, task: Any) -> None:
    for user in range(20):
        task(user)
    collector = CacheTiersCollector(app, max_tasks=1)
    found: list[float] = []
    threads = [
        threading.Thread(target=lambda: found.append(one(scrape(collector), "misses_total", task="profile")))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [20.0] * 8


def test_without_the_extra_the_error_says_what_to_install() -> None:
    told = run_python("""
        import sys
        sys.modules["prometheus_client"] = sys.modules["prometheus_client.core"] = None
        try:
            import celery_cachetiers.prometheus
        except ImportError as error:
            print(error)
        from celery import Celery
        from celery.bin.base import CLIContext
        from click.testing import CliRunner
        from celery_cachetiers.cli import cachetiers
        done = CliRunner().invoke(cachetiers, ["exporter"], obj=CLIContext(Celery("x"), True, None))
        print(done.exit_code, done.output)
    """)

    assert told.count("pip install 'celery-cachetiers[prometheus]'") == 2
    assert "\n2 Error" in told


# ---- the exporter ----------------------------------------------------------------------------------------------------


class Exporter:
    """`celery -A ... cachetiers exporter` as a process."""

    def __init__(self, deployment: BehindDeployment, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", deployment.module, "cachetiers", "exporter", *arguments],
            env={**os.environ, **deployment.environment(), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def exporter(redis_server: RedisServer) -> Iterator[Callable[..., Exporter]]:
    started: list[Exporter] = []
    with BehindDeployment(redis_server) as deployment:
        deployment.task("total")("a")

        def start(*arguments: str) -> Exporter:
            CacheTiers(deployment.app).counting.merger.merge()
            started.append(Exporter(deployment, *arguments))
            return started[-1]

        yield start
        for each in started:
            each.process.kill()
            each.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_exporter_serves_until_it_is_told_to_end(exporter: Callable[..., Exporter], number: int) -> None:
    running = exporter("--port", "0")
    url = running.url()

    with urllib.request.urlopen(url, timeout=20) as answer:
        found = parsed(answer.read().decode())

    assert url.startswith("http://127.0.0.1:")
    assert one(found, "misses_total", task="total") == 1
    assert one(found, "up") == 1
    assert running.end(number) == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_url_that_is_told_can_be_opened(app: Celery, host: str) -> None:
    try:
        socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        pytest.skip(f"no {host} here: {error}")

    with serving(app, host, 0) as url, urllib.request.urlopen(url, timeout=20) as answer:
        found = parsed(answer.read().decode())

    assert one(found, "up") == 1
    assert urlsplit(url).hostname == host  # urllib opens one without brackets, too


def test_a_port_that_is_taken_is_said_in_one_line(app: Celery) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command_line(app, "exporter")("--port", str(port))

    assert done.exit_code == 1
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use" in done.output
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_app_without_redis_has_nothing_to_serve(namespace: str) -> None:
    with closing(cached_app(namespace)) as app:
        done = command_line(app, "exporter")()

    assert done.exit_code == 2
    assert "set cachetiers_url" in done.output


def test_the_dashboard_is_printed_as_it_is_shipped() -> None:
    done = command_line(Celery("x"), "dashboard")()

    assert done.exit_code == 0
    assert done.output == (ROOT / "celery_cachetiers" / "dashboards" / "grafana.json").read_text()
