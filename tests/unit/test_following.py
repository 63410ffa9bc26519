"""Followers: what a leader's failure, retry or refused value means for them; and those that do not compute."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from celery_cachetiers.attempt import HeldElsewhere, Terms
from celery_cachetiers.cache import COLD
from celery_cachetiers.call import Call
from celery_cachetiers.codec import Codec
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.following import Shared
from celery_cachetiers.leading import error_key
from celery_cachetiers.ports import Free, Held, Leading, Leave
from celery_cachetiers.testing import Gate, InMemoryProcess
from tests.unit.bodies import Body, Thread, eventually, never


class Again(Exception):
    """Says that the body's attempt will be repeated."""


class JsonFailures:
    """Exceptions with one text; `Again` is a retry that is due in five seconds, `KeyError` is nobody's but its own."""

    def retry_in(self, error: BaseException) -> float | None:
        return 5.0 if isinstance(error, Again) else None

    def dump(self, error: BaseException) -> object | None:
        return {"text": str(error)} if isinstance(error, ValueError) else None

    def load(self, dumped: Any) -> BaseException:
        return ValueError(dumped["text"])


def call_of(process: InMemoryProcess, key: str = "a", **options: Any) -> Call:
    return process.call(key, failures=JsonFailures(), **options)


@pytest.fixture
def here() -> InMemoryProcess:
    return InMemoryProcess()


@pytest.fixture
def there(here: InMemoryProcess) -> InMemoryProcess:
    return InMemoryProcess(beside=here)


class Led:
    """A leader in one process, whose body stops at a gate."""

    def __init__(
        self, process: InMemoryProcess, *, error: BaseException | None = None, claim: str = "", **options: Any
    ) -> None:
        self.gate = Gate()
        self.body = Body("led", gate=self.gate, error=error)
        terms = Terms(claim=claim, nonce="n")
        self.thread = Thread(lambda: process.cache.fetch(call_of(process, **options), self.body, terms))
        self.gate.wait_reached()


def follower(process: InMemoryProcess, compute: Callable[[], object] = never, **options: Any) -> Thread:
    """A call that waits for the leader."""
    before = len(process.wake_ups)
    thread = Thread(lambda: process.cache.fetch(call_of(process, **options), compute))
    eventually(lambda: len(process.wake_ups) > before)
    return thread


# -- shared failures ---------------------------------------------------------------------------------------------------


