"""Tags that come from the result: what an entry depends on is known only after its compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from celery_cachetiers.call import Call
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import TagError
from celery_cachetiers.events import Event
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.templates import MAX_RESULT_TAGS, compile_result_tags
from celery_cachetiers.testing import Gate, InMemoryProcess
from celery_cachetiers.tiers.seen_tags import SeenTags
from tests.unit.bodies import Body, Thread, eventually, flown, never

TOP = [{"id": 1}, {"id": 2}]


@pytest.fixture
def here() -> InMemoryProcess:
    return InMemoryProcess()


@pytest.fixture
def there(here: InMemoryProcess) -> InMemoryProcess:
    return InMemoryProcess(beside=here)


def users(result: Any) -> list[str]:
    return [f"user:{user['id']}" for user in result]


def top(process: InMemoryProcess, key: str = "top", tags: Sequence[str] = (), **options: Any) -> Call:
    return process.call(key, tags=tags, **{"tags_from": users, **options})


@pytest.mark.parametrize("options", [{}, {"l1": False}, {"consistency": "strict"}])
@pytest.mark.parametrize("tag", ["user:1", "user:2", "list"])
def test_after_an_invalidation_of_any_tag_no_process_serves_the_old_value(
    here: InMemoryProcess, there: InMemoryProcess, tag: str, options: dict[str, Any]
) -> None:
    for process in (here, there):
        process.get(top(process, tags=["list"], **options), Body(TOP))
        assert process.get(top(process, tags=["list"], **options), never) == TOP
    here.cache.invalidate(["user:3"])
    assert there.get(top(there, tags=["list"], **options), never) == TOP
    here.cache.invalidate([tag])

    assert there.get(top(there, tags=["list"], **options), Body([])) == []
    assert here.get(top(here, tags=["list"], **options), never) == []


def test_a_compute_that_an_invalidation_of_its_result_overtakes_is_never_served(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(top(here), Body(TOP, gate=gate)))
    gate.wait_reached()
    there.cache.invalidate(["user:2"])
    gate.open()

    assert leader.result() == TOP  # its caller asked before
    assert here.cache.look(top(here)) is None
    assert there.cache.look(top(there)) is None
    assert here.tally.refused == 1


def test_a_compute_that_another_invalidation_overtakes_is_served(here: InMemoryProcess, there: InMemoryProcess) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(top(here), Body(TOP, gate=gate)))
    gate.wait_reached()
    there.cache.invalidate(["user:3"])
    gate.open()
    leader.result()

    assert there.get(top(there), never) == TOP


def test_who_joins_a_compute_after_an_invalidation_of_its_result_is_not_given_its_value(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    gate, newer = Gate(), Body([{"id": 2, "name": "new"}])
    leader = Thread(lambda: here.get(top(here), Body(TOP, gate=gate)))
    gate.wait_reached()
    there.cache.invalidate(["user:2"])
    here.clock.advance(0.1)
    late = [Thread(lambda process=process: process.get(top(process), newer)) for process in (here, there)]
    eventually(lambda: flown(here) == 1 and here.memory.shared.waiters.names() != [])
    gate.open()

    assert leader.result() == TOP
    assert [thread.result() for thread in late] == [newer.value] * 2
    assert newer.calls == 1


def test_a_value_whose_log_was_lost_during_its_compute_is_not_stored(here: InMemoryProcess) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(top(here), Body(TOP, gate=gate)))
    gate.wait_reached()
    here.memory.shared.log.drop("log")
    gate.open()

    assert leader.result() == TOP
    assert here.cache.look(top(here)) is None


def test_a_result_without_tags_is_stored_though_the_log_was_lost(here: InMemoryProcess) -> None:
    gate = Gate()
    leader = Thread(lambda: here.get(top(here), Body([], gate=gate)))
    gate.wait_reached()
    here.memory.shared.log.drop("log")
    gate.open()
    leader.result()

    assert here.get(top(here), never) == []


def test_l1_does_not_keep_what_was_announced_since_the_lease(here: InMemoryProcess) -> None:
    gate = here.store.hold("commit")
    leader = Thread(lambda: here.get(top(here), Body(TOP)))
    gate.wait_reached()
    here.l1.invalidate(["user:2"])  # the announcement of an invalidation that the commit has not seen yet
    gate.open()
    leader.result()

    assert here.cache.recall(top(here)) is MISSING


def test_a_strict_hit_is_confirmed_against_the_tags_of_the_result_too(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    for _ in range(2):
        here.get(top(here, consistency="strict"), Body(TOP))
    here.store.calls.clear()
    assert here.cache.recall(top(here, consistency="strict")) == TOP
    assert dict(here.store.calls) == {"confirms": 1}
    here.backplane.lose()
    here.l1.trusted_until = float("inf")  # as if the loss had not been seen yet
    here.get(top(here, consistency="strict"), never)
    there.cache.invalidate(["user:1"])

    assert here.cache.recall(top(here, consistency="strict")) is MISSING


def test_tags_of_the_result_that_the_arguments_give_too_count_once(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.get(top(here, tags=["user:1"]), Body(TOP))

    assert there.get(top(there, tags=["user:1"]), never) == TOP
    assert here.seen_tags.of(top(here).digest) == ("user:2",)


@pytest.mark.parametrize("bad", [None, "user:1", [1], [""], ["a\nb"], ["x"] * 3 + ["y" * 513]])
def test_a_result_whose_tags_are_not_usable_is_returned_and_not_stored(here: InMemoryProcess, bad: Any) -> None:
    body = Body(TOP)

    assert here.get(top(here, tags_from=lambda result: bad), body) == TOP
    assert here.cache.look(top(here)) is None
    assert here.count(Event.UNCACHEABLE) == 1
    assert here.memory.shared.leases.names() == []


def test_a_callable_that_raises_costs_its_caller_nothing(here: InMemoryProcess) -> None:
    assert here.get(top(here, tags_from=lambda result: result["missing"]), Body(TOP)) == TOP
    assert here.tally == Tally(misses=1, computes=1, uncacheable=1)


def test_a_put_depends_on_its_value(here: InMemoryProcess, there: InMemoryProcess) -> None:
    here.cache.put(top(here), TOP)
    assert there.get(top(there), never) == TOP
    assert here.get(top(here), never) == TOP
    there.cache.invalidate(["user:2"])

    assert here.cache.look(top(here)) is None
    assert there.cache.look(top(there)) is None


def test_a_put_of_a_value_without_usable_tags_is_refused_loudly(here: InMemoryProcess) -> None:
    with pytest.raises(TagError, match="no tags came of it"):
        here.cache.put(top(here), "not a list of users")
    assert here.cache.look(top(here)) is None


def test_without_l2_configured_an_invalidation_acts_on_the_tags_of_results() -> None:
    alone = InMemoryProcess(l1_only=True)
    alone.get(top(alone), Body(TOP))
    assert alone.get(top(alone), never) == TOP
    alone.cache.invalidate(["user:2"])
    gate = Gate()
    leader = Thread(lambda: alone.get(top(alone), Body(TOP, gate=gate)))
    gate.wait_reached()
    alone.cache.invalidate(["user:1"])
    gate.open()
    leader.result()

    assert alone.cache.look(top(alone)) is None


def test_a_value_that_is_not_to_be_kept_reaches_those_who_waited_but_not_after_an_invalidation(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    for invalidated in (False, True):
        key = f"top:{invalidated}"
        gate, second = Gate(), Body([{"id": 3}])
        options: dict[str, Any] = {"cache_if": lambda result: False}
        leader = Thread(lambda: here.get(top(here, key, **options), Body(TOP, gate=gate)))  # noqa: B023
        gate.wait_reached()
        if invalidated:
            here.cache.invalidate(["user:1"])
        follower = Thread(lambda: there.get(top(there, key, **options), second))  # noqa: B023
        eventually(lambda: here.memory.shared.waiters.names() != [])
        gate.open()
        leader.result()

        assert follower.result() == (second.value if invalidated else TOP)


def test_a_failure_reaches_those_who_waited_but_not_after_an_invalidation() -> None:
    for invalidated in (False, True):
        here = InMemoryProcess(failures=Shareable())
        there = InMemoryProcess(beside=here, failures=Shareable())
        gate, second = Gate(), Body([])
        leader = Thread(lambda: here.get(top(here), Body(gate=gate, error=LookupError("gone"))))  # noqa: B023
        gate.wait_reached()
        if invalidated:
            here.cache.invalidate(["user:1"])  # whether the result would have named it, nobody knows
        follower = Thread(lambda: there.get(top(there), second))  # noqa: B023
        eventually(lambda: here.memory.shared.waiters.names() != [])  # noqa: B023
        gate.open()
        with pytest.raises(LookupError):
            leader.result()

        if invalidated:
            assert follower.result() == []
        else:
            with pytest.raises(LookupError, match="gone"):
                follower.result()


class Shareable:
    """Shares each exception by its text."""

    def retry_in(self, error: BaseException) -> float | None:
        return None

    def dump(self, error: BaseException) -> object | None:
        return str(error)

    def load(self, dumped: object) -> BaseException:
        return LookupError(dumped)


def test_without_l2_configured_who_comes_after_an_invalidation_of_its_result_is_not_given_the_older_compute() -> None:
    alone, gate, newer = InMemoryProcess(l1_only=True), Gate(), Body([])
    leader = Thread(lambda: alone.get(top(alone), Body(TOP, gate=gate)))
    gate.wait_reached()
    alone.cache.invalidate(["user:1"])
    alone.clock.advance(0.1)
    late = Thread(lambda: alone.get(top(alone), newer))
    eventually(lambda: flown(alone) == 1)
    alone.clock.advance(0.1)
    gate.open()

    assert leader.result() == TOP
    assert late.result() == []


# -- the names ---------------------------------------------------------------------------------------------------------


def test_tags_of_a_result_are_sorted_each_once_and_escaped() -> None:
    assert compile_result_tags(iter)(["b", "a", "b", "@all"]) == ("@@all", "a", "b")


def test_more_tags_than_every_read_can_name_are_refused() -> None:
    find = compile_result_tags(lambda result: [f"row:{number}" for number in range(result)])

    assert len(find(MAX_RESULT_TAGS)) == MAX_RESULT_TAGS
    with pytest.raises(TagError, match=f"more than {MAX_RESULT_TAGS}"):
        find(MAX_RESULT_TAGS + 1)


def test_the_memory_of_tags_is_bounded_by_names_and_forgets_the_least_recently_used() -> None:
    seen = SeenTags(max_names=6)
    seen.learn("a", ("1", "2"))
    seen.learn("b", ("1", "2"))
    assert seen.of("a") == ("1", "2")
    seen.learn("c", ("1", "2"))
    seen.learn("d", tuple("123456"))

    assert (seen.of("a"), seen.of("b"), seen.of("c"), seen.of("d")) == (("1", "2"), (), ("1", "2"), ())
    seen.reset_after_fork()
    assert seen.of("a") == ()
