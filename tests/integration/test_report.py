"""The hit-ratio report: each interval once, whoever makes it, whatever becomes of Redis, and told to all who listen."""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.metrics.report import Report
from celery_cachetiers.reporting import EVENT, REPORT, Reporting
from celery_cachetiers.schedule import entries
from celery_cachetiers.signals import hit_ratio_reported
from celery_cachetiers.testing import FakeClock
from tests.integration.apps.command_line import Run, command_line
from tests.integration.apps.local import cached_app, closing, wait_listening
from tests.integration.apps.worker_setup import Deployment, new_name
from tests.processes import ROOT, unavailable, wait_until
from tests.servers import RedisServer, RedisServers

pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")

WORDS = "celery-cachetiers: hit ratio "


class Bench:
    """An app whose reports are made here, at moments that the test chooses."""

    def __init__(self, app: Celery) -> None:
        self.app, self.tiers = app, CacheTiers(app)
        self.told: list[Report] = []
        self.tiers.events.subscribe(lambda event, task, details: self.told.append(details["report"]), Event.REPORTED)  # type: ignore[arg-type]

        @app.task(base=CachedTask, name="square", tags=["all"])
        def square(x: int) -> int:
            return x * x

        self.square = square

    def call(self, *numbers: int) -> None:
        for number in numbers:
            assert self.square(number) == number * number

    def report(self) -> Report:
        """A report, however soon after the last one."""
        made = self.again()
        assert made is not None
        return made

    def again(self) -> Report | None:
        """The same, if one is made."""
        self.age(60)
        return self.tiers.reporting.make()

    def age(self, seconds: float) -> None:
        """Makes the last report older."""
        assert (where := self.tiers.where()) is not None
        reporting = self.tiers.reporting
        with reporting._connected() as client:
            assert client is not None, where
            store = reporting._store(client)
            last = store.last()
            if last is not None:
                moment = json.loads(last.moment)
                moment["at"] -= seconds
                client.call(lambda _: ("HSET", store._last, "moment", json.dumps(moment)))


@pytest.fixture
def bench_at(namespace: str) -> Iterator[Callable[..., Bench]]:
    with ExitStack() as stack:

        def make(url: str | None, **conf: Any) -> Bench:
            settings = {"cachetiers_timeout": 2.0, "cachetiers_l1_tracking": False, **conf}
            return Bench(stack.enter_context(closing(cached_app(namespace, url, **settings))))

        yield make


@pytest.fixture
def bench(redis_server: RedisServer, bench_at: Callable[..., Bench]) -> Bench:
    return bench_at(redis_server.url())


# ---- what is reported ------------------------------------------------------------------------------------------------


def test_a_report_has_the_ratio_of_its_interval_and_the_history_has_all_of_them(bench: Bench) -> None:
    bench.call(1, 1, 2)
    first = bench.report()
    bench.call(1, 1, 1, 3)
    second = bench.report()
    idle = bench.report()

    assert [(made.total.hits, made.total.misses) for made in (first, second, idle)] == [(1, 2), (3, 1), (0, 0)]
    assert [made.ratio for made in (first, second, idle)] == [1 / 3, 0.75, None]
    assert (first.since, second.complete, idle.tasks) == (None, True, {})
    assert second.total.first_misses == 1
    assert bench.told == [first, second, idle]
    kept = bench.tiers.history()
    assert [(made.at, made.ratio, made.requests) for made in kept] == [
        (made.at, made.ratio, made.requests) for made in (first, second, idle)
    ]
    assert [made.at for made in bench.tiers.history(second.at)] == [second.at, idle.at]


def test_what_another_process_has_counted_and_not_merged_yet_is_in_the_report(
    bench: Bench, bench_at: Callable[..., Bench], redis_server: RedisServer
) -> None:
    other = bench_at(redis_server.url())
    wait_listening(other.app)
    other.call(1, 1, 2)

    assert (bench.report().requests, bench.report().requests) == (3, 0)


