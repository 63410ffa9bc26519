"""The journal in Redis: what every journal promises, and what becomes of it when the server is full or dies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
import redis
from redis.crc import key_slot

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal.redis import RedisJournal
from celery_cachetiers.journal_port import REMEMBERED_SECONDS, Backlog, Exhumed
from celery_cachetiers.testing.conformance import JournalConformance, JournalUnderTest
from celery_cachetiers.testing.conformance.journal import LONG, PLENTY, names
from tests.processes import wait_until
from tests.proxy import RedisProxy
from tests.servers import FLAVOURS, RedisServer, RedisServers

Open = Callable[..., JournalUnderTest]


@pytest.fixture
def at(namespace: str) -> Iterator[Open]:
    """``at(url, timeout=5.0)`` gives two processes at a server's journal, in the test's namespace."""
    with ExitStack() as stack:

        def journal(url: str, timeout: float, **options: int) -> RedisJournal:
            client = RedisClient(url, timeout, Breaker(0.0, SystemClock()))
            stack.callback(client.close)
            return RedisJournal(client, namespace, **options)  # type: ignore[arg-type]  # remembered=

        def both(url: str, timeout: float = 5.0, **options: int) -> JournalUnderTest:
            plain = stack.enter_context(redis.Redis.from_url(url))

            def set_last_sequence(sink: str, last: int | None) -> None:
                name = f"{namespace}:{{wb:{sink}}}:s"
                if last is None:
                    assert plain.delete(name) == 1, "it was under another name"
                else:
                    plain.set(name, last)

            return JournalUnderTest(
                journal(url, timeout, **options), journal(url, timeout, **options), set_last_sequence
            )

        yield both


class TestRedisJournal(JournalConformance):
    @pytest.fixture
    def journal(self, every_redis_server: RedisServer, at: Open) -> JournalUnderTest:
        return at(every_redis_server.url())


def fill_all_kinds(journal: JournalUnderTest) -> None:
    """Leaves something under every key that a journal may have."""
    journal.dead("dead")
    journal.write("dead")
    journal.acknowledge(journal.claim())
    journal.write("failed", "claimed", "waiting")
    one, *_ = journal.claim(limit=2)
    journal.give_back([one], LONG, failed=True)


def keys_of(server: RedisServer, namespace: str) -> dict[str, int]:
    """Each key's milliseconds to live, -1 for one without a TTL."""
    with server.client() as client:
        return {key.decode(): client.pttl(key) for key in client.scan_iter(f"{namespace}:*")}  # type: ignore[misc]


def memory_of(server: RedisServer, namespace: str, sink: str) -> int:
    """Milliseconds to live of what is remembered of a sink."""
    return keys_of(server, f"{namespace}:{{wb:{sink}}}")[f"{namespace}:{{wb:{sink}}}:t"]


# -- what lies in Redis ------------------------------------------------------------------------------------------------


def test_no_key_but_the_memory_has_a_ttl_and_all_of_a_sinks_share_one_slot(
    every_redis_server: RedisServer, at: Open, namespace: str
) -> None:
    for sink in ("orders", "odd}{name", ""):
        journal = at(every_redis_server.url())
        journal.sink = sink
        journal.ours.note(journal.sink, [("noted", 1)])
        assert 0 < memory_of(every_redis_server, namespace, sink) <= REMEMBERED_SECONDS * 1000
        with every_redis_server.client() as client:
            client.persist(f"{namespace}:{{wb:{sink}}}:t")
        fill_all_kinds(journal)
        assert 0 < memory_of(every_redis_server, namespace, sink) <= REMEMBERED_SECONDS * 1000
        found = keys_of(every_redis_server, f"{namespace}:{{wb:{sink}}}")

        assert {name.rpartition(":")[2] for name in found} == set("vdbscaxyot")
        del found[f"{namespace}:{{wb:{sink}}}:t"]
        assert set(found.values()) == {-1}
        assert len({key_slot(name.encode()) for name in found}) == 1


