"""`celery -A proj cachetiers stats | top | invalidate | clear`: what they print and do, and how they end."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, sink
from celery_cachetiers.cli import top as top_module
from celery_cachetiers.cli.stats import server_of
from celery_cachetiers.entry import MAGIC
from celery_cachetiers.errors import TierUnavailable
from tests.integration.apps.command_line import Run, command_line
from tests.integration.apps.local import cached_app, closing, wait_listening
from tests.integration.apps.worker_setup import Deployment, new_name
from tests.processes import ROOT, wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers

pytestmark = [
    pytest.mark.usefixtures("own_sinks", "own_tasks"),
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]

top: Any = sys.modules[top_module.callback.__module__]  # type: ignore[union-attr]  # the module, not the command


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        yield app


@pytest.fixture
def work(app: Celery) -> Any:
    @app.task(base=CachedTask, name="shop.work", tags=["user:{number}"])
    def work(number: int) -> list[int]:
        return [number]

    return work


@pytest.fixture
def run(app: Celery) -> Run:
    return command_line(app)


def celery(deployment: Deployment, *arguments: str) -> list[str]:
    if "cachetiers" not in entry_points(group="celery.commands").names:
        pytest.skip("the package was installed before it had the command")
    return [sys.executable, "-m", "celery", "-A", deployment.module, "cachetiers", *arguments]


def environment(deployment: Deployment) -> dict[str, str]:
    return {**os.environ, **deployment.environment(), "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}


# ---- stats -----------------------------------------------------------------------------------------------------------


def test_stats_tells_what_all_processes_have_counted(redis_server: RedisServer) -> None:
    with Deployment(redis_server) as deployment:
        name = new_name()
        with deployment.worker() as worker:
            for _ in range(2):
                deployment.task("work.message").delay(name).get(timeout=60)
            assert worker.stop() == 0
        done = subprocess.run(
            celery(deployment, "stats", "--json"), env=environment(deployment), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        found = json.loads(done.stdout)

        assert done.returncode == 0
        row = found["tasks"]["work.message"]
        # The second one may arrive while the worker has not taken note of the first one's end: then it is coalesced.
        assert (row["misses"], row["computes"], row["hits"] + row["coalesced"]) == (1, 1, 1)
        assert (found["ratio"], found["note"]) == (row["hits"] / (row["hits"] + 1), None)
        assert found["server"]["redis_version"].count(".") == 2
        assert row["seconds_saved"] > 0


def test_each_call_is_in_one_column_and_the_last_row_adds_them_up(app: Celery, work: Any, run: Run) -> None:
    @app.task(base=CachedTask, name="shop.other", l1=False)
    def other(number: int) -> int:
        return number

    for number in (1, 1, 2):
        other(number)
    work(1)
    CacheTiers(app).invalidate_tag("user:1")
    done = run("stats")
    rows = {line.split()[0]: line.split() for line in done.output.splitlines() if line}

    assert done.exit_code == 0
    assert rows["task"][:8] == ["task", "L1", "L2", "stale", "journal", "coalesced", "misses", "ratio"]
    assert rows["shop.other"][1:9] == ["0", "1", "0", "0", "0", "2", "33.3", "%"]
    assert rows["shop.work"][1:9] == ["0", "0", "0", "0", "0", "1", "0.0", "%"]
    assert rows["(all)"][1:9] == ["0", "1", "0", "0", "0", "3", "25.0", "%"]
    assert rows["user:*"] == ["user:*", "1"]
    assert "counts everything on that server since its start, broker and results included" in done.output
    assert "The cache's own hit ratio is 25.0 %." in done.output


def test_what_has_gone_wrong_has_a_column_where_it_has(app: Celery, work: Any, run: Run) -> None:
    work(1)
    before = run("stats").output
    for _ in range(3):
        work(object())
    lines = run("stats").output.splitlines()

    assert not any(title in before for title in ("uncacheable", "failed open", "refused", "unusable"))
    assert lines[0].endswith("  mean wait  uncacheable")
    assert lines[1].split()[0] == "shop.work"
    assert lines[1].split()[-1] == "3"


def test_why_entries_could_not_be_read_is_told_by_reason(
    app: Celery, work: Any, run: Run, redis_server: RedisServer, namespace: str
) -> None:
    assert "unusable" not in run("stats").output
    with redis_server.client() as client:
        for number, wrong in enumerate((b"foreign bytes", MAGIC, b"others' bytes")):
            work(number)
            [entry] = client.keys(f"{namespace}:*:e:{work.cache.key(number)}")
            client.set(entry, wrong)
        CacheTiers(app).cache.parts.l1.clear()
        for number in range(3):
            work(number)
    lines = run("stats").output.splitlines()
    found = json.loads(run("stats", "--json").output)

    assert lines[lines.index("unusable   times") + 1 :][:2] == ["foreign    2", "truncated  1"]
    assert found["unusable"] == {"foreign": 2, "truncated": 1}
    assert found["process"]["unusable"] == 3  # whose bytes these were, nobody can tell
    assert json.loads(run("stats", "shop.work", "--json").output)["unusable"] == {}


def test_one_task_is_told_alone(app: Celery, work: Any, run: Run) -> None:
    @app.task(base=CachedTask, name="shop.idle")
    def idle() -> None: ...

    work(1)

    assert list(json.loads(run("stats", "shop.work", "--json").output)["tasks"]) == ["shop.work"]
    assert run("stats", "shop.idle").output.startswith("Nothing was counted of shop.idle yet.\n")
    assert run("stats", "shop.idle").exit_code == 0


def test_of_one_task_no_patterns_are_told_which_are_anybodys(app: Celery, work: Any, run: Run) -> None:
    work(1)
    CacheTiers(app).invalidate_tag("user:1")

    assert "user:*" in run("stats").output
    assert "user:*" not in run("stats", "shop.work").output
    assert json.loads(run("stats", "shop.work", "--json").output)["invalidated"] == {}


@pytest.mark.parametrize(("late", "said"), [(1, "1 process has not merged"), (2, "2 processes have not merged")])
def test_processes_that_are_late_are_counted(
    work: Any, run: Run, monkeypatch: pytest.MonkeyPatch, late: int, said: str
) -> None:
    monkeypatch.setattr(sys.modules["celery_cachetiers.cli.stats"], "merge_first", lambda tiers: late)

    assert said in run("stats").output


def test_an_unknown_task_is_refused_with_those_that_look_alike(app: Celery, work: Any, run: Run) -> None:
    @app.task(name="shop.plain")
    def plain() -> None: ...

    done = run("stats", "shop.wrok")

    assert done.exit_code == 2
    assert "there is no task shop.wrok; is it shop.work?" in done.output
    assert "shop.plain is not memoized" in run("stats", "shop.plain").output


def test_a_task_of_another_app_is_known_if_it_was_counted(namespace: str, redis_server: RedisServer, run: Run) -> None:
    with closing(cached_app(namespace, redis_server.url())) as other:

        @other.task(base=CachedTask, name="elsewhere")
        def elsewhere() -> int:
            return 1

        elsewhere()
        CacheTiers(other).counting.merger.merge()

    assert run("stats", "elsewhere").exit_code == 0
    assert run("invalidate", "--task", "elsewhere").exit_code == 0


def test_nothing_counted_is_said(run: Run) -> None:
    assert run("stats").output.startswith("Nothing was counted yet.\n")


def test_commands_end_with_1_while_redis_is_away(redis_proxy: RedisProxy, work: Any, run: Run) -> None:
    redis_proxy.refuse()
    for arguments in (("stats",), ("top", "--once"), ("invalidate", "--tag", "a"), ("clear", "--yes")):
        done = run(*arguments)

        assert done.exit_code == 1, arguments
        assert done.output.startswith("Error: Redis cannot be reached: ")


def test_a_server_that_is_not_reached_has_not_refused(app: Celery, redis_proxy: RedisProxy) -> None:
    redis_proxy.refuse()

    with pytest.raises(TierUnavailable):
        server_of(CacheTiers(app))


def test_a_server_that_refuses_a_command_was_reached(namespace: str, redis_factory: RedisServers) -> None:
    server = redis_factory()
    with server.client() as client:
        client.execute_command("ACL SETUSER limited on >secret ~* &* +@all -hgetall")
    with closing(cached_app(namespace, server.url().replace("redis://", "redis://limited:secret@"))) as app:
        done, tags = command_line(app)("stats"), command_line(app)("tags")

    assert done.exit_code == 1
    assert done.output.startswith("Error: Redis has refused: ")
    assert "hgetall" in done.output
    assert "Redis has refused: " in tags.output
    assert "cannot be reached" not in done.output + tags.output


def test_a_server_that_refuses_info_is_no_failure(
    namespace: str, redis_factory: RedisServers, monkeypatch: Any
) -> None:
    server = redis_factory()
    with server.client() as client:
        client.execute_command(
            "ACL SETUSER limited on >secret ~* &* +@all -@dangerous +@scripting +@pubsub +@connection"
        )
    url = server.url().replace("redis://", "redis://limited:secret@")
    with closing(cached_app(namespace, url)) as app:
        done = command_line(app)("stats")
        found = json.loads(command_line(app)("stats", "--json").output)
        monkeypatch.setattr(top, "wait", lambda seconds: None)
        watched = command_line(app)("top", "--once")

    assert done.exit_code == 0
    assert "Redis has refused to tell of itself: " in done.output
    assert found["server"] is None
    assert "info" in found["note"].lower()
    assert watched.exit_code == 0
    assert "Redis has refused to tell of itself." in watched.output


def test_who_may_not_ask_processes_to_merge_sees_what_they_have_merged(
    namespace: str, redis_factory: RedisServers, monkeypatch: Any
) -> None:
    server = redis_factory()
    with server.client() as client:
        client.execute_command("ACL SETUSER limited on >secret ~* &* +@all -publish")
    url = server.url().replace("redis://", "redis://limited:secret@")
    with closing(cached_app(namespace, url)) as app:
        monkeypatch.setattr(top, "wait", lambda seconds: None)
        watched, done = command_line(app)("top", "--once"), command_line(app)("stats")
        reported = CacheTiers(app).reporting.make()

    assert watched.exit_code == 0, watched.output
    assert done.exit_code == 0
    assert reported is not None


def test_without_redis_stats_says_where_the_counters_are(namespace: str) -> None:
    with closing(cached_app(namespace, result_backend=None)) as app:
        done = command_line(app)("stats")

        assert done.exit_code == 0
        assert "Ask the workers: celery inspect cache_stats" in done.output
        assert command_line(app)("top", "--once").exit_code == 2
        assert command_line(app)("invalidate", "--tag", "a").exit_code == 2
        assert command_line(app)("clear", "--yes").exit_code == 2


def test_without_redis_nothing_is_said_to_be_none_that_cannot_be_known(namespace: str) -> None:
    with closing(cached_app(namespace, result_backend=None)) as app:

        @app.task(base=CachedTask, name="shop.tagged", tags=["user:{number}"])
        def tagged(number: int) -> int:
            return number

        CacheTiers(app).invalidate_tag("user:1")
        report, letters, tags = (
            command_line(app)(*words) for words in (("report",), ("dead-letter", "list"), ("tags",))
        )

    assert report.exit_code == 2
    assert "the app has no Redis, and only Redis keeps reports" in report.output
    assert letters.output == "The app has no sinks.\n"
    assert tags.output.splitlines()[1].split()[0] == "user:{}"
    assert tags.output.splitlines()[1].split()[-1] == "?"
    assert "The app has no Redis" in tags.output


def test_the_breaker_of_this_process_stands_beside_its_gauges(
    app: Celery, work: Any, redis_proxy: RedisProxy, redis_server: RedisServer
) -> None:
    assert CacheTiers(app).counting.here() == {}
    work(1)
    assert CacheTiers(app).stats()["here"]["breaker"] == "closed"
    redis_proxy.refuse()
    work(2)

    assert CacheTiers(app).counting.here()["breaker"] == "open"


# ---- invalidate ------------------------------------------------------------------------------------------------------


def test_tags_keys_and_tasks_are_invalidated_in_one_go(app: Celery, run: Run) -> None:
    ran: list[str] = []

    def declare(name: str, **options: Any) -> Any:
        def body(number: int) -> int:
            ran.append(f"{name}{number}")
            return number

        return app.task(body, base=CachedTask, name=name, **options)

    by_tag, by_key, by_task = declare("tag", tags=["user:{number}"]), declare("key"), declare("task")
    every = [(task, number) for task in (by_tag, by_key, by_task) for number in (1, 2, 3)]
    for task, number in every:
        task(number)
    ran.clear()
    key = by_key.cache.key(2)
    done = run("invalidate", "--tag", "user:1", "--tag", "user:3", "--key", key, "--task", "task")
    for task, number in every:
        task(number)

    assert done.output == "Invalidated: 2 tags, 1 key, 1 task.\n"
    assert ran == ["tag1", "tag3", "key2", "task1", "task2", "task3"]
    told = json.loads(run("invalidate", "--tag", "user:1", "--json").output)
    assert told == {"tags": ["user:1"], "keys": [], "tasks": []}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give at least one"),
        (("--key", "abc"), "'abc' is not a key"),
        (("--tag", ""), "a tag is text that is not empty"),
        (("--task", "shop.wrok"), "is it shop.work?"),
    ],
)
def test_what_cannot_be_invalidated_is_refused_and_nothing_is(
    app: Celery, work: Any, run: Run, arguments: tuple[str, ...], said: str
) -> None:
    work(1)
    done = run("invalidate", *(("--tag", "user:1") if arguments else ()), *arguments)

    assert (done.exit_code, said in done.output) == (2, True), done.output
    assert CacheTiers(app).counters.process.invalidated == 0


# ---- clear -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pending(app: Celery) -> Any:
    sink("rows")(lambda writes: None)

    @app.task(base=CachedTask, name="shop.order", sink="rows", write="behind")
    def order(row: str) -> str:
        return row

    order("1")
    return order


def test_clear_makes_everything_a_miss_and_leaves_what_waits_for_a_sink(
    app: Celery, work: Any, pending: Any, run: Run
) -> None:
    work(1)
    done = run("clear", "--yes")
    work(1)

    assert done.exit_code == 0
    assert done.output.splitlines()[0] == f"Every entry of namespace {app.conf.cachetiers_namespace} is a miss now."
    assert "1 write waits for its sink: not touched" in done.output
    assert work.cache.info().misses == 2
    assert CacheTiers(app).writes.backlog("rows").pending == 1


def test_clear_of_one_task_asks_nothing_and_leaves_the_others(app: Celery, work: Any, pending: Any, run: Run) -> None:
    @app.task(base=CachedTask, name="shop.other")
    def other() -> int:
        return 1

    work(1)
    other()
    done = json.loads(run("clear", "--task", "shop.work", "--json").output)
    work(1)
    other()

    assert done == {"namespace": app.conf.cachetiers_namespace, "task": "shop.work", "pending": {}}
    assert (work.cache.info().misses, other.cache.info().misses) == (2, 1)
    assert json.loads(run("clear", "--task", "shop.order", "--json").output)["pending"] == {"rows": 1}


@pytest.mark.parametrize("arguments", [("clear",), ("clear", "--json")])
def test_clear_refuses_where_nobody_can_be_asked(work: Any, run: Run, arguments: tuple[str, ...]) -> None:
    work(1)
    done = run(*arguments, answer="y\n")
    work(1)

    assert done.exit_code == 2
    assert "--yes" in done.output
    assert work.cache.info().misses == 1


@pytest.mark.parametrize(("answer", "status", "misses"), [("y\n", 0, 2), ("n\n", 1, 1)])
def test_clear_asks_on_a_terminal(
    work: Any, run: Run, monkeypatch: pytest.MonkeyPatch, answer: str, status: int, misses: int
) -> None:
    work(1)
    monkeypatch.setattr("celery_cachetiers.cli.invalidating._can_ask", lambda: True)
    done = run("clear", answer=answer)
    work(1)

    assert done.exit_code == status
    assert work.cache.info().misses == misses


def test_clear_says_if_the_journal_cannot_be_asked(
    app: Celery, work: Any, pending: Any, run: Run, monkeypatch: pytest.MonkeyPatch, redis_factory: RedisServers
) -> None:
    server = redis_factory()
    app.conf.cachetiers_journal_url = server.url()
    CacheTiers(app).reset()
    server.stop()
    done = run("clear", "--yes")

    assert done.exit_code == 0
    assert "How many writes wait for their sinks is not known" in done.output


# ---- top -------------------------------------------------------------------------------------------------------------


class Clock:
    """Time for `top`: it goes by when `top` waits, and something may be done meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.waits, self.acts = 1000.0, 0, dict[int, Callable[[], Any]]()
        monkeypatch.setattr(top, "wait", self.wait)
        monkeypatch.setattr(top, "monotonic", lambda: self.now)

    def wait(self, seconds: float) -> None:
        self.waits += 1
        self.now += seconds
        self.acts.pop(self.waits, lambda: None)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def interrupt() -> None:
    raise KeyboardInterrupt


