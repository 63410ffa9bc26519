"""Followers: what a leader shares with them, how they wait, and how those watch who never lead."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from celery_cachetiers.attempt import HeldElsewhere, Terms
from celery_cachetiers.cache import COLD
from celery_cachetiers.call import Call
from celery_cachetiers.codec import Codec
from celery_cachetiers.entry import MISSING, NONCE_BYTES, Times, unpack
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.following import Shared
from celery_cachetiers.leading import error_key
from celery_cachetiers.ports import Found, Free, Held, Leading, LeaseAnswer, LeaseRequest, Leave, Left
from celery_cachetiers.testing import Gate, InMemoryProcess
from tests.unit.bodies import Body, Thread, TickingClock, clocked, eventually, flown, never, pass_time, sleepers

LEASE = 10.0


class Again(Exception):
    """The body's way to say that it is tried again in so many seconds."""


SHARED: dict[str, type[Exception]] = {"ValueError": ValueError, "LookupError": LookupError}


class PlainFailures:
    """Shares `ValueError` and `LookupError`, by name and arguments; `Again` is a retry."""

    def retry_in(self, error: BaseException) -> float | None:
        return float(error.args[0]) if isinstance(error, Again) else None

    def dump(self, error: BaseException) -> object | None:
        name = type(error).__name__
        return [name, list(error.args)] if name in SHARED else None

    def load(self, dumped: object) -> BaseException:
        assert isinstance(dumped, list)
        name, args = dumped
        return SHARED[name](*args)


@pytest.fixture
def here() -> InMemoryProcess:
    return InMemoryProcess(failures=PlainFailures())


@pytest.fixture
def there(here: InMemoryProcess) -> InMemoryProcess:
    return InMemoryProcess(beside=here, failures=PlainFailures())


def leading(
    process: InMemoryProcess, body: Body, *, key: str = "a", claim: str = "", nonce: str = "", **options: Any
) -> Thread:
    """A leader that has come to the gate in its body."""
    options.setdefault("lease_ttl", LEASE)
    terms = Terms(claim=claim, nonce=nonce, looked=True)
    thread = Thread(lambda: process.cache.fetch(process.call(key, **options), body, terms))
    assert body.gate is not None
    body.gate.wait_reached()
    return thread


def following(process: InMemoryProcess, compute: Callable[[], object], *, key: str = "a", **options: Any) -> Thread:
    """A follower that waits by now, for a leader in another process."""
    options.setdefault("lease_ttl", LEASE)
    asked = process.store.calls["lease"]
    thread = Thread(lambda: process.cache.fetch(process.call(key, **options), compute, Terms(looked=True)))
    eventually(lambda: process.store.calls["lease"] == asked + 1)
    eventually(lambda: process.wake_ups._waiting != {} and waits(process, key))
    return thread


def waits(process: InMemoryProcess, key: str) -> bool:
    """Whether this process' inbox is noted at the key."""
    return process.memory.inbox in (process.memory.shared.waiters.get(process.call(key).digest) or ())


def raised(thread: Thread) -> BaseException:
    try:
        thread.result()
    except Exception as error:
        return error
    raise AssertionError("the call has raised nothing")


def holder(process: InMemoryProcess, key: str = "a") -> str | None:
    lease = process.memory.shared.leases.get(process.call(key).digest)
    return lease.token if lease is not None else None


def take(process: InMemoryProcess, token: str = "leader:1", *, key: str = "a", **request: Any) -> LeaseAnswer:
    """Asks for the lease, as an attempt of a process that a test plays."""
    call = process.call(key)
    return process.memory.lease(
        LeaseRequest(call.digest, call.tags, token, LEASE, 310.0, process.clock.time(), **request)
    )


def leave(
    process: InMemoryProcess, value: object, *, failed: bool = False, signed_for: str | None = None, **call: Any
) -> None:
    """Ends the lease of the played leader, and leaves something to those who waited for it."""
    asked = process.call("a", **call)
    now = process.clock.time()
    default = error_key(asked.digest) if failed else asked.digest
    key = default if signed_for is None else signed_for
    body = asked.memo.codec.encode(value, Times(now, now + LEASE, now + LEASE, 0.0), asked.tags, key)
    assert process.memory.release(asked.digest, "leader:1", Leave(body, failed, LEASE))


# -- exceptions --------------------------------------------------------------------------------------------------------


def test_a_leaders_exception_is_shared_with_followers_in_other_processes(here: InMemoryProcess) -> None:
    others = [InMemoryProcess(beside=here, failures=PlainFailures()) for _ in range(3)]
    error = ValueError("no such user", 7)
    leader = leading(here, body := Body(gate=Gate(), error=error))
    followers = [following(other, never) for other in others]
    assert body.gate is not None
    body.gate.open()

    assert raised(leader) is error
    errors = [raised(follower) for follower in followers]
    assert [(type(each), each.args) for each in errors] == [(ValueError, ("no such user", 7))] * 3
    assert len({id(each) for each in (error, *errors)}) == 4
    assert body.calls == 1
    assert [other.tally.coalesced for other in others] == [1] * 3


