"""``cachetiers_l1_tracking``: what befalls the tags' versions without a word of ours ends the copies in memory.

Two apps of one namespace stand for two processes: each has an L1, a backplane and connections of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers
from celery_cachetiers.client import Script
from celery_cachetiers.events import Event
from celery_cachetiers.signals import tag_invalidated
from tests.integration.apps.local import cached_app, closing, wait_listening
from tests.integration.test_coherence import Neighbour, forked
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import FLAVOURS, RedisServer, RedisServers

PATIENCE = 20
DATABASE, ANOTHER = 2, 3


class Told:
    """The names that a process has heard of, and its gaps, to be waited for."""

    def __init__(self, app: Celery) -> None:
        self._changed = threading.Condition()
        self.names: list[str] = []
        self.gaps = 0
        CacheTiers(app).events.subscribe(self, Event.HEARD, Event.GAP)

    def __call__(self, event: Event, task: str, details: dict[str, Any]) -> None:
        with self._changed:
            self.names.extend(details.get("names", ()))
            self.gaps += event is Event.GAP
            self._changed.notify_all()

    def wait_name(self, name: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: name in self.names, PATIENCE), self.names

    def wait_gap(self) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.gaps > 0, PATIENCE)


@pytest.fixture(params=FLAVOURS)
def server(request: pytest.FixtureRequest, redis_factory: RedisServers) -> RedisServer:
    return redis_factory(flavour=request.param)


Start = Callable[..., Celery]


@pytest.fixture
def start(namespace: str, server: RedisServer) -> Iterator[Start]:
    """``start(**conf)`` is a process that tracks."""
    with ExitStack() as stack:

        def go(**conf: Any) -> Celery:
            settings = {"url": server.url(DATABASE), "cachetiers_l1_tracking": True, "cachetiers_l1_ttl": 600, **conf}
            app = stack.enter_context(closing(cached_app(namespace, **settings)))
            wait_listening(app)
            return app

        yield go


@pytest.fixture
def cli(server: RedisServer) -> Iterator[redis.Redis]:
    """Foreign hands."""
    with server.client(db=DATABASE) as client:
        yield client


def pager(app: Celery, **options: Any) -> Any:
    def page(user: str) -> str:
        return f"page of {user}"

    return app.task(page, **{"base": CachedTask, "name": "page", "tags": ["user:{user}"], **options})


def in_l1(task: Any, user: str) -> Any:
    memoized = task._memoized or task._memoize()
    return memoized.cache.recall(memoized.call((user,), {}))


def kept(task: Any, *users: str) -> None:
    """Has L1 keep the pages. A put that a report has overtaken is refused, so it may take more than one read."""
    for user in users:
        task(user)
        wait_until(lambda user=user: task(user) and in_l1(task, user) is not MISSING, timeout=PATIENCE, message=user)


def version(namespace: str, tag: str) -> str:
    return f"{namespace}:{{0}}:t:{tag}"


def settled(app: Celery, told: Told, namespace: str, cli: redis.Redis) -> None:
    """Returns when the process has looked into everything that was reported so far: reports come in order."""

    def last() -> int:
        return 0

    task = app.task(last, base=CachedTask, name="last", tags=["last"])
    task()
    wait_until(lambda: task() == 0 and CacheTiers(app).counters.of("last").l1_hits, timeout=PATIENCE, message="L1")
    cli.delete(version(namespace, "last"))
    told.wait_name("last")


# -- what ends a copy -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["delete", "unlink", "overwrite", "expire", "script"])
def test_a_version_that_is_gone_ends_the_copies_under_its_tag_in_every_process(
    start: Start, cli: redis.Redis, namespace: str, how: str
) -> None:
    apps = [start(), start()]
    pages, told = [pager(app) for app in apps], [Told(app) for app in apps]
    for page in pages:
        kept(page, "a", "b")

    key = version(namespace, "user:a")
    acts: dict[str, Callable[[], object]] = {
        "delete": lambda: cli.delete(key),
        "unlink": lambda: cli.unlink(key),
        "overwrite": lambda: cli.set(key, b"12345678"),
        "expire": lambda: cli.pexpire(key, 30),
        "script": lambda: cli.eval("return redis.call('DEL', KEYS[1])", 1, key),
    }
    acts[how]()
    for each in told:
        each.wait_name("user:a")

    assert [in_l1(page, "a") for page in pages] == [MISSING, MISSING]
    assert [in_l1(page, "b") for page in pages] == ["page of b", "page of b"]


def test_a_copy_in_a_process_that_does_nothing_goes_when_its_version_is_deleted_by_hand(
    server: RedisServer, cli: redis.Redis, namespace: str
) -> None:
    neighbour = Neighbour(server.url(DATABASE), namespace, cachetiers_l1_tracking=True, cachetiers_l1_ttl=600)
    try:
        neighbour.do("listen")
        neighbour.do("page", "a")
        wait_until(lambda: neighbour.do("page", "a") and neighbour.do("in_l1", "a"), timeout=PATIENCE, message="L1")
        cli.delete(version(namespace, "user:a"))

        wait_until(lambda: neighbour.do("in_l1", "a") is None, timeout=PATIENCE, message="the end of the copy")
    finally:
        neighbour.close()


@pytest.mark.parametrize("how", ["FLUSHALL", "FLUSHDB", "FLUSHALL ASYNC"])
def test_a_flush_ends_every_copy_and_l1_is_in_use_again_at_once(start: Start, cli: redis.Redis, how: str) -> None:
    app = start()
    page, told = pager(app), Told(app)
    kept(page, "a", "b")

    cli.execute_command(how)
    told.wait_gap()

    assert (in_l1(page, "a"), in_l1(page, "b")) == (MISSING, MISSING)
    kept(page, "a")
    assert told.gaps == 1


def test_the_flush_of_another_database_ends_nothing(
    start: Start, cli: redis.Redis, server: RedisServer, namespace: str
) -> None:
    app = start()
    page, told = pager(app), Told(app)
    kept(page, "a")

    with server.client(db=ANOTHER) as other:
        other.set(version(namespace, "user:a"), "x")
        other.flushdb()
    settled(app, told, namespace, cli)

    assert told.gaps == 0
    assert told.names == ["last"]
    assert in_l1(page, "a") == "page of a"


def test_an_eviction_ends_the_copies(start: Start, cli: redis.Redis) -> None:
    app = start()
    page, told = pager(app), Told(app)
    kept(page, "a")

    cli.config_set("maxmemory-policy", "allkeys-lru")
    cli.config_set("maxmemory", 1)
    told.wait_name("@all")

    assert in_l1(page, "a") is MISSING
    assert cli.dbsize() == 0


def test_a_version_that_goes_while_its_entry_is_read_keeps_the_entry_out_of_memory(
    start: Start, server: RedisServer, cli: redis.Redis, namespace: str
) -> None:
    """The report of a tag that nothing depends on yet comes between the read and the put."""
    pager(start())("a")
    with RedisProxy(server.port) as proxy:
        app = start(url=proxy.url(DATABASE))
        page, told = pager(app), Told(app)
        other = pager(app, name="other")
        kept(other, "b")
        settled(app, told, namespace, cli)
        l1: Any = CacheTiers(app).cache.parts.l1
        before = l1._reports
        put = l1.put

        def overtaken(*args: Any, **kwargs: Any) -> bool:
            l1.put = put
            cli.delete(version(namespace, "user:a"))
            wait_until(lambda: l1._reports > before, timeout=PATIENCE, message="the report")
            return bool(put(*args, **kwargs))

        l1.put = overtaken
        assert page("a") == "page of a"

        assert in_l1(page, "a") is MISSING
        assert in_l1(other, "b") == "page of b"
        assert told.names == ["last"]


# -- what does not ----------------------------------------------------------------------------------------------------


def test_a_thousand_misses_of_a_task_end_no_other_copy_of_it(start: Start, cli: redis.Redis, namespace: str) -> None:
    here, there = start(), start()
    busy, page, told = pager(here), pager(there), Told(there)
    users = [f"kept{number}" for number in range(20)]
    kept(page, *users)

    for number in range(1000):
        busy(f"{number}")
    settled(there, told, namespace, cli)

    assert busy.cache.info().misses == 1000
    assert busy.cache.info().stores == 1000
    assert [user for user in users if in_l1(page, user) is MISSING] == []
    assert told.names == ["last"]
    assert told.gaps == 0


def test_an_announced_invalidation_is_told_as_one_and_once(start: Start, cli: redis.Redis, namespace: str) -> None:
    here, there = start(), start()
    page, told, heard = pager(there), Told(there), list[tuple[str, bool]]()
    kept(page, "a", "b")
    cli.script_load(Script("invalidate").source)  # else it is announced again, once the server knows the script

    def note(tag: str, heard_of: list[tuple[str, bool]] = heard, **kwargs: Any) -> None:
        heard_of.append((tag, kwargs["heard"]))

    tag_invalidated.connect(note, sender=there)
    try:
        CacheTiers(here).invalidate_tag("user:a")
        told.wait_name("user:a")
        cli.delete(version(namespace, "user:b"))
        told.wait_name("user:b")
    finally:
        tag_invalidated.disconnect(note, sender=there)

    assert heard == [("user:a", True)]


def test_without_the_setting_nothing_is_reported(start: Start, cli: redis.Redis) -> None:
    app = start(cachetiers_l1_tracking=False)
    kept(pager(app), "a")
    flags = [each["flags"] for each in cli.client_list()]

    assert [each for each in flags if "t" in each or "B" in each] == []
    assert type(CacheTiers(app).cache.parts.l1).__name__ == "MemoryTier"


# -- the connection ------------------------------------------------------------------------------------------------


def test_a_connection_that_comes_back_tracks_again(
    start: Start, server: RedisServer, cli: redis.Redis, namespace: str
) -> None:
    with RedisProxy(server.port) as proxy:
        app = start(url=proxy.url(DATABASE))
        page, told = pager(app), Told(app)
        kept(page, "a")
        proxy.refuse()
        told.wait_gap()
        proxy.heal()
        wait_listening(app)
        kept(page, "a")

        cli.delete(version(namespace, "user:a"))
        told.wait_name("user:a")

        assert in_l1(page, "a") is MISSING


def test_versions_that_cannot_be_looked_up_count_as_gone(
    start: Start, cli: redis.Redis, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = start()
    page, told = pager(app), Told(app)
    kept(page, "a")
    breaker = CacheTiers(app).cache.parts.store._client.breaker  # type: ignore[union-attr]
    monkeypatch.setattr(breaker, "allows", lambda: False)  # open, whatever a heartbeat under way says

    cli.pexpire(version(namespace, "user:a"), 600_000)
    told.wait_name("user:a")

    assert in_l1(page, "a") is MISSING


@pytest.mark.parametrize("denied", ["-client", "-client|tracking", "resetchannels"])
def test_where_tracking_is_not_permitted_that_is_said_once_and_the_rest_works(
    start: Start, server: RedisServer, cli: redis.Redis, namespace: str, denied: str, caplog: pytest.LogCaptureFixture
) -> None:
    if server.flavour == "redis-6.2" and "|" in denied:
        pytest.skip("6.2 cannot deny one subcommand")
    rules = [
        "on",
        ">secret",
        "~*",
        "+@all",
        denied,
        *(["&" + namespace + "*"] if denied == "resetchannels" else ["&*"]),
    ]
    cli.execute_command("ACL", "SETUSER", "cache", *rules)
    url = server.url(DATABASE).replace("//", "//cache:secret@")
    with caplog.at_level(logging.WARNING, "celery_cachetiers"):
        here, there = start(url=url), start()
        page, told = pager(here), Told(here)
        kept(page, "a")
        CacheTiers(there).invalidate_tag("user:a")
        told.wait_name("user:a")
        cli.client_kill_filter(_type="pubsub")
        told.wait_gap()
        wait_listening(here)
        kept(page, "b")

    assert in_l1(page, "a") is MISSING
    assert in_l1(page, "b") == "page of b"
    assert caplog.text.count("cachetiers_l1_tracking has no effect here") == 1


def test_the_rights_that_are_documented_are_enough(
    start: Start, server: RedisServer, cli: redis.Redis, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    load = "+script" if server.flavour == "redis-6.2" else "+script|load"
    commands = ["mget", "get", "getrange", "set", "del", "unlink", "exists", "pttl", "pexpire", "sadd", "smembers"]
    commands += ["hmget", "hset", "hincrby", "hlen", "evalsha", "publish", "subscribe", "select", "info"]
    channels = ["resetchannels", f"&{namespace}:*", "&__redis__:invalidate"]
    rights = [*(f"+{command}" for command in commands), load, "+client|id", "+client|tracking"]
    cli.execute_command("ACL", "SETUSER", "cache", "on", ">secret", f"~{namespace}:*", *channels, "-@all", *rights)
    app = start(url=server.url(DATABASE).replace("//", "//cache:secret@"))
    page, told = pager(app), Told(app)
    kept(page, "a")
    cli.delete(version(namespace, "user:a"))
    told.wait_name("user:a")

    assert "cachetiers_l1_tracking" not in caplog.text


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: a fork with threads, as prefork's
def test_a_forked_child_tracks_on_a_connection_of_its_own(start: Start, cli: redis.Redis, namespace: str) -> None:
    app = start()
    page = pager(app)
    kept(page, "a")

    def in_child() -> list[Any]:
        before = in_l1(page, "a") is MISSING
        wait_listening(app)
        told = Told(app)
        kept(page, "a")
        cli.delete(version(namespace, "user:a"))
        told.wait_name("user:a")
        return [before, in_l1(page, "a") is MISSING]

    assert forked(in_child) == [True, True]
    wait_until(lambda: in_l1(page, "a") is MISSING, timeout=PATIENCE, message="the end of the parent's copy")
