"""What lies in Redis: which keys, where, for how long, and what a read makes of keys that somebody else has touched."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis
from redis.crc import key_slot

from celery_cachetiers.ports import OUT_OF_DATE, STORED, Found, Held, Leading
from celery_cachetiers.templates import MAX_RESULT_TAGS
from celery_cachetiers.testing.conformance import StoreUnderTest
from celery_cachetiers.testing.conformance.store import LEASE_TTL, TAGS, TTL, digest
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.redis import LOG_LENGTH
from tests.conformance.redis_process import RedisProcess
from tests.servers import RedisServer

Start = Callable[..., RedisProcess]


class Rig:
    """One process without a backplane, and a plain client beside it."""

    def __init__(self, process: RedisProcess, client: redis.Redis, namespace: str) -> None:
        self.process, self.store, self.client, self.layout = process, process.store, client, process.layout
        self.namespace = namespace
        self.ask = StoreUnderTest(process.store, process.store)

    def names(self) -> list[str]:
        return sorted(key.decode() for key in self.client.scan_iter(f"{self.namespace}:*"))

    def version_key(self, tag: str) -> str:
        [key] = [key for key in self.names() if f":t:{tag}" in key]
        return key

    def ttl(self, key: str) -> float:
        return int(self.client.pttl(key)) / 1000  # type: ignore[arg-type]  # redis-py's stubs allow for asyncio


@pytest.fixture
def rig(every_redis_server: RedisServer, process: Start, namespace: str) -> Iterator[Rig]:
    with every_redis_server.client() as client:
        yield Rig(process(every_redis_server.url(), listening=False), client, namespace)


def test_every_key_has_a_ttl(rig: Rig) -> None:
    waited, busy, handed = digest(), digest(), digest()
    rig.ask.store(digest())
    rig.ask.lead(waited)
    rig.store.lease(rig.ask.request(waited))
    rig.store.renew(rig.ask.lead(busy))
    rig.ask.lead(handed, hand_to="task-1")
    rig.store.put(rig.ask.request(digest()), rig.ask.body(), TTL)
    rig.store.fence(digest())
    rig.store.invalidate(["user:9"])
    kinds = {key.split(":")[2] for key in rig.names()}
    assert kinds == {"e", "l", "w", "t"}
    rig.ask.lead_with(digest())
    rig.store.invalidate(["user:9"])

    kinds = {key.split(":")[2] for key in rig.names()}
    assert kinds == {"e", "l", "w", "t", "inv"}
    assert [key for key in rig.names() if rig.ttl(key) < 0] == []


def test_the_keys_of_an_entry_and_its_tags_share_one_hash_tag(rig: Rig) -> None:
    key = digest()
    rig.ask.store(key)
    rig.ask.lead(key, now=None)
    rig.store.lease(rig.ask.request(key))

    assert {name[name.index("{") : name.index("}") + 1] for name in rig.names()} == {"{0}"}
    assert len({key_slot(name.encode()) for name in rig.names()}) == 1


@pytest.mark.parametrize("key", ["0" * 32, "f" * 32, digest()])
def test_with_many_buckets_the_keys_of_an_entry_still_share_one(key: str) -> None:
    layout = Layout("ns", buckets=64)
    names = [layout.entry(key), layout.lease(key), layout.waiters(key)]
    names += layout.versions(layout.bucket(key), ["@all", "user:{1}"], "run")

    assert {name[name.index("{") : name.index("}") + 1] for name in names} == {f"{{{layout.bucket(key)}}}"}
    assert 0 <= layout.bucket(key) < 64


@pytest.mark.parametrize("write", ["commit", "put"])
def test_versions_live_at_least_the_hard_ttl_and_a_lease_longer(rig: Rig, write: str) -> None:
    if write == "commit":
        rig.ask.store(digest())
    else:
        rig.store.put(rig.ask.request(digest()), rig.ask.body(), TTL)

    for tag in TAGS:
        assert 1.1 * (TTL + LEASE_TTL) - 5 < rig.ttl(rig.version_key(tag)) <= 1.1 * (TTL + LEASE_TTL), tag


def test_versions_that_live_long_enough_are_not_written(rig: Rig) -> None:
    """Every write of a version is replicated, and reported to who tracks."""
    rig.ask.store(digest())
    enough = 1.05 * (TTL + LEASE_TTL)
    for tag in TAGS:
        rig.client.pexpire(rig.version_key(tag), int(enough * 1000))
    rig.store.renew(rig.ask.lead(digest()))
    rig.ask.store(digest())
    rig.store.put(rig.ask.request(digest()), rig.ask.body(), TTL)

    for tag in TAGS:
        assert enough - 5 < rig.ttl(rig.version_key(tag)) <= enough, tag


def test_a_short_lived_sibling_never_shortens_the_versions(rig: Rig) -> None:
    rig.ask.store(digest())
    short = rig.ask.lead(digest(), keep_for=1.0, lease_ttl=0.5)
    rig.store.renew(short)
    rig.store.commit(short, rig.ask.body(), 0.5)
    rig.store.put(rig.ask.request(digest(), keep_for=1.0), rig.ask.body(), 0.5)

    for tag in TAGS:
        assert rig.ttl(rig.version_key(tag)) > TTL, tag


def test_a_long_lived_sibling_prolongs_the_versions(rig: Rig) -> None:
    rig.ask.store(digest())
    rig.ask.lead(digest(), keep_for=1000.0)

    for tag in TAGS:
        assert rig.ttl(rig.version_key(tag)) > 900, tag


def test_a_long_lived_sibling_prolongs_the_versions_of_its_results_tags_and_the_log(rig: Rig) -> None:
    brief, since = rig.ask.lead_with(digest(), keep_for=5.0)
    rig.ask.commit_with(brief, ("row:1",), since)
    assert rig.ttl(rig.version_key("row:1")) <= 5.5
    rig.ask.store_with(digest(), ("row:1",))

    assert rig.ttl(rig.version_key("row:1")) > TTL
    assert rig.ttl(rig.layout.log(0)) > TTL


def test_a_short_lived_sibling_shortens_neither_versions_of_its_results_tags_nor_the_log(rig: Rig) -> None:
    rig.ask.store_with(digest(), ("row:1",))
    brief, since = rig.ask.lead_with(digest(), keep_for=5.0)
    rig.store.renew(brief)
    rig.ask.commit_with(brief, ("row:1",), since)

    assert rig.ttl(rig.version_key("row:1")) > TTL
    assert rig.ttl(rig.layout.log(0)) > TTL


def test_renewal_sets_the_lease_ttl_anew_and_keeps_the_waiters_longer(rig: Rig) -> None:
    key = digest()
    leader = rig.ask.lead(key)
    rig.store.lease(rig.ask.request(key))
    lease, waiters = rig.layout.lease(key), rig.layout.waiters(key)
    for name in (lease, waiters):
        rig.client.pexpire(name, 1000)
    rig.store.renew(leader)

    assert LEASE_TTL - 5 < rig.ttl(lease) <= LEASE_TTL
    assert rig.ttl(waiters) > LEASE_TTL


def test_the_inbox_of_a_waiter_outlives_the_lease(rig: Rig) -> None:
    key = digest()
    rig.ask.lead(key)
    rig.store.lease(rig.ask.request(key, lease_ttl=0.5))

    assert rig.ttl(rig.layout.waiters(key)) > rig.ttl(rig.layout.lease(key))


@pytest.mark.parametrize("tag", TAGS)
def test_a_missing_nonce_never_validates(rig: Rig, tag: str) -> None:
    key = digest()
    rig.ask.store(key)
    rig.client.delete(rig.version_key(tag))

    assert rig.store.versions(TAGS) is None
    assert rig.store.read(key, TAGS) is None
    assert isinstance(rig.store.lease(rig.ask.request(key)), Leading)


@pytest.mark.parametrize("nonce", [b"", b"short", b"nine byte", b"12345678" * 3])
def test_a_nonce_of_another_length_never_validates(rig: Rig, nonce: bytes) -> None:
    key = digest()
    rig.ask.store(key)
    rig.client.set(rig.version_key("user:1"), nonce, px=60_000)

    assert rig.store.read(key, TAGS) is None


def test_other_tag_names_never_validate_though_their_nonces_are_equal(rig: Rig) -> None:
    key, others = digest(), (*TAGS[:2], "user:2")
    rig.ask.store(key)
    rig.ask.store(digest(), tags=others)
    rig.client.copy(rig.version_key("user:1"), rig.version_key("user:2"), replace=True)

    assert rig.store.read(key, others) is None
    answer = rig.store.lease(rig.ask.request(key, others))
    assert isinstance(answer, Leading)
    assert answer.stale is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda entry: b"", id="empty"),
        pytest.param(lambda entry: b"foreign", id="foreign"),
        pytest.param(lambda entry: entry[:30], id="cut"),
        pytest.param(lambda entry: entry[:-1], id="cut by one"),
        pytest.param(lambda entry: entry + b"x", id="appended"),
        pytest.param(lambda entry: entry[:2] + b"\x02" + entry[3:], id="newer version"),
        pytest.param(lambda entry: entry[:3] + b"\x01" + entry[4:], id="unknown flag"),
        pytest.param(lambda entry: entry[:42] + b"\xff" + entry[43:], id="a length past the end"),
        pytest.param(lambda entry: entry[:38] + b"\xff" * 4 + entry[42:], id="a tag block past the end"),
        pytest.param(lambda entry: entry[:4] + b"\xff" * 8 + entry[12:], id="a time that is not a number"),
    ],
)
def test_bytes_that_are_no_entry_are_a_miss_and_led_past(rig: Rig, damage: Callable[[bytes], bytes]) -> None:
    key, name = digest(), rig.layout.entry
    rig.ask.store(key)
    entry = rig.client.get(name(key))
    assert isinstance(entry, bytes)
    rig.client.set(name(key), damage(entry), keepttl=True)

    assert rig.store.read(key, TAGS) is None
    request = rig.ask.request(key)
    assert isinstance(rig.store.lease(request), Leading)
    assert rig.ask.commit(request) == STORED
    assert rig.store.read(key, TAGS) is not None


def test_unusable_bytes_are_told(rig: Rig) -> None:
    key = digest()
    rig.client.set(rig.layout.entry(key), b"somebody else's", px=60_000)
    rig.store.read(key, TAGS)

    assert rig.process.unusable == ["foreign"]


def test_a_stranger_that_leaves_another_type_under_our_keys_is_a_fault_not_a_crash(rig: Rig) -> None:
    key = digest()
    rig.ask.store(key)
    rig.client.delete(rig.layout.entry(key))
    rig.client.lpush(rig.layout.entry(key), "x")

    assert rig.store.read(key, TAGS) is None


def test_the_log_is_there_only_where_results_give_tags_and_holds_what_was_invalidated_since(rig: Rig) -> None:
    log = rig.layout.log(0)
    rig.ask.lead(digest())
    rig.store.invalidate(["row:0"])
    assert rig.client.exists(log) == 0
    rig.ask.lead_with(digest())
    rig.store.invalidate(["row:1", "row:2"])
    rig.store.invalidate(["row:2", "grün"])

    noted = {name.decode(): value for name, value in rig.client.hgetall(log).items()}  # type: ignore[union-attr]
    assert {name: value for name, value in noted.items() if name != "@epoch"} == {
        "@count": b"2", "row:1": b"1", "row:2": b"2", "grün": b"2",
    }  # fmt: skip
    assert len(noted["@epoch"]) == 16


def test_a_log_that_is_too_long_starts_anew_and_refuses_who_computes_under_the_old_one(rig: Rig) -> None:
    request, since = rig.ask.lead_with(digest())
    rig.store.invalidate([f"row:{number}" for number in range(LOG_LENGTH)])
    assert rig.client.hlen(rig.layout.log(0)) == LOG_LENGTH + 2
    rig.store.invalidate(["one:more"])
    assert rig.client.exists(rig.layout.log(0)) == 0
    later, since_then = rig.ask.lead_with(digest())

    assert rig.ask.commit_with(request, ("untouched",), since) == OUT_OF_DATE
    assert rig.ask.commit_with(later, ("row:1",), since_then) == STORED
    assert since_then.epoch != since.epoch


@pytest.mark.parametrize("lost", ["deleted", "replaced"])
def test_a_log_that_was_lost_refuses_who_computes_under_it(rig: Rig, lost: str) -> None:
    request, since = rig.ask.lead_with(digest())
    rig.client.delete(rig.layout.log(0))
    if lost == "replaced":
        rig.ask.lead_with(digest())

    assert rig.ask.commit_with(request, ("row:1",), since) == OUT_OF_DATE


def test_any_number_of_tags_is_invalidated_together(rig: Rig) -> None:
    names = [f"row:{number}" for number in range(2500)]
    keys = [digest() for _ in range(25)]
    for number, key in enumerate(keys):
        rig.ask.store(key, tags=(*TAGS, names[100 * number]))
    rig.store.invalidate(names)

    assert [rig.store.read(key, (*TAGS, names[100 * number])) for number, key in enumerate(keys)] == [None] * 25


def test_an_entry_may_have_as_many_tags_of_its_result_as_are_allowed(rig: Rig) -> None:
    names = tuple(sorted(f"row:{number}" for number in range(MAX_RESULT_TAGS)))
    key = digest()
    rig.ask.store_with(key, names)
    assert rig.store.read(key, TAGS, ()) is not None
    assert isinstance(rig.store.lease(rig.ask.request(key, guess=names)), Found)
    rig.store.invalidate([names[-1]])

    assert rig.store.read(key, TAGS, names) is None


def test_on_a_full_server_an_invalidation_still_refuses_who_computes(
    redis_factory: Callable[..., RedisServer], process: Start
) -> None:
    server = redis_factory()
    here = process(server.url(), listening=False)
    ask, key = StoreUnderTest(here.store, here.store), digest()
    request, since = ask.lead_with(digest())
    ask.store_with(key, ("row:1",))
    with server.client() as client:
        client.config_set("maxmemory", 1)
        here.store.invalidate(["row:1"])
        client.config_set("maxmemory", 0)

    assert here.store.read(key, TAGS, ()) is None
    assert ask.commit_with(request, ("row:1",), since) == OUT_OF_DATE


def test_no_nonce_is_used_twice(rig: Rig) -> None:
    nonces = set()
    for _ in range(20):
        rig.ask.store(digest())
        nonces |= {rig.client.get(rig.version_key(tag)) for tag in TAGS}
        rig.store.invalidate(TAGS)

    assert len(nonces) == 20 * len(TAGS)


def test_flushall_only_causes_misses(rig: Rig, redis_factory: Callable[..., RedisServer], process: Start) -> None:
    server = redis_factory()
    here = process(server.url(), listening=False)
    ask, key, busy, waited = StoreUnderTest(here.store, here.store), digest(), digest(), digest()
    ask.store(key)
    leader, other = ask.lead(busy), ask.lead(waited)
    here.store.lease(ask.request(waited))
    with server.client() as client:
        client.flushall()

    assert here.store.read(key, TAGS) is None
    assert ask.commit(leader) == 0
    assert here.store.renew(other) is False
    assert here.store.release(waited, other.token) is False
    assert isinstance(here.store.lease(ask.request(key)), Leading)
    here.store.invalidate(TAGS)
    here.store.fence(key)


def test_script_flush_is_survived(rig: Rig) -> None:
    key = digest()
    for act in (
        lambda: rig.ask.store(key),
        lambda: rig.store.put(rig.ask.request(key), rig.ask.body(), TTL),
        lambda: rig.store.fence(key),
        lambda: rig.store.fence(key, digest()),
        lambda: rig.store.release(key, "nobody"),
        lambda: rig.store.renew(rig.ask.request(key)),
    ):
        rig.client.script_flush()
        act()

    rig.ask.store(key)
    assert isinstance(rig.store.lease(rig.ask.request(key)), Found)
    assert isinstance(rig.store.lease(rig.ask.request(key, now=None)), Leading)
    assert isinstance(rig.store.lease(rig.ask.request(key, now=None)), Held)
