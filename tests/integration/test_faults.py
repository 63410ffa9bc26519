"""Redis is dead, stuck, slow, full, read-only or another's: every task gives its value, and recovers by itself."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers, TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.testing import FakeClock, Gate
from tests.integration.apps.local import Count, cached_app, closing, published, wait_listening
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers

TIMEOUT = 0.1
"""Of the apps here: what a call may lose to a Redis that does not answer, per read from the socket."""

CALLS = 20


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(proxied(namespace, redis_proxy)) as app:
        yield app


def proxied(namespace: str, proxy: RedisProxy, **conf: Any) -> Celery:
    settings = {"cachetiers_timeout": TIMEOUT, "cachetiers_breaker_window": 0.05, **conf}
    return cached_app(namespace, proxy.url(), **settings)


def squarer(app: Celery, count: Count | None = None, **options: Any) -> Any:
    def square(x: int) -> int:
        if count is not None:
            count(x)
        return x * x

    return app.task(square, **{"base": CachedTask, "name": "square", "tags": ["square:{x}"], **options})


FAULTS: dict[str, Callable[[RedisProxy], None]] = {
    "refused": RedisProxy.refuse,
    "hanging": RedisProxy.hang,
    "muted": RedisProxy.mute,
    "cut": RedisProxy.cut,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("warm", [True, False], ids=["connected", "never connected"])
def test_every_call_gives_its_value_and_recovers(app: Celery, redis_proxy: RedisProxy, fault: str, warm: bool) -> None:
    count = Count()
    square = squarer(app, count)
    if warm:
        wait_listening(app)
        square(0)
    FAULTS[fault](redis_proxy)

    assert [square(x) for x in (2, 3, 2, 3, 2)] == [4, 9, 4, 9, 4]
    assert square.apply((4,)).get() == 16
    square.delay(5)
    assert square.cache.get(77) is MISSING
    assert {(2,), (3,), (4,)} <= set(count.calls)

    redis_proxy.heal()
    wait_listening(app, 20)
    wait_until(lambda: [square(6), square.cache.get(6)][1] == 36, timeout=10, message="a cached value after recovery")
    before = len(count)
    assert [square(6) for _ in range(3)] == [36] * 3
    assert len(count) == before
    CacheTiers(app).invalidate_tag("square:6")
    assert square.cache.get(6) is MISSING


@pytest.mark.parametrize("fault", ["refused", "hanging", "muted"])
def test_what_is_said_explicitly_says_when_it_was_not_done(app: Celery, redis_proxy: RedisProxy, fault: str) -> None:
    square = squarer(app)
    square(2)
    FAULTS[fault](redis_proxy)

    for act in (
        lambda: CacheTiers(app).invalidate_tag("square:2"),
        lambda: CacheTiers(app).clear(),
        lambda: square.cache.invalidate(2),
        lambda: square.cache.put((2,), 5),
    ):
        with pytest.raises(TierUnavailable):
            act()

    redis_proxy.heal()
    CacheTiers(app).invalidate_tag("square:2")
    assert square.cache.get(2) is MISSING


@pytest.mark.parametrize("fault", ["refused", "hanging", "muted"])
def test_an_invalidation_that_failed_has_ended_the_copy_in_this_process(
    app: Celery, redis_proxy: RedisProxy, fault: str
) -> None:
    square = squarer(app)
    wait_listening(app)
    square(2)
    FAULTS[fault](redis_proxy)

    with pytest.raises(TierUnavailable):
        CacheTiers(app).invalidate_tag("square:2")
    assert square.cache.get(2) is MISSING


@pytest.mark.parametrize("fault", ["hanging", "muted"])
def test_a_stuck_redis_costs_one_timeout_per_breaker_window(
    namespace: str, redis_proxy: RedisProxy, fault: str
) -> None:
    app = proxied(namespace, redis_proxy, cachetiers_breaker_window=60, cachetiers_timeout=0.25)
    with closing(app):
        square = squarer(app)
        square(0)
        backplane = CacheTiers(app).cache.parts.backplane
        assert backplane is not None
        backplane.close()  # its own reconnects are not what is counted
        redis_proxy.reset()
        FAULTS[fault](redis_proxy)

        began = time.monotonic()
        values = [square(x) for x in range(CALLS)]
        took = time.monotonic() - began

        assert values == [x * x for x in range(CALLS)]
        assert redis_proxy.connections == 0
        assert redis_proxy.commands.total() <= 1
        assert took < CALLS * 0.25 / 2


def test_a_dead_redis_is_tried_once_per_breaker_window(namespace: str) -> None:
    """Counted where the attempts arrive: a server that accepts and says nothing."""
    clock = FakeClock(time.time())
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    accepted.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        conf = {"cachetiers_timeout": 0.05, "cachetiers_breaker_window": 5.0}
        with closing(cached_app(namespace, url, **conf)) as app:
            CacheTiers(app).clock = clock
            backplane = CacheTiers(app).cache.parts.backplane
            assert backplane is not None
            backplane.close()
            square = squarer(app)
            attempts = []
            for _ in range(3):
                assert [square(x) for x in range(CALLS)] == [x * x for x in range(CALLS)]
                square.delay(3)
                attempts.append(len(accepted))
                clock.advance(5.1)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)
        for connection in accepted:
            connection.close()

    assert attempts == [1, 2, 3]


def test_many_threads_lose_one_timeout_each_at_most(namespace: str, redis_proxy: RedisProxy) -> None:
    app = proxied(namespace, redis_proxy, cachetiers_breaker_window=60, cachetiers_timeout=0.25)
    with closing(app), ThreadPoolExecutor(16) as pool:
        square = squarer(app)
        square(0)
        redis_proxy.hang()

        began = time.monotonic()
        values = list(pool.map(square, range(160)))
        took = time.monotonic() - began

    assert values == [x * x for x in range(160)]
    assert took < 160 * 0.25 / 4


def test_a_dripping_redis_is_bounded_too(namespace: str, redis_proxy: RedisProxy) -> None:
    """No single read times out: the bound is on the whole of an answer."""
    app = proxied(namespace, redis_proxy, cachetiers_breaker_window=60)
    with closing(app):
        square = squarer(app)
        square(0)
        CacheTiers(app).cache.parts.store.close()  # type: ignore[union-attr]  # a new connection, with its INFO
        redis_proxy.drip(1, 0.02)

        began = time.monotonic()
        values = [square(x) for x in range(3)]
        took = time.monotonic() - began
        redis_proxy.heal()

    assert values == [0, 1, 4]
    assert took < 10 * TIMEOUT + 2


def test_a_big_answer_that_drips_is_bounded_too(namespace: str, redis_proxy: RedisProxy) -> None:
    app = proxied(namespace, redis_proxy, cachetiers_breaker_window=60)
    with closing(app):
        count = Count()

        @app.task(base=CachedTask, name="big", l1=False)
        def big() -> str:
            count()
            return "x" * 5000

        big()
        redis_proxy.drip(10, 0.02)

        began = time.monotonic()
        value = big()
        took = time.monotonic() - began
        redis_proxy.heal()

    assert value == "x" * 5000
    assert took < 10 * TIMEOUT + 2


@pytest.mark.parametrize("command", ["MGET", "EVALSHA"])
@pytest.mark.parametrize("fault", ["cut", "mute"])
def test_a_fault_in_the_middle_of_a_command_costs_no_value(
    app: Celery, redis_proxy: RedisProxy, command: str, fault: str
) -> None:
    count = Count()
    square = squarer(app, count)
    square(0)
    hits: list[str] = []

    def break_it(sent: tuple[bytes, ...]) -> None:
        if sent[0].upper() == command.encode() and not hits:
            hits.append(command)
            FAULTS[{"cut": "cut", "mute": "muted"}[fault]](redis_proxy)

    redis_proxy.on_command = break_it
    value = square(3)
    redis_proxy.on_command = None
    redis_proxy.heal()

    assert value == 9
    assert hits == [command]
    assert count.calls.count((3,)) == 1
    wait_until(lambda: square(4) == 16 and square.cache.get(4) == 16, timeout=20, message="recovery")


def test_a_lost_answer_to_the_commit_costs_no_value_and_no_later_one(app: Celery, redis_proxy: RedisProxy) -> None:
    """The server has stored the value, and the client never learns of it."""
    count = Count()

    @app.task(base=CachedTask, name="square")
    def square(x: int) -> int:
        count(x)
        redis_proxy.mute()
        return x * x

    assert square(3) == 9
    redis_proxy.heal()
    wait_until(lambda: square.cache.get(3) == 9, timeout=20, message="the value that was stored")

    assert len(count) == 1


# -- faults of the server itself ----------------------------------------------------------------------------------


def own(namespace: str, server: RedisServer, **conf: Any) -> Celery:
    settings = {"cachetiers_timeout": 0.5, "cachetiers_breaker_window": 0.05, **conf}
    return cached_app(namespace, server.url(), **settings)


def test_a_server_killed_while_a_task_computes(namespace: str, redis_factory: RedisServers) -> None:
    server, count = redis_factory(), Count()
    with closing(own(namespace, server)) as app:

        @app.task(base=CachedTask, name="square")
        def square(x: int) -> int:
            if count(x) == 1:
                server.kill()
            return x * x

        assert square(3) == 9
        assert square(4) == 16
        server.start()
        wait_until(lambda: square(5) == 25 and square.cache.get(5) == 25, timeout=20, message="recovery")
        before = len(count)
        assert square(5) == 25
        assert len(count) == before


def test_a_restarted_server_starts_cold_and_costs_no_value(namespace: str, redis_factory: RedisServers) -> None:
    """What it has saved is from before an invalidation that it may have forgotten."""
    server, count = redis_factory("--save", "3600 1"), Count()
    with closing(own(namespace, server)) as app:
        square = squarer(app, count)
        assert square(3) == 9
        with server.client() as client:
            client.save()
        server.kill()
        server.start()
        with server.client() as client:
            saved = client.dbsize()

        assert saved > 0
        assert square(3) == 9
        assert len(count) == 2


def test_a_flushed_server_refuses_the_commit_and_the_value_reaches_its_caller(
    namespace: str, redis_factory: RedisServers
) -> None:
    server, count = redis_factory(), Count()
    with closing(own(namespace, server)) as app, server.client() as client:

        @app.task(base=CachedTask, name="square")
        def square(x: int) -> int:
            if count(x) == 1:
                client.flushall()
            return x * x

        assert square(3) == 9
        assert square.cache.get(3) is MISSING
        assert square(3) == 9
        assert square(3) == 9
        assert len(count) == 2
        client.script_flush()
        assert square(4) == 16
        assert square.cache.get(4) == 16


def test_a_read_only_replica_serves_hits_and_computes_the_rest(namespace: str, redis_factory: RedisServers) -> None:
    primary, replica = redis_factory(), redis_factory()
    with replica.client() as client:
        client.replicaof("127.0.0.1", primary.port)
        wait_until(lambda: client.info("replication")["master_link_status"] == "up", timeout=20, message="the replica")
        count = Count()
        with closing(own(namespace, replica)) as app:
            square = squarer(app, count)
            assert [square(3), square(3), square.apply((3,)).get()] == [9, 9, 9]
            assert len(count) == 3
            with pytest.raises(TierUnavailable):
                square.cache.put((3,), 1)
            with pytest.raises(TierUnavailable):
                CacheTiers(app).invalidate_tag("square:3")
            client.replicaof("NO", "ONE")
            wait_until(lambda: square(3) == 9 and square.cache.get(3) == 9, timeout=20, message="a primary")


def test_a_full_server_costs_no_value(namespace: str, redis_factory: RedisServers) -> None:
    server, count = redis_factory("--maxmemory-policy", "noeviction"), Count()
    with closing(own(namespace, server)) as app, server.client() as client:
        square = squarer(app, count)
        square(1)
        client.config_set("maxmemory", "1mb")
        assert [square(3), square(3)] == [9, 9]
        assert square.cache.get(1) in (1, MISSING)
        try:
            square.cache.put((3,), 10)
        except TierUnavailable:
            assert square.cache.get(3) is MISSING
        else:  # a script may write past the limit once it has written anything
            assert square.cache.get(3) == 10
            square.cache.invalidate(3)
        client.config_set("maxmemory", "0")
        wait_until(lambda: square(3) == 9 and square.cache.get(3) == 9, timeout=20, message="room")


def test_a_server_that_fills_up_while_a_task_computes_leaves_no_lease_behind(
    namespace: str, redis_factory: RedisServers
) -> None:
    server, count = redis_factory("--maxmemory-policy", "noeviction"), Count()
    with closing(own(namespace, server)) as app, server.client() as client:

        @app.task(base=CachedTask, name="square")
        def square(x: int) -> int:
            if count(x) == 1:
                client.config_set("maxmemory", "1mb")
            return x * x

        assert square(3) == 9
        client.config_set("maxmemory", "0")
        assert list(client.scan_iter(f"{namespace}:*:l:*")) == []
        wait_until(lambda: square(3) == 9 and square.cache.get(3) == 9, timeout=20, message="room")
        assert len(count) == 2


def test_a_wrong_password_costs_no_value(namespace: str, redis_factory: RedisServers) -> None:
    server, count = redis_factory(), Count()
    with server.client() as client:
        client.config_set("requirepass", "right")
    wrong = f"redis://:wrong@127.0.0.1:{server.port}/0"
    with closing(cached_app(namespace, wrong, cachetiers_breaker_window=0.05)) as app:
        square = squarer(app, count)
        assert [square(3), square(3)] == [9, 9]
        with pytest.raises(TierUnavailable) as caught:
            CacheTiers(app).invalidate_tag("square:3")
        assert "wrong" not in str(caught.value).replace("WRONGPASS", "")
    with closing(cached_app(namespace, wrong.replace("wrong", "right"))) as app:
        square = squarer(app, count)
        assert [square(3), square(3)] == [9, 9]
        assert len(count) == 3


def test_a_user_without_the_right_to_ask_info_caches_all_the_same(namespace: str, redis_factory: RedisServers) -> None:
    server, count = redis_factory(), Count()
    with server.client() as client:
        client.acl_setuser(
            "app", enabled=True, passwords=["+secret"], keys=["*"], channels=["*"], categories=["+@all"],
            commands=["-info"],
        )  # fmt: skip
    with closing(cached_app(namespace, f"redis://app:secret@127.0.0.1:{server.port}/0")) as app:
        square = squarer(app, count)
        assert [square(3), square(3)] == [9, 9]
        assert len(count) == 1


@pytest.mark.parametrize("query", ["protocol=3", "decode_responses=true"])
def test_options_of_the_driver_in_the_url_break_nothing(namespace: str, redis_server: RedisServer, query: str) -> None:
    count = Count()
    with closing(cached_app(namespace, f"{redis_server.url()}?{query}")) as app:
        square = squarer(app, count)
        assert [square(3), square(3)] == [9, 9]
        assert len(count) == 1
        wait_listening(app)


# -- what an interrupted call leaves behind -----------------------------------------------------------------------


class Interruption(Exception):
    """As Celery's SoftTimeLimitExceeded: raised by a signal handler wherever the main thread is."""


