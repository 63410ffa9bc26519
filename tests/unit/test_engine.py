"""The engine on a store in memory: every path of a call, every fault, every race, with time that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celery_cachetiers.attempt import Terms
from celery_cachetiers.call import Call
from celery_cachetiers.codec import Codec
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.ports import Held, Leading, LeaseRequest
from celery_cachetiers.reading import Reading
from celery_cachetiers.testing import Gate, InMemoryProcess
from tests.unit.bodies import Body, Thread, TickingClock, clocked, eventually, flown, never, pass_time, sleepers


def told(reading: Reading | None) -> tuple[object, str]:
    """What a look found, and what it said of it."""
    assert reading is not None
    return reading.value, " ".join(word for word in ("stale", "refresh") if getattr(reading, word))


@pytest.fixture
def here() -> InMemoryProcess:
    return InMemoryProcess()


@pytest.fixture
def there(here: InMemoryProcess) -> InMemoryProcess:
    return InMemoryProcess(beside=here)


# -- miss and hit ------------------------------------------------------------------------------------------------------


def test_a_miss_computes_once_and_every_process_has_it_from_then_on(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    call, body = here.call("a", tags=["user:1"]), Body({"x": [1]})

    assert here.get(call, body) == {"x": [1]}
    assert here.get(call, never) == {"x": [1]}
    assert there.get(there.call("a", tags=["user:1"]), never) == {"x": [1]}
    assert body.calls == 1
    assert here.tally == Tally(l1_hits=1, misses=1, computes=1, stores=1, stored_bytes=here.tally.stored_bytes)
    assert there.tally == Tally(l2_hits=1)


def test_a_hit_in_l1_asks_nobody(here: InMemoryProcess) -> None:
    here.get(here.call("a"), Body())
    here.store.calls.clear()

    assert here.cache.recall(here.call("a")) == "value"
    assert not here.store.calls


@pytest.mark.parametrize(
    ("looked", "steps"),
    [(False, {"read": 1, "lease": 1, "commit": 1}), (True, {"lease": 1, "commit": 1})],
)
def test_a_miss_costs_look_lease_and_commit_and_no_look_after_a_look(
    here: InMemoryProcess, looked: bool, steps: dict[str, int]
) -> None:
    here.cache.fetch(here.call("a", tags=["user:1", "user:2"]), Body(), Terms(looked=looked))

    assert dict(here.store.calls) == steps


def test_a_hit_in_l2_costs_one_read(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.get(here.call("a"), Body())
    there.cache.fetch(there.call("a"), never)

    assert dict(there.store.calls) == {"read": 1}


def test_none_is_a_value(here: InMemoryProcess, there: InMemoryProcess) -> None:
    body = Body(None)

    assert here.get(here.call("a"), body) is None
    assert here.get(here.call("a"), never) is None
    assert there.get(there.call("a"), never) is None
    assert body.calls == 1


def test_no_receiver_can_harm_the_value_of_another(here: InMemoryProcess, there: InMemoryProcess) -> None:
    computed = [1]
    first = here.get(here.call("a"), lambda: computed)
    assert first is computed
    for process in (here, here, there, there):
        value = process.get(process.call("a"), never)
        assert value == [1]
        assert isinstance(value, list)
        value.append(2)
    computed.append(3)

    assert here.get(here.call("a"), never) == [1]


def test_a_look_finds_and_never_computes(here: InMemoryProcess, there: InMemoryProcess) -> None:
    assert here.cache.look(here.call("a")) is None
    here.get(here.call("a"), Body())

    assert told(here.cache.look(here.call("a"))) == ("value", "")
    assert told(there.cache.look(there.call("a"))) == ("value", "")


def test_keys_do_not_share_values(here: InMemoryProcess) -> None:
    assert here.get(here.call("a"), Body(1)) == 1
    assert here.get(here.call("b"), Body(2)) == 2
    assert here.get(here.call("a", task="other"), Body(3)) == 3


def test_the_bodys_exception_passes_unchanged_and_nothing_is_stored(here: InMemoryProcess) -> None:
    error = ValueError("the body's own")
    with pytest.raises(ValueError, match="own") as raised:
        here.get(here.call("a"), Body(error=error))

    assert raised.value is error
    assert here.get(here.call("a"), Body("next")) == "next"


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_whatever_ends_the_body_frees_the_lease_at_once(
    here: InMemoryProcess, there: InMemoryProcess, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        here.get(here.call("a"), Body(error=error))

    assert here.keeper.kept == []
    assert here.memory.shared.leases.names() == []
    assert there.get(there.call("a"), Body("next")) == "next"


def test_a_value_that_cannot_be_serialized_is_returned_and_not_stored(here: InMemoryProcess) -> None:
    value = object()

    assert here.get(here.call("a"), Body(value)) is value
    assert here.get(here.call("a"), Body("next")) == "next"
    assert here.tally.unusable == 1


def test_a_value_that_can_be_serialized_but_not_read_again_is_returned(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    value = {"__type__": "of somebody else", "__value__": 1}  # kombu's JSON decoder refuses it

    assert here.get(here.call("a"), Body(value)) == value
    assert there.get(there.call("a"), Body(value)) == value


def test_followers_of_a_value_that_can_be_serialized_but_not_read_again_get_their_own(here: InMemoryProcess) -> None:
    gate = Gate()
    body = Body({"__type__": "of somebody else", "__value__": 1}, gate=gate)
    calls = [Thread(lambda: here.get(here.call("a"), body)) for _ in range(4)]
    gate.wait_reached()
    gate.open()

    assert [call.result() for call in calls] == [body.value] * 4


# -- freshness ---------------------------------------------------------------------------------------------------------


def test_an_entry_is_computed_again_after_its_ttl(here: InMemoryProcess) -> None:
    here.get(here.call("a", ttl=10.0), Body(1))
    here.clock.advance(9.9)
    assert here.get(here.call("a", ttl=10.0), never) == 1
    here.clock.advance(0.2)

    assert here.get(here.call("a", ttl=10.0), Body(2)) == 2


def test_within_the_grace_a_look_gives_the_stale_value_and_asks_for_a_refresh(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.get(here.call("a", ttl=10.0, grace=5.0), Body(1))
    here.clock.advance(12)

    assert told(there.cache.look(there.call("a", ttl=10.0, grace=5.0))) == (1, "stale refresh")
    assert there.tally.stale_hits == 1
    here.clock.advance(3)
    assert there.cache.look(there.call("a", ttl=10.0, grace=5.0)) is None


def test_a_stale_value_is_served_at_once_while_one_leader_computes(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "grace": 5.0}
    here.get(here.call("a", **options), Body("old"))
    here.clock.advance(12)
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a", **options), Body("new", gate=gate)))
    gate.wait_reached()

    for process in (here, there):
        assert process.get(process.call("a", **options), never) == "old"
    gate.open()
    assert leader.result() == "new"
    for process in (here, there):
        assert process.get(process.call("a", **options), never) == "new"


def test_a_refresh_is_asked_for_past_its_share_of_the_ttl(here: InMemoryProcess, there: InMemoryProcess) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "refresh_ahead": 0.8}
    here.get(here.call("a", **options), Body())
    here.clock.advance(7.9)
    assert told(there.cache.look(there.call("a", **options))) == ("value", "")
    here.clock.advance(0.2)

    for process in (here, there):
        assert told(process.cache.look(process.call("a", **options))) == ("value", "refresh")


def test_a_refresh_computes_whatever_is_there_and_replaces_it_everywhere(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.get(here.call("a"), Body(1))
    there.get(there.call("a"), never)

    assert here.get(here.call("a"), Body(2), refresh=True) == 2
    for process in (here, there):
        assert process.get(process.call("a"), never) == 2


def test_a_refresh_whose_value_l1_cannot_keep_leaves_no_older_one_there(here: InMemoryProcess) -> None:
    small = InMemoryProcess(beside=here, max_bytes=2000)
    small.get(small.call("a"), Body(1))
    small.get(small.call("a"), Body("x" * 5000), refresh=True)

    assert small.get(small.call("a"), never) == "x" * 5000


def test_a_refresh_is_not_refused_by_a_leader_that_began_before_it(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    gate = Gate()
    slow = Thread(lambda: there.get(there.call("a"), Body("older", gate=gate)))
    gate.wait_reached()

    assert here.get(here.call("a"), Body("newer"), refresh=True) == "newer"
    gate.open()
    assert slow.result() == "older"
    assert here.get(here.call("a"), never) == "newer"
    assert there.get(there.call("a"), never) == "newer"


def test_without_coalescing_each_computes_and_hits_are_hits(here: InMemoryProcess) -> None:
    gate = Gate()
    body = Body(gate=gate)
    calls = [Thread(lambda: here.get(here.call("a", coalesce=False), body)) for _ in range(4)]
    eventually(lambda: body.running == 4)
    gate.open()

    assert [call.result() for call in calls] == ["value"] * 4
    assert here.get(here.call("a", coalesce=False), never) == "value"


@pytest.mark.parametrize("seconds", [0.5, 100.0])
def test_the_result_may_say_how_long_it_is_fresh(here: InMemoryProcess, there: InMemoryProcess, seconds: float) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "lease_ttl": 5.0, "l1_ttl": 1000.0, "ttl_from": lambda result: seconds}
    here.get(here.call("a", **options), Body())
    here.clock.advance(seconds - 0.1)
    for process in (here, there):
        assert process.get(process.call("a", **options), never) == "value"
    here.clock.advance(0.2)

    for process in (here, there):
        assert process.cache.look(process.call("a", **options)) is None


def test_a_result_that_does_not_say_is_fresh_for_the_tasks_ttl(here: InMemoryProcess) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "ttl_from": lambda result: None}
    here.get(here.call("a", **options), Body())
    here.clock.advance(9)

    assert here.get(here.call("a", **options), never) == "value"


def fails(result: object) -> Any:
    raise RuntimeError("the task's own callable")


@pytest.mark.parametrize(
    "options",
    [
        {"cache_if": lambda result: False},
        {"cache_if": lambda result: None},
        {"cache_if": fails},
        {"ttl_from": fails},
        {"ttl_from": lambda result: "5m"},
        {"ttl_from": lambda result: 0},
        {"ttl_from": lambda result: -1},
        {"ttl_from": lambda result: float("nan")},
        {"ttl_from": lambda result: float("inf")},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_value_that_is_not_to_be_kept_is_returned_and_nothing_of_it_stays(
    here: InMemoryProcess, there: InMemoryProcess, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("CRITICAL", "celery_cachetiers")
    assert here.get(here.call("a", **options), Body(1)) == 1

    assert here.cache.look(here.call("a")) is None
    assert there.cache.look(there.call("a")) is None
    assert here.memory.shared.leases.names() == []


def test_a_value_that_is_to_be_kept_is_kept(here: InMemoryProcess) -> None:
    options: dict[str, Any] = {"cache_if": lambda result: result is not None}
    here.get(here.call("a", **options), Body(1))

    assert here.get(here.call("a", **options), never) == 1


# -- invalidation ------------------------------------------------------------------------------------------------------


def invalidations(process: InMemoryProcess, call: Call) -> dict[str, Callable[[], None]]:
    return {
        "tag": lambda: process.cache.invalidate(["user:1"]),
        "task": lambda: process.cache.clear("task"),
        "namespace": process.cache.clear,
        "key": lambda: process.cache.invalidate_key(call.digest),
    }


WAYS = ("tag", "task", "namespace", "key")


@pytest.mark.parametrize("way", WAYS)
def test_after_an_invalidation_no_process_serves_the_old_value(
    here: InMemoryProcess, there: InMemoryProcess, way: str
) -> None:
    for process in (here, there):
        process.get(process.call("a", tags=["user:1"]), Body("old"))
    invalidations(there, there.call("a"))[way]()

    for process in (here, there):
        assert process.cache.look(process.call("a", tags=["user:1"])) is None
    assert here.get(here.call("a", tags=["user:1"]), Body("new")) == "new"
    assert there.get(there.call("a", tags=["user:1"]), never) == "new"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("sides", ["same process", "other process"])
def test_a_compute_that_an_invalidation_overtakes_gives_its_caller_the_value_and_is_never_served_later(
    here: InMemoryProcess, there: InMemoryProcess, way: str, sides: str
) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a", tags=["user:1"]), Body("old", gate=gate)))
    gate.wait_reached()
    other = here if sides == "same process" else there
    invalidations(other, other.call("a"))[way]()
    gate.open()
    assert leader.result() == "old"

    assert here.tally.refused == 1
    for process in (here, there):
        assert process.cache.look(process.call("a", tags=["user:1"])) is None
    assert here.get(here.call("a", tags=["user:1"]), Body("new")) == "new"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("announcement", ["ours", "arrives", "is late"])
def test_who_joins_a_compute_after_an_invalidation_is_not_given_its_value(
    here: InMemoryProcess, there: InMemoryProcess, way: str, announcement: str
) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a", tags=["user:1"]), Body("old", gate=gate)))
    gate.wait_reached()
    here.clock.advance(0.001)
    if announcement == "is late":
        here.memory.detach()
    other = here if announcement == "ours" else there
    invalidations(other, other.call("a"))[way]()
    here.clock.advance(0.001)
    newcomer = Body("new")
    late = Thread(lambda: here.get(here.call("a", tags=["user:1"]), newcomer))
    eventually(lambda: here.store.calls["read"] == 2)
    here.clock.advance(0.001)
    gate.open()

    assert leader.result() == "old"
    assert late.result() == "new"
    assert newcomer.calls == 1


@pytest.mark.parametrize("way", WAYS)
def test_who_asks_in_another_process_after_an_invalidation_is_not_given_the_older_compute(
    here: InMemoryProcess, there: InMemoryProcess, way: str
) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a", tags=["user:1"]), Body("old", gate=gate)))
    gate.wait_reached()
    invalidations(here, here.call("a"))[way]()

    assert there.get(there.call("a", tags=["user:1"]), Body("new")) == "new"  # nor does it wait for the leader
    gate.open()
    assert leader.result() == "old"
    assert here.get(here.call("a", tags=["user:1"]), never) == "new"


def test_a_value_read_before_an_announcement_is_not_kept_in_l1_after_it(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    call = here.call("a", tags=["user:1"])
    there.get(there.call("a", tags=["user:1"]), Body("old"))
    read = here.memory.read

    def read_slowly(*asked: Any) -> Any:
        raw = read(*asked)
        there.cache.invalidate(["user:1"])
        return raw

    here.memory.read = read_slowly  # type: ignore[method-assign]  # the instant after the read
    assert here.cache.look(call) is not None
    here.memory.read = read  # type: ignore[method-assign]

    assert here.cache.recall(call) is MISSING
    assert here.cache.look(call) is None


def test_a_value_that_was_stored_before_an_announcement_is_not_kept_in_l1_after_it(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    commit = here.memory.commit

    def commit_slowly(*asked: Any, **how: Any) -> int:
        outcome = commit(*asked, **how)
        there.cache.invalidate(["user:1"])
        return outcome

    here.memory.commit = commit_slowly  # type: ignore[method-assign]  # the instant after the commit
    here.get(here.call("a", tags=["user:1"]), Body("old"))

    assert here.tally.stores == 1
    assert here.cache.recall(here.call("a", tags=["user:1"])) is MISSING


@pytest.mark.parametrize("write", ["invalidate", "clear", "invalidate_key", "put"])
def test_an_explicit_write_that_did_not_arrive_is_raised_and_l1_forgets_all_the_same(
    here: InMemoryProcess, write: str
) -> None:
    call = here.call("a", tags=["user:1"])
    here.get(call, Body())
    here.store.fail()
    acts: dict[str, Callable[[], None]] = {
        "invalidate": lambda: here.cache.invalidate(["user:1"]),
        "clear": here.cache.clear,
        "invalidate_key": lambda: here.cache.invalidate_key(call.digest),
        "put": lambda: here.cache.put(call, 2),
    }
    with pytest.raises(TierUnavailable):
        acts[write]()

    assert here.cache.recall(call) is MISSING


def test_invalidating_nothing_asks_nobody(here: InMemoryProcess) -> None:
    here.cache.invalidate([])

    assert not here.store.calls


# -- put ---------------------------------------------------------------------------------------------------------------


def test_a_put_is_read_everywhere(here: InMemoryProcess, there: InMemoryProcess) -> None:
    for process in (here, there):
        process.get(process.call("a"), Body(1))
    here.cache.put(here.call("a"), 2)

    for process in (here, there):
        assert process.get(process.call("a"), never) == 2


def test_a_put_has_a_ttl_of_its_own_if_it_is_given_one(here: InMemoryProcess, there: InMemoryProcess) -> None:
    for ttl in (5.0, 5000.0):
        here.cache.put(here.call("a"), ttl, ttl)
        here.clock.advance(ttl - 0.1)
        assert there.get(there.call("a"), never) == ttl
        here.clock.advance(0.2)

        assert there.cache.look(there.call("a")) is None


def test_a_put_is_not_overwritten_by_a_compute_from_an_older_state(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body("old", gate=gate)))
    gate.wait_reached()
    there.cache.put(there.call("a"), "put")
    gate.open()
    assert leader.result() == "old"

    for process in (here, there):
        assert process.get(process.call("a"), never) == "put"


def test_who_waits_for_a_leader_gets_what_was_put_meanwhile(here: InMemoryProcess, there: InMemoryProcess) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body("old", gate=gate)))
    gate.wait_reached()
    follower = Thread(lambda: there.get(there.call("a"), never))
    eventually(lambda: len(there.wake_ups) == 1 and there.store.calls["lease"] == 1)
    here.cache.put(here.call("a"), "put")

    assert follower.result() == "put"
    gate.open()
    leader.result()


def test_a_value_that_cannot_be_put_is_refused_loudly(here: InMemoryProcess) -> None:
    with pytest.raises(UnusableEntry, match="unserializable"):
        here.cache.put(here.call("a"), object())


# -- entries that cannot be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("looked", [False, True])
def test_an_entry_that_cannot_be_decoded_is_a_miss_and_is_replaced(
    here: InMemoryProcess, there: InMemoryProcess, looked: bool
) -> None:
    foreign = Codec("pickle", ["pickle"])
    there.get(there.call("a", codec=foreign), Body("of another codec"))

    assert here.cache.look(here.call("a")) is None
    assert here.cache.fetch(here.call("a"), Body("new"), Terms(looked=looked)) == "new"
    assert here.get(here.call("a"), never) == "new"
    assert here.tally.unusable == 2
    assert here.memory.shared.leases.names() == []


def test_a_stale_entry_that_cannot_be_decoded_is_waited_past(here: InMemoryProcess, there: InMemoryProcess) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "grace": 50.0}
    there.get(there.call("a", codec=Codec("pickle", ["pickle"]), **options), Body("of another codec"))
    here.clock.advance(12)
    gate = Gate()
    leader = Thread(lambda: there.cache.fetch(there.call("a", **options), Body("new", gate=gate)))
    gate.wait_reached()
    follower = Thread(lambda: here.cache.fetch(here.call("a", **options), never))
    eventually(lambda: here.store.calls["lease"] == 1 and len(here.wake_ups) == 1)
    gate.open()

    assert (leader.result(), follower.result()) == ("new", "new")


# -- one compute -------------------------------------------------------------------------------------------------------


def test_a_stampede_of_64_threads_computes_once(here: InMemoryProcess) -> None:
    gate = Gate()
    body = Body({"x": [1]}, gate=gate)
    threads = [Thread(lambda: here.get(here.call("a"), body)) for _ in range(64)]
    gate.wait_reached()
    eventually(lambda: here.store.calls["read"] == 64)
    gate.open()
    values = [thread.result() for thread in threads]

    assert values == [{"x": [1]}] * 64
    assert len({id(value) for value in values}) == 64
    assert body.calls == 1
    assert here.store.calls["lease"] < 64


def test_a_stampede_of_processes_computes_once(here: InMemoryProcess) -> None:
    processes = [here, *(InMemoryProcess(beside=here) for _ in range(7))]
    gate = Gate()
    body = Body(gate=gate)

    def call(process: InMemoryProcess) -> Callable[[], object]:
        return lambda: process.get(process.call("a"), body)

    threads = [Thread(call(process)) for process in processes for _ in range(4)]
    gate.wait_reached()
    eventually(lambda: all(process.store.calls["read"] == 4 for process in processes))
    digest = here.call("a").digest
    eventually(lambda: len(here.memory.shared.waiters.get(digest) or ()) == 7)
    eventually(lambda: sum(flown(process) for process in processes) == 24)
    gate.open()

    assert [thread.result() for thread in threads] == ["value"] * 32
    assert body.calls == 1
    assert sum(process.tally.coalesced for process in processes) == 31


def test_when_a_leader_fails_one_follower_computes_next_and_no_two_at_once(here: InMemoryProcess) -> None:
    for _ in range(20):
        process = InMemoryProcess()
        failing, gate = Gate("failing"), Gate("next")
        body = Body("value", gate=failing, error=RuntimeError("fails once"))

        def compute(body: Body = body, gate: Gate = gate) -> object:
            try:
                return body()
            except RuntimeError:
                body.error, body.gate = None, gate
                raise

        def call(process: InMemoryProcess = process, compute: Callable[[], object] = compute) -> object:
            return process.get(process.call("a"), compute)

        leader = Thread(call)
        failing.wait_reached()
        followers = [Thread(call) for _ in range(4)]
        eventually(lambda process=process: process.store.calls["read"] == 5)  # type: ignore[misc]  # bound early
        failing.open()
        with pytest.raises(RuntimeError):
            leader.result()
        gate.wait_reached()
        newcomers = [Thread(call) for _ in range(4)]
        eventually(lambda process=process: process.store.calls["read"] == 9)  # type: ignore[misc]  # bound early
        gate.open()

        assert [thread.result() for thread in (*followers, *newcomers)] == ["value"] * 8
        assert (body.calls, body.most) == (2, 1)


def test_a_leader_in_another_process_that_dies_is_followed_by_one_within_the_lease_ttl(here: InMemoryProcess) -> None:
    followers = [clocked(here), clocked(here)]
    dead = here.call("a", lease_ttl=10.0)
    request = LeaseRequest(dead.digest, dead.tags, "dead", 10.0, 310.0, here.clock.time())
    assert isinstance(here.memory.lease(request), Leading)
    body = Body()

    def call(process: InMemoryProcess) -> Callable[[], object]:
        return lambda: process.get(process.call("a", lease_ttl=10.0), body)

    threads = [Thread(call(process)) for process in followers]
    eventually(lambda: sleepers(*followers) == 2)
    here.clock.advance(9.9)
    assert body.calls == 0
    here.clock.advance(0.2)

    assert [thread.result() for thread in threads] == ["value"] * 2
    assert body.calls == 1
    assert sum(process.count(Event.TAKEN_OVER) for process in followers) == 0


def test_a_leader_that_outlasts_the_wait_limit_is_replaced_by_one_and_the_others_wait_for_that_one(
    here: InMemoryProcess,
) -> None:
    followers = [clocked(here) for _ in range(3)]
    stuck, second = Gate("stuck"), Gate("second")
    first = Thread(lambda: here.get(here.call("a", wait_limit=30.0), Body("first", gate=stuck)))
    stuck.wait_reached()
    body = Body("second", gate=second)

    def call(process: InMemoryProcess) -> Callable[[], object]:
        return lambda: process.get(process.call("a", wait_limit=30.0), body)

    threads = [Thread(call(process)) for process in followers]
    eventually(lambda: sleepers(*followers) == 3)
    while body.calls == 0 and here.clock.monotonic() < 1040:
        pass_time(1, here)
        eventually(lambda: sleepers(*followers) + body.running == 3)
    pass_time(10, here, *followers)
    eventually(lambda: sleepers(*followers) == 2)
    second.open()

    assert [thread.result() for thread in threads] == ["second"] * 3
    assert body.calls == 1
    assert sum(process.count(Event.TAKEN_OVER) for process in followers) == 1
    stuck.open()
    assert first.result() == "first"
    assert here.get(here.call("a"), never) == "second"


def test_a_follower_whose_limit_ends_later_waits_for_the_new_leader_and_does_not_replace_it(
    here: InMemoryProcess,
) -> None:
    early, late = clocked(here), clocked(here)
    stuck, second = Gate("stuck"), Gate("second")
    first = Thread(lambda: here.get(here.call("a", wait_limit=30.0), Body("first", gate=stuck)))
    stuck.wait_reached()
    replaced = Body("second", gate=second)
    takes_over = Thread(lambda: early.get(early.call("a", wait_limit=30.0), replaced))
    eventually(lambda: sleepers(early) == 1)
    pass_time(5, here)
    other = Body("third")
    waits = Thread(lambda: late.get(late.call("a", wait_limit=30.0), other))
    eventually(lambda: sleepers(late) == 1)
    while replaced.calls == 0 and here.clock.monotonic() < 1034:
        pass_time(1, here)
        eventually(lambda: sleepers(early, late) + replaced.running == 2)
    assert replaced.calls == 1
    for _ in range(10):  # past the late one's limit, not past a limit since the change
        pass_time(1, here, early)
        eventually(lambda: sleepers(late) + other.calls >= 1)

    second.open()
    stuck.open()
    first.result()
    assert takes_over.result() == "second"
    assert waits.result() == "second"
    assert other.calls == 0


def test_a_follower_in_the_same_process_replaces_a_leader_that_outlasts_the_wait_limit(here: InMemoryProcess) -> None:
    process = clocked(here)
    stuck = Gate("stuck")
    options: dict[str, Any] = {"wait_limit": 0.05}
    first = Thread(lambda: process.get(process.call("a", **options), Body("first", gate=stuck)))
    stuck.wait_reached()
    body = Body("second")
    second = Thread(lambda: process.get(process.call("a", **options), body))
    eventually(lambda: sleepers(process) == 1)
    process.clock.advance(0.06)

    assert second.result() == "second"
    assert process.count(Event.TAKEN_OVER) == 1
    stuck.open()
    assert first.result() == "first"


def test_an_outlasted_leader_whose_lease_was_taken_over_gives_its_caller_the_value(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body("first", gate=gate)))
    gate.wait_reached()
    there.get(there.call("a"), Body("second"), refresh=True)
    gate.open()

    assert leader.result() == "first"
    assert [details["reason"] for event, details in here.events if event is Event.REFUSED] == ["lease lost"]


# -- calls inside a compute --------------------------------------------------------------------------------------------


def test_a_body_that_calls_its_own_key_runs_through(here: InMemoryProcess) -> None:
    inner = Body("inner")

    assert here.get(here.call("a"), lambda: [here.get(here.call("a"), inner)]) == ["inner"]
    assert inner.calls == 1
    assert here.get(here.call("a"), never) == ["inner"]


def test_a_body_that_calls_its_own_key_through_another_runs_through(here: InMemoryProcess) -> None:
    def outer() -> object:
        return [here.get(here.call("b"), lambda: [here.get(here.call("a"), Body("inner"))])]

    assert here.get(here.call("a"), outer) == [["inner"]]


def test_a_call_inside_a_compute_waits_one_lease_ttl_at_most_and_then_runs(here: InMemoryProcess) -> None:
    process = clocked(here)
    stuck = Gate("stuck")
    options: dict[str, Any] = {"lease_ttl": 10.0, "wait_limit": 300.0}
    leader = Thread(lambda: here.get(here.call("inner", **options), Body("stuck", gate=stuck)))
    stuck.wait_reached()
    inner = Body("own")
    outer = Thread(
        lambda: process.get(process.call("outer"), lambda: [process.get(process.call("inner", **options), inner)])
    )
    eventually(lambda: sleepers(process) == 1)
    for _ in range(9):
        pass_time(1, here)
        eventually(lambda: sleepers(process) == 1)
    assert inner.calls == 0
    pass_time(1, here)

    assert outer.result() == ["own"]
    assert process.count(Event.TAKEN_OVER) == 0
    stuck.open()
    assert leader.result() == "stuck"
    assert here.get(here.call("inner"), never) == "stuck"


def test_two_bodies_that_wait_for_each_other_both_end(here: InMemoryProcess) -> None:
    process = clocked(here)
    barrier = threading.Barrier(2)
    options: dict[str, Any] = {"lease_ttl": 0.1}

    def body(own: str, other: str) -> Callable[[], object]:
        def compute() -> object:
            barrier.wait(10)
            return own + str(process.get(process.call(other, **options), lambda: f"({other} by {own})"))

        return compute

    first = Thread(lambda: process.get(process.call("a", **options), body("a", "b")))
    second = Thread(lambda: process.get(process.call("b", **options), body("b", "a")))
    done = threading.Event()

    def tick() -> None:
        while not done.wait(0.005):
            process.clock.advance(0.02)
            process.keeper.renew()

    ticking = Thread(tick)
    results = (first.result(), second.result())
    done.set()
    ticking.result()

    assert {str(result)[0] for result in results} == {"a", "b"}


def test_a_read_inside_a_compute_does_not_take_l1_at_its_word(here: InMemoryProcess, there: InMemoryProcess) -> None:
    for process in (here, there):
        process.get(process.call("inner", tags=["user:1"]), Body("old"))
    here.memory.detach()  # the announcement is late
    there.cache.invalidate(["user:1"])
    assert here.cache.recall(here.call("inner", tags=["user:1"])) == "old"

    value = here.get(here.call("outer"), lambda: here.get(here.call("inner", tags=["user:1"]), Body("new")))
    assert value == "new"


# -- strict ------------------------------------------------------------------------------------------------------------


def test_a_strict_hit_costs_one_look_at_the_versions(here: InMemoryProcess) -> None:
    call = here.call("a", consistency="strict")
    here.get(call, Body())
    here.store.calls.clear()

    assert here.get(call, never) == "value"
    assert sum(here.store.calls.values()) == 1
    assert here.tally.l1_hits == 1


@pytest.mark.parametrize("way", [*WAYS, "put", "refresh"])
def test_a_strict_read_never_serves_what_was_invalidated_before_it_began(
    here: InMemoryProcess, there: InMemoryProcess, way: str
) -> None:
    options: dict[str, Any] = {"tags": ["user:1"], "consistency": "strict"}
    for process in (here, there):
        process.get(process.call("a", **options), Body("old"))
    here.memory.detach()  # the announcement is late
    here.clock.advance(0.001)
    if way == "put":
        there.cache.put(there.call("a", **options), "new")
    elif way == "refresh":
        there.get(there.call("a", **options), Body("new"), refresh=True)
    else:
        invalidations(there, there.call("a"))[way]()

    assert here.get(here.call("a", **options), Body("new")) == "new"


# -- refresh messages --------------------------------------------------------------------------------------------------


def test_a_lease_that_was_handed_over_is_claimed_by_its_task_id_and_computes_though_the_entry_is_fresh(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.get(here.call("a"), Body(1))
    assert here.cache.hand_over(here.call("a"), "task-1", only_if_stale=False) is True
    assert here.cache.hand_over(here.call("a"), "task-2", only_if_stale=False) is False

    assert there.cache.fetch(there.call("a"), Body(2), Terms(claim="task-1", looked=True)) == 2
    assert InMemoryProcess(beside=here).get(here.call("a"), never) == 2


def test_a_refresh_message_whose_lease_is_another_s_by_now_does_not_compute(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.get(here.call("a"), Body(1))
    here.cache.hand_over(here.call("a"), "task-1", only_if_stale=False)
    there.cache.invalidate_key(there.call("a").digest)
    there.get(there.call("a"), Body(2))

    assert here.cache.fetch(here.call("a"), never, Terms(claim="task-1", looked=True)) == 2


def test_nothing_is_handed_over_for_a_fresh_entry_or_without_a_store(here: InMemoryProcess) -> None:
    here.get(here.call("a"), Body(1))
    assert here.cache.hand_over(here.call("a"), "task-1", only_if_stale=True) is False
    here.store.fail("lease")
    assert here.cache.hand_over(here.call("b"), "task-1", only_if_stale=False) is False

    alone = InMemoryProcess(l1_only=True)
    assert alone.cache.hand_over(alone.call("a"), "task-1", only_if_stale=False) is False


# -- faults ------------------------------------------------------------------------------------------------------------

STEPS = ("read", "lease", "commit", "release", "renew", "confirms")


@pytest.mark.parametrize("after", [False, True], ids=["lost request", "lost answer"])
@pytest.mark.parametrize("methods", [*((step,) for step in STEPS), ()], ids=lambda methods: "+".join(methods) or "all")
def test_a_call_gets_its_value_whatever_step_fails(
    here: InMemoryProcess, there: InMemoryProcess, methods: Sequence[str], after: bool
) -> None:
    here.store.fail(*methods, after=after)
    body = Body()
    for options in ({}, {"consistency": "strict"}, {"coalesce": False}, {"l1": False}):
        call = here.call(f"a{options}", **options)
        for looked in (False, True):
            assert here.get(call, body, looked=looked) == "value"
        assert here.get(call, body, refresh=True) == "value"
    here.store.heal()
    here.clock.advance(11)  # a lease that was left behind has run out

    for process in (here, there):
        assert process.get(process.call("a{}"), body) == "value"
    assert here.memory.shared.leases.names() == []
    assert there.get(there.call("a{}"), never) == "value"


@pytest.mark.parametrize("methods", [*((step,) for step in STEPS), ()], ids=lambda methods: "+".join(methods) or "all")
def test_the_bodys_exception_is_the_only_one_that_leaves_a_call(here: InMemoryProcess, methods: Sequence[str]) -> None:
    here.store.fail(*methods)
    for options in ({}, {"consistency": "strict"}, {"coalesce": False}):
        with pytest.raises(ValueError, match="own"):
            here.get(here.call(f"a{options}", **options), Body(error=ValueError("own")))

        assert here.cache.look(here.call(f"a{options}")) is None


def test_a_call_that_goes_on_without_l2_is_counted(here: InMemoryProcess) -> None:
    here.store.fail("read", "lease")
    here.get(here.call("a"), Body())

    assert [details["step"] for event, details in here.events if event is Event.FAILED_OPEN] == ["read", "lease"]
    assert here.tally.failed_open == 2


def test_without_l2_nothing_is_kept_in_l1_that_no_announcement_would_reach(here: InMemoryProcess) -> None:
    here.store.fail()
    here.get(here.call("a"), Body())

    assert here.cache.recall(here.call("a")) is MISSING


def test_without_l2_the_threads_of_a_process_do_not_compute_one_after_another(here: InMemoryProcess) -> None:
    """Uncached they would compute at the same time: the cache may not make eight computes' time of it."""
    here.cache._clock = here.cache._leader._clock = here.cache._follower._clock = TickingClock()
    here.store.fail()
    gates, body = [Gate(), Gate()], Body()
    entered = iter(gates)

    def compute() -> object:
        gate = next(entered, None)
        if gate is not None:
            gate.pass_through()
        return body()

    def call() -> object:
        return here.get(here.call("a"), compute)

    threads = [Thread(call)]
    gates[0].wait_reached()
    threads += [Thread(call) for _ in range(7)]
    eventually(lambda: flown(here) == 7)
    gates[0].open()
    gates[1].wait_reached()
    eventually(lambda: flown(here) == 6)
    gates[1].open()

    assert [thread.result() for thread in threads] == ["value"] * 8
    assert body.calls == 2  # the first began before most of them had come: what it read may have been invalidated