def test_a_leaders_exception_is_shared_with_followers_in_its_own_process(here: InMemoryProcess) -> None:
    error = ValueError("no such user", 7)
    leader = leading(here, body := Body(gate=(gate := Gate()), error=error))
    followers = [Thread(lambda: here.cache.fetch(here.call("a"), never)) for _ in range(3)]
    eventually(lambda: flown(here) == 3)
    gate.open()

    assert raised(leader) is error
    errors = [raised(follower) for follower in followers]
    assert [(type(each), each.args) for each in errors] == [(ValueError, ("no such user", 7))] * 3
    assert len({id(each) for each in (error, *errors)}) == 4
    assert body.calls == 1
    assert here.tally.coalesced == 3


def test_threads_of_a_process_share_an_exception_that_came_from_another(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=LookupError("gone")))
    first = following(there, never)
    others = [Thread(lambda: there.cache.fetch(there.call("a"), never)) for _ in range(2)]
    eventually(lambda: flown(there) == 2)
    gate.open()

    errors = [raised(thread) for thread in (first, *others)]
    assert [(type(each), each.args) for each in errors] == [(LookupError, ("gone",))] * 3
    assert len({id(each) for each in errors}) == 3
    raised(leader)


def test_no_receiver_can_harm_the_exception_of_another(here: InMemoryProcess, there: InMemoryProcess) -> None:
    error = ValueError(["details"])
    leader = leading(here, Body(gate=(gate := Gate()), error=error))
    beside = [Thread(lambda: here.cache.fetch(here.call("a"), never)) for _ in range(2)]
    away = [following(there, never), *(Thread(lambda: there.cache.fetch(there.call("a"), never)) for _ in range(2))]
    eventually(lambda: flown(here) == 2 and flown(there) == 2)
    gate.open()

    errors = [error, *(raised(thread) for thread in (*beside, *away))]
    assert [each.args for each in errors] == [(["details"],)] * 6
    assert len({id(each.args[0]) for each in errors}) == 6
    raised(leader)


def test_an_exception_that_cannot_be_copied_is_raised_and_not_shared(here: InMemoryProcess) -> None:
    error = ValueError(threading.Lock())
    leader = leading(here, Body(gate=(gate := Gate()), error=error))
    follower = Thread(lambda: here.cache.fetch(here.call("a"), Body("own")))
    eventually(lambda: flown(here) == 1)
    gate.open()

    assert raised(leader) is error
    assert follower.result() == "own"


def test_without_l2_followers_share_an_exception_too() -> None:
    alone = InMemoryProcess(l1_only=True, failures=PlainFailures())
    leader = leading(alone, Body(gate=(gate := Gate()), error=ValueError("own")))
    follower = Thread(lambda: alone.cache.fetch(alone.call("a"), never))
    eventually(lambda: flown(alone) == 1)
    gate.open()

    assert raised(follower).args == ("own",)
    raised(leader)


def test_who_comes_after_a_failure_computes(here: InMemoryProcess, there: InMemoryProcess) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=ValueError("own")))
    follower = following(there, never)
    gate.open()
    raised(leader)
    raised(follower)

    for process in (there, here):
        assert process.cache.fetch(process.call("a", cache_if=bool), Body(0)) == 0
    assert here.cache.fetch(here.call("a"), Body("next")) == "next"


@pytest.mark.parametrize(
    ("error", "options"),
    [(ValueError("own"), {"share_errors": False}), (OSError("of one attempt"), {})],
    ids=["share_errors=False", "dump is None"],
)
@pytest.mark.parametrize("where", ["same process", "other processes"])
def test_an_exception_that_is_not_shared_has_the_followers_compute_one_after_another(
    here: InMemoryProcess, error: Exception, options: dict[str, Any], where: str
) -> None:
    leader = leading(here, body := Body(gate=(gate := Gate()), error=error), **options)
    if where == "same process":
        threads = [Thread(lambda: here.cache.fetch(here.call("a", **options), body)) for _ in range(3)]
        eventually(lambda: flown(here) == 3)
    else:
        others = [InMemoryProcess(beside=here, failures=PlainFailures()) for _ in range(3)]
        threads = [following(other, body, **options) for other in others]
    gate.open()

    assert [raised(thread) for thread in (leader, *threads)] == [error] * 4
    assert (body.calls, body.most) == (4, 1)
    assert here.memory.shared.left.names() == []


def test_an_exception_that_cannot_be_written_is_not_shared(here: InMemoryProcess, there: InMemoryProcess) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=ValueError(object())))
    follower = following(there, Body("next"))
    gate.open()

    assert isinstance(raised(leader).args[0], object)
    assert follower.result() == "next"


def test_whoever_calls_decides_what_a_shared_exception_becomes(here: InMemoryProcess, there: InMemoryProcess) -> None:
    take(here)
    thread = Thread(lambda: there.cache.fetch(there.call("a"), never, Terms(fail=lambda error: ["made", *error.args])))
    eventually(lambda: waits(there, "a"))
    leave(here, ["ValueError", ["own"]], failed=True)

    assert thread.result() == ["made", "own"]