def test_an_interruption_inside_a_read_leaves_no_connection_out_of_step(
    app: Celery, redis_proxy: RedisProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    square = squarer(app, l1=False)
    for x in (2, 3):
        square(x)
    main = threading.get_ident()

    def interrupt(*_: object) -> None:
        raise Interruption

    def strike(sent: tuple[bytes, ...]) -> None:
        if sent[0].upper() == b"MGET":
            redis_proxy.on_command = None
            redis_proxy.mute()
            signal.pthread_kill(main, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        redis_proxy.on_command = strike
        with pytest.raises(Interruption):
            square(2)
    finally:
        signal.signal(signal.SIGUSR1, before)
        redis_proxy.heal()

    assert [square(3), square(2), square(3), square.cache.get(2)] == [9, 4, 9, 4]


def test_an_interruption_inside_the_body_frees_the_lease(app: Celery) -> None:
    count = Count()

    @app.task(base=CachedTask, name="square", lease_ttl=60.0)
    def square(x: int) -> int:
        if count(x) == 1:
            raise Interruption
        return x * x

    with pytest.raises(Interruption):
        square(3)

    assert square(3) == 9


def test_followers_of_a_leader_that_lost_redis_all_get_their_value(app: Celery, redis_proxy: RedisProxy) -> None:
    gate, count = Gate("compute"), Count()

    @app.task(base=CachedTask, name="square", wait_limit=30.0)
    def square(x: int) -> int:
        if count(x) == 1:
            gate.pass_through()
        return x * x

    with ThreadPoolExecutor(5) as pool:
        led = pool.submit(square, 3)
        gate.wait_reached()
        followed = [pool.submit(square, 3) for _ in range(4)]
        redis_proxy.refuse()
        gate.open()
        values = [future.result(60) for future in (led, *followed)]

    assert values == [9] * 5


def test_what_was_lost_is_counted(app: Celery, redis_proxy: RedisProxy) -> None:
    seen: list[Event] = []
    CacheTiers(app).events.subscribe(
        lambda event, task, details: seen.append(event), Event.BREAKER_OPENED, Event.BREAKER_CLOSED
    )
    square = squarer(app)
    square(1)
    redis_proxy.refuse()
    square(2)
    redis_proxy.heal()
    wait_until(lambda: square(3) == 9 and square.cache.get(3) == 9, timeout=20, message="recovery")

    assert square.cache.info().failed_open >= 1
    assert seen[0] is Event.BREAKER_OPENED
    assert seen[-1] is Event.BREAKER_CLOSED
    assert published(app) == []