def test_a_commit_that_could_not_be_sent_frees_the_lease_if_that_can(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.store.fail("commit")
    here.get(here.call("a"), Body(1))

    assert there.get(there.call("a"), Body(2)) == 2


def test_a_commit_whose_answer_was_lost_has_stored_all_the_same(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.store.fail("commit", after=True)

    assert here.get(here.call("a"), Body(1)) == 1
    assert there.get(there.call("a"), never) == 1


def test_while_the_backplane_is_away_l1_is_not_used_and_followers_look_by_themselves(here: InMemoryProcess) -> None:
    process = clocked(here)
    process.get(process.call("warm"), Body())
    process.backplane.lose()
    assert process.cache.recall(process.call("warm")) is MISSING
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body(gate=gate)))
    gate.wait_reached()
    follower = Thread(lambda: process.get(process.call("a"), never))
    eventually(lambda: sleepers(process) == 1)
    gate.open()
    leader.result()
    process.clock.advance(0.11)

    assert follower.result() == "value"
    process.backplane.regain()
    process.get(process.call("a"), never)
    assert process.cache.recall(process.call("a")) == "value"


@pytest.mark.parametrize("how", [{}, {"looked": True}, {"refresh": True}])
def test_whatever_a_process_asks_first_starts_its_backplane(here: InMemoryProcess, how: dict[str, bool]) -> None:
    here.backplane.close()
    here.backplane.reset_after_fork()
    assert here.backplane.connected() is False
    here.cache.fetch(here.call("a"), Body(), Terms(**how))

    assert here.backplane.connected() is True