def test_a_sink_that_has_taken_everything_leaves_its_sequences_and_nothing_else(
    every_redis_server: RedisServer, at: Open, namespace: str
) -> None:
    journal = at(every_redis_server.url())
    journal.dead("dead", "overtaken", "dropped")
    journal.write("a", "b", "overtaken", "dropped")
    journal.give_back(journal.claim(), failed=True)
    journal.acknowledge(journal.claim())
    journal.ours.exhume(journal.sink, ["overtaken"])
    journal.ours.drop(journal.sink, ["dead", "dropped"])

    assert {name.rpartition(":")[2] for name in keys_of(every_redis_server, namespace)} == {"s", "t"}


def test_of_the_keys_that_a_sink_has_taken_so_many_are_remembered(
    every_redis_server: RedisServer, at: Open, namespace: str
) -> None:
    journal = at(every_redis_server.url(), remembered=3)
    written = [(key, journal.write(key)[0]) for key in "abcde"]
    journal.acknowledge(journal.claim(limit=2))
    journal.acknowledge(journal.claim(limit=2))
    assert journal.ours.overtaken(journal.sink, written) == [False, True, True, True, False]
    journal.ours.note(journal.sink, written[4:])

    assert journal.ours.overtaken(journal.sink, written) == [False, False, True, True, True]


def test_a_thousand_are_acknowledged_and_noted_at_once(every_redis_server: RedisServer, at: Open) -> None:
    journal = at(every_redis_server.url())
    written = list(zip(map(str, range(1000)), journal.write(*map(str, range(1000))), strict=True))

    assert journal.acknowledge(journal.claim(limit=1000)) == 1000
    journal.ours.note(journal.sink, written)
    assert all(journal.ours.overtaken(journal.sink, written))


def test_every_step_is_one_round_trip(redis_proxy: RedisProxy, at: Open) -> None:
    journal = at(redis_proxy.url())
    for _ in range(2):  # the server has the scripts in the second round
        redis_proxy.reset()
        journal.write("a", "b", "c")
        journal.ours.sequence(journal.sink)
        first, second, third = journal.claim()
        journal.ours.renew(journal.sink, "ours", ["a", "b", "c"], LONG)
        journal.acknowledge([first])
        journal.give_back([second])
        journal.bury(third)
        journal.ours.note(journal.sink, [("d", 1)])
        journal.ours.overtaken(journal.sink, [("d", 1), ("e", 1)])
        journal.ours.exhume(journal.sink, ["c"])
        journal.ours.drop(journal.sink, ["c"])
        journal.ours.backlog(journal.sink)
        journal.acknowledge(journal.claim())

    assert redis_proxy.trips == [
        *[("EVALSHA",)] * 8,
        ("ZMSCORE",),
        *[("EVALSHA",)] * 2,
        ("ZCARD", "ZRANGE", "ZCARD"),
        *[("EVALSHA",)] * 2,
    ]


# -- a server that is full ---------------------------------------------------------------------------------------------


@pytest.fixture(params=FLAVOURS)
def own(request: pytest.FixtureRequest, redis_factory: RedisServers) -> RedisServer:
    """A server of the test's own, of each flavour."""
    return redis_factory("--appendonly", "yes", "--appendfsync", "always", flavour=request.param)


