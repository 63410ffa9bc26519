"""`task.cache.why`: the right answer in every situation a call can be in, on a real Redis, and no trace of it.

Two apps in one namespace are two processes: "there" computes, "here" asks.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers, ConfigurationError, Why, sink
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.testing import Gate
from tests.integration.apps.local import Count, cached_app, closing, wait_listening
from tests.integration.apps.worker_setup import Deployment, Start, new_name, starter
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import RedisServer, RedisServers


class Shifted(SystemClock):
    """The clock of a process that computed some time ago."""

    offset = 0.0

    def time(self) -> float:
        return super().time() + self.offset


@pytest.fixture
def here(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url(), cachetiers_timeout=5.0)) as app:
        yield app


@pytest.fixture
def there(namespace: str, redis_server: RedisServer) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_server.url(), cachetiers_timeout=5.0)) as app:
        CacheTiers(app).clock = Shifted()
        yield app


def squarer(app: Celery, count: Count | None = None, **options: Any) -> Any:
    count = Count() if count is None else count  # an empty one is false

    @app.task(base=CachedTask, **{"name": "square", "ttl": 60.0, "tags": ["number:{x}"], **options})
    def square(x: int, note: str = "") -> int:
        count(x)
        return x * x

    return square


@contextmanager
def aged(app: Celery, seconds: float) -> Iterator[None]:
    """What the app computes in the block was computed so long ago."""
    clock: Any = CacheTiers(app).clock
    clock.offset = -seconds
    try:
        yield
    finally:
        clock.offset = 0.0


@contextmanager
def computing(task: Any, *args: Any) -> Iterator[Gate]:
    """Another thread is inside the body of a task whose body passes the gate ``task.gate``."""
    thread = threading.Thread(target=task, args=args)
    thread.start()
    task.gate.wait_reached()
    try:
        yield task.gate
    finally:
        task.gate.open()
        thread.join()


def gated(app: Celery, **options: Any) -> Any:
    gate = Gate("body")

    @app.task(base=CachedTask, name="square", **{"ttl": 60.0, "tags": ["number:{x}"], **options})
    def square(x: int, note: str = "") -> int:
        gate.pass_through()
        return x * x

    square.gate = gate
    return square


def verdict(why: Why) -> tuple[str, str]:
    return why.verdict, why.cause


def states(why: Why) -> dict[str, str]:
    return {tag.name or tag.kind: tag.state for tag in why.tags}


# ---- there is an entry -----------------------------------------------------------------------------------------------


def test_fresh_in_l1(here: Celery) -> None:
    square = squarer(here)
    wait_listening(here)
    square(3)
    why = square.cache.why(3)

    assert verdict(why) == ("hit", "fresh in L1")
    assert why.l1 is not None
    assert (why.l1.trusted, why.l1.live, why.l1.same) == (True, True, True)
    assert why.entry is not None
    assert why.entry.state == "fresh"


def test_fresh_in_l2_only(here: Celery, there: Celery) -> None:
    square, elsewhere = squarer(here, ignore=("note",)), squarer(there, ignore=("note",))
    elsewhere(3, note="first")
    why = square.cache.why(3, note="second")

    assert verdict(why) == ("hit", "fresh in L2")
    assert why.key == elsewhere.cache.key(3)
    assert (why.arguments, why.ignored, why.made_of) == ({"x": 3, "note": "second"}, ("note",), {"x": 3})
    assert why.l1 is not None
    assert why.l1.there is False
    assert states(why) == {"namespace": "current", "square": "current", "number:3": "current"}
    entry = why.entry
    assert entry is not None
    assert (entry.content_type, entry.signed, entry.wire_version, entry.unusable) == ("application/json", False, 1, "")
    assert 0 < (entry.fresh_for or 0) <= 60
    assert 0 < entry.seconds_left <= 60


def test_in_l1_after_redis_has_lost_it(here: Celery, client: redis.Redis, namespace: str) -> None:
    square = squarer(here)
    wait_listening(here)
    square(3)
    client.delete(f"{namespace}:{{0}}:e:{square.cache.key(3)}")
    why = square.cache.why(3)

    assert verdict(why) == ("hit", "fresh in L1")
    assert why.l1 is not None
    assert why.l1.same is False
    assert "consistency='strict'" in why.notes[0]
    assert square(3) == square.cache.get(3) == 9


def test_in_l1_of_a_strict_task_after_redis_has_lost_it(here: Celery, client: redis.Redis, namespace: str) -> None:
    square = squarer(here, consistency="strict")
    wait_listening(here)
    square(3)
    assert verdict(square.cache.why(3)) == ("hit", "fresh in L1")
    client.delete(f"{namespace}:{{0}}:e:{square.cache.key(3)}")

    assert verdict(square.cache.why(3)) == ("miss", "no entry")


def test_stale(here: Celery, there: Celery) -> None:
    with aged(there, 100.0):
        squarer(there, grace=600.0)(3)
    why = squarer(here, grace=600.0).cache.why(3)

    assert verdict(why) == ("stale hit", "stale")
    assert why.entry is not None
    assert why.entry.state == "stale"
    assert -42 < (why.entry.fresh_for or 0) < -38
    assert "grace=600" in why.reason


def test_past_refresh_ahead(here: Celery, there: Celery) -> None:
    with aged(there, 40.0):
        squarer(there, refresh_ahead=0.5)(3)
    why = squarer(here, refresh_ahead=0.5).cache.why(3)

    assert verdict(why) == ("hit", "fresh in L2")
    assert "refresh_ahead=0.5" in why.notes[0]


def test_expired_and_not_yet_removed(here: Celery, there: Celery) -> None:
    with aged(there, 100.0):
        squarer(there)(3)
    why = squarer(here).cache.why(3)

    assert verdict(why) == ("miss", "expired")
    assert why.entry is not None
    assert (why.entry.state, why.entry.seconds_left > 0) == ("expired", True)


def test_its_tag_was_invalidated(here: Celery, there: Celery) -> None:
    square, elsewhere = squarer(here), squarer(there)
    elsewhere(3)
    CacheTiers(there).invalidate_tag("number:3")
    why = square.cache.why(3)

    assert verdict(why) in {("miss", "invalidated"), ("miss", "no version")}  # the shared server may have evicted
    assert "'number:3'" in why.reason
    assert states(why) == {"namespace": "current", "square": "current", "number:3": "no version"}


def test_its_tag_was_invalidated_and_has_been_computed_under_since(here: Celery, there: Celery) -> None:
    square, elsewhere = squarer(here), squarer(there)
    elsewhere(3)
    CacheTiers(there).invalidate_tag("number:3")
    elsewhere(3, note="another key")
    why = square.cache.why(3)

    assert verdict(why) == ("miss", "invalidated")
    assert states(why)["number:3"] == "invalidated since"


def test_a_tag_of_its_result_was_invalidated(here: Celery, there: Celery) -> None:
    options = {"tags": [], "tags_from": lambda result: [f"result:{result}", "result:any"]}
    square, elsewhere = squarer(here, **options), squarer(there, **options)
    elsewhere(3)
    assert states(square.cache.why(3)) == {
        "namespace": "current", "square": "current", "result:9": "current", "result:any": "current",
    }  # fmt: skip
    CacheTiers(there).invalidate_tag("result:9")
    elsewhere(-3)
    why = square.cache.why(3)

    assert verdict(why) == ("miss", "invalidated")
    assert "'result:9', from its result" in why.reason
    assert [tag.kind for tag in why.tags] == ["namespace", "task", "result", "result"]


def test_the_task_was_cleared(here: Celery, there: Celery) -> None:
    square, elsewhere = squarer(here), squarer(there)
    elsewhere(3)
    CacheTiers(there).clear("square")
    why = square.cache.why(3)

    assert verdict(why) == ("miss", "cleared")
    assert "clear(task='square')" in why.reason


def test_the_namespace_was_cleared(here: Celery, there: Celery) -> None:
    square, elsewhere = squarer(here), squarer(there)
    elsewhere(3)
    CacheTiers(there).clear()
    why = square.cache.why(3)

    assert verdict(why) == ("miss", "cleared")
    assert "clear()" in why.reason


def test_the_server_was_restarted_from_an_old_snapshot(namespace: str, redis_factory: RedisServers) -> None:
    server = redis_factory("--save", "3600 1")
    with closing(cached_app(namespace, server.url())) as app:
        CacheTiers(app).clock = Shifted()
        square = squarer(app, ttl=3000.0)
        with aged(app, 1000.0):
            square(3)
        with server.client() as client:
            client.save()
        server.kill()
        server.start()
        CacheTiers(app).reset()
        why = square.cache.why(3)

        assert verdict(why) == ("miss", "restarted")
        assert states(why) == {"namespace": "no version", "square": "current", "number:3": "current"}
        assert why.entry is not None
        assert why.entry.state == "fresh"


def test_a_tags_version_was_evicted(namespace: str, redis_factory: RedisServers) -> None:
    server = redis_factory()
    with closing(cached_app(namespace, server.url())) as app, server.client() as client:
        square = squarer(app, l1=False)
        square(3)
        version = f"{namespace}:{{0}}:t:number:3"
        client.config_set("maxmemory-samples", "64")
        client.config_set("maxmemory-policy", "volatile-ttl")
        client.pexpire(version, 20_000)  # what ends first goes first
        for number in range(4):
            client.set(f"ballast:{number}", "x" * 500_000, px=30_000)
        client.config_set("maxmemory", str(int(client.info("memory")["used_memory"]) - 100_000))
        wait_until(lambda: not client.exists(version) and client.dbsize() > 4, timeout=20, message="an eviction")
        why = square.cache.why(3)

        assert states(why)["number:3"] == "no version"
        assert why.entry is not None
        assert verdict(why) == ("miss", "no version")
        assert "evicted" in why.reason
        assert "memory" in why.remedy


def test_a_tag_that_is_gone_was_invalidated_where_the_server_has_evicted_nothing(
    namespace: str, redis_factory: RedisServers
) -> None:
    server = redis_factory()
    with closing(cached_app(namespace, server.url())) as app:
        square = squarer(app)
        square(3)
        CacheTiers(app).invalidate_tag("number:3")

        assert verdict(square.cache.why(3)) == ("miss", "invalidated")


def test_it_was_stored_under_other_tags(here: Celery, there: Celery) -> None:
    squarer(there, tags=["old:{x}"])(3)
    why = squarer(here, tags=["new:{x}"]).cache.why(3)

    assert verdict(why) == ("miss", "other tags")
    assert states(why)["new:3"] == "not in the entry"
    assert states(why)["old:3"] == "only in the entry"


@pytest.mark.parametrize(("key", "cause"), [("another, long enough", "forged"), (None, "unsigned")])
def test_another_key_or_none_has_signed_it(here: Celery, there: Celery, key: str | None, cause: str) -> None:
    here.conf.cachetiers_signing_key = "ours, long enough"
    if key is not None:
        there.conf.cachetiers_signing_key = key
    squarer(there)(3)
    why = squarer(here).cache.why(3)

    assert verdict(why) == ("miss", cause)
    assert why.entry is not None
    assert why.entry.signed is (key is not None)
    assert why.remedy


def test_its_content_type_is_not_accepted(here: Celery, there: Celery) -> None:
    there.conf.update(accept_content=["json", "pickle"], cachetiers_serializer="pickle")
    squarer(there)(3)
    why = squarer(here).cache.why(3)

    assert verdict(why) == ("miss", "refused")
    assert why.entry is not None
    assert why.entry.content_type == "application/x-python-serialize"


@pytest.mark.parametrize(
    ("data", "cause", "wire_version"),
    [(b"who knows what this is, it is long enough for an entry", "foreign", None), (b"ct\x09" + bytes(60), "newer", 9)],
)
def test_what_lies_under_its_key_cannot_be_read(
    here: Celery, client: redis.Redis, namespace: str, data: bytes, cause: str, wire_version: int | None
) -> None:
    square = squarer(here)
    client.set(f"{namespace}:{{0}}:e:{square.cache.key(3)}", data, px=60_000)
    why = square.cache.why(3)

    assert verdict(why) == ("miss", cause)
    assert why.entry is not None
    assert (why.entry.size, why.entry.wire_version) == (len(data), wire_version)


def test_its_payload_cannot_be_decoded(here: Celery, client: redis.Redis, namespace: str) -> None:
    square = squarer(here, l1=False)
    square(3)
    key = f"{namespace}:{{0}}:e:{square.cache.key(3)}"
    data = client.get(key)
    at = data.index(b"utf-8") + len(b"utf-8")
    client.setrange(key, at, "{")

    assert verdict(square.cache.why(3)) == ("miss", "undecodable")


def test_a_key_of_another_type_is_no_entry_of_ours(here: Celery, client: redis.Redis, namespace: str) -> None:
    square = squarer(here)
    client.hset(f"{namespace}:{{0}}:e:{square.cache.key(3)}", "a", "b")
    why = square.cache.why(3)

    assert why.verdict == "miss"
    assert why.entry is not None
    assert (why.entry.state, why.entry.size) == ("unusable", 0)


# ---- there is none ---------------------------------------------------------------------------------------------------


def test_never_asked_evicted_and_invalidated_by_its_key_are_not_told_apart(
    here: Celery, client: redis.Redis, namespace: str
) -> None:
    square = squarer(here, tags=[], l1=False)
    square(1)
    square.cache.invalidate(1)
    square(2)
    client.delete(f"{namespace}:{{0}}:e:{square.cache.key(2)}")
    invalidated, lost, never = (square.cache.why(x) for x in (1, 2, 3))

    assert verdict(invalidated) == verdict(lost) == verdict(never) == ("miss", "no entry")
    assert invalidated.reason == lost.reason == never.reason
    assert "cannot be told apart" in never.reason


def test_a_tag_without_a_version_tells_that_nothing_under_it_was_computed_lately(here: Celery) -> None:
    square = squarer(here)
    square(3, note="x")
    known, unknown = square.cache.why(3), square.cache.why(4)

    assert verdict(known) == verdict(unknown) == ("miss", "no entry")
    assert states(known)["number:3"] == "there"
    assert states(unknown)["number:4"] == "no version"
    assert "cannot be told apart" in known.reason
    assert "nothing under it was computed" in unknown.reason


def test_another_version_of_the_task_has_another_key(here: Celery, there: Celery) -> None:
    elsewhere, square = squarer(there, version="1"), squarer(here, version="2")
    elsewhere(3)
    why = square.cache.why(3)

    assert verdict(why) == ("miss", "no entry")
    assert why.key != elsewhere.cache.key(3)
    assert why.version == "2"
    assert "version=" in why.notes[-1]


@pytest.mark.parametrize("ends", ["fails", "is not stored"])
def test_the_last_compute_was_not_stored(here: Celery, there: Celery, ends: str) -> None:
    def declare(app: Celery) -> Any:
        @app.task(base=CachedTask, name="ending", cache_if=lambda result: False)
        def ending() -> int:
            if ends == "fails":
                raise LookupError("nothing there")
            return 1

        return ending

    elsewhere = declare(there)
    with suppress(LookupError):
        elsewhere()
    why = declare(here).cache.why()

    assert verdict(why) == ("miss", "not stored")
    assert why.outcome is not None
    assert why.outcome.failed is (ends == "fails")


def test_a_value_waits_for_its_sink(here: Celery, own_sinks: None) -> None:
    taken: list[Any] = []
    sink("squares")(taken.extend)
    square = squarer(here, sink="squares", write="behind", l1=False)
    assert square(3) == 9
    fresh = square.cache.why(3)
    CacheTiers(here).invalidate_tag("number:3")
    waits = square.cache.why(3)
    CacheTiers(here).writes.flush("squares")
    flushed = square.cache.why(3)

    assert verdict(fresh) == ("hit", "fresh in L2")
    assert fresh.write is not None
    assert verdict(waits) == ("hit", "waits for its sink")
    assert waits.write is not None
    assert (waits.write.sink, waits.write.deleted) == ("squares", False)
    assert (flushed.verdict, flushed.write) == ("miss", None)
    assert [write.value for write in taken] == [9]


def test_a_deletion_that_waits_for_its_sink_answers_nothing(here: Celery, own_sinks: None) -> None:
    sink("squares")(lambda writes: None)
    square = squarer(here, sink="squares", write="behind", tags=[])
    square.cache.delete(3)
    why = square.cache.why(3)

    assert verdict(why) == ("miss", "no entry")
    assert why.write is not None
    assert why.write.deleted is True


# ---- somebody computes -----------------------------------------------------------------------------------------------


def test_held_by_a_leader(here: Celery, there: Celery) -> None:
    with computing(gated(there), 3):
        why = squarer(here).cache.why(3)

    assert verdict(why) == ("held", "computing")
    assert why.lease is not None
    assert (why.lease.state, why.lease.current, why.lease.task_id, why.lease.waiting) == ("computing", True, "", 0)
    assert 0 < why.lease.seconds_left <= 10


def test_a_leader_that_is_doomed(here: Celery, there: Celery) -> None:
    with computing(gated(there), 3):
        CacheTiers(here).invalidate_tag("number:3")
        why = squarer(here).cache.why(3)

    assert verdict(why) == ("miss", "doomed leader")
    assert why.lease is not None
    assert why.lease.current is False


def test_somebody_computes_what_is_stale(here: Celery, there: Celery) -> None:
    elsewhere = gated(there, grace=600.0)
    with aged(there, 100.0):
        elsewhere.cache.put((3,), 9)
    with computing(elsewhere, 3):
        why = squarer(here, grace=600.0).cache.why(3)

    assert verdict(why) == ("stale hit", "stale")
    assert why.notes == ("Somebody computes it already.",)


def test_a_leader_that_a_task_does_not_wait_for(here: Celery, there: Celery) -> None:
    with computing(gated(there), 3):
        why = squarer(here, coalesce=False).cache.why(3)

    assert verdict(why) == ("miss", "not coalesced")
    assert "coalesce=False" in why.reason


def test_a_lease_that_is_kept_for_a_message(here: Celery, there: Celery) -> None:
    result = squarer(there, coalesce="publish").delay(3)
    why = squarer(here, coalesce="publish").cache.why(3)

    assert verdict(why) == ("held", "handed over")
    assert why.lease is not None
    assert (why.lease.state, why.lease.task_id) == ("handed over", result.id)


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    servers = RedisServers()
    with starter(servers) as start:
        yield start
    servers.close()


@pytest.fixture(scope="module")
def worker(start: Start) -> Deployment:
    deployment, _ = start(concurrency=1)
    return deployment


def test_held_by_a_task_in_a_worker_with_one_that_waits(worker: Deployment) -> None:
    name, task = new_name(), worker.task("work.plain")
    worker.book.put_up_gate(name)
    result = task.delay(name)
    worker.book.started(name)
    waiting = threading.Thread(target=task, args=(name,))
    waiting.start()
    worker.wait_for_waiters(1, "work.plain", name)
    why = task.cache.why(name)
    worker.book.open_gate(name)
    waiting.join()

    assert result.get(timeout=20) == f"{name}#1"
    assert verdict(why) == ("held", "computing")
    assert why.lease is not None
    assert (why.lease.task_id, why.lease.current, why.lease.waiting) == (result.id, True, 1)
    assert verdict(task.cache.why(name)) == ("hit", "fresh in L1")


def test_what_a_worker_holds_for_its_own_pool_waits_for_no_wake_up(worker: Deployment) -> None:
    name, task = new_name(), worker.task("work.plain")
    worker.book.put_up_gate(name)
    results = [task.delay(name)]
    worker.book.started(name)
    results += [task.delay(name) for _ in range(3)]
    wait_until(lambda: held_by(worker) == 3, timeout=20, message="three held requests")
    why = task.cache.why(name)
    worker.book.open_gate(name)

    assert [result.get(timeout=20) for result in results] == [f"{name}#1"] * 4
    assert why.lease is not None
    assert why.lease.waiting == 0
    assert str(why.lease).endswith("; 0 processes wait to be woken")


def held_by(deployment: Deployment) -> int:
    """Requests that the waiting rooms of all workers hold."""
    stats = deployment.app.control.inspect(timeout=1.0).stats() or {}
    return sum(each["waiting_room"]["held"] for each in stats.values())


def test_a_lease_that_is_kept_for_a_retry(worker: Deployment) -> None:
    name, task = new_name(), worker.task("ends")
    worker.book.put_up_gate(name)
    result = task.delay(name)
    worker.book.started(name)
    computing = task.cache.why(name)
    worker.book.open_gate(name, 1, "retry later")
    wait_until(lambda: result.state == "RETRY", timeout=20, message="the retry")
    retried = task.cache.why(name)
    worker.book.started(name)
    worker.book.open_gate(name, 2)

    assert result.get(timeout=20) == f"{name}#2"
    assert verdict(computing) == ("held", "computing")
    assert verdict(retried) == ("held", "handed over")
    assert retried.lease is not None
    assert retried.lease.task_id == result.id


# ---- no key, no cache, no Redis --------------------------------------------------------------------------------------


def test_an_argument_without_a_canonical_form(here: Celery) -> None:
    why = squarer(here).cache.why(object())

    assert verdict(why) == ("uncacheable", "argument")
    assert "'x'" in why.reason
    assert why.key is None
    assert set(why.arguments) == {"x", "note"}


def test_arguments_that_do_not_fit(here: Celery) -> None:
    square = squarer(here)
    why = square.cache.why(1, 2, 3)
    with pytest.raises(TypeError) as raised:
        square(1, 2, 3)

    assert verdict(why) == ("wrong arguments", "wrong arguments")
    assert "takes from 1 to 2 positional arguments but 3 were given" in str(raised.value)
    assert "takes from 1 to 2 positional arguments but 3 were given" in why.reason


def test_tags_that_cannot_be_rendered(here: Celery) -> None:
    why = squarer(here, tags=["number:{x.name}"]).cache.why(3)

    assert verdict(why) == ("uncacheable", "tags")
    assert why.key is not None


def test_a_key_that_the_task_makes_itself(here: Celery) -> None:
    why = squarer(here, key=lambda x, note: abs(x)).cache.why(-3)

    assert why.made_of == {"key": 3}


def test_strict_keys_are_named(here: Celery) -> None:
    here.conf.cachetiers_strict_keys = True

    assert "cachetiers_strict_keys raises that." in squarer(here).cache.why(object()).notes


OFF: dict[str, tuple[Callable[[Celery], object], dict[str, Any], str]] = {
    "task": (lambda app: None, {"cache_enabled": False}, "cache_enabled=False"),
    "app": (lambda app: app.conf.update(cachetiers_enabled=False), {}, "cachetiers_enabled"),
    "tests": (lambda app: setattr(CacheTiers(app), "suspended", True), {}, "suspended"),
}


@pytest.mark.parametrize("who", OFF)
def test_the_cache_is_off(here: Celery, there: Celery, who: str) -> None:
    switch, options, named = OFF[who]
    squarer(there)(3)
    switch(here)
    why = squarer(here, **options).cache.why(3)

    assert verdict(why) == ("off", "off")
    assert named in why.reason


def test_a_task_that_has_the_base_of_its_app_only(namespace: str, redis_server: RedisServer) -> None:
    with closing(cached_app(namespace, redis_server.url(), task_cls=CachedTask)) as app:
        app.task_cls = CachedTask

        @app.task(name="plain")
        def plain() -> int:
            return 1

        why = plain.cache.why()

    assert verdict(why) == ("off", "off")
    assert "base of its app" in why.reason


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("use", ("hit", "fresh in L2")), ("only", ("hit", "fresh in L2")), ("bypass", ("bypassed", "bypass")),
     ("refresh", ("bypassed", "refresh"))],
)  # fmt: skip
def test_each_cache_mode(here: Celery, there: Celery, mode: str, expected: tuple[str, str]) -> None:
    squarer(there)(3)
    why = squarer(here).cache.explain((3,), mode=mode)

    assert verdict(why) == expected
    assert why.mode == mode
    assert why.entry is not None


def test_only_where_there_is_nothing(here: Celery) -> None:
    why = squarer(here).cache.explain((3,), {"note": "x"}, mode="only")

    assert why.verdict == "miss"
    assert "NotCached" in why.notes[-1]
    assert why.arguments == {"x": 3, "note": "x"}


def test_only_is_answered_with_what_waits_for_its_sink(here: Celery, own_sinks: None) -> None:
    sink("squares")(lambda writes: None)
    square = squarer(here, sink="squares", write="behind", l1=False)
    square.cache.put((3,), 9)
    CacheTiers(here).invalidate_tag("number:3")
    why = square.cache.explain((3,), mode="only")

    assert verdict(why) == ("hit", "waits for its sink")
    assert square.apply((3,), cache_mode="only").get() == 9


def test_only_of_a_call_without_a_key_raises_and_says_so(here: Celery) -> None:
    why = squarer(here).cache.explain((object(),), mode="only")

    assert verdict(why) == ("uncacheable", "argument")
    assert "NotCached" in why.notes[-1]
    assert "runs uncached" not in str(why)


@pytest.mark.parametrize("options", [{}, {"tags": ["number:{x.name}"]}])
def test_strict_keys_are_noted_whatever_the_call_lacks(here: Celery, options: dict[str, Any]) -> None:
    here.conf.cachetiers_strict_keys = True
    why = squarer(here, **options).cache.why(3 if options else object())

    assert why.notes == ("cachetiers_strict_keys raises that.",)


def test_an_unknown_mode_is_refused(here: Celery) -> None:
    with pytest.raises(ConfigurationError, match="cache_mode"):
        squarer(here).cache.explain((3,), mode="never")


def test_a_hit_that_sends_a_message_all_the_same_says_why(here: Celery) -> None:
    square = squarer(here, publish_hits=False)
    square(3)

    assert "publish_hits=False" in square.cache.why(3).notes[-1]


def test_redis_away(here: Celery, redis_proxy: RedisProxy) -> None:
    square = squarer(here)
    redis_proxy.refuse()
    why = square.cache.why(3)

    assert verdict(why) == ("uncached", "Redis away")
    assert (why.key, why.entry, why.tags) == (square.cache.key(3), None, ())
    assert why.redis not in ("answers", "none", "left alone")


def test_redis_away_and_l1_still_trusted(here: Celery, redis_proxy: RedisProxy) -> None:
    here.conf.cachetiers_timeout = 0.05
    square, strict = squarer(here), squarer(here, name="strict", consistency="strict")
    wait_listening(here)
    square(3)
    strict(3)
    redis_proxy.hang()
    why = square.cache.why(3)

    assert verdict(why) == ("hit", "fresh in L1")
    assert why.l1 is not None
    assert (why.l1.trusted, why.l1.same) == (True, None)
    assert verdict(strict.cache.why(3)) == ("uncached", "Redis away")


def test_a_user_with_fewer_rights_learns_less_and_nothing_wrong(namespace: str, redis_factory: RedisServers) -> None:
    server = redis_factory()
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-info", "-getrange"
        )  # fmt: skip
    with closing(cached_app(namespace, f"redis://app:secret@127.0.0.1:{server.port}/0")) as app:
        square = squarer(app, l1=False)
        square.cache.put((3,), 9)
        why, none = square.cache.why(3), square.cache.why(4)

    assert verdict(why) == ("hit", "fresh in L2")
    assert "evicted" in none.reason


def test_redis_is_left_alone_after_a_failure(here: Celery, redis_proxy: RedisProxy) -> None:
    here.conf.cachetiers_breaker_window = 60.0
    square = squarer(here, l1=False)
    square(3)
    redis_proxy.refuse()
    assert square.cache.get(3) is MISSING
    redis_proxy.heal()
    why = square.cache.why(3)

    assert verdict(why) == ("uncached", "Redis left alone")
    assert square.cache.get(3) is MISSING


def test_an_app_without_redis(namespace: str) -> None:
    with closing(cached_app(namespace)) as app:
        square = squarer(app)
        nothing = square.cache.why(3)
        square(3)
        there = square.cache.why(3)
        CacheTiers(app).invalidate_tag("number:3")
        gone = square.cache.why(3)

    assert verdict(nothing) == ("miss", "no entry")
    assert verdict(there) == ("hit", "fresh in L1")
    assert verdict(gone) == ("miss", "gone from L1")
    assert there.redis == "none"


def test_an_app_without_redis_that_computes_now(namespace: str) -> None:
    with closing(cached_app(namespace)) as app:
        square = gated(app)
        with computing(square, 3):
            assert verdict(square.cache.why(3)) == ("held", "computing")
        assert verdict(square.cache.why(3)) == ("hit", "fresh in L1")


# ---- no trace --------------------------------------------------------------------------------------------------------


def snapshot(client: redis.Redis, namespace: str) -> dict[str, Any]:
    """Every key of the namespace with its bytes and the end of its life, to the second."""
    found: dict[str, Any] = {}
    now = client.time()
    for key in client.scan_iter(f"{namespace}*"):
        ends = now[0] + now[1] / 1e6 + client.pttl(key) / 1000
        found[key.decode()] = (client.dump(key), round(ends, 1))
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return {key: data for key, (data, _) in one.items()} == {key: data for key, (data, _) in other.items()} and all(
        abs(ends - other[key][1]) < 0.25 for key, (_, ends) in one.items()
    )


def test_to_ask_leaves_no_trace(here: Celery, there: Celery, client: redis.Redis, namespace: str) -> None:
    heard, count = list[Any](), Count()
    square, elsewhere = squarer(here, count), gated(there)
    wait_listening(here)
    CacheTiers(here).events.subscribe(lambda *event: heard.append(event))
    with computing(elsewhere, 3):
        square(5)
        CacheTiers(here).invalidate_tag("number:5")
        heard.clear()
        before, info, l1 = snapshot(client, namespace), square.cache.info(), len(CacheTiers(here).cache.parts.l1)  # type: ignore[arg-type]
        for x in (3, 4, 5, object()):
            square.cache.why(x)
            square.cache.explain((x,), mode="only")
        after = snapshot(client, namespace)

        assert same(before, after)
        assert square.cache.info() == info
        assert len(CacheTiers(here).cache.parts.l1) == l1  # type: ignore[arg-type]
        assert heard == []
        assert len(count) == 1


def test_to_ask_for_what_waits_for_a_sink_leaves_the_journal_as_it_is(
    here: Celery, client: redis.Redis, namespace: str, own_sinks: None
) -> None:
    sink("squares")(lambda writes: None)
    square = squarer(here, sink="squares", write="behind")
    square.cache.put((3,), 9)
    square.cache.delete(4)
    before = snapshot(client, namespace)
    whys = [square.cache.why(x) for x in (3, 4, 5)]
    after = snapshot(client, namespace)

    assert [why.write is not None for why in whys] == [True, True, False]
    assert same(before, after)


def test_to_ask_of_a_redis_that_is_away_opens_no_breaker(here: Celery, redis_proxy: RedisProxy) -> None:
    here.conf.cachetiers_breaker_window = 60.0
    square = squarer(here)
    heard: list[Any] = []
    CacheTiers(here).events.subscribe(lambda *event: heard.append(event))
    redis_proxy.refuse()
    square.cache.why(3)
    redis_proxy.heal()

    assert heard == []
    assert square(3) == 9
    assert square.cache.info().failed_open == 0
    assert square.cache.info().stores == 1


def test_to_ask_does_not_start_the_backplane(here: Celery, client: redis.Redis) -> None:
    square = squarer(here)
    square.cache.why(3)

    backplane = CacheTiers(here).cache.parts.backplane
    assert backplane is not None
    assert backplane.connected() is False
    assert backplane.wait_connected(0.0) is False


def test_to_ask_is_one_round_trip(here: Celery, redis_proxy: RedisProxy) -> None:
    square = squarer(here, tags=[f"tag{number}:{{x}}" for number in range(5)], l1=False)
    square(3)
    redis_proxy.reset()
    square.cache.why(3)

    [trip] = [trip for trip in redis_proxy.trips if set(trip) != {"PUBLISH"}]
    assert trip[0] == "MGET"
    assert set(trip) == {"MGET", "PTTL", "GETRANGE", "SMEMBERS", "INFO"}


def test_to_ask_of_tags_of_a_result_is_one_more_where_they_are_not_known(
    here: Celery, there: Celery, redis_proxy: RedisProxy
) -> None:
    options = {"tags": [], "tags_from": lambda result: [f"result:{result}"]}
    squarer(there, **options)(3)
    square = squarer(here, **options)
    square.cache.why(4)
    redis_proxy.reset()
    for trips in (2, 4):  # it learns nothing
        square.cache.why(3)
        assert redis_proxy.round_trips == trips


def test_the_answer_can_be_written_as_json(here: Celery) -> None:
    square = squarer(here)
    square(3)
    given = json.loads(json.dumps(square.cache.why(3).as_dict()))

    assert given["verdict"] == "hit"
    assert given["arguments"] == {"x": 3, "note": ""}
    assert {"state", "size", "fresh_for", "usable_for"} <= set(given["entry"])