def test_one_interval_tells_rates_the_hottest_key_and_what_was_invalidated(
    app: Celery, work: Any, pending: Any, run: Run, clock: Clock
) -> None:
    def act() -> None:
        for _ in range(8):
            work(1)
        work(2)
        CacheTiers(app).invalidate_tags(["user:7", "user:8"])

    work(1)
    work(3)
    wait_listening(app)
    clock.acts[1] = act
    [line] = run("top", "--once", "--interval", "4", "--json").output.splitlines()
    found = json.loads(line)

    assert found["seconds"] == 4.0
    assert (found["per_second"]["hits"], found["per_second"]["misses"]) == (2.0, 0.25)
    assert found["ratio"] == 8 / 9
    assert set(found["tasks"]) == {"shop.work"}
    assert found["invalidated"] == {"user:*": 2}
    assert [(each["task"], each["key"]) for each in found["keys"]] == [
        ("shop.work", work.cache.key(number)) for number in (1, 2)
    ]
    assert found["keys"][0]["per_second"] == pytest.approx(2.0, rel=0.1)
    assert found["writes"] == {"rows": {"pending": 1, "buried": 0}}
    assert found["commands_per_second"] > 0
    assert found["server"]["used_memory"] > 0


def test_where_there_is_no_terminal_one_interval_is_printed(work: Any, run: Run, clock: Clock) -> None:
    clock.acts[1] = lambda: [work(1), work(1)]
    done = run("top")
    lines = done.output.partition("hottest keys")[0].splitlines()
    rows = {line.split("  ")[0]: line.split() for line in lines if line}

    assert done.exit_code == 0
    assert clock.waits == 1
    assert rows["hit ratio"][2:4] == ["50.0", "%"]
    assert rows["misses"] == ["misses", "0.5", "█"]
    assert rows["shop.work"][:2] == ["shop.work", "1.0"]