# -- values that are not stored ----------------------------------------------------------------------------------------


def test_a_value_that_cache_if_refuses_reaches_those_who_waited_and_nobody_else(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    options: dict[str, Any] = {"cache_if": lambda result: False}
    leader = leading(here, Body({"x": 1}, gate=(gate := Gate())), **options)
    beside = Thread(lambda: here.cache.fetch(here.call("a", **options), never))
    eventually(lambda: flown(here) == 1)
    away = following(there, never, **options)
    gate.open()

    assert [thread.result() for thread in (leader, beside, away)] == [{"x": 1}] * 3
    for process in (here, there):
        assert process.cache.look(process.call("a")) is None
        assert process.cache.fetch(process.call("a", **options), Body("next")) == "next"
    assert here.tally.stores == 0


def test_threads_that_came_while_a_value_was_computed_that_is_not_stored_compute_it_once_more_at_most(
    here: InMemoryProcess,
) -> None:
    """What its compute has read may have been invalidated before they came."""
    here.cache._clock = here.cache._leader._clock = here.cache._follower._clock = TickingClock()
    options: dict[str, Any] = {"cache_if": lambda result: False}
    gates, body = [Gate(), Gate()], Body()
    entered = iter(gates)

    def compute() -> object:
        next(entered).pass_through()
        return body()

    def call() -> object:
        return here.cache.fetch(here.call("a", **options), compute)

    threads = [Thread(call)]
    gates[0].wait_reached()
    threads += [Thread(call) for _ in range(7)]
    for gate, waiting in zip(gates, (7, 6), strict=True):
        gate.wait_reached()
        eventually(lambda waiting=waiting: flown(here) == waiting)  # type: ignore[misc]  # bound early
        gate.open()

    assert [thread.result() for thread in threads] == ["value"] * 8
    assert body.calls == 2


# -- retries -----------------------------------------------------------------------------------------------------------


def retried(process: InMemoryProcess, seconds: float = 30.0, **options: Any) -> None:
    """The body of task-1 has led, and asked to be tried again."""
    terms = Terms(claim="task-1", looked=True)
    with pytest.raises(Again):
        process.cache.fetch(process.call("a", lease_ttl=LEASE, **options), Body(error=Again(seconds)), terms)


def test_a_retry_keeps_the_lease_for_its_task_id_and_followers_wait_on(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=Again(5.0)), claim="task-1")
    beside = Thread(lambda: here.cache.fetch(here.call("a", lease_ttl=LEASE), never))
    eventually(lambda: flown(here) == 1)
    away = following(there, never)
    gate.open()
    assert isinstance(raised(leader), Again)
    eventually(lambda: waits(here, "a"))  # in its process nobody leads now

    third = InMemoryProcess(beside=here, failures=PlainFailures())
    assert holder(here) == "task-1"
    assert (here.store.calls["hand_over"], here.store.calls["release"]) == (1, 0)
    for claim in ("task-2", ""):
        with pytest.raises(HeldElsewhere) as held:
            third.cache.fetch(third.call("a"), never, Terms(claim=claim, may_block=False))
        assert held.value.holder == "task-1"
    assert third.cache.fetch(third.call("a"), Body("second try"), Terms(claim="task-1")) == "second try"
    assert [beside.result(), away.result()] == ["second try"] * 2


def test_a_retry_that_never_comes_frees_the_key_one_lease_ttl_after_it_was_due(here: InMemoryProcess) -> None:
    process = clocked(here)
    retried(here, 30.0)
    follower = Thread(lambda: process.get(process.call("a", lease_ttl=LEASE, wait_limit=300.0), Body("own")))
    eventually(lambda: sleepers(process) == 1)
    here.clock.advance(39.9)
    assert holder(here) == "task-1"
    here.clock.advance(0.2)

    assert follower.result() == "own"
    assert process.count(Event.TAKEN_OVER) == 0


def test_a_retry_that_fails_for_good_shares_its_exception_with_who_waited_from_the_start(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=Again(5.0)), claim="task-1", nonce="1")
    early = following(there, never)
    gate.open()
    raised(leader)
    late_process = InMemoryProcess(beside=here, failures=PlainFailures())
    late = following(late_process, never)
    with pytest.raises(ValueError, match="for good"):
        here.cache.fetch(here.call("a"), Body(error=ValueError("for good")), Terms(claim="task-1", nonce="2"))

    for thread in (early, late):
        assert raised(thread).args == ("for good",)


@pytest.mark.parametrize("may_block", [False, True])
def test_a_retry_does_not_wait_for_the_threads_of_its_process_that_wait_for_it(
    here: InMemoryProcess, there: InMemoryProcess, may_block: bool
) -> None:
    retried(here)
    follower = following(there, never)
    retry = Thread(
        lambda: there.cache.fetch(there.call("a"), Body("second try"), Terms(claim="task-1", may_block=may_block))
    )

    assert [retry.result(), follower.result()] == ["second try"] * 2


