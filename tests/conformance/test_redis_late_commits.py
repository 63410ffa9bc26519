"""Commits whose answers nobody waits for, on a real Redis: when they are read, and what becomes of those that fail."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import redis

from celery_cachetiers.ports import NO_ROOM, STORED, Free, Held
from celery_cachetiers.testing.conformance import StoreUnderTest
from celery_cachetiers.testing.conformance.store import TAGS, TTL, digest
from tests.conformance.redis_process import RedisProcess
from tests.proxy import RedisProxy
from tests.servers import FLAVOURS, RedisServer, RedisServers

Start = Callable[..., RedisProcess]
Told = list[int | None]


@pytest.fixture(params=FLAVOURS)
def server(request: pytest.FixtureRequest, redis_factory: RedisServers) -> RedisServer:
    """A server of the test's own, of each flavour."""
    return redis_factory(flavour=request.param)


@pytest.fixture
def admin(server: RedisServer) -> Iterator[redis.Redis]:
    with server.client() as client:
        yield client


def ask(process: RedisProcess) -> StoreUnderTest:
    return StoreUnderTest(process.store, process.store)


def committing(process: RedisProcess, told: Told, size: int = 1) -> str:
    """Leads a key and sends its commit."""
    key = digest()
    leader = ask(process).lead(key)
    assert process.store.commit_later(leader, ask(process).body(b"x" * size), TTL, told.append)
    return key


def test_its_answer_comes_with_the_next_one_in_one_round_trip(redis_proxy: RedisProxy, process: Start) -> None:
    here, told = process(redis_proxy.url(), listening=False), Told()
    ask(here).store(digest())
    redis_proxy.reset()
    committing(here, told)
    ask(here).lead(digest())

    assert told == [STORED]
    assert redis_proxy.commands == {"EVALSHA": 3}, "lease, commit, lease"
    assert redis_proxy.connections == 0, "no new one"


def test_the_first_commit_of_a_process_is_waited_for(server: RedisServer, process: Start) -> None:
    here, told = process(server.url(), listening=False), Told()
    leader = ask(here).lead(digest())

    assert here.store.commit_later(leader, ask(here).body(), TTL, told.append) is False
    assert told == []
    assert here.store.commit(leader, ask(here).body(), TTL) == STORED


def test_so_is_the_first_one_after_a_restart(server: RedisServer, process: Start) -> None:
    here, told = process(server.url(), listening=False), Told()
    ask(here).store(digest())
    server.kill()
    server.start()
    leader = ask(here).lead(digest())

    assert here.store.commit_later(leader, ask(here).body(), TTL, told.append) is False


def test_one_whose_script_the_server_has_just_forgotten_is_sent_again(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    here, told = process(server.url(), listening=False), Told()
    ask(here).store(digest())
    key = digest()
    leader = ask(here).lead(key)
    admin.script_flush()
    assert here.store.commit_later(leader, ask(here).body(), TTL, told.append)
    here.store.settle()

    assert told == [STORED]
    assert here.store.read(key, TAGS) is not None


def test_of_one_whose_connection_dies_it_is_told_once_that_nothing_is_known(
    redis_proxy: RedisProxy, process: Start
) -> None:
    here, told = process(redis_proxy.url(), listening=False), Told()
    ask(here).store(digest())
    committing(here, told)
    redis_proxy.cut()

    assert here.store.read(digest(), TAGS) is None, "what came after it is asked again, on a new connection"
    assert told == [None]


def test_one_that_never_arrived_holds_its_lease_for_the_leases_time(redis_proxy: RedisProxy, process: Start) -> None:
    here, told = process(redis_proxy.url(), listening=False, timeout=0.2), Told()
    ask(here).store(digest())
    key = digest()
    leader = ask(here).lead(key, lease_ttl=0.5)
    redis_proxy.hang()
    here.store.commit_later(leader, ask(here).body(), TTL, told.append)
    here.store.settle()
    redis_proxy.cut()
    redis_proxy.heal()

    assert told == [None]
    watching = ask(here).request(key, watch=True)
    while isinstance(seen := here.store.lease(watching), Held):
        assert seen.seconds_left <= 0.5
        ask(here).advance(max(seen.seconds_left, 0.001))
    assert isinstance(seen, Free)


def test_one_that_a_full_server_refuses_leaves_no_lease(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    here, told = process(server.url(), listening=False), Told()
    ask(here).store(digest())
    key = digest()
    leader = ask(here).lead(key)
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", str(int(admin.info("memory")["used_memory"]) - 1))
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        admin.set("one more", "x" * 1000)
    assert here.store.commit_later(leader, ask(here).body(b"x" * 10_000), TTL, told.append)
    here.store.settle()

    assert told in ([NO_ROOM], [None])
    assert admin.exists(here.layout.lease(key), here.layout.entry(key)) == 0


def test_one_that_is_still_unread_when_its_process_closes_is_told(server: RedisServer, process: Start) -> None:
    here, told = process(server.url(), listening=False), Told()
    ask(here).store(digest())
    committing(here, told)
    here.store.close()

    assert told == [STORED]


def test_a_forked_child_leaves_the_answer_to_its_parent(server: RedisServer, process: Start) -> None:
    here, told = process(server.url(), listening=False), Told()
    ask(here).store(digest())
    committing(here, told)
    child = os.fork()
    if child == 0:
        here.store.reset_after_fork()
        here.store.settle()
        found = here.store.read(digest(), TAGS)
        os._exit(0 if told == [] and found is None else 1)

    assert os.waitpid(child, 0)[1] == 0
    here.store.settle()
    assert told == [STORED]


def test_several_threads_commits_are_all_told(server: RedisServer, process: Start) -> None:
    here, told = process(server.url(), listening=False), Told()
    ask(here).store(digest())
    leaders = [ask(here).lead(digest()) for _ in range(3)]
    sent = [here.store.commit_later(leader, ask(here).body(), TTL, told.append) for leader in leaders]

    assert sent == [True, False, False], "one connection lies ready, and what is unread is not sent over"
    here.store.settle()
    assert told == [STORED]