def test_the_server_is_joined_in_from_the_second_report_on(bench: Bench, redis_server: RedisServer) -> None:
    first = bench.report()
    with redis_server.client() as client:
        for _ in range(50):
            client.get("nobody knows it")
    second = bench.report()

    assert first.traffic is None
    assert first.servers[0].connected_clients >= 1
    assert second.traffic is not None
    assert second.traffic.keyspace_misses >= 50
    assert second.server_ratio is not None
    assert (second.ratio, second.untold) == (None, "")


def test_it_warns_below_the_target_and_says_why(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.report()
    bench.call(*range(60))
    bench.tiers.invalidate_tag("all")
    bench.call(*range(60))
    with caplog.at_level(logging.INFO, "celery_cachetiers"):
        made = bench.report()

    [record] = [each for each in caplog.records if WORDS in each.getMessage()]
    assert record.levelno == logging.WARNING
    assert "hit ratio 0.0 % of 120 requests" in record.getMessage()
    calls = {reason.name: reason.calls for reason in made.reasons if reason.name != "cheap"}  # as this task is
    assert calls == {"distinct_keys": 60, "invalidated": 60}
    assert "by all (60)" in record.getMessage()


@pytest.mark.parametrize(("target", "level"), [(0.4, logging.INFO), (0.6, logging.WARNING)])
def test_the_target_is_a_setting(
    redis_server: RedisServer, bench_at: Callable[..., Bench], caplog: pytest.LogCaptureFixture,
    target: float, level: int,
) -> None:  # fmt: skip
    bench = bench_at(redis_server.url(), cachetiers_hit_ratio_target=target)
    bench.call(*(2 * list(range(60))))
    with caplog.at_level(logging.INFO, "celery_cachetiers"):
        made = bench.report()

    assert made.ratio == 0.5
    assert [each.levelno for each in caplog.records if WORDS in each.getMessage()] == [level]


def test_a_receiver_of_the_signal_gets_the_ratio_and_the_report_of_its_app(bench: Bench) -> None:
    heard: list[tuple[Any, Any, Any]] = []

    def hear(sender: Any, ratio: Any, report: Any, **_: object) -> None:
        heard.append((sender, ratio, report))

    hit_ratio_reported.connect(hear, sender=bench.app)
    try:
        bench.call(1, 1)
        made = bench.report()
    finally:
        hit_ratio_reported.disconnect(hear, sender=bench.app)

    assert heard == [(bench.app, 0.5, made)]


# ---- once ------------------------------------------------------------------------------------------------------------


def test_a_report_that_comes_too_soon_after_the_last_one_is_none(bench: Bench) -> None:
    bench.report()
    bench.call(1)
    assert bench.tiers.reporting.make() is None
    bench.age(29.0)
    assert bench.tiers.reporting.make() is None
    bench.age(2.0)
    made = bench.tiers.reporting.make()

    assert made is not None
    assert made.total.misses == 1
    assert len(bench.told) == len(bench.tiers.history()) == 2


def test_of_two_reports_of_one_interval_one_counts(
    bench: Bench, bench_at: Callable[..., Bench], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have read the last report and the counters when the first of them is kept."""
    other = bench_at(redis_server.url())
    bench.report()
    bench.call(1, 2, 3)
    bench.age(60.0)
    barrier, servers = threading.Barrier(2), Reporting._servers

    def both(server: Any) -> Any:
        barrier.wait(10)
        return servers(server)

    monkeypatch.setattr(Reporting, "_servers", staticmethod(both))
    found: list[Report | None] = []
    threads = [
        threading.Thread(target=lambda b=each: found.append(b.tiers.reporting.make())) for each in (bench, other)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(made is not None for made in found) == [False, True]
    assert [made.total.misses for made in bench.tiers.history()] == [0, 3]
    assert len(bench.told) + len(other.told) == 2


def test_a_report_that_is_made_while_another_one_reads_the_counters_is_the_one_that_counts(
    bench: Bench, bench_at: Callable[..., Bench], redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = bench_at(redis_server.url())
    bench.report()
    bench.call(1)
    bench.age(60.0)
    sums = bench.tiers.counting.sums

    def overtaken() -> Any:
        read = sums()
        other.call(2)
        assert other.report().total.misses == 2
        return read

    monkeypatch.setattr(bench.tiers.counting, "sums", overtaken)

    assert bench.tiers.reporting.make() is None
    assert [(made.total.misses, made.complete) for made in bench.tiers.history()] == [(0, True), (2, True)]


# ---- what becomes of Redis -------------------------------------------------------------------------------------------


def test_counters_of_the_server_that_were_reset_are_recognised(
    redis_factory: RedisServers, bench_at: Callable[..., Bench]
) -> None:
    server = redis_factory()
    bench = bench_at(server.url())
    with server.client() as client:
        for _ in range(500):
            client.get("nothing")
        bench.report()
        client.config_resetstat()
        made = bench.report()

    assert made.traffic is not None
    assert made.traffic.complete is False
    assert 0 <= made.traffic.keyspace_misses < 500


@pytest.mark.parametrize("keeps", [True, False])
def test_a_restart_of_redis_between_two_reports(
    redis_factory: RedisServers, bench_at: Callable[..., Bench], keeps: bool
) -> None:
    server = redis_factory(*(["--appendonly", "yes"] if keeps else []))
    bench = bench_at(server.url())
    bench.call(1, 2, 3)
    bench.report()
    server.restart()
    bench.call(4, 5)
    made = bench.report()

    assert made.total.misses == 2
    assert (made.since is not None) is keeps
    if keeps:
        assert made.traffic is not None
        assert (made.traffic.complete, made.complete) == (False, True)
    assert len(bench.tiers.history()) == (2 if keeps else 1)


def test_after_a_flush_of_redis_what_was_counted_since_is_reported(
    redis_factory: RedisServers, bench_at: Callable[..., Bench]
) -> None:
    server = redis_factory()
    bench = bench_at(server.url())
    bench.call(1, 2, 3)
    bench.report()
    with server.client() as client:
        client.flushall()
    bench.call(4)
    made = bench.report()

    assert (made.total.misses, made.since) == (1, None)


def test_sums_that_began_anew_while_the_last_report_was_kept_are_recognised(
    bench: Bench, redis_server: RedisServer, namespace: str
) -> None:
    bench.call(1, 2, 3)
    bench.report()
    with redis_server.client() as client:
        client.unlink(f"{namespace}:stats:square")
    bench.call(4)
    made = bench.report()

    assert (made.total.misses, made.complete) == (1, False)


@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-random", "volatile-ttl"])
def test_a_report_whose_reading_was_evicted_says_so_and_blames_nothing_else(
    redis_factory: RedisServers, bench_at: Callable[..., Bench], policy: str
) -> None:
    """All memory is turned over between two reports: the next one cannot know what the calls have missed."""
    server = redis_factory()
    bench = bench_at(server.url())

    @bench.app.task(base=CachedTask, name="plain", l1=False)
    def plain(x: int) -> int:
        return x

    for x in range(120):
        plain(x)
    before = bench.report()
    with server.client() as client:
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", int(client.info("memory")["used_memory"]) + 2_000_000)
        turn_over(client, bench.app.main)
        client.config_set("maxmemory", 0)  # so that what is counted from here on stays
    for x in range(120):
        plain(x)
    made = bench.report()

    assert (before.since, made.since, made.traffic) == (None, None, None)
    assert made.below
    assert [reason.name for reason in made.reasons if reason.name != "cheap"] == ["no_reading"]
    assert "there is no earlier reading to compare with" in str(made)
    last = bench.tiers.history()[-1]
    assert (last.since, last.reasons) == (None, made.reasons)


def turn_over(client: Any, namespace: str) -> None:
    """Writes to a full server until nothing else is left; what is written would live for longer."""
    assert client.exists(f"{namespace}:stats:@report")
    for _ in range(500):
        pipeline = client.pipeline(transaction=False)
        for _ in range(100):
            pipeline.set(f"filler{random.random()}", "x" * 20_000, ex=30 * 86400)
        pipeline.execute()
        if not any(client.scan_iter(f"{namespace}:*", count=1000)):
            return
    raise AssertionError("the server has not evicted all")


def test_a_user_who_may_not_ask_for_info_has_the_own_counters_with_the_reason(
    redis_server: RedisServer, bench_at: Callable[..., Bench], namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client:
        client.acl_setuser(
            namespace, enabled=True, nopass=True, categories=["+@all"], commands=["-info"], keys=["*"],
            channels=["*"],
        )  # fmt: skip
        try:
            bench = bench_at(redis_server.url().replace("redis://", f"redis://{namespace}:x@"))
            bench.report()
            bench.call(1, 1, 1, 1)
            with caplog.at_level(logging.INFO, "celery_cachetiers"):
                made = bench.report()
        finally:
            client.acl_deluser(namespace)

    assert (made.ratio, made.traffic, made.servers) == (0.75, None, ())
    assert made.untold.startswith("INFO: ")
    assert "permission" in made.untold
    assert f"nothing is known of the Redis server: {made.untold}" in caplog.text


def test_a_redis_that_is_gone_is_one_line_in_the_log_and_what_was_counted_is_in_the_next_report(
    redis_factory: RedisServers, bench_at: Callable[..., Bench], caplog: pytest.LogCaptureFixture
) -> None:
    server = redis_factory("--appendonly", "yes")
    bench = bench_at(server.url())
    bench.report()
    bench.call(1)
    server.stop()
    bench.call(2)
    with caplog.at_level(logging.INFO, "celery_cachetiers"):
        caplog.clear()
        assert bench.app.tasks[REPORT].apply().get() is None

    lines = [each.getMessage() for each in caplog.records]
    assert len([line for line in lines if "hit ratio" in line]) == 1, lines
    assert "no hit ratio this time, as Redis cannot be reached" in "\n".join(lines)
    with pytest.raises(TierUnavailable):
        bench.tiers.history()
    server.start()
    assert bench.report().total.misses == 2


def test_an_app_with_memory_only_makes_no_report_and_sends_none(bench_at: Callable[..., Bench]) -> None:
    bench = bench_at(None)
    bench.call(1)

    assert bench.tiers.reporting.make() is None
    assert bench.app.tasks[REPORT].apply().get() is None
    assert bench.tiers.history() == []
    assert REPORT not in entries(bench.tiers)


# ---- the entry of beat -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "entry"),
    [
        ({}, {"task": REPORT, "schedule": 60.0, "options": {"expires": 60.0}}),
        (
            {"cachetiers_report_every": 5, "cachetiers_report_queue": "slow"},
            {"task": REPORT, "schedule": 5.0, "options": {"expires": 5.0, "queue": "slow"}},
        ),
        ({"cachetiers_report_every": None}, None),
        ({"cachetiers_enabled": False}, None),
    ],
)
def test_what_beat_is_to_send(
    redis_server: RedisServer, bench_at: Callable[..., Bench], conf: dict[str, Any], entry: dict[str, Any] | None
) -> None:
    assert entries(bench_at(redis_server.url(), **conf).tiers).get(REPORT) == entry


# ---- beat and workers ------------------------------------------------------------------------------------------------


@contextmanager
def heard(deployment: Deployment) -> Iterator[list[dict[str, Any]]]:
    """The Celery events of reports that come meanwhile."""
    found: list[dict[str, Any]] = []
    over, listens = threading.Event(), threading.Event()
    handlers = {EVENT: found.append, "cache-probe": lambda event: listens.set()}

    def hear() -> None:
        with deployment.app.connection_for_read() as connection:
            receiver = deployment.app.events.Receiver(connection, handlers=handlers)
            with receiver.consumer_context() as (drained, _, _):
                while not over.is_set():
                    with suppress(TimeoutError):
                        drained.drain_events(timeout=0.2)

    thread = threading.Thread(target=hear)
    thread.start()
    try:
        with deployment.app.events.default_dispatcher() as dispatcher:
            wait_until(lambda: dispatcher.send("cache-probe") or listens.wait(0.1), timeout=20, message="a receiver")
        yield found
    finally:
        over.set()
        thread.join()


@pytest.fixture
def deployment(redis_server: RedisServer) -> Iterator[Deployment]:
    with Deployment(redis_server, cachetiers_report_every=1.0) as deployment:
        yield deployment


def reports(deployment: Deployment) -> list[Report]:
    return deployment.tiers.history()


def test_beat_has_workers_report_and_each_call_is_in_one_report(deployment: Deployment) -> None:
    name = new_name()
    with (
        deployment.worker("--task-events", concurrency=2) as one,
        deployment.worker("--task-events", pool="threads", concurrency=2) as two,
        heard(deployment) as told,
        deployment.beat() as beat,
    ):
        wait_until(lambda: len(reports(deployment)) >= 1, timeout=30, message="a report", process=beat)
        for _ in range(5):
            assert deployment.task("work.plain")(name)
        deployment.tiers.counting.merger.merge()
        wait_until(lambda: sum(made.requests for made in reports(deployment)) >= 5, timeout=30, message="five requests")
        wait_until(lambda: sum(each["requests"] for each in told) >= 5, timeout=10, message="the event")
        count = len(reports(deployment))
        wait_until(lambda: len(reports(deployment)) >= count + 2, timeout=30, message="two more reports")
        logs = one._process.log_text() + two._process.log_text()

    made = reports(deployment)
    assert sum(each.requests for each in made) == 5
    assert sum(each.total.misses for each in made) == 1
    [event] = [each for each in told if each["requests"]]
    assert (event["hits"], event["misses"], event["below"], event["reasons"]) == (4, 1, False, [])
    assert event["ratio"] == 0.8
    assert "hit ratio 80.0 % of 5 requests" in logs
    assert "Traceback" not in logs
    assert len({each.at for each in made}) == len(made)


def test_without_task_events_no_event_is_sent(deployment: Deployment) -> None:
    with deployment.worker(pool="solo") as worker, heard(deployment) as told, deployment.beat() as beat:
        wait_until(lambda: len(reports(deployment)) >= 2, timeout=30, message="reports", process=beat)
        with deployment.app.events.default_dispatcher() as dispatcher:  # whatever was sent before this is there first
            dispatcher.send(EVENT, requests=-1)
        wait_until(lambda: bool(told), timeout=10, message="the event that the test has sent")

    assert [each["requests"] for each in told] == [-1], worker.log_tail()


def test_a_message_that_comes_twice_is_one_report(deployment: Deployment) -> None:
    with deployment.worker(concurrency=2):
        deployment.task("work.plain")(new_name())
        deployment.tiers.counting.merger.merge()
        for _ in range(2):
            deployment.app.tasks[REPORT].apply_async(task_id="the-same")
        deployment.app.send_task("work.plain", (new_name(),)).get(timeout=30)
        wait_until(lambda: len(reports(deployment)) >= 1, timeout=30, message="a report")
        assert deployment.app.send_task(REPORT, ignore_result=False).get(timeout=30) is None

    assert [made.total.misses >= 1 for made in reports(deployment)] == [True]


def test_a_worker_whose_redis_is_gone_says_so_and_fails_no_task(
    redis_factory: RedisServers, redis_server: RedisServer
) -> None:
    cache = redis_factory()
    with Deployment(redis_server, cache=cache.url(), cachetiers_report_every=1.0) as deployment:
        cache.stop()
        with deployment.worker() as worker:
            result = deployment.app.send_task(REPORT, ignore_result=False)
            assert result.get(timeout=30) is None
            worker.wait_for_log("no hit ratio this time, as Redis cannot be reached")
            log = worker._process.log_text()

    assert log.count("no hit ratio this time") == 1
    assert "Traceback" not in log


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def run(bench: Bench) -> Run:
    return command_line(bench.app, "report")


def test_the_command_shows_the_history(bench: Bench, run: Run) -> None:
    assert run().output.startswith("No report was made in that time: beat sends them, ")
    bench.call(1, 1, 1, 1)
    bench.report()
    bench.report()
    bench.call(*range(100, 250))
    bench.report()
    done = run()

    assert done.exit_code == 0
    title, first, idle, last = done.output.splitlines()
    assert title.split("  ")[0] == "time"
    assert ("75.0 %" in first, " - " in idle, "distinct_keys" in last) == (True, True, True)


def test_without_reports_nothing_is_drawn(run: Run, tmp_path: Path) -> None:
    done = run("--plot", str(tmp_path / "out.png"))

    assert done.exit_code == 1
    assert "No report was made in that time; nothing is drawn" in done.output
    assert not (tmp_path / "out.png").exists()


def test_the_first_report_alone_is_not_drawn_as_it_has_no_length(bench: Bench, run: Run, tmp_path: Path) -> None:
    bench.call(1, 1)
    bench.report()
    done = run("--plot", str(tmp_path / "out.png"))

    assert done.exit_code == 1
    assert "wait for the next one" in done.output
    assert not (tmp_path / "out.png").exists()


def test_the_command_speaks_json_and_goes_back_as_far_as_it_is_told(bench: Bench, run: Run) -> None:
    bench.call(1, 1)
    made = bench.report()

    [shown] = json.loads(run("--json").output)
    assert (shown["ratio"], shown["at"], shown["total"]["misses"]) == (0.5, made.at, 1)
    assert json.loads(run("--json", "--since", "7d").output) == [shown]
    CacheTiers(bench.app).clock = FakeClock(made.at + 1.001)
    assert json.loads(run("--json", "--since", "1s").output) == []
    refused = run("--since", "yesterday")
    assert refused.exit_code == 2
    assert "90s, 30m, 1h and 7d" in refused.output


def test_without_matplotlib_the_plot_names_the_extra(
    bench: Bench, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.report(), bench.report()
    monkeypatch.delitem(sys.modules, "celery_cachetiers.cli.plot", raising=False)
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.dates"):
        monkeypatch.setitem(sys.modules, name, None)
    done = run("--plot", str(tmp_path / "out.png"))

    assert done.exit_code == 2
    assert "pip install 'celery-cachetiers[plot]'" in done.output


def test_the_plot_is_drawn_without_a_screen(bench: Bench, tmp_path: Path) -> None:
    if find_spec("matplotlib") is None:
        unavailable("matplotlib is not installed")
    bench.call(1, 1)
    for _ in range(3):
        bench.report()
    code = f"""
        from pathlib import Path
        from celery import Celery
        from celery_cachetiers import CacheTiers
        from celery_cachetiers.cli.plot import draw
        app = Celery("other", set_as_current=False)
        app.conf.update(cachetiers_url={bench.tiers.settings.url!r}, cachetiers_namespace={bench.app.main!r})
        draw(CacheTiers(app).history(), Path({str(tmp_path / "out.png")!r}))
        draw([], Path({str(tmp_path / "empty.svg")!r}))
    """
    env = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "MPLBACKEND")}
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines())],
        env={**env, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "MPLCONFIGDIR": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "empty.svg").read_text()
