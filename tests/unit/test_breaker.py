"""A dead server costs one call per window."""

from __future__ import annotations

import threading

import pytest

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.testing import FakeClock, Gate


class Harness:
    def __init__(self, window: float = 5.0) -> None:
        self.clock, self.changes = FakeClock(), list[bool]()
        self.breaker = Breaker(window, self.clock, self.changes.append)


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_it_is_closed_at_first_and_while_all_goes_well(harness: Harness) -> None:
    harness.breaker.succeeded()

    assert [harness.breaker.allows() for _ in range(3)] == [True] * 3
    assert harness.changes == []
    assert "closed" in repr(harness.breaker)


def test_a_failure_opens_it_for_a_window(harness: Harness) -> None:
    harness.breaker.failed()
    assert harness.breaker.allows() is False
    assert "open" in repr(harness.breaker)
    harness.clock.advance(4.999)
    assert harness.breaker.allows() is False
    harness.clock.advance(0.001)

    assert harness.breaker.allows() is True


def test_one_probe_is_allowed_per_window(harness: Harness) -> None:
    harness.breaker.failed()
    harness.clock.advance(5)
    assert [harness.breaker.allows() for _ in range(3)] == [True, False, False]
    harness.clock.advance(5)  # the probe never came back

    assert [harness.breaker.allows() for _ in range(3)] == [True, False, False]


def test_of_twenty_threads_one_probes(harness: Harness) -> None:
    for _ in range(50):
        harness.breaker.failed()
        harness.clock.advance(5)
        barrier, allowed = threading.Barrier(20), list[bool]()

        def ask(barrier: threading.Barrier = barrier, allowed: list[bool] = allowed) -> None:
            barrier.wait()
            allowed.append(harness.breaker.allows())

        threads = [threading.Thread(target=ask) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(allowed) == [False] * 19 + [True]


def test_a_successful_probe_closes_it_for_everybody(harness: Harness) -> None:
    harness.breaker.failed()
    harness.clock.advance(5)
    harness.breaker.allows()
    harness.breaker.succeeded()

    assert [harness.breaker.allows() for _ in range(3)] == [True] * 3
    assert harness.changes == [True, False]


def test_a_failed_probe_keeps_it_open_for_another_window(harness: Harness) -> None:
    harness.breaker.failed()
    harness.clock.advance(5)
    harness.breaker.allows()
    harness.clock.advance(2)
    harness.breaker.failed()
    harness.clock.advance(4.9)

    assert harness.breaker.allows() is False
    assert harness.changes == [True]


def test_failures_of_calls_that_were_under_way_are_told_once(harness: Harness) -> None:
    for _ in range(20):
        harness.breaker.failed()
    harness.breaker.succeeded()
    harness.breaker.succeeded()

    assert harness.changes == [True, False]


def test_a_window_of_zero_never_opens_it() -> None:
    harness = Harness(window=0.0)
    harness.breaker.failed()

    assert harness.breaker.allows() is True
    assert harness.changes == []


@pytest.mark.parametrize("change", ["failed", "succeeded"])
def test_nobody_waits_for_whoever_is_told_of_a_change(change: str) -> None:
    gate, clock = Gate("on_change"), FakeClock()
    breaker = Breaker(5.0, clock, lambda opened: gate.pass_through() if opened is (change == "failed") else None)
    if change == "succeeded":
        breaker.failed()
    thread = threading.Thread(target=getattr(breaker, change))
    thread.start()
    gate.wait_reached()
    breaker.allows()  # each of these would hang if the lock were held
    breaker.failed()
    clock.advance(5)

    assert breaker.allows() is True
    gate.open()
    thread.join()


def test_a_forked_child_starts_closed_with_a_lock_of_its_own(harness: Harness) -> None:
    harness.breaker.failed()
    with harness.breaker._lock:  # another thread of the parent held it at the fork
        harness.breaker.reset_after_fork()

        assert harness.breaker.allows() is True
        harness.breaker.failed()