# -- memory only -------------------------------------------------------------------------------------------------------


@pytest.fixture
def alone() -> InMemoryProcess:
    return InMemoryProcess(l1_only=True)


def test_without_l2_configured_values_are_kept_in_memory(alone: InMemoryProcess) -> None:
    value = alone.get(alone.call("a"), Body([1]))
    assert isinstance(value, list)
    value.append(2)

    assert alone.get(alone.call("a"), never) == [1]
    alone.clock.advance(30)
    assert alone.cache.recall(alone.call("a")) is MISSING


@pytest.mark.parametrize("way", WAYS)
def test_without_l2_configured_an_invalidation_acts_on_memory_and_on_computes_under_way(
    alone: InMemoryProcess, way: str
) -> None:
    call = alone.call("a", tags=["user:1"])
    alone.get(call, Body("old"))
    invalidations(alone, call)[way]()
    assert alone.cache.recall(call) is MISSING
    gate = Gate()
    leader = Thread(lambda: alone.get(alone.call("a", tags=["user:1"]), Body("old", gate=gate)))
    gate.wait_reached()
    invalidations(alone, call)[way]()
    gate.open()

    assert leader.result() == "old"
    assert alone.cache.recall(call) is MISSING


def test_without_l2_configured_who_comes_after_an_invalidation_is_not_given_the_older_compute(
    alone: InMemoryProcess,
) -> None:
    """Between the leader's last look at L1 and its landing."""
    current, newcomers, looks = alone.l1.current, list[Thread](), list[bool]()
    new = Body("new")

    def current_then_invalidated(*asked: Any) -> bool:
        still = current(*asked)
        looks.append(still)
        if looks == [True]:
            alone.clock.advance(0.001)
            alone.cache.invalidate(["user:1"])
            alone.clock.advance(0.001)
            newcomers.append(Thread(lambda: alone.get(alone.call("a", tags=["user:1"]), new)))
            newcomers[0].join(0.05)  # it has its value, or waits for the leader
            alone.clock.advance(0.001)
        return still

    alone.l1.current = current_then_invalidated  # type: ignore[method-assign]  # the instant after the look

    assert alone.get(alone.call("a", tags=["user:1"]), Body("old")) == "old"
    assert newcomers[0].result() == "new"


