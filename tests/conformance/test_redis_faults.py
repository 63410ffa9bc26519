"""A Redis that is full, restricted, restarted or reached through a network that can be counted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import redis

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal.redis import RedisJournal
from celery_cachetiers.ports import NO_ROOM, STORED, Leading, Put
from celery_cachetiers.tag_names import key_tag
from celery_cachetiers.testing.conformance import StoreUnderTest
from celery_cachetiers.testing.conformance.store import TAGS, TTL, digest
from tests.conformance.redis_process import RedisProcess
from tests.proxy import RedisProxy
from tests.servers import FLAVOURS, RedisServer, RedisServers

Start = Callable[..., RedisProcess]


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


def fill(admin: redis.Redis) -> None:
    """Makes the server full, so that it refuses what takes memory."""
    used = int(admin.info("memory")["used_memory"])
    admin.config_set("maxmemory-policy", "noeviction")
    admin.config_set("maxmemory", str(used - 1))
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        admin.set("one more", "x" * 1000)


# -- a full server -----------------------------------------------------------------------------------------------------


def test_a_commit_to_a_full_server_stores_nothing_and_leaves_no_lease(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    here = process(server.url(), listening=False)
    key = digest()
    ask(here).store(key, b"older")
    leader = ask(here).lead(key, now=None)
    fill(admin)
    with contextlib.suppress(TierUnavailable):
        assert here.store.commit(leader, ask(here).body(b"x" * 10_000), TTL) == NO_ROOM

    assert admin.exists(here.layout.lease(key)) == 0
    assert here.store.read(key, TAGS) is None


def test_a_commit_to_a_full_server_wakes_the_waiters(server: RedisServer, admin: redis.Redis, process: Start) -> None:
    here, there = process(server.url(), listening=False), process(server.url())
    key = digest()
    leader = ask(here).lead(key)
    there.store.lease(ask(there).request(key))
    fill(admin)
    with contextlib.suppress(TierUnavailable):
        here.store.commit(leader, ask(here).body(b"x" * 10_000), TTL)

    assert there.heard.wait_woken(key)


def test_a_put_to_a_full_server_is_refused_and_the_older_entry_is_gone(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    here = process(server.url(), listening=False)
    key = digest()
    ask(here).store(key, b"older")
    leader = ask(here).lead(key, now=None)
    fill(admin)
    with pytest.raises(TierUnavailable):
        here.store.put(ask(here).request(key), ask(here).body(b"x" * 1_000_000), TTL)

    assert list(admin.scan_iter(match=f"*:e:{key}")) == []
    assert ask(here).commit(leader) != STORED
    assert here.store.read(key, TAGS) is None


def test_invalidating_and_fencing_work_on_a_full_server(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    here, there = process(server.url(), listening=False), process(server.url())
    tagged, fenced = digest(), digest()
    ask(here).store(tagged)
    ask(here).store(fenced, tags=())
    fill(admin)
    here.store.invalidate(["user:1"])
    here.store.fence(fenced)

    assert here.store.read(tagged, TAGS) is None
    assert here.store.read(fenced, ()) is None
    assert there.heard.wait_announced(key_tag(fenced))
    assert "user:1" in there.heard.names


def test_a_server_that_has_room_again_is_used_again(server: RedisServer, admin: redis.Redis, process: Start) -> None:
    here = process(server.url(), listening=False)
    key = digest()
    fill(admin)
    with pytest.raises(TierUnavailable):
        here.store.lease(ask(here).request(key))
    admin.config_set("maxmemory", "0")

    ask(here).store(key)
    assert here.store.read(key, TAGS) is not None


# -- permissions -------------------------------------------------------------------------------------------------------


def user(admin: redis.Redis, server: RedisServer, *rules: str) -> str:
    """The URL of a user with all rights, changed by the rules."""
    admin.execute_command("ACL", "SETUSER", "guest", "reset", "on", ">secret", "~*", "&*", "+@all", *rules)
    return f"redis://guest:secret@127.0.0.1:{server.port}/0"


def test_without_the_right_to_publish_a_commit_still_stores_and_frees_the_lease(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    for rules in (("-publish",), ("resetchannels",)):
        guest = process(user(admin, server, *rules), listening=False)
        key = digest()
        leader = ask(guest).lead(key)
        guest.store.lease(ask(guest).request(key))

        assert guest.store.commit(leader, ask(guest).body(), TTL, announce=True) == STORED
        assert admin.exists(guest.layout.lease(key), guest.layout.waiters(key)) == 0
        assert guest.store.read(key, TAGS) is not None


def test_without_the_right_to_publish_a_release_still_frees_the_lease(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    guest = process(user(admin, server, "resetchannels"), listening=False)
    key = digest()
    leader = ask(guest).lead(key)
    guest.store.lease(ask(guest).request(key))

    assert guest.store.release(key, leader.token) is True
    assert admin.exists(guest.layout.lease(key)) == 0


def test_an_announcement_that_may_not_be_sent_is_heard_of_and_the_entry_is_gone(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    guest = process(user(admin, server, "resetchannels"), listening=False)
    acts: list[Callable[[str], None]] = [guest.store.fence, lambda key: guest.store.invalidate(["user:1"])]
    for act in acts:
        key = digest()
        ask(guest).store(key)
        with pytest.raises(TierUnavailable):
            act(key)

        assert guest.store.read(key, TAGS) is None


def test_without_the_right_to_ask_info_everything_else_works(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    guest, key = process(user(admin, server, "-info")), digest()
    ask(guest).store(key)

    assert guest.store.read(key, TAGS) is not None
    guest.store.invalidate([TAGS[0]])
    assert guest.store.read(key, TAGS) is None


def test_a_wrong_password_is_unavailable_and_not_in_the_error(server: RedisServer, process: Start) -> None:
    here = process(f"redis://guest:wr0ng-secret@127.0.0.1:{server.port}/0", listening=False)

    with pytest.raises(TierUnavailable) as raised:
        here.store.read(digest(), TAGS)
    assert "wr0ng-secret" not in str(raised.value)


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_server_that_comes_back_with_an_old_snapshot_serves_nothing_from_it(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    admin.config_set("save", "")
    here = process(server.url(), listening=False)
    keys = [digest() for _ in range(3)]
    for key in keys:
        ask(here).store(key)
    admin.save()
    here.store.invalidate(["user:1"])
    server.kill()
    server.start()
    with server.client() as client:
        loaded = [client.exists(here.layout.entry(key)) for key in keys]

    assert loaded == [1, 1, 1], "the snapshot was not loaded, so this proves nothing"
    assert [here.store.read(key, TAGS) for key in keys] == [None, None, None]
    for key in keys:
        assert isinstance(here.store.lease(ask(here).request(key)), Leading)


def test_where_info_is_denied_entries_outlive_a_reconnect(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    guest, key = process(user(admin, server, "-info"), listening=False), digest()
    ask(guest).store(key)
    guest.store.close()

    assert guest.store.read(key, TAGS) is not None


# -- round trips -------------------------------------------------------------------------------------------------------


@pytest.fixture
def warm(redis_proxy: RedisProxy, process: Start) -> RedisProcess:
    """A process behind a counting proxy, connected, its scripts loaded."""
    here = process(redis_proxy.url(), listening=False)
    key = digest()
    ask(here).store(key)
    here.store.renew(ask(here).lead(key, now=None))
    here.store.put(ask(here).request(key), ask(here).body(), TTL)
    here.store.release(key, "nobody")
    here.store.invalidate(["nothing"])
    redis_proxy.reset()
    return here


@pytest.mark.parametrize("tags", [1, 10, 1000])
def test_an_invalidation_is_one_round_trip_whatever_the_number_of_tags(
    warm: RedisProcess, redis_proxy: RedisProxy, tags: int
) -> None:
    warm.store.invalidate([f"user:{number}" for number in range(tags)])

    assert redis_proxy.trips == [("EVALSHA", "PUBLISH")]


def test_an_invalidation_is_one_round_trip_whatever_the_number_of_entries(
    warm: RedisProcess, redis_proxy: RedisProxy
) -> None:
    keys = [digest() for _ in range(300)]
    for key in keys:
        ask(warm).store(key)
    redis_proxy.reset()
    warm.store.invalidate(["user:1"])

    assert redis_proxy.trips == [("EVALSHA", "PUBLISH")]
    assert [key for key in keys if warm.store.read(key, TAGS) is not None] == []


@pytest.mark.parametrize("tags", [0, 3, 50])
def test_every_other_step_is_one_round_trip_whatever_the_number_of_tags(
    warm: RedisProcess, redis_proxy: RedisProxy, tags: int
) -> None:
    names = tuple(f"user:{number}" for number in range(tags))
    key = digest()
    request = ask(warm).request(key, names)
    body = ask(warm).body(tags=names)
    warm.store.lease(request)
    warm.store.renew(request)
    warm.store.commit(request, body, TTL, announce=True)
    warm.store.read(key, names)
    warm.store.put(request, body, TTL)
    warm.store.fence(key)
    warm.store.release(key, request.token)

    assert redis_proxy.trips == [("EVALSHA",)] * 3 + [("MGET",)] + [("EVALSHA",)] * 3


# -- a network that breaks ---------------------------------------------------------------------------------------------


def test_a_connection_that_was_closed_while_idle_is_replaced_in_silence(
    warm: RedisProcess, redis_proxy: RedisProxy
) -> None:
    key = digest()
    ask(warm).store(key)
    redis_proxy.cut()

    assert warm.store.read(key, TAGS) is not None


def test_a_commit_whose_answer_was_lost_may_be_sent_again(redis_proxy: RedisProxy, process: Start) -> None:
    here = process(redis_proxy.url(), listening=False, timeout=0.2)
    key = digest()
    ask(here).store(digest())  # the server has the script from here on
    leader = ask(here).lead(key)
    redis_proxy.mute()
    with pytest.raises(TierUnavailable):
        ask(here).commit(leader)
    redis_proxy.heal()

    assert here.store.read(key, TAGS) is not None
    assert ask(here).commit(leader) == 0


def test_a_lease_whose_answer_was_lost_is_led_by_the_same_token(redis_proxy: RedisProxy, process: Start) -> None:
    here = process(redis_proxy.url(), listening=False, timeout=0.2)
    request = ask(here).request(digest())
    ask(here).store(digest())
    redis_proxy.mute()
    with pytest.raises(TierUnavailable):
        here.store.lease(request)
    redis_proxy.heal()

    assert isinstance(here.store.lease(request), Leading)
    assert ask(here).commit(request) == STORED


@pytest.mark.parametrize("fault", ["refuse", "hang", "mute"])
def test_an_invalidation_that_did_not_arrive_is_raised(redis_proxy: RedisProxy, process: Start, fault: str) -> None:
    here = process(redis_proxy.url(), listening=False, timeout=0.2)
    ask(here).store(digest())
    getattr(redis_proxy, fault)()

    with pytest.raises(TierUnavailable):
        here.store.invalidate(["user:1"])


def test_after_an_answer_that_came_too_late_no_other_call_gets_it(redis_proxy: RedisProxy, process: Start) -> None:
    here = process(redis_proxy.url(), listening=False, timeout=0.2)
    first, second = digest(), digest()
    ask(here).store(first, b"first")
    ask(here).store(second, b"second")
    redis_proxy.mute()
    with pytest.raises(TierUnavailable):
        here.store.read(first, TAGS)
    redis_proxy.heal()

    raw = here.store.read(second, TAGS)
    assert raw is not None
    assert raw.payload == b"second"


def test_a_transaction_is_one_round_trip_and_is_sent_again_to_a_server_that_does_not_know_its_scripts(
    warm: RedisProcess, redis_proxy: RedisProxy, redis_server: RedisServer
) -> None:
    keys = [digest() for _ in range(2)]
    journal = RedisJournal(warm.client, "ns", beside_entries=True)
    journal.write("orders", [("b", b"1")], 10)

    def put() -> list[int]:
        beside = journal.beside("orders", [("a", b"1")], 10)
        assert beside is not None
        warm.store.put_all([Put(ask(warm).request(key), ask(warm).body(), TTL) for key in keys], beside)
        return list(beside.answer)

    redis_proxy.reset()
    [sequence] = put()
    assert redis_proxy.trips == [("MULTI", "EVALSHA", "EVALSHA", "EVALSHA", "EXEC")]
    with redis_server.client() as client:
        client.script_flush()
    [later] = put()

    assert later > sequence
    assert [warm.store.read(key, TAGS) is not None for key in keys] == [True, True]
    record = journal.begin("orders", "a")[0]
    assert record is not None
    assert record.sequence == later


def test_a_full_server_takes_neither_the_record_nor_the_entry(
    server: RedisServer, admin: redis.Redis, process: Start
) -> None:
    here, key = process(server.url(), listening=False), digest()
    ask(here).store(key, b"older")
    journal = RedisJournal(here.client, "ns", beside_entries=True)
    beside = journal.beside("orders", [("a", b"1")], 10)
    assert beside is not None
    fill(admin)

    with pytest.raises(TierUnavailable):
        here.store.put_all([Put(ask(here).request(key), ask(here).body(b"x" * 10_000), TTL)], beside)
    assert not isinstance(beside.answer, list)
    assert journal.begin("orders", "a")[0] is None
    assert here.store.read(key, TAGS) is None