def fill(server: RedisServer) -> None:
    """Makes the server full, so that it refuses what takes memory."""
    with server.client() as admin:
        used = int(admin.info("memory")["used_memory"])
        admin.config_set("maxmemory-policy", "noeviction")
        admin.config_set(
            "maxmemory", str(used // 2)
        )  # not just below: the buffer of the file it appends to does not count
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            admin.set("one more", "x" * 1000)


def test_a_full_server_refuses_a_write_whole_and_keeps_what_it_had(own: RedisServer, at: Open) -> None:
    journal = at(own.url())
    journal.write("a", "b")
    fill(own)

    for keys in (("c",), ("a", "c"), ("a",)):
        with pytest.raises(TierUnavailable):
            journal.write(*keys, body=b"new" * 10_000)
    assert [(each.key, each.body) for each in journal.claim()] == [("a", b"body"), ("b", b"body")]


def test_a_full_server_is_emptied_by_flushing(own: RedisServer, at: Open) -> None:
    journal = at(own.url())
    journal.dead("dead")
    journal.write("a", "b", "c", "d")
    fill(own)

    claimed = journal.claim()
    assert names(claimed) == ["a", "b", "c", "d"]
    assert journal.ours.renew(journal.sink, "ours", names(claimed), LONG) == 4
    assert journal.acknowledge(claimed[:1]) == 1
    journal.give_back(claimed[1:2], failed=True)
    assert journal.bury(claimed[2]) is True
    journal.ours.note(journal.sink, [("e", 1)])
    assert journal.ours.exhume(journal.sink, ["dead"]) == Exhumed(1)
    assert journal.ours.drop(journal.sink, ["c"]) == 1
    assert [(each.key, each.attempts) for each in journal.claim_there()] == [("b", 1), ("dead", 0)]


def test_a_full_server_gives_a_sequence_for_the_write_that_goes_past_it(own: RedisServer, at: Open) -> None:
    journal = at(own.url())
    [written] = journal.write("a")
    fill(own)

    first = journal.ours.sequence(journal.sink)
    waits, second = journal.ours.begin(journal.sink, "a")
    assert waits is not None
    assert written < first < second < journal.ours.sequence(journal.sink)


# -- a server that dies ------------------------------------------------------------------------------------------------


def test_a_killed_server_that_appends_always_has_lost_nothing(own: RedisServer, at: Open) -> None:
    journal = at(own.url())
    journal.dead("dead")
    written = journal.write("a", "b", "c", "d")
    taken, failed, *_ = journal.claim(limit=3)
    journal.acknowledge([taken])
    journal.give_back([failed], failed=True)
    own.kill()
    with pytest.raises(TierUnavailable):
        journal.write("e")
    own.start()

    assert journal.backlog().pending == 3
    assert journal.buried() == ["dead"]
    assert [(each.key, each.sequence, each.attempts) for each in journal.claim_there()] == [
        ("d", written[3], 0),
        ("b", written[1], 1),
    ]
    assert names(journal.claim(key="c")) == []
    assert journal.ours.renew(journal.sink, "ours", ["c"], LONG) == 1
    assert journal.write("f")[0] > written[3]


def test_a_dead_server_is_unavailable_whatever_is_asked(own: RedisServer, at: Open) -> None:
    journal = at(own.url())
    journal.write("a")
    [record] = journal.claim()
    own.kill()
    asked: list[Callable[[], object]] = [
        lambda: journal.write("a"),
        lambda: journal.ours.sequence(journal.sink),
        lambda: journal.look("a"),
        journal.claim,
        lambda: journal.ours.renew(journal.sink, "ours", ["a"], LONG),
        lambda: journal.acknowledge([record]),
        lambda: journal.give_back([record]),
        lambda: journal.bury(record),
        journal.backlog,
        journal.buried,
        lambda: journal.ours.exhume(journal.sink, ["a"]),
        lambda: journal.ours.drop(journal.sink, ["a"]),
        journal.ours.unsafe,
    ]

    for ask in asked:
        with pytest.raises(TierUnavailable):
            ask()


def test_a_server_that_does_not_tell_its_policy_is_not_suspected(own: RedisServer, at: Open) -> None:
    with own.client() as admin:
        admin.execute_command("ACL", "SETUSER", "default", "-@dangerous")

    assert at(own.url()).ours.unsafe() is None


def restarted(server: RedisServer) -> None:
    server.kill()
    server.start()


def test_a_killed_server_without_persistence_has_lost_what_waited_and_its_sequences_still_grow(
    redis_factory: RedisServers, at: Open
) -> None:
    server = redis_factory()
    journal = at(server.url())
    journal.dead("b")
    [before] = journal.write("a")
    restarted(server)

    assert journal.backlog() == Backlog(pending=0, oldest=None, buried=0)
    assert journal.write("a")[0] > before


def test_a_flush_of_the_server_loses_what_waits_and_its_sequences_still_grow(
    redis_factory: RedisServers, at: Open
) -> None:
    server = redis_factory()
    journal = at(server.url())
    [before] = journal.write("a")
    with server.client() as admin:
        admin.flushall()

    assert journal.claim() == []
    assert journal.write("a")[0] > before


def test_a_server_that_starts_from_an_old_snapshot_has_lost_later_writes_and_delivers_earlier_ones_again(
    redis_factory: RedisServers, at: Open
) -> None:
    server = redis_factory()
    journal = at(server.url())
    [taken] = journal.write("taken")
    journal.write("waits")
    with server.client() as admin:
        admin.save()
    journal.acknowledge(journal.claim(key="taken"))
    [late] = journal.write("late")
    restarted(server)

    again = journal.claim()
    assert names(again) == ["taken", "waits"], "and what was written after the snapshot is lost"
    assert again[0].sequence == taken, "by which a sink knows that it has it, or a newer one"
    assert journal.write("taken")[0] > late


def test_a_killed_server_that_syncs_once_a_second_has_what_its_host_had_taken(
    redis_factory: RedisServers, at: Open
) -> None:
    server = redis_factory("--appendonly", "yes", "--appendfsync", "everysec")
    journal = at(server.url())
    journal.write("a")
    restarted(server)

    assert names(journal.claim()) == ["a"]


# -- a write that is to be safe elsewhere ------------------------------------------------------------------------------


@pytest.mark.parametrize("durability", ["replica", "disk"])
def test_a_write_that_nobody_confirms_is_unavailable_and_may_be_there(
    redis_factory: RedisServers, at: Open, durability: str
) -> None:
    journal = at(redis_factory("--appendonly", "no").url(), timeout=0.5)

    with pytest.raises(TierUnavailable):
        journal.ours.write(journal.sink, [("a", b"body")], PLENTY, durability=durability)
    assert names(journal.claim()) == ["a"]


def test_a_write_that_a_replica_has_confirmed_outlives_its_server(redis_factory: RedisServers, at: Open) -> None:
    main = redis_factory("--repl-diskless-sync-delay", "0")
    replica = redis_factory("--replicaof", "127.0.0.1", str(main.port))
    journal, copy = at(main.url()), at(replica.url())
    with main.client() as client:
        wait_until(
            lambda: client.info("replication").get("slave0", {}).get("state") == "online",
            timeout=30.0,
            message="a replica",
        )
    [sequence] = journal.ours.write(journal.sink, [("a", b"body")], PLENTY, durability="replica")
    main.kill()
    with replica.client() as admin:
        admin.replicaof("NO", "ONE")

    assert [each.sequence for each in copy.ours.claim(journal.sink, "ours", 1, LONG)] == [sequence]
    assert copy.ours.write(journal.sink, [("a", b"body")], PLENTY)[0] > sequence


# -- a server that may lose it -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "evicts"),
    [
        ("noeviction", False),
        ("volatile-lru", False),
        ("volatile-lfu", False),
        ("volatile-random", False),
        ("volatile-ttl", False),
        ("allkeys-lru", True),
        ("allkeys-lfu", True),
        ("allkeys-random", True),
    ],
)
def test_a_server_that_evicts_any_key_is_told_of(own: RedisServer, at: Open, policy: str, evicts: bool) -> None:
    with own.client() as admin:
        admin.config_set("maxmemory-policy", policy)
    complaint = at(own.url()).ours.unsafe()

    assert (complaint is not None) is evicts
    assert complaint is None or policy in complaint


def test_a_journal_forgets_its_parents_connections_and_closes_its_own(redis_proxy: RedisProxy, at: Open) -> None:
    journal = at(redis_proxy.url())
    journal.write("a")
    journal.ours.close()
    journal.write("b")
    journal.ours.reset_after_fork()
    journal.ours.write(journal.sink, [("c", b"")], PLENTY)

    assert journal.theirs.backlog(journal.sink) == Backlog(3, journal.backlog().oldest, 0)