def test_without_l2_configured_a_stampede_computes_once(alone: InMemoryProcess) -> None:
    gate = Gate()
    body = Body(gate=gate)
    threads = [Thread(lambda: alone.get(alone.call("a"), body)) for _ in range(64)]
    gate.wait_reached()
    gate.open()

    assert [thread.result() for thread in threads] == ["value"] * 64
    assert body.calls == 1


def test_without_l2_configured_whoever_missed_just_before_the_value_came_looks_again(alone: InMemoryProcess) -> None:
    assert alone.cache.recall(alone.call("a")) is MISSING
    other = Thread(lambda: alone.get(alone.call("a"), Body()))
    assert other.result() == "value"

    assert alone.cache.fetch(alone.call("a"), never) == "value"


def test_without_l2_configured_put_refresh_and_look_work(alone: InMemoryProcess) -> None:
    call = alone.call("a")
    alone.cache.put(call, 1)
    assert told(alone.cache.look(call)) == (1, "")
    assert alone.get(call, Body(2), refresh=True) == 2

    assert alone.get(call, never) == 2
    assert alone.get(alone.call("a", consistency="strict"), never) == 2


def test_without_l2_configured_a_put_is_not_overwritten_by_a_compute_from_an_older_state(
    alone: InMemoryProcess,
) -> None:
    gate = Gate()
    leader = Thread(lambda: alone.get(alone.call("a"), Body("old", gate=gate)))
    gate.wait_reached()
    alone.cache.put(alone.call("a"), "put")
    gate.open()
    leader.result()

    assert alone.get(alone.call("a"), never) == "put"


