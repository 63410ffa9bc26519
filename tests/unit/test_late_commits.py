"""A quick body's value is stored without a wait: what the process knows of it then, and when it hears of the rest."""

from __future__ import annotations

from typing import Any

import pytest

from celery_cachetiers.attempt import Terms
from celery_cachetiers.call import Call
from celery_cachetiers.events import Event
from celery_cachetiers.leading import QUICK
from celery_cachetiers.ports import Free, Held
from celery_cachetiers.testing import InMemoryProcess
from tests.unit.bodies import never

LEASE = 10.0
HASTY = Terms(waits_for_store=False)


@pytest.fixture
def here() -> InMemoryProcess:
    return InMemoryProcess()


@pytest.fixture
def there(here: InMemoryProcess) -> InMemoryProcess:
    return InMemoryProcess(beside=here)


def ask(process: InMemoryProcess, key: str = "a", value: object = 1, **options: Any) -> object:
    """As a request in a worker's slot does."""
    options.setdefault("lease_ttl", LEASE)
    return process.get(process.call(key, tags=["user:1"], **options), lambda: value, waits_for_store=False)


def call(process: InMemoryProcess, key: str = "a") -> Call:
    return process.call(key, tags=["user:1"], lease_ttl=LEASE)


def test_a_quick_value_is_returned_before_the_answer_to_its_commit(here: InMemoryProcess) -> None:
    assert ask(here) == 1
    assert here.store.calls["commit_later"] == 1
    assert here.store.calls["commit"] == 0
    assert here.count(Event.STORED) == 0


def test_others_find_it_at_once(here: InMemoryProcess, there: InMemoryProcess) -> None:
    ask(here)

    assert there.get(call(there), never) == 1


def test_the_next_call_of_the_key_is_answered_from_l1(here: InMemoryProcess) -> None:
    ask(here)
    asked = here.store.calls.copy()

    assert here.get(call(here), never) == 1
    assert here.store.calls == asked
    assert here.tally.l1_hits == 1
    assert here.tally.stores == 1


def test_a_call_of_another_key_takes_the_answer_in(here: InMemoryProcess) -> None:
    ask(here)
    ask(here, "b", 2)

    assert here.tally.stores == 1
    assert here.cache.recall(call(here)) == 1


def test_settling_takes_the_answer_in_once(here: InMemoryProcess) -> None:
    ask(here)
    here.cache.settle()
    here.cache.settle()

    assert here.count(Event.STORED) == 1


def test_the_commit_of_a_body_that_took_its_time_is_waited_for(here: InMemoryProcess) -> None:
    def slow() -> object:
        here.clock.advance(QUICK)
        return 1

    here.cache.fetch(call(here), slow, HASTY)

    assert here.store.calls["commit_later"] == 0
    assert here.count(Event.STORED) == 1


@pytest.mark.parametrize("how", [{"refresh": True}, {"tags_from": lambda value: ["row:1"]}])
def test_so_is_one_whose_answer_others_depend_on(here: InMemoryProcess, how: dict[str, Any]) -> None:
    options = {name: given for name, given in how.items() if name == "tags_from"}
    terms = HASTY._replace(refresh=how.get("refresh", False))
    here.cache.fetch(here.call("a", lease_ttl=LEASE, **options), lambda: 1, terms)

    assert here.store.calls["commit_later"] == 0
    assert here.count(Event.STORED) == 1


def test_what_was_invalidated_during_the_compute_is_refused_and_not_kept(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    def body() -> object:
        there.cache.invalidate(["user:1"])
        return 1

    assert here.cache.fetch(call(here), body, HASTY) == 1
    here.cache.settle()

    assert here.count(Event.REFUSED) == 1
    assert len(here.l1) == 0


def test_what_was_invalidated_before_the_answer_is_read_is_not_kept(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    ask(here)
    there.cache.invalidate(["user:1"])
    here.cache.settle()

    assert here.count(Event.STORED) == 1
    assert len(here.l1) == 0
    assert here.get(call(here), lambda: 2) == 2


def test_an_answer_that_never_comes_is_a_call_that_went_on_without_l2(here: InMemoryProcess) -> None:
    here.store.fail("commit_later", after=True)

    assert ask(here) == 1
    assert here.tally.failed_open == 1
    assert len(here.l1) == 0


def test_a_commit_that_was_lost_costs_others_the_rest_of_its_lease(
    here: InMemoryProcess, there: InMemoryProcess
) -> None:
    here.store.fail("commit_later")
    ask(here)

    assert isinstance(there.cache.watch(call(there)), Held)
    here.clock.advance(LEASE)
    assert isinstance(there.cache.watch(call(there)), Free)


def test_the_compute_of_a_key_whose_commit_was_lost_begins_anew_in_the_process_itself(here: InMemoryProcess) -> None:
    here.store.fail("commit_later")
    ask(here)
    here.store.heal()
    here.clock.advance(LEASE)

    assert here.get(call(here), lambda: 2) == 2


def test_the_child_of_a_fork_hears_nothing_of_its_parents_commits(here: InMemoryProcess) -> None:
    ask(here)
    here.cache.reset_after_fork()
    here.cache.settle()

    assert here.count(Event.STORED) == 0


def test_what_cannot_be_sent_without_a_wait_is_stored_with_one(
    here: InMemoryProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(here.memory, "commit_later", lambda *args: False)

    assert ask(here) == 1
    assert here.store.calls["commit"] == 1
    assert here.count(Event.STORED) == 1
    assert here.cache.recall(call(here)) == 1


def test_a_body_that_raises_frees_its_lease_as_ever(here: InMemoryProcess, there: InMemoryProcess) -> None:
    def failing() -> object:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        here.cache.fetch(call(here), failing, HASTY)

    assert isinstance(there.cache.watch(call(there)), Free)