def test_json_is_printed_for_each_interval_until_it_is_stopped(work: Any, run: Run, clock: Clock) -> None:
    clock.acts = {1: lambda: work(1), 3: lambda: work(2), 4: interrupt}
    done = run("top", "--json")
    found = [json.loads(line)["per_second"]["misses"] for line in done.output.splitlines()]

    assert done.exit_code == 0
    assert found == [0.5, 0.0, 0.5]


def test_redis_that_goes_away_is_shown_and_so_is_its_coming_back(
    work: Any, run: Run, clock: Clock, redis_proxy: RedisProxy
) -> None:
    def back() -> None:
        redis_proxy.heal()
        work(1)

    clock.acts = {2: redis_proxy.refuse, 3: back, 4: interrupt}
    done = run("top", "--json")
    found = [json.loads(line) for line in done.output.splitlines()]

    assert done.exit_code == 0
    assert ["error" in each for each in found] == [False, True, False]
    assert found[1]["error"].startswith("Redis cannot be reached: ")
    assert found[2]["per_second"]["misses"] == 0.25  # of the two intervals since the last reading


def test_sums_that_were_flushed_meanwhile_are_no_negative_rate(
    app: Celery, work: Any, run: Run, clock: Clock, redis_server: RedisServer, namespace: str
) -> None:
    def flush() -> None:
        with redis_server.client() as client:
            client.unlink(*client.keys(f"{namespace}:*"))
        work(3)

    work(1)
    work(2)
    clock.acts[1] = flush
    found = json.loads(run("top", "--once", "--json").output)

    assert found["per_second"]["misses"] == 0.0