def test_without_l2_configured_values_that_are_not_to_be_kept_are_not(alone: InMemoryProcess) -> None:
    for options in ({"cache_if": lambda result: False}, {"l1": False}):
        alone.get(alone.call("a", **options), Body())

        assert alone.cache.recall(alone.call("a")) is MISSING


# -- life --------------------------------------------------------------------------------------------------------------


def test_a_forked_child_starts_with_an_empty_l1_and_leads_anew(here: InMemoryProcess) -> None:
    here.get(here.call("a"), Body())
    here.cache._follower.flights.join("led by the parent", here.l1.mark())
    here.cache.reset_after_fork()

    assert here.cache.recall(here.call("a")) is MISSING
    assert here.cache._follower.flights.join("led by the parent", here.l1.mark())[1] is True
    assert here.get(here.call("a"), never) == "value"


def test_closing_ends_the_backplane(here: InMemoryProcess) -> None:
    here.cache.close()

    assert here.backplane.connected() is False


def test_a_lease_held_elsewhere_is_what_a_second_process_sees(here: InMemoryProcess, there: InMemoryProcess) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(here.call("a"), Body(gate=gate)))
    gate.wait_reached()
    call = there.call("a")
    request = LeaseRequest(call.digest, call.tags, "second", 10.0, 310.0, there.clock.time())

    assert isinstance(there.memory.lease(request), Held)
    gate.open()
    leader.result()
