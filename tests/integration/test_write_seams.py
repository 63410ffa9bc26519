"""Where a value comes out of a task here, with a real journal: who writes, what it costs, what if it is away."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pydantic
import pytest
from celery import Celery
from celery import Task as CeleryTask

from celery_cachetiers import (
    MISSING,
    CachedTask,
    CacheTiers,
    ConfigurationError,
    JournalFull,
    NotCached,
    SinkUnavailable,
    TierUnavailable,
    Write,
    sink,
)
from celery_cachetiers.client import Script
from celery_cachetiers.events import Event
from celery_cachetiers.signals import cache_hit
from celery_cachetiers.sinks import find
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import (
    Count,
    cached_app,
    closing,
    published,
    run_published,
    run_python,
    wait_listening,
)
from tests.processes import ReservedPort, wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers

pytestmark = pytest.mark.usefixtures("own_sinks")

BACKGROUND = {"PUBLISH"}


class Table:
    """A sink that keeps what it got."""

    def __init__(self) -> None:
        self.got: list[Write] = []
        self.error: Exception | None = None

    def __call__(self, writes: list[Write]) -> None:
        if self.error is not None:
            raise self.error
        self.got += writes

    def values(self) -> list[Any]:
        return [write.value for write in self.got]


@pytest.fixture
def table() -> Table:
    table = Table()
    sink("rows")(table)
    return table


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        yield app


Task = tuple[Any, Count]


def task_of(app: Celery, **options: Any) -> Task:
    """A task that says how often it ran, behind unless told otherwise."""
    count = Count()

    @app.task(base=CachedTask, name="order", **{"sink": "rows", "write": "behind", **options})
    def order(row: Any, more: Any = None) -> Any:
        return f"{row}#{count(row)}"

    return order, count


def flush(app: Celery) -> Any:
    return CacheTiers(app).writes.flush("rows")["rows"]


def pending(app: Celery) -> int:
    journal = CacheTiers(app).writes.journal
    assert journal is not None
    return journal.backlog("rows").pending


# ---- each run writes once --------------------------------------------------------------------------------------------


def eager(task: Any, *args: Any, **options: Any) -> Any:
    task.app.conf.task_always_eager = True
    return task.apply_async(args, **options).get()


def direct(task: Any, *args: Any, **options: Any) -> Any:
    return task(*args)


def delayed(task: Any, *args: Any, **options: Any) -> Any:
    result = task.apply_async(args, **options)
    for each in run_published(task.app):
        return each.get()
    return result.get()


WAYS = [direct, delayed, eager]


@pytest.mark.parametrize("way", WAYS)
def test_a_run_writes_once_and_a_hit_nothing(app: Celery, table: Table, way: Callable[..., Any]) -> None:
    order, count = task_of(app)

    assert [way(order, "a"), way(order, "a")] == ["a#1", "a#1"]
    assert table.got == []
    flush(app)
    assert (table.values(), len(count)) == (["a#1"], 1)


@pytest.mark.parametrize("way", [delayed, eager])
@pytest.mark.parametrize("mode", ["bypass", "refresh"])
def test_a_run_past_the_cache_writes_too(app: Celery, table: Table, way: Callable[..., Any], mode: str) -> None:
    order, _ = task_of(app)
    way(order, "a")
    flush(app)

    assert way(order, "a", cache_mode=mode) == "a#2"
    flush(app)
    assert table.values() == ["a#1", "a#2"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("off", ["setting", "task", "suspended"])
def test_a_cache_that_is_off_writes_all_the_same(app: Celery, table: Table, way: Callable[..., Any], off: str) -> None:
    if off == "setting":
        app.conf.cachetiers_enabled = False
    order, _ = task_of(app, **({"cache_enabled": False} if off == "task" else {}))
    CacheTiers(app).suspended = off == "suspended"

    assert [way(order, "a"), way(order, "b"), way(order, "a")] == ["a#1", "b#2", "a#3"]
    assert table.values() == ["a#1"]  # the body has run again, and would not find what waited
    flush(app)
    assert sorted(table.values()) == ["a#1", "a#3", "b#2"]


def test_so_it_does_when_the_environment_turns_it_off(redis_server: RedisServer, namespace: str) -> None:
    done = run_python(
        f"""
        from celery import Celery
        from celery_cachetiers import CachedTask, CacheTiers, sink
        app = Celery("proj")
        app.conf.update(cachetiers_url={redis_server.url()!r}, cachetiers_namespace={namespace!r})
        sink("rows")(lambda writes: print([write.value for write in writes]))

        @app.task(base=CachedTask, sink="rows", write="behind")
        def order(row):
            return row

        order(1), order(2)
        CacheTiers(app).writes.flush()
        """,
        CACHETIERS_ENABLED="0",
    )

    assert done == "[1, 2]"


def test_a_call_without_a_key_writes_through(app: Celery, table: Table) -> None:
    order, _ = task_of(app)
    order(threading.Lock())

    assert [write.key for write in table.got] == [""]
    assert pending(app) == 0


def test_a_refresh_writes_and_so_does_a_put(app: Celery, table: Table) -> None:
    order, _ = task_of(app)
    order.cache.put(("a",), "put")
    flush(app)

    assert order.cache.refresh("a") == "a#1"
    flush(app)
    assert table.values() == ["put", "a#1"]


def test_a_value_that_cache_if_refuses_is_written(app: Celery, table: Table) -> None:
    order, _ = task_of(app, cache_if=lambda value: False)
    order("a")
    flush(app)

    assert table.values() == ["a#1"]


@pytest.mark.parametrize("write", ["behind", "through"])
def test_of_a_body_that_calls_its_own_key_the_outer_value_stays_in_cache_and_sink(
    app: Celery, table: Table, write: str
) -> None:
    depth: list[int] = []

    @app.task(base=CachedTask, name="nested", sink="rows", write=write)
    def nested(row: str) -> str:
        depth.append(1)
        return "inner" if len(depth) > 1 else f"outer of {nested(row)}"

    assert nested("a") == nested.cache.get("a") == "outer of inner"
    flush(app)
    assert max(table.got, key=lambda write: write.sequence).value == "outer of inner"


# ---- what a write says of its call -----------------------------------------------------------------------------------


@pytest.mark.parametrize("write", ["behind", "through"])
@pytest.mark.parametrize("way", [direct, delayed])
def test_what_a_flush_invalidates_is_of_the_call_whatever_the_body_does_to_its_arguments(
    app: Celery, table: Table, way: Callable[..., Any], write: str
) -> None:
    heard: list[str] = []
    CacheTiers(app).events.subscribe(lambda event, task, details: heard.extend(details["names"]), Event.INVALIDATED)

    @app.task(base=CachedTask, name="change", sink="rows", write=write, invalidates=["page:{row[id]}"])
    def change(row: dict[str, int]) -> int:
        row["id"] = 99
        return row["id"]

    way(change, {"id": 1})
    flush(app)

    assert heard == ["page:1", "page:1"]  # when the body has run, and when the sink has its value


@pytest.mark.parametrize("write", ["behind", "through"])
@pytest.mark.parametrize("off", [False, True])
def test_a_callable_is_asked_once_what_a_run_invalidates_and_once_for_a_put_and_a_deletion(
    app: Celery, table: Table, write: str, off: bool
) -> None:
    tiers, heard, asked = CacheTiers(app), list[str](), list[Any]()
    tiers.events.subscribe(lambda event, task, details: heard.extend(details["names"]), Event.INVALIDATED)
    tiers.suspended = off

    def pages(arguments: dict[str, Any], result: Any) -> list[str]:
        asked.append(result)
        return [f"page:{arguments['row']}"]

    order, _ = task_of(app, write=write, invalidates=pages)
    order("a")
    tiers.suspended = False
    order.cache.put(("b",), "put")
    order.cache.delete("c")
    heard.clear()
    flush(app)

    assert asked == ["a#1", "put", MISSING]
    if write == "behind":
        assert {name for name in heard if name.startswith("page:")} == {"page:a", "page:b", "page:c"}


@pytest.mark.parametrize("write", ["behind", "through"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("off", [False, True])
def test_a_sink_gets_the_arguments_of_the_call_whatever_the_body_does_to_them(
    app: Celery, table: Table, way: Callable[..., Any], write: str, off: bool
) -> None:
    @app.task(base=CachedTask, name="change", sink="rows", write=write, cache_enabled=not off)
    def change(row: dict[str, Any], more: Any = None) -> str:
        row["lines"].append("the body's")
        row.pop("id")
        return "done"

    way(change, {"id": 1, "lines": []})
    flush(app)

    assert [write.args for write in table.got] == [({"id": 1, "lines": []},)]


def test_arguments_that_cannot_be_copied_reach_a_sink_as_they_are(app: Celery, table: Table) -> None:
    order, _ = task_of(app)
    lock, row = threading.Lock(), {"id": 1}
    order(lock, row)

    assert table.got[0].args == (lock, {"id": 1})
    assert table.got[0].args[1] is not row


class Row(pydantic.BaseModel):
    id: int


@pytest.mark.skipif(
    not hasattr(CeleryTask, "_dump_pydantic_arguments"), reason="before Celery 5.7 callers pass no models"
)
@pytest.mark.parametrize("off", [False, True])
def test_what_a_task_that_takes_models_writes_waits_in_the_journal(app: Celery, table: Table, off: bool) -> None:
    def total(row: Row, more: int = 0) -> int:
        return row.id

    total.__annotations__ = {"row": Row, "more": int, "return": int}
    options = {"base": CachedTask, "name": "total", "sink": "rows", "write": "behind", "cache_enabled": not off}
    task: Any = app.task(total, pydantic=True, invalidates=["page:{row.id}"], **options)

    task(Row(id=1))
    task.cache.put((Row(id=2),), 2, {"more": 1})
    task.cache.delete(row=Row(id=3))
    assert table.got == []
    flush(app)
    assert [(write.args, write.kwargs, write.deleted) for write in table.got] == [
        (({"id": 1},), {}, False),
        (({"id": 2},), {"more": 1}, False),
        ((), {"row": {"id": 3}}, True),
    ]


def test_a_body_that_a_body_calls_past_its_task_invalidates_its_own(app: Celery, table: Table) -> None:
    heard: list[str] = []
    CacheTiers(app).events.subscribe(lambda event, task, details: heard.extend(details["names"]), Event.INVALIDATED)

    @app.task(base=CachedTask, name="change", sink="rows", write="behind", invalidates=["page:{row}"])
    def change(row: str, more: str = "") -> str:
        return f"{row}{change.run(more) if more else ''}"

    change("a", "b")
    assert heard == ["page:b", "page:a"]


# ---- through ---------------------------------------------------------------------------------------------------------


def test_a_sink_that_fails_fails_the_call_and_nothing_is_cached(app: Celery, table: Table) -> None:
    order, count = task_of(app, write="through")
    table.error = LookupError("no table")
    with pytest.raises(LookupError, match="no table"):
        order("a")
    assert order.cache.get("a") is MISSING
    table.error = None

    assert order("a") == "a#2"
    assert (table.values(), len(count)) == (["a#2"], 2)


def test_a_put_that_the_sink_refuses_is_not_cached(app: Celery, table: Table) -> None:
    order, _ = task_of(app, write="through")
    table.error = LookupError("no table")

    with pytest.raises(LookupError):
        order.cache.put(("a",), "put")
    assert order.cache.get("a") is MISSING


def test_through_needs_no_redis(namespace: str, table: Table) -> None:
    with closing(cached_app(namespace)) as app:
        order, _ = task_of(app, write="through")
        assert order("a") == "a#1"
        order.cache.put(("b",), 2)
        order.cache.delete("b")

    assert [(write.value, write.deleted) for write in table.got] == [("a#1", False), (2, False), (None, True)]
    assert [write.sequence for write in table.got] == sorted({write.sequence for write in table.got})


def test_behind_without_any_redis_writes_through_and_says_so(
    namespace: str, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(cached_app(namespace)) as app:
        order, _ = task_of(app)
        order("a")

        assert table.values() == ["a#1"]
        assert "no Redis for the journal: written through instead" in caplog.text
        with pytest.raises(ConfigurationError, match="there is none to keep a journal in"):
            CacheTiers(app).writes.flush()


# ---- the journal is away ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["refuse", "hang"])
def test_without_the_journal_the_sink_has_the_value_once_and_at_once(
    app: Celery, redis_proxy: RedisProxy, table: Table, fault: str
) -> None:
    app.conf.cachetiers_timeout = 0.05
    order, count = task_of(app)
    order("warm")
    getattr(redis_proxy, fault)()

    assert order("a") == "a#2"
    assert table.values() == ["a#2"]
    redis_proxy.heal()
    flush(app)
    assert table.values() == ["a#2", "warm#1"]
    assert len(count) == 2


def test_a_put_without_the_journal_is_in_the_sink_and_says_that_the_cache_has_it_not(
    app: Celery, redis_proxy: RedisProxy, table: Table
) -> None:
    order, _ = task_of(app)
    redis_proxy.refuse()

    with pytest.raises(TierUnavailable):
        order.cache.put(("a",), "put")
    assert table.values() == ["put"]


def attempts(proxy: RedisProxy) -> int:
    """What has been tried since the last reset."""
    return proxy.connections + proxy.commands.total()


@pytest.fixture
def apart(app: Celery, redis_server: RedisServer, redis_proxy: RedisProxy) -> Celery:
    """The journal is behind the proxy, and the cache is not."""
    app.conf.update(
        cachetiers_url=redis_server.url(),
        cachetiers_journal_url=redis_proxy.url(),
        cachetiers_timeout=0.1,
        cachetiers_breaker_window=600.0,
    )
    return app


@pytest.mark.parametrize("write", ["behind", "through"])
@pytest.mark.parametrize(
    "act", ["call", "call uncached", "call for what json cannot hold", "put", "put first", "delete"]
)
def test_a_journal_that_is_away_is_tried_once_in_a_window_not_at_each_call(
    apart: Celery, redis_proxy: RedisProxy, table: Table, write: str, act: str
) -> None:
    @apart.task(base=CachedTask, name="order", sink="rows", write=write, cache_enabled="uncached" not in act)
    def order(row: Any) -> Any:
        return object() if "json" in act else row

    acts: dict[str, Callable[[Any], Any]] = {
        "put": lambda row: order.cache.put((row,), "put"),
        "put first": lambda row: order.cache.put((row,), "put"),
        "delete": order.cache.delete,
    }
    do = acts.get(act, order)
    if "first" not in act:
        do("warm")
        flush(apart)
        table.got.clear()
    redis_proxy.hang()
    do("first")
    redis_proxy.reset()
    for number in range(10):
        do(number)

    assert attempts(redis_proxy) == 0
    assert len(table.got) == 11


def test_a_write_past_a_journal_that_is_left_alone_ends_what_waits_there(
    apart: Celery, redis_proxy: RedisProxy, table: Table
) -> None:
    order, _ = task_of(apart)
    order.cache.put(("a",), "older")
    redis_proxy.refuse()
    order.cache.put(("b",), "opens the breaker")
    redis_proxy.heal()
    order.cache.put(("a",), "newer")
    assert table.values() == ["opens the breaker", "newer"]

    flush(apart)  # always tries, whatever the breaker says
    assert table.values() == ["opens the breaker", "newer"]
    order.cache.put(("c",), "behind again")
    assert (len(table.got), pending(apart)) == (2, 1)


def test_a_write_past_a_journal_that_was_away_answers_once_that_is_back(
    apart: Celery, redis_proxy: RedisProxy, table: Table
) -> None:
    apart.conf.cachetiers_breaker_window = 0.0
    order, _ = task_of(apart)
    order.cache.put(("a",), "older")
    redis_proxy.refuse()
    order.cache.put(("a",), "newer")
    redis_proxy.heal()
    order.cache.invalidate("a")

    assert order("a") == "a#1"  # the body, which reads what the sink has
    flush(apart)
    assert table.values() == ["newer", "a#1"]


def test_a_journal_that_is_left_alone_is_told_of_once(
    apart: Celery, redis_proxy: RedisProxy, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    order, _ = task_of(apart)
    redis_proxy.refuse()
    for number in range(3):
        order(number)
    redis_proxy.heal()
    with caplog.at_level(logging.INFO, "celery_cachetiers"):
        flush(apart)

    told = [record.message for record in caplog.records if "journal" in record.message]
    assert told == [
        "celery-cachetiers: the journal cannot be reached; what is written goes to its sink at once until it can",
        "celery-cachetiers: the journal answers again",
    ]


@pytest.mark.parametrize("elsewhere", [False, True])
def test_an_answer_that_is_lost_costs_a_second_delivery_of_an_older_sequence_at_most(
    app: Celery, redis_proxy: RedisProxy, redis_server: RedisServer, namespace: str, table: Table, elsewhere: bool
) -> None:
    order, _ = task_of(app)
    order("warm")
    flush(app)
    outlet = order.memoized.outlet
    redis_proxy.on_command = lambda command: redis_proxy.mute() if b"lost" in b"".join(command) else None
    assert outlet.deliver(order.cache.key("a"), ("a",), {}, "lost")
    redis_proxy.on_command = None
    redis_proxy.heal()
    with closing(cached_app(namespace, redis_server.url())) as other:
        flush(other if elsewhere else app)

    delivered = [write for write in table.got if write.value == "lost"]
    assert len(delivered) == (2 if elsewhere else 1)  # here it is known that the sink has it
    assert elsewhere is False or delivered[1].sequence < delivered[0].sequence


def test_a_write_that_no_replica_confirms_is_in_the_sink_at_once_and_once(app: Celery) -> None:
    table = Table()
    sink("rows", durability="replica")(table)
    order, _ = task_of(app)
    order("a")

    assert table.values() == ["a#1"]
    flush(app)
    assert table.values() == ["a#1"]


# ---- a look into the journal that fails ------------------------------------------------------------------------------


def lose(proxy: RedisProxy, script: str, times: int = 1000) -> None:
    """Loses the commands that run a script, sent again or not."""
    left = [None] * times

    def cut(command: tuple[bytes, ...]) -> None:
        if command[1:2] == (Script(script).sha.encode(),) and left:
            left.pop()
            proxy.cut()

    proxy.on_command = cut


@pytest.mark.parametrize("way", [direct, delayed])
@pytest.mark.parametrize("uncached", [False, True])
def test_what_is_computed_without_a_look_does_not_displace_what_waits(
    app: Celery, redis_proxy: RedisProxy, table: Table, way: Callable[..., Any], uncached: bool
) -> None:
    app.conf.cachetiers_breaker_window = 0
    order, count = task_of(app, **({"cache_enabled": False} if uncached else {"tags": ["row:{row}"]}))
    order.cache.put(("a",), "acknowledged")
    CacheTiers(app).invalidate_tag("row:a")
    lose(redis_proxy, "journal_begin")

    assert way(order, "a") == "a#1"  # the database behind the sink is older, and nobody could know
    redis_proxy.on_command = None
    if not uncached:
        assert order.cache.get("a") == "acknowledged"
        assert order.memoized.cache.look(order.memoized.call(("a",), {})) is None
        assert way(order, "a") == "acknowledged"
    flush(app)
    assert table.values() == ["acknowledged"]
    assert len(count) == 1


def test_a_look_that_was_lost_is_repeated(app: Celery, redis_proxy: RedisProxy, table: Table) -> None:
    order, count = task_of(app, tags=["row:{row}"])
    order.cache.put(("a",), "acknowledged")
    CacheTiers(app).invalidate_tag("row:a")
    lose(
        redis_proxy, "journal_begin", times=2
    )  # as a connection may have lain idle too long, the client repeats it too

    assert order("a") == "acknowledged"
    assert len(count) == 0


def test_nor_does_what_is_computed_inside_of_it(app: Celery, redis_proxy: RedisProxy, table: Table) -> None:
    app.conf.cachetiers_breaker_window = 0
    depth: list[int] = []

    @app.task(base=CachedTask, name="nested", sink="rows", write="behind", tags=["row:{row}"])
    def nested(row: str) -> str:
        depth.append(1)
        if len(depth) > 1:
            redis_proxy.on_command = None
            return "inner"
        nested(row)
        return "outer"

    nested.cache.put(("a",), "acknowledged")
    CacheTiers(app).invalidate_tag("row:a")
    lose(redis_proxy, "journal_begin")
    nested("a")
    flush(app)

    assert table.values() == ["acknowledged"]


def test_what_is_computed_without_a_look_is_written_where_nothing_waits(
    app: Celery, redis_proxy: RedisProxy, table: Table
) -> None:
    app.conf.cachetiers_breaker_window = 0
    order, _ = task_of(app)
    order("warm")
    lose(redis_proxy, "journal_begin")
    order("a")
    redis_proxy.on_command = None

    assert table.got == []
    flush(app)
    assert table.values() == ["warm#1", "a#2"]


def test_a_record_that_cannot_be_read_here_is_not_displaced(
    app: Celery, redis_server: RedisServer, table: Table
) -> None:
    app.conf.cachetiers_signing_key = "a key of this process"
    order, _ = task_of(app)
    with closing(cached_app(app.main, redis_server.url(), cachetiers_signing_key="the next release's key")) as other:
        stranger, _ = task_of(other)
        stranger.cache.put(("a",), "acknowledged")

        assert order("a") == "a#1"
        assert order.cache.get("a") is MISSING
        flush(other)
    assert table.values() == ["acknowledged"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_a_server_that_evicts_any_key_is_refused_at_the_first_write(
    namespace: str, redis_factory: RedisServers, table: Table
) -> None:
    server = redis_factory("--maxmemory-policy", "allkeys-lru")
    with closing(cached_app(namespace, server.url())) as app:
        order, _ = task_of(app)
        with pytest.raises(ConfigurationError, match="its maxmemory-policy is allkeys-lru"):
            order("a")

        assert order.cache.get("a") is MISSING
        assert table.got == []


@pytest.mark.parametrize("after", ["a flush", "an outage"])
def test_a_server_that_is_made_to_evict_any_key_is_written_past(
    namespace: str, redis_factory: RedisServers, table: Table, after: str
) -> None:
    own = redis_factory()
    with closing(cached_app(namespace, own.url())) as app, own.client() as admin:
        app.conf.cachetiers_timeout = 0.2
        order, _ = task_of(app)
        order.cache.put(("a",), 1)
        admin.config_set("maxmemory-policy", "allkeys-lru")
        if after == "a flush":
            flush(app)
        else:
            own.pause()
            with pytest.raises(TierUnavailable):
                order.cache.put(("b",), 2)
            own.resume()
            assert pending(app) > 0  # it answers again
        order.cache.put(("c",), 3)

        assert table.values() == ([1, 3] if after == "a flush" else [2, 3])
        flush(app)
        assert pending(app) == 0


def test_the_journal_may_be_elsewhere(namespace: str, redis_factory: RedisServers, table: Table) -> None:
    evicting, keeping = redis_factory("--maxmemory-policy", "allkeys-lru"), redis_factory()
    with closing(cached_app(namespace, evicting.url(), cachetiers_journal_url=keeping.url())) as app:
        order, _ = task_of(app)
        order("a")

        with keeping.client() as journal, evicting.client() as cache:
            assert {key.split(b":")[2] for key in journal.scan_iter()} == {b"rows}"}
            assert not [key for key in cache.scan_iter() if b"wb:" in key]


def test_a_sink_that_nobody_has_registered_is_refused_at_first_use(app: Celery) -> None:
    order, count = task_of(app, sink="nowhere")

    with pytest.raises(ConfigurationError, match=r"sink='nowhere' of task order .*has imported \(none yet\)"):
        order.delay("a")
    with pytest.raises(ConfigurationError):
        order("a")
    assert len(count) == 0


def test_to_delete_takes_a_sink(app: Celery) -> None:
    @app.task(base=CachedTask, name="plain")
    def plain(row: str) -> str:
        return row

    with pytest.raises(ConfigurationError, match="a sink to delete from"):
        plain.cache.delete("a")


def test_a_full_journal_raises_out_of_the_call(app: Celery) -> None:
    sink("rows", max_pending=1, when_full="raise")(Table())
    order, _ = task_of(app)
    order("a")

    with pytest.raises(JournalFull):
        order("b")
    assert order.cache.get("b") is MISSING


# ---- the end of a worker ---------------------------------------------------------------------------------------------


def test_a_drain_does_not_wait_for_a_sink_that_hangs(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    gate, got = Gate(), list[Write]()

    def hangs(writes: list[Write]) -> None:
        gate.pass_through()
        got.extend(writes)

    sink("rows")(hangs)
    order, _ = task_of(app)
    order("a")
    CacheTiers(app).writes.drain(0.05, patience=0.05)

    gate.wait_reached()
    assert "the journal is not drained: a sink has not taken its batch in time" in caplog.text
    gate.open()  # before its own ten seconds are over, in which it would have given up
    wait_until(lambda: len(got) == 1, timeout=10, message="the batch")


def test_a_drain_delivers_what_it_can(app: Celery, table: Table, caplog: pytest.LogCaptureFixture) -> None:
    order, _ = task_of(app)
    order("a")
    CacheTiers(app).writes.drain(10.0)

    assert table.values() == ["a#1"]
    assert "not drained" not in caplog.text


# ---- a sink that is loaded again -------------------------------------------------------------------------------------


def test_a_sink_that_was_loaded_again_gets_what_is_flushed_and_what_is_written_through(app: Celery) -> None:
    def load(batch_size: int) -> list[Any]:
        got: list[Any] = []
        sink("rows", batch_size=batch_size)(lambda writes: got.append([write.value for write in writes]))
        return got

    old = load(500)
    behind, _ = task_of(app)

    @app.task(base=CachedTask, name="through", sink="rows", write="through")
    def through(row: str) -> str:
        return row

    behind("a")
    through("t")
    flush(app)
    new = load(1)
    behind("b")
    behind("c")
    through("u")
    flush(app)

    assert old == [["t"], ["a#1"]]
    assert new == [["u"], ["b#2"], ["c#3"]]


# ---- who is asked to flush -------------------------------------------------------------------------------------------


def test_a_broker_that_is_away_fails_no_write_and_is_not_waited_for(
    app: Celery, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink("rows", batch_size=1)(Table())
    order, _ = task_of(app)
    flush_task, given = app.tasks["celery_cachetiers.flush"], []
    monkeypatch.setattr(
        flush_task, "apply_async", lambda *args, **options: given.append(options) or real(*args, **options)
    )
    real = type(flush_task).apply_async.__get__(flush_task)
    nobody = ReservedPort()
    app.conf.broker_url = f"redis://127.0.0.1:{nobody.number}/0"
    order.cache.put(("a",), "put")
    nobody.release()

    assert pending(app) == 1
    assert "no worker could be asked to flush rows" in caplog.text
    assert given[0]["retry_policy"]["max_retries"] == 1


def test_the_message_goes_to_the_queue_of_the_flushes_and_expires(app: Celery) -> None:
    sink("rows", batch_size=1)(Table())
    app.conf.update(cachetiers_flush_queue="flushes", cachetiers_flush_every=20.0)
    order, _ = task_of(app)
    order.cache.put(("a",), "put")

    assert published(app) == []
    app.conf.task_default_queue = "flushes"
    [message] = published(app)
    assert message.headers["task"] == "celery_cachetiers.flush"
    assert message.payload[0] == ["rows", 1.0]  # for a moment: there is one for each batch, and slots are for tasks
    assert message.headers["expires"]


def test_an_eager_app_asks_nobody(app: Celery) -> None:
    table = Table()
    sink("rows", batch_size=1)(table)
    order, _ = task_of(app)
    app.conf.task_always_eager = True
    order.cache.put(("a",), "put")

    assert published(app) == []
    assert table.got == []


# ---- what it costs ---------------------------------------------------------------------------------------------------


def trips(proxy: RedisProxy) -> int:
    return len([trip for trip in proxy.trips if not set(trip) <= BACKGROUND])


def warm(app: Celery, proxy: RedisProxy, order: Any) -> None:
    wait_listening(app)
    for _ in range(2):
        order.cache.put(("warm",), 1)
        order.cache.delete("warm")
        order("warm")
    order.cache.refresh("warm")
    flush(app)
    proxy.reset()


@pytest.mark.parametrize(("write", "more"), [("behind", 2), ("through", 3)])
def test_a_miss_costs_what_the_write_costs_more(
    app: Celery, redis_proxy: RedisProxy, table: Table, write: str, more: int
) -> None:
    order, _ = task_of(app, write=write)
    warm(app, redis_proxy, order)
    order("a")

    assert trips(redis_proxy) <= 3 + more
    redis_proxy.reset()
    order("a")
    assert trips(redis_proxy) == 0


def test_many_puts_are_one_round_trip(app: Celery, redis_proxy: RedisProxy, table: Table) -> None:
    order, _ = task_of(app)
    warm(app, redis_proxy, order)
    order.cache.put_many([((f"r{number}",), number) for number in range(10)])

    assert trips(redis_proxy) == 1
    assert [order.cache.get(f"r{number}") for number in range(10)] == list(range(10))
    flush(app)
    assert table.values()[-10:] == list(range(10))


def test_a_deletion_is_two_round_trips(app: Celery, redis_proxy: RedisProxy, table: Table) -> None:
    order, _ = task_of(app)
    warm(app, redis_proxy, order)
    order.cache.delete("a")

    assert trips(redis_proxy) == 2


@pytest.mark.parametrize(("write", "apart", "put", "put_many", "delete"), [
    ("behind", False, 2, 2, 3),
    ("behind", True, 4, 4, 3),
    ("through", False, 4, 6, 4),
])  # fmt: skip
def test_what_a_task_invalidates_is_one_round_trip_more(
    app: Celery, redis_proxy: RedisProxy, table: Table, write: str, apart: bool, put: int, put_many: int, delete: int
) -> None:
    if apart:
        app.conf.cachetiers_journal_url = redis_proxy.url(1)
    order, _ = task_of(app, write=write, invalidates=["page:{row}"])
    warm(app, redis_proxy, order)
    acts: list[Callable[[], None]] = [
        lambda: order.cache.put(("a",), 1),
        lambda: order.cache.put_many([((row,), row) for row in "bcd"]),
        lambda: order.cache.delete("a"),
    ]
    costs = []
    for act in acts:
        redis_proxy.reset()
        act()
        costs.append(trips(redis_proxy))

    assert costs == [put, put_many, delete]


def test_a_flush_of_many_deletions_costs_what_a_flush_of_one_does(
    app: Celery, redis_proxy: RedisProxy, table: Table
) -> None:
    order, _ = task_of(app)
    warm(app, redis_proxy, order)
    costs = []
    for deletions in (1, 50):
        for number in range(deletions):
            order.cache.delete(number)
        redis_proxy.reset()
        assert flush(app).taken == deletions
        costs.append(trips(redis_proxy))

    assert costs[0] == costs[1]


def test_writes_that_nobody_has_taken_cost_one_round_trip_to_the_cache(
    app: Celery, redis_proxy: RedisProxy, table: Table
) -> None:
    sink("rows", max_pending=1, when_full="raise")(table)
    order, _ = task_of(app)
    wait_listening(app)
    order.cache.put(("waits",), 1)
    costs = []
    for writes in (2, 50):
        redis_proxy.reset()
        with pytest.raises(JournalFull):
            order.cache.put_many([((number,), number) for number in range(writes)])
        costs.append(trips(redis_proxy))
        assert all(order.cache.get(number) is MISSING for number in range(writes))

    assert costs[0] == costs[1]


# ---- what waits answers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", ["evicted", "expired", "invalidated", "cleared"])
def test_reads_do_not_go_back_while_a_write_waits(
    app: Celery, table: Table, redis_server: RedisServer, gone: str
) -> None:
    tiers, heard = CacheTiers(app), []
    tiers.events.subscribe(lambda event, task, details: heard.append(details["tier"]), Event.HIT)
    signalled: list[Any] = []
    order, count = task_of(app, tags=["row:{row}"])
    order("a")
    before = order.cache.info()

    def receive(sender: Any, tier: str, stale: bool, key: str, **_: object) -> None:
        signalled.append((sender.name, tier, stale, key))

    cache_hit.connect(receive)
    try:
        if gone == "evicted":
            with redis_server.client() as client:
                client.delete(*client.keys(f"{app.conf.cachetiers_namespace}:*:e:*"))
            tiers.cache.parts.l1.clear()
        elif gone == "expired":
            tiers.cache.parts.l1.clear()
            with redis_server.client() as client:
                [entry] = client.keys(f"{app.conf.cachetiers_namespace}:*:e:*")
                client.pexpire(entry, 1)
                wait_until(lambda: not client.exists(entry), timeout=10, message="the entry's end")
        elif gone == "invalidated":
            tiers.invalidate_tag("row:a")
        else:
            tiers.clear()
        assert order("a") == "a#1"
    finally:
        cache_hit.disconnect(receive)

    info = order.cache.info()
    assert len(count) == 1
    assert (info.journal_hits, info.computes, info.misses) == (1, before.computes, before.misses)
    assert heard == ["journal"]
    assert signalled == [("order", "journal", False, order.cache.key("a"))]
    flush(app)
    assert table.values() == ["a#1"]


def test_once_it_is_flushed_the_body_is_asked_again(app: Celery, table: Table) -> None:
    order, _ = task_of(app)
    order("a")
    flush(app)
    order.cache.invalidate("a")

    assert order("a") == "a#2"
    assert order.cache.info().journal_hits == 0


def test_a_put_while_the_body_runs_wins_in_cache_journal_and_sink(app: Celery, table: Table) -> None:
    gate = Gate()

    @app.task(base=CachedTask, name="order", sink="rows", write="behind")
    def order(row: str) -> str:
        gate.pass_through()
        return "computed"

    thread = threading.Thread(target=order, args=("a",))
    thread.start()
    gate.wait_reached()
    order.cache.put(("a",), "put")
    gate.open()
    thread.join()

    assert order.cache.get("a") == "put"
    order.cache.invalidate("a")
    assert order("a") == "put"
    flush(app)
    assert table.values() == ["put"]


def test_who_does_not_compute_gets_what_waits(app: Celery, table: Table) -> None:
    order, count = task_of(app)
    order.cache.put(("a",), "put")
    order.cache.invalidate("a")

    assert order.cache.get("a") == "put"
    assert eager(order, "a", cache_mode="only") == "put"
    assert order.cache.info().journal_hits == 2
    order.cache.delete("a")
    assert order.cache.get("a") is MISSING
    with pytest.raises(NotCached):
        eager(order, "a", cache_mode="only")
    with pytest.raises(NotCached):
        eager(order, "b", cache_mode="only")
    assert len(count) == 0


@pytest.mark.parametrize(("write", "more"), [("behind", 1), ("through", 0)])
def test_a_look_that_misses_asks_the_journal_too(
    app: Celery, redis_proxy: RedisProxy, table: Table, write: str, more: int
) -> None:
    order, _ = task_of(app, write=write)
    warm(app, redis_proxy, order)
    redis_proxy.reset()

    assert order.cache.get("a") is MISSING
    assert trips(redis_proxy) == 1 + more


class Database:
    """A sink that compares nothing, and a body that reads what it has."""

    def __init__(self, app: Celery, write: str, cache_enabled: bool = True, **values: Any) -> None:
        self.values, self.slow = values, threading.local()
        self.error: Exception | None = None
        self.gate = Gate()
        sink("rows")(self.save)

        @app.task(base=CachedTask, name="read", sink="rows", write=write, l1=False, cache_enabled=cache_enabled)
        def read(row: str) -> Any:
            value = self.values.get(row)
            if getattr(self.slow, "body", False):
                self.gate.pass_through()
            return value

        self.read: Any = read

    def save(self, writes: list[Write]) -> None:
        if self.error is not None:
            raise self.error
        for write in writes:
            self.values[write.args[0]] = None if write.deleted else write.value

    def read_slowly(self, row: str) -> None:
        self.slow.body = True
        self.read(row)

    def forget(self, row: str) -> None:
        self.read.cache.invalidate(row)


@pytest.mark.parametrize("write", ["behind", "through"])
@pytest.mark.parametrize("deleted", [False, True])
def test_a_body_that_ends_after_a_newer_write_was_flushed_does_not_bring_the_old_value_back(
    app: Celery, write: str, deleted: bool
) -> None:
    database = Database(app, write, a=10)
    thread = threading.Thread(target=database.read_slowly, args=("a",))
    thread.start()
    database.gate.wait_reached()
    if deleted:
        database.read.cache.delete("a")
    else:
        database.read.cache.put(("a",), 9)
    flush(app)
    database.gate.open()
    thread.join()
    newest = None if deleted else 9

    database.forget("a")
    assert database.read("a") == newest
    flush(app)
    assert database.values == {"a": newest}


def refresh(read: Any) -> Any:
    return read.cache.refresh("a")


def refresh_eagerly(read: Any) -> Any:
    return read.apply(("a",), cache_mode="refresh").get()


def bypass(read: Any) -> Any:
    return read.apply(("a",), cache_mode="bypass").get()


def off(read: Any) -> Any:
    CacheTiers(read.app).suspended = True
    try:
        return read("a")
    finally:
        CacheTiers(read.app).suspended = False


ANYWAY = [refresh, refresh_eagerly, bypass, off]


@pytest.mark.parametrize("act", ANYWAY)
def test_a_body_that_runs_whatever_waits_finds_it_in_the_database(app: Celery, act: Callable[[Any], Any]) -> None:
    database = Database(app, "behind", a=10)
    database.read.cache.put(("a",), 9)

    assert act(database.read) == 9
    flush(app)
    assert (database.values, database.read("a")) == ({"a": 9}, 9)


@pytest.mark.parametrize("act", ANYWAY)
def test_nor_does_it_displace_what_its_sink_does_not_take(app: Celery, act: Callable[[Any], Any]) -> None:
    database = Database(app, "behind", a=10)
    database.read.cache.put(("a",), 9)
    database.error = SinkUnavailable("down")
    assert act(database.read) == 10
    database.error = None

    assert database.read("a") == 9
    database.forget("a")
    assert database.read("a") == 9
    CacheTiers(app).writes.flush_key(find("rows"), database.read.cache.key("a"))
    assert database.values == {"a": 9}


def test_an_uncached_task_does_not_displace_what_was_put(app: Celery) -> None:
    database = Database(app, "behind", cache_enabled=False, a=10)
    database.read.cache.put(("a",), 9)

    assert database.read("a") == 9


def test_a_value_that_json_cannot_hold_ends_what_waited_before_it(app: Celery, table: Table) -> None:
    order, _ = task_of(app)
    odd = object()
    order.memoized.outlet.deliver(order.cache.key("a"), ("a",), {}, "older")
    order.memoized.outlet.deliver(order.cache.key("a"), ("a",), {}, odd)

    assert table.values() == ["older", odd]
    assert pending(app) == 0