@pytest.mark.parametrize("after", [False, True], ids=["lost request", "lost answer"])
def test_a_retry_that_cannot_be_noted_frees_the_lease(here: InMemoryProcess, after: bool) -> None:
    here.store.fail("hand_over", after=after)
    retried(here)

    assert holder(here) == ("task-1" if after else None)
    assert [details["step"] for event, details in here.events if event is Event.FAILED_OPEN] == ["hand over"]
    assert here.memory.shared.left.names() == []


def test_a_retry_without_a_task_id_frees_the_lease(here: InMemoryProcess, there: InMemoryProcess) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=Again(5.0)))
    follower = following(there, Body("own"))
    gate.open()

    assert isinstance(raised(leader), Again)
    assert follower.result() == "own"
    assert here.store.calls["hand_over"] == 0


def test_an_exception_under_a_task_id_is_no_retry(here: InMemoryProcess) -> None:
    with pytest.raises(ValueError, match="own"):
        here.cache.fetch(here.call("a"), Body(error=ValueError("own")), Terms(claim="task-1"))

    assert holder(here) is None
    assert here.store.calls["hand_over"] == 0


# -- terms -------------------------------------------------------------------------------------------------------------


def test_who_may_not_block_is_told_the_leader_elsewhere_and_leaves_nothing_behind(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    leader = leading(here, Body(gate=(gate := Gate())), claim="task-1", nonce="1")
    with pytest.raises(HeldElsewhere) as held:
        there.cache.fetch(there.call("a"), never, Terms(claim="task-2", may_block=False))

    assert (held.value.holder, held.value.seconds_left) == ("task-1:1", LEASE)
    assert repr(there.cache._follower.flights) == "<Flights: 0 under way>"
    assert len(there.wake_ups) == 0
    assert not waits(there, "a")
    gate.open()
    assert leader.result() == "value"


def test_who_may_not_block_is_told_the_leader_of_its_own_process(here: InMemoryProcess) -> None:
    leader = leading(here, Body(gate=(gate := Gate())), claim="task-1", nonce="1")
    with pytest.raises(HeldElsewhere) as held:
        here.cache.fetch(here.call("a", lease_ttl=LEASE), never, Terms(claim="task-2", may_block=False))

    assert (held.value.holder, held.value.seconds_left) == ("task-1:1", LEASE)
    assert repr(here.cache._follower.flights) == "<Flights: 1 under way>"
    assert len(here.wake_ups) == 0
    assert not waits(here, "a")
    gate.open()
    assert leader.result() == "value"
    assert repr(here.cache._follower.flights) == "<Flights: 0 under way>"


def test_claim_and_nonce_name_the_attempt(here: InMemoryProcess) -> None:
    tokens = list[str | None]()
    for terms in (Terms(claim="task-1", nonce="n"), Terms(claim="task-1"), Terms(claim="task-1"), Terms()):
        here.cache.fetch(here.call("a", cache_if=bool), lambda: tokens.append(holder(here)), terms)

    assert tokens[0] == "task-1:n"
    assert all(token is not None and token.startswith("task-1:") for token in tokens[:3])
    assert tokens[3] is not None
    assert tokens[3].startswith(":")
    assert len(set(tokens)) == 4


def test_an_attempt_replaces_exactly_the_leader_it_names(here: InMemoryProcess, there: InMemoryProcess) -> None:
    leader = leading(here, Body("first", gate=(gate := Gate())), claim="task-1", nonce="1")
    for other in ("task-1:2", "task-1", "task-2:1"):
        with pytest.raises(HeldElsewhere):
            there.cache.fetch(there.call("a"), never, Terms(take_over=other, may_block=False))
    assert there.count(Event.TAKEN_OVER) == 0

    assert there.cache.fetch(there.call("a"), Body("second"), Terms(take_over="task-1:1")) == "second"
    assert [details["holder"] for event, details in there.events if event is Event.TAKEN_OVER] == ["task-1:1"]
    gate.open()
    assert leader.result() == "first"
    assert here.cache.fetch(here.call("a"), never) == "second"


def test_an_attempt_that_replaces_a_leader_of_its_own_process_does_not_wait_for_it(here: InMemoryProcess) -> None:
    leader = leading(here, Body("first", gate=(gate := Gate())), claim="task-1", nonce="1")

    terms = Terms(take_over="task-1:1", may_block=False)
    assert here.cache.fetch(here.call("a"), Body("second"), terms) == "second"
    gate.open()
    assert leader.result() == "first"
    assert here.cache.fetch(here.call("a"), never) == "second"


def test_an_attempt_that_would_replace_a_leader_that_is_gone_waits_for_the_one_that_leads_now(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    leader = leading(here, Body(gate=(gate := Gate())), claim="task-1", nonce="2")
    thread = Thread(lambda: there.cache.fetch(there.call("a"), never, Terms(take_over="task-1:1")))
    eventually(lambda: waits(there, "a"))
    gate.open()

    assert [leader.result(), thread.result()] == ["value"] * 2
    assert there.count(Event.TAKEN_OVER) == 0


def test_a_later_attempt_has_what_the_leader_left_for_which_it_had_waited(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    take(here)
    leave(here, "left")

    assert there.cache.fetch(there.call("a"), never, Terms(waits_for="leader:1")) == "left"
    assert there.cache.fetch(there.call("a"), Body("own"), Terms(waits_for="other:2")) == "own"


def test_a_lease_that_was_granted_in_an_answer_that_was_lost_is_given_back(here: InMemoryProcess) -> None:
    here.store.fail("lease", after=True)
    held = list[bool]()

    here.cache.fetch(here.call("a"), lambda: held.append(holder(here) is not None))
    assert held == [True]
    assert holder(here) is None


def test_whoever_waited_beside_a_leader_that_failed_and_then_finds_a_value_counts_as_coalesced(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    leader = leading(there, Body(gate=(gate := Gate()), error=OSError("of one attempt")))
    follower = Thread(lambda: there.cache.fetch(there.call("a"), never))
    eventually(lambda: flown(there) == 1)
    there.memory.detach()  # the announcement is late
    here.cache.put(here.call("a"), "put")
    gate.open()

    assert isinstance(raised(leader), OSError)
    assert follower.result() == "put"
    assert (there.tally.coalesced, there.tally.l2_hits) == (1, 0)


def test_who_is_told_may_free_the_lease_of_an_attempt_that_is_gone(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    take(here, "task-1:1")
    there.cache.free(there.call("a"), "task-2:1", "task-3")
    assert holder(here) == "task-1:1"
    there.cache.free(there.call("a"), "task-2:1", "task-1:1")

    assert holder(here) is None
    there.store.fail("release")
    with pytest.raises(TierUnavailable):
        there.cache.free(there.call("a"), "task-1:1")


def test_without_l2_there_is_no_lease_to_free() -> None:
    alone = InMemoryProcess(l1_only=True)
    alone.cache.free(alone.call("a"), "task-1:1")

    assert not alone.store.calls


# -- watching ----------------------------------------------------------------------------------------------------------

STRANGE = Codec("pickle", ["pickle"])


def seen(watched: object) -> object:
    """The value or exception that a watcher sees, made twice: two objects."""
    assert isinstance(watched, Shared)
    make = watched.copy or watched.error
    assert make is not None
    first, second = make(), make()
    assert first is not second
    return (type(first), first.args) if isinstance(first, BaseException) else first


def test_whoever_watches_sees_nothing_where_nothing_is_and_takes_no_lease(there: InMemoryProcess) -> None:
    assert there.cache.watch(there.call("a")) == Free()
    assert holder(there) is None


def test_whoever_watches_sees_the_entry_and_l1_has_it_then(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.get(here.call("a"), Body(["value"]))

    assert seen(there.cache.watch(there.call("a"))) == ["value"]
    assert there.cache.recall(there.call("a")) == ["value"]


def test_whoever_watches_sees_the_leader_and_is_woken(here: InMemoryProcess, there: InMemoryProcess) -> None:
    take(here)

    assert there.cache.watch(there.call("a")) == Held("leader:1", LEASE)
    with there.wake_ups.registered(there.call("a").digest) as waiter:
        here.cache.free(here.call("a"), "leader:1")
        assert waiter.woken


def test_whoever_watches_sees_a_stale_value_while_another_computes(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "grace": 50.0}
    here.get(here.call("a", **options), Body(["old"]))
    here.clock.advance(12)
    assert there.cache.watch(there.call("a", **options)) == Free()
    take(here)
    watched = there.cache.watch(there.call("a", **options))

    assert seen(watched) == ["old"]
    assert isinstance(watched, Shared)
    assert watched.stale
    assert there.cache.recall(there.call("a", **options)) is MISSING


@pytest.mark.parametrize(
    ("left", "failed", "what"),
    [(["v"], False, ["v"]), (["ValueError", [1]], True, (ValueError, (1,)))],
    ids=["value", "exception"],
)
def test_whoever_watches_sees_what_the_leader_left_and_newcomers_do_not(
    here: InMemoryProcess, there: InMemoryProcess, left: object, failed: bool, what: object
) -> None:
    take(here)
    leave(here, left, failed=failed)

    assert seen(there.cache.watch(there.call("a"), "leader:1")) == what
    assert there.cache.watch(there.call("a"), "other:2") == Free()
    assert there.cache.watch(there.call("a")) == Free()
    assert there.cache.recall(there.call("a")) is MISSING


def test_an_entry_that_cannot_be_decoded_is_nothing_to_see(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.get(here.call("a", codec=STRANGE), Body())

    assert there.cache.watch(there.call("a")) == Free()
    assert there.store.calls["lease"] == 2
    assert there.tally.unusable == 1


def test_a_stale_entry_that_cannot_be_decoded_is_looked_past(here: InMemoryProcess, there: InMemoryProcess) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "grace": 50.0}
    here.get(here.call("a", codec=STRANGE, **options), Body())
    here.clock.advance(12)
    take(here)

    assert there.cache.watch(there.call("a", **options)) == Held("leader:1", LEASE)
    assert there.store.calls["lease"] == 2


def test_an_entry_that_changes_under_every_look_and_is_never_readable_is_nothing_to_see(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    lease = there.memory.lease

    def replaced(request: LeaseRequest) -> LeaseAnswer:
        here.cache.put(here.call("a", codec=STRANGE), there.store.calls["lease"])
        return lease(request)

    there.memory.lease = replaced  # type: ignore[method-assign]  # the instant before each look

    assert there.cache.watch(there.call("a")) == Free()
    assert there.store.calls["lease"] == 2


@pytest.mark.parametrize(
    "how",
    [
        {"value": "pickled", "codec": STRANGE},
        {"value": "pickled", "codec": STRANGE, "failed": True},
        {"value": ["Unknown", []], "failed": True},
        {"value": "no exception", "failed": True},
    ],
    ids=["value", "exception", "class unknown here", "not what a dump is"],
)
@pytest.mark.parametrize("next_one", [False, True])
def test_what_was_left_and_cannot_be_read_is_nothing_to_see(
    here: InMemoryProcess, there: InMemoryProcess, how: dict[str, Any], next_one: bool
) -> None:
    take(here)
    leave(here, **how)
    if next_one:
        take(here, "other:2")

    watched = there.cache.watch(there.call("a"), "leader:1")
    assert watched == (Held("other:2", LEASE) if next_one else Free())
    assert there.store.calls["lease"] == 2
    assert there.tally.unusable == 1


@pytest.mark.parametrize("failed", [False, True])
def test_a_follower_computes_if_it_cannot_read_what_was_left(
    here: InMemoryProcess, there: InMemoryProcess, failed: bool
) -> None:
    take(here)
    follower = following(there, Body("own"))
    leave(here, "pickled", codec=STRANGE, failed=failed)

    assert follower.result() == "own"
    assert there.tally.unusable == 1


def test_whoever_watches_hears_that_l2_was_not_reached(there: InMemoryProcess) -> None:
    there.store.fail("lease")

    with pytest.raises(TierUnavailable):
        there.cache.watch(there.call("a"))


@pytest.mark.parametrize("ask", ["watch", "meet", "follow"])
def test_whoever_watches_first_starts_its_backplane(there: InMemoryProcess, ask: str) -> None:
    there.backplane.close()
    there.backplane.reset_after_fork()
    call = there.call("a")
    acts: dict[str, Callable[[], object]] = {
        "watch": lambda: there.cache.watch(call),
        "meet": lambda: there.cache.meet(call, "task-1"),
        "follow": lambda: there.cache.follow(call, "", None),
    }
    acts[ask]()

    assert there.backplane.connected()


def test_what_an_attempt_left_is_not_for_those_who_wait_for_the_next_of_its_task_id(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    take(here)
    leave(here, "left")
    take(here, "leader:2")

    for waits_for in ("leader:2", "leader"):
        assert there.cache.watch(there.call("a"), waits_for) == Held("leader:2", LEASE)


# -- meeting -----------------------------------------------------------------------------------------------------------


def value_of(watched: object) -> object:
    assert isinstance(watched, Shared)
    assert watched.copy is not None
    return watched.copy()


def test_the_first_to_meet_leads_for_its_task_id_and_the_next_is_told(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    assert isinstance(here.cache.meet(here.call("a", lease_ttl=LEASE), "task-1"), Leading)
    assert there.cache.meet(there.call("a", lease_ttl=LEASE), "task-2") == Held("task-1", LEASE)

    assert waits(there, "a")
    assert there.cache.fetch(there.call("a"), Body(), Terms(claim="task-1")) == "value"
    assert value_of(here.cache.meet(here.call("a"), "task-3")) == "value"
    assert holder(here) is None


def test_a_stale_value_is_met_only_while_another_computes(here: InMemoryProcess, there: InMemoryProcess) -> None:
    options: dict[str, Any] = {"ttl": 10.0, "grace": 50.0}
    here.get(here.call("a", **options), Body("old"))
    here.clock.advance(12)

    assert isinstance(here.cache.meet(here.call("a", **options), "task-1"), Leading)
    assert value_of(there.cache.meet(there.call("a", **options), "task-2")) == "old"


def test_who_meets_an_entry_that_cannot_be_decoded_leads(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.get(here.call("a", codec=STRANGE), Body())

    assert isinstance(there.cache.meet(there.call("a"), "task-1"), Leading)
    assert holder(there) == "task-1"


def test_who_meets_hears_that_l2_was_not_reached(here: InMemoryProcess) -> None:
    here.store.fail("lease")

    with pytest.raises(TierUnavailable):
        here.cache.meet(here.call("a"), "task-1")


def test_who_waited_for_a_message_that_was_not_yet_running_shares_its_exception(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.cache.meet(here.call("a"), "task-1")
    computes = following(there, never)
    sees = Thread(lambda: here.cache.follow(here.call("a"), "task-1", None))
    eventually(lambda: waits(here, "a"))
    worker = InMemoryProcess(beside=here, failures=PlainFailures())
    with pytest.raises(ValueError, match="own"):
        worker.cache.fetch(worker.call("a"), Body(error=ValueError("own")), Terms(claim="task-1"))

    assert raised(computes).args == ("own",)
    assert seen(sees.result()) == (ValueError, ("own",))


# -- following without leading -----------------------------------------------------------------------------------------


def test_who_follows_is_woken_once_with_the_value_and_does_not_poll(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    process = clocked(there)
    leader = leading(here, Body(["value"], gate=(gate := Gate())), nonce="1")
    follower = Thread(lambda: process.cache.follow(process.call("a", wait_limit=300.0), ":1", None))
    eventually(lambda: sleepers(process) == 1)
    here.clock.advance(5.0)
    assert sleepers(process) == 1
    gate.open()
    leader.result()

    assert seen(follower.result()) == ["value"]
    assert dict(process.store.calls) == {"lease": 2}
    assert len(process.wake_ups) == 0


def test_who_follows_sees_the_exception(here: InMemoryProcess, there: InMemoryProcess) -> None:
    leader = leading(here, Body(gate=(gate := Gate()), error=ValueError("own")), nonce="1")
    follower = Thread(lambda: there.cache.follow(there.call("a"), "", None))
    eventually(lambda: waits(there, "a"))
    gate.open()

    assert seen(follower.result()) == (ValueError, ("own",))
    raised(leader)


def test_who_follows_sees_a_value_that_is_not_stored(here: InMemoryProcess, there: InMemoryProcess) -> None:
    leader = leading(here, Body(["v"], gate=(gate := Gate())), cache_if=lambda result: False)
    follower = Thread(lambda: there.cache.follow(there.call("a"), "", None))
    eventually(lambda: waits(there, "a"))
    gate.open()
    leader.result()

    assert seen(follower.result()) == ["v"]


def test_who_follows_a_leader_that_is_gone_is_free(here: InMemoryProcess, there: InMemoryProcess) -> None:
    assert there.cache.follow(there.call("a"), "task-1:1", None) == Free()
    take(here)
    follower = Thread(lambda: there.cache.follow(there.call("a"), "leader:1", None))
    eventually(lambda: waits(there, "a"))
    here.cache.free(here.call("a"), "leader:1")

    assert follower.result() == Free()
    assert holder(here) is None


def test_who_follows_a_leader_that_dies_looks_again_when_its_lease_has_ended(here: InMemoryProcess) -> None:
    process = clocked(here)
    take(here)
    follower = Thread(lambda: process.cache.follow(process.call("a"), "leader:1", None))
    eventually(lambda: sleepers(process) == 1)
    here.clock.advance(LEASE + 0.1)

    assert follower.result() == Free()
    assert process.store.calls["lease"] == 2


@pytest.mark.parametrize(("timeout", "limit"), [(4.0, 300.0), (None, 4.0), (300.0, 4.0)])
def test_who_follows_too_long_is_told_that_it_is_held_still(
    here: InMemoryProcess, timeout: float | None, limit: float
) -> None:
    process = clocked(here)
    leader = leading(here, Body(gate=(gate := Gate())), nonce="1")
    follower = Thread(lambda: process.cache.follow(process.call("a", wait_limit=limit), ":1", timeout))
    eventually(lambda: sleepers(process) == 1)
    pass_time(3, here)
    assert sleepers(process) == 1
    pass_time(1, here)

    assert follower.result() == Held(":1", LEASE)
    assert len(process.wake_ups) == 0
    gate.open()
    leader.result()


def test_who_follows_without_time_to_wait_looks_once(here: InMemoryProcess, there: InMemoryProcess) -> None:
    take(here)

    assert there.cache.follow(there.call("a"), "leader:1", 0.0) == Held("leader:1", LEASE)
    assert there.store.calls["lease"] == 1


def test_who_follows_goes_on_with_the_leader_that_comes_next(here: InMemoryProcess) -> None:
    process = clocked(here)
    take(here)
    follower = Thread(lambda: process.cache.follow(process.call("a"), "leader:1", None))
    eventually(lambda: sleepers(process) == 1)
    take(here, "other:2", take_over="leader:1")
    process.wake_ups.wake_all()
    eventually(lambda: process.store.calls["lease"] == 2 and sleepers(process) == 1)
    take(here, "leader:1", take_over="other:2")
    leave(here, ["left"])
    eventually(lambda: process.store.calls["lease"] == 3)

    assert follower.result() == Free()  # it had waited for the second


def test_while_the_backplane_is_away_who_follows_looks_by_itself(here: InMemoryProcess) -> None:
    process = clocked(here)
    process.backplane.lose()
    take(here)
    follower = Thread(lambda: process.cache.follow(process.call("a"), "leader:1", None))
    eventually(lambda: sleepers(process) == 1)
    here.cache.free(here.call("a"), "leader:1")
    assert sleepers(process) == 1
    process.clock.advance(0.11)

    assert follower.result() == Free()


def test_who_follows_hears_that_l2_was_not_reached(here: InMemoryProcess, there: InMemoryProcess) -> None:
    take(here)
    follower = Thread(lambda: there.cache.follow(there.call("a"), "leader:1", None))
    eventually(lambda: waits(there, "a"))
    there.store.fail("lease")
    there.wake_ups.wake_all()

    assert isinstance(raised(follower), TierUnavailable)
    assert len(there.wake_ups) == 0


# -- signed ------------------------------------------------------------------------------------------------------------

SIGNED = Codec("json", ["json"], signing_keys=[b"secret"])


@pytest.mark.parametrize("failed", [False, True], ids=["exception as value", "value as exception"])
@pytest.mark.parametrize("ask", ["watch", "fetch"])
def test_what_is_signed_as_the_one_is_not_taken_for_the_other(
    here: InMemoryProcess, there: InMemoryProcess, failed: bool, ask: str
) -> None:
    call = there.call("a", codec=SIGNED)
    take(here)
    other = call.digest if failed else error_key(call.digest)
    leave(here, ["ValueError", ["own"]], codec=SIGNED, failed=failed, signed_for=other)

    if ask == "watch":
        assert there.cache.watch(call, "leader:1") == Free()
    else:
        assert there.cache.fetch(call, Body("own"), Terms(waits_for="leader:1")) == "own"
    assert [details["reason"] for event, details in there.events if event is Event.UNUSABLE] == ["forged"]


def test_an_exception_that_was_left_is_no_entry(here: InMemoryProcess, there: InMemoryProcess) -> None:
    call = here.call("a", codec=SIGNED)
    leader = leading(here, Body(gate=(gate := Gate()), error=ValueError("own")), codec=SIGNED, nonce="1")
    gate.open()
    raised(leader)
    left = take(here, waits_for=":1")
    assert isinstance(left, Left)
    stamp = here.memory.versions(call.tags)
    assert stamp is not None
    body = here.memory.shared.left.get(call.digest)
    assert body is not None
    here.memory.shared.entries.set(call.digest, body.leave.body + stamp, LEASE)  # who can write to Redis passes it off
    assert isinstance(take(there), Found)

    assert there.cache.fetch(there.call("a", codec=SIGNED), Body("own")) == "own"
    assert unpack(body.leave.body + bytes(NONCE_BYTES * len(call.tags))).header.signature


def test_signed_exceptions_and_values_are_shared(here: InMemoryProcess, there: InMemoryProcess) -> None:
    for key, error, what in (("a", ValueError("own"), (ValueError, ("own",))), ("b", None, ["v"])):
        body = Body(["v"], gate=(gate := Gate()), error=error)
        leader = leading(here, body, key=key, codec=SIGNED, cache_if=lambda result: False)
        follower = Thread(lambda key=key: there.cache.follow(there.call(key, codec=SIGNED), "", None))  # type: ignore[misc]  # bound early
        eventually(lambda key=key: waits(there, key))  # type: ignore[misc]  # bound early
        gate.open()

        assert seen(follower.result()) == what
        leader.join()


# -- a cold task -------------------------------------------------------------------------------------------------------


def sibling(process: InMemoryProcess, call: Call, key: str) -> Call:
    """Another call of the same task in the same process."""
    other = process.call(key)
    return Call(call.memo, other.digest, other.find_tags)


def made_cold(process: InMemoryProcess, misses: int = COLD) -> Call:
    call = process.call("cold")
    for number in range(misses):
        process.cache.fetch(sibling(process, call, f"{number}"), Body())
    return call


@pytest.mark.parametrize(("misses", "reads"), [(COLD - 1, 1), (COLD, 0)])
def test_after_so_many_misses_the_lease_is_asked_for_at_once(here: InMemoryProcess, misses: int, reads: int) -> None:
    call = made_cold(here, misses)
    assert here.store.calls["read"] == misses
    here.store.calls.clear()
    here.cache.fetch(call, Body())

    assert here.store.calls["read"] == reads
    assert (here.store.calls["lease"], here.store.calls["commit"]) == (1, 1)


def test_a_hit_that_a_cold_task_finds_costs_one_call_and_ends_the_streak(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    there.get(there.call("cold"), Body("there"))
    call = made_cold(here)
    here.store.calls.clear()

    assert here.cache.fetch(call, never) == "there"
    assert dict(here.store.calls) == {"lease": 1}
    assert here.cache.recall(call) == "there"
    assert here.tally.l2_hits == 1
    here.cache.fetch(sibling(here, call, "next"), Body())
    assert here.store.calls["read"] == 1


def test_a_hit_that_a_look_finds_ends_the_streak(here: InMemoryProcess, there: InMemoryProcess) -> None:
    there.get(there.call("hit"), Body("there"))
    call = made_cold(here, COLD - 1)
    assert here.cache.fetch(sibling(here, call, "hit"), never) == "there"
    here.store.calls.clear()
    here.cache.fetch(sibling(here, call, "next"), Body())
    here.cache.fetch(call, Body())

    assert here.store.calls["read"] == 2


def test_one_task_that_is_cold_does_not_make_another_so(here: InMemoryProcess) -> None:
    made_cold(here)
    here.store.calls.clear()
    here.cache.fetch(here.call("a", task="other"), Body())

    assert here.store.calls["read"] == 1