def test_processes_are_asked_to_merge_so_that_what_is_shown_is_now(redis_server: RedisServer) -> None:
    """The workers of this deployment merge every ten seconds by themselves; an interval is half a second."""
    with Deployment(redis_server) as deployment, deployment.worker(concurrency=1):
        deployment.task("work.message").delay(new_name()).get(timeout=60)
        with subprocess.Popen(
            celery(deployment, "top", "--json", "--interval", "0.5"), env=environment(deployment),
            stdout=subprocess.PIPE, text=True,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            json.loads(process.stdout.readline())
            deployment.task("work.message").delay(new_name()).get(timeout=60)
            found = [json.loads(process.stdout.readline()) for _ in range(3)]
            process.send_signal(signal.SIGINT)
            process.stdout.read()

        assert sum(each["per_second"]["misses"] * each["seconds"] for each in found) == pytest.approx(1)
        assert process.returncode == 0


def test_on_a_terminal_it_is_drawn_in_place_until_it_is_interrupted(redis_server: RedisServer) -> None:
    pytest.importorskip("rich")
    with Deployment(redis_server) as deployment:
        deployment.task("work.plain")(new_name())
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            celery(deployment, "top", "--interval", "0.5"), env=environment(deployment), stdin=theirs, stdout=theirs,
            stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        shown = bytearray()

        def drawn() -> bool:
            if select.select([ours], [], [], 0)[0]:
                shown.extend(os.read(ours, 65536))
            return shown.count(b"hit ratio") >= 2 and b"commands/s" in shown

        try:
            wait_until(drawn, timeout=30, message="two intervals on the terminal")
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
            os.close(ours)

        assert b"\x1b[?1049h" in shown  # the terminal's other screen