def test_a_failure_reaches_those_who_waited_in_every_process_as_an_exception_of_their_own(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    led = Led(here, error=ValueError("no"))
    away = follower(there)
    joined = [Thread(lambda: here.cache.fetch(call_of(here), never)) for _ in range(3)]
    eventually(lambda: here.store.calls["read"] == 4)
    led.gate.open()

    errors = []
    for thread in (led.thread, away, *joined):
        with pytest.raises(ValueError, match=r"^no$") as raised:
            thread.result()
        errors.append(raised.value)
    assert len({id(error) for error in errors}) == 5
    assert led.body.calls == 1


def test_a_failure_elsewhere_reaches_all_threads_that_wait_in_one_process(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    led = Led(here, error=ValueError("no"))
    away = follower(there)
    joined = [Thread(lambda: there.cache.fetch(call_of(there), never)) for _ in range(3)]
    eventually(lambda: there.store.calls["read"] == 4)
    led.gate.open()

    for thread in (away, *joined):
        with pytest.raises(ValueError, match=r"^no$"):
            thread.result()


def test_a_signed_failure_is_shared(here: InMemoryProcess, there: InMemoryProcess) -> None:
    codec = Codec("json", ["json"], signing_keys=[b"k" * 16])
    led = Led(here, codec=codec, error=ValueError("no"))
    away = follower(there, codec=codec)
    led.gate.open()

    with pytest.raises(ValueError, match=r"^no$"):
        away.result()


def test_who_comes_after_a_failure_computes(here: InMemoryProcess, there: InMemoryProcess) -> None:
    led = Led(here, error=ValueError("no"))
    led.gate.open()
    with pytest.raises(ValueError, match="no"):
        led.thread.result()

    for process in (here, there):
        assert process.cache.fetch(call_of(process), Body("anew")) == "anew"


@pytest.mark.parametrize("error", [ValueError("no"), KeyError("its own")], ids=["share_errors=False", "not shared"])
def test_a_failure_that_is_not_shared_lets_the_next_one_compute(
    here: InMemoryProcess, there: InMemoryProcess, error: Exception
) -> None:
    options = {"share_errors": False} if isinstance(error, ValueError) else {}
    led, second = Led(here, error=error, **options), Body("second")
    away = follower(there, second, **options)
    led.gate.open()

    with pytest.raises(type(error)):
        led.thread.result()
    assert away.result() == "second"
    assert second.calls == 1


def test_a_follower_fails_by_its_own_terms(here: InMemoryProcess, there: InMemoryProcess) -> None:
    led = Led(here, error=ValueError("no"))
    terms = Terms(fail=lambda error: f"instead of {error}")
    away = Thread(lambda: there.cache.fetch(call_of(there), never, terms))
    eventually(lambda: len(there.wake_ups) == 1)
    led.gate.open()

    assert away.result() == "instead of no"


def test_an_attempt_that_waited_before_may_have_what_that_leader_left(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    led = Led(here, error=ValueError("no"), claim="task-1")
    led.gate.open()
    with pytest.raises(ValueError, match="no"):
        led.thread.result()

    with pytest.raises(ValueError, match="no"):
        there.cache.fetch(call_of(there), never, Terms(waits_for="task-1:n"))
    assert there.cache.fetch(call_of(there), Body("anew"), Terms(waits_for="task-2:n")) == "anew"


def test_a_value_that_is_not_to_be_stored_reaches_those_who_waited_and_nobody_else(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    options = {"cache_if": lambda result: False}
    led = Led(here, **options)
    away = follower(there, **options)
    led.gate.open()

    assert (led.thread.result(), away.result()) == ("led", "led")
    assert there.cache.fetch(call_of(there, **options), Body("anew")) == "anew"


@pytest.mark.parametrize("failed", [True, False])
def test_a_failure_cannot_be_passed_off_as_a_value_nor_a_value_as_a_failure(
    here: InMemoryProcess, there: InMemoryProcess, failed: bool
) -> None:
    codec = Codec("json", ["json"], signing_keys=[b"k" * 16])
    led = Led(here, codec=codec, error=ValueError("no"), claim="task-1")
    away = follower(there, Body("computed"), codec=codec)
    call, now = call_of(there, codec=codec), there.clock.time()
    key = call.digest if failed else error_key(call.digest)  # signed for the other of the two
    body = codec.encode({"text": "forged"}, _times(now), call.tags, key)
    here.memory.release(call.digest, "task-1:n", Leave(body, failed, 10.0))

    assert away.result() == "computed"
    led.gate.open()
    with pytest.raises(ValueError, match="no"):
        led.thread.result()


def _times(now: float) -> Any:
    from celery_cachetiers.entry import Times

    return Times(now, now + 10, now + 10, 0.0)


# -- retries -----------------------------------------------------------------------------------------------------------


def test_a_leader_that_retries_keeps_its_lease_for_its_task_id_and_its_followers_wait_on(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    led = Led(here, error=Again(), claim="task-1")
    away = follower(there)
    led.gate.open()
    with pytest.raises(Again):
        led.thread.result()

    held = there.cache.watch(call_of(there))
    assert isinstance(held, Held)
    assert held.holder == "task-1"
    assert here.cache.fetch(call_of(here), Body("retried"), Terms(claim="task-1")) == "retried"
    assert away.result() == "retried"


def test_a_retry_that_never_comes_ends_with_its_time(here: InMemoryProcess, there: InMemoryProcess) -> None:
    led = Led(here, error=Again(), claim="task-1", lease_ttl=10.0)
    led.gate.open()
    with pytest.raises(Again):
        led.thread.result()
    here.clock.advance(14.9)
    assert isinstance(there.cache.watch(call_of(there)), Held)
    here.clock.advance(0.2)

    assert isinstance(there.cache.watch(call_of(there)), Free)


def test_a_lease_that_cannot_be_handed_over_is_freed(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.store.fail("hand_over")
    led = Led(here, error=Again(), claim="task-1")
    led.gate.open()
    with pytest.raises(Again):
        led.thread.result()

    assert isinstance(there.cache.watch(call_of(there)), Free)


def test_a_retry_without_a_task_id_frees_the_lease(here: InMemoryProcess, there: InMemoryProcess) -> None:
    led = Led(here, error=Again())
    led.gate.open()
    with pytest.raises(Again):
        led.thread.result()

    assert isinstance(there.cache.watch(call_of(there)), Free)


# -- those that may not block ------------------------------------------------------------------------------------------


def test_who_may_not_block_is_told_who_leads_and_leaves_nothing_behind(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    led = Led(here, claim="task-1")
    for process in (here, there):
        with pytest.raises(HeldElsewhere) as held:
            process.cache.fetch(call_of(process), never, Terms(may_block=False))
        assert held.value.holder == "task-1:n"
        assert 0 < held.value.seconds_left <= 10.0

    assert here.memory.shared.waiters.names() == []
    assert len(there.wake_ups) == 0
    assert repr(there.cache._follower.flights) == "<Flights: 0 under way>"
    led.gate.open()
    assert led.thread.result() == "led"


def test_a_leader_is_replaced_by_name_only(here: InMemoryProcess, there: InMemoryProcess) -> None:
    led = Led(here, claim="task-1")
    with pytest.raises(HeldElsewhere):
        there.cache.fetch(call_of(there), never, Terms(may_block=False, take_over="task-2:n"))
    assert there.cache.fetch(call_of(there), Body("new"), Terms(may_block=False, take_over="task-1:n")) == "new"
    led.gate.open()

    assert led.thread.result() == "led"
    assert here.cache.look(call_of(here)).value == "new"  # type: ignore[union-attr]  # there is one


def test_a_leader_in_the_same_process_is_replaced_as_any_other(here: InMemoryProcess) -> None:
    led = Led(here, claim="task-1")

    assert here.cache.fetch(call_of(here), Body("new"), Terms(may_block=False, take_over="task-1:n")) == "new"
    led.gate.open()
    assert led.thread.result() == "led"


# -- watching and following --------------------------------------------------------------------------------------------


def test_a_watcher_sees_values_failures_leaders_and_nothing(here: InMemoryProcess, there: InMemoryProcess) -> None:
    assert isinstance(there.cache.watch(call_of(there)), Free)
    led = Led(here, error=ValueError("no"), claim="task-1")
    assert isinstance(there.cache.watch(call_of(there)), Held)
    led.gate.open()
    with pytest.raises(ValueError, match="no"):
        led.thread.result()
    failed = there.cache.watch(call_of(there), "task-1:n")
    assert isinstance(failed, Shared)
    assert failed.error is not None
    assert str(failed.error()) == "no"
    assert isinstance(there.cache.watch(call_of(there)), Free)
    here.cache.fetch(call_of(here), Body({"x": [1]}))
    found = there.cache.watch(call_of(there))
    assert isinstance(found, Shared)
    assert found.copy is not None
    first, second = found.copy(), found.copy()
    assert first == second == {"x": [1]}
    assert first is not second
    assert there.cache.recall(call_of(there)) == {"x": [1]}


def test_a_watcher_takes_no_entry_that_it_cannot_read(here: InMemoryProcess, there: InMemoryProcess) -> None:
    pickled = Codec("pickle", ["json", "pickle"])
    here.cache.fetch(call_of(here, codec=pickled), Body("value"))

    assert isinstance(there.cache.watch(call_of(there)), Free)


def test_a_watcher_is_told_when_redis_cannot_be_asked(here: InMemoryProcess) -> None:
    here.store.fail("lease")

    with pytest.raises(TierUnavailable):
        here.cache.watch(call_of(here))


def test_the_first_to_meet_leads_for_its_message_and_the_next_is_told_so(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    assert isinstance(here.cache.meet(call_of(here), "task-1"), Leading)
    met = there.cache.meet(call_of(there), "task-2")
    assert isinstance(met, Held)
    assert met.holder == "task-1"
    here.cache.fetch(call_of(here), Body("value"), Terms(claim="task-1"))

    found = there.cache.meet(call_of(there), "task-3")
    assert isinstance(found, Shared)
    assert found.copy is not None
    assert found.copy() == "value"


@pytest.mark.parametrize("error", [None, ValueError("no")], ids=["value", "failure"])
def test_whoever_follows_is_woken_with_what_the_leader_gave(
    here: InMemoryProcess, there: InMemoryProcess, error: Exception | None
) -> None:
    led = Led(here, error=error, claim="task-1")
    following = Thread(lambda: there.cache.follow(call_of(there), "", 60.0))
    eventually(lambda: there.store.calls["lease"] == 1 and len(there.wake_ups) == 1)
    led.gate.open()
    shared: Any = following.result()

    assert isinstance(shared, Shared)
    assert shared.copy() == "led" if error is None else str(shared.error()) == "no"
    assert there.store.calls["lease"] == 2


def test_whoever_follows_without_patience_learns_that_it_is_computed_still(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    led = Led(here)
    assert isinstance(there.cache.follow(call_of(there), "", 0.0), Held)
    led.gate.open()
    led.thread.result()


def test_whoever_follows_a_leader_that_is_gone_learns_so(here: InMemoryProcess) -> None:
    assert isinstance(here.cache.follow(call_of(here), "gone:1", 60.0), Free)


def test_the_lease_of_one_that_is_gone_is_freed_by_its_token(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.cache.meet(call_of(here), "task-1")
    there.cache.free(call_of(there), "task-2")
    assert isinstance(there.cache.watch(call_of(there)), Held)
    there.cache.free(call_of(there), "task-1")

    assert isinstance(there.cache.watch(call_of(there)), Free)


# -- cold tasks --------------------------------------------------------------------------------------------------------


def test_a_cold_task_asks_for_the_lease_at_once_until_it_hits_again(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    memo = call_of(here).memo

    def call(key: str, process: InMemoryProcess = here) -> Call:
        found = call_of(process, key)
        return Call(memo, found.digest, found.find_tags)

    for number in range(COLD + 3):
        here.cache.fetch(call(str(number)), Body())
    assert here.store.calls["read"] == COLD
    there.cache.fetch(call_of(there, "known"), Body("known"))
    here.store.calls.clear()

    assert here.cache.fetch(call("known"), never) == "known"
    assert dict(here.store.calls) == {"lease": 1}
    here.cache.fetch(call("another"), Body())
    assert here.store.calls["read"] == 1
