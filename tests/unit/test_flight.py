"""Single flight: one leads, the others share, and nobody's end lets a second one start beside the first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_cachetiers.flight import Flight, Flights, Landing
from celery_cachetiers.local_port import Mark
from celery_cachetiers.testing import Gate

MARK = Mark(0, 0)


@contextmanager
def led(flights: Flights, digest: str, flight: Flight) -> Iterator[None]:
    """A lead that ends with the block, as the engine's does, whatever happens in it."""
    try:
        yield
    finally:
        flights.land(digest, flight)


def followed(flights: Flights, digest: str = "a") -> threading.Event:
    """What a follower of the flight under way waits for."""
    flight, leads = flights.join(digest, MARK)
    assert leads is False
    assert flight.done is not None
    return flight.done


def test_the_first_leads_and_the_others_follow_the_same_flight() -> None:
    flights = Flights()
    flight, leads = flights.join("a", MARK)
    assert leads is True

    assert flights.join("a", MARK) == (flight, False)
    assert flights.join("b", MARK)[1] is True
    assert repr(flights) == "<Flights: 2 under way>"


def test_followers_are_woken_with_what_the_leader_brought() -> None:
    flights, landing = Flights(), Landing(lambda: "value", 1.0)
    flight, _ = flights.join("a", MARK)
    done = followed(flights)
    with led(flights, "a", flight):
        flight.landing = landing

    assert done.is_set()
    assert flight.landing is landing


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_followers_are_woken_without_a_landing_when_the_leader_failed(error: type[BaseException]) -> None:
    flights = Flights()
    flight, _ = flights.join("a", MARK)
    done = followed(flights)
    with pytest.raises(error), led(flights, "a", flight):
        raise error

    assert done.is_set()
    assert flight.landing is None


def test_whoever_comes_after_the_end_leads_a_flight_of_their_own() -> None:
    flights = Flights()
    first, _ = flights.join("a", MARK)
    with led(flights, "a", first):
        pass
    second, leads = flights.join("a", MARK)

    assert leads is True
    assert second is not first
    assert not followed(flights).is_set()


def test_a_flight_has_left_the_table_before_its_followers_are_woken() -> None:
    flights = Flights()
    flight, _ = flights.join("a", MARK)
    seen: list[bool] = []
    done = followed(flights)
    wake = done.set

    def joins_when_woken() -> None:
        seen.append(flights.join("a", MARK)[0] is flight)
        wake()

    done.set = joins_when_woken  # type: ignore[method-assign]  # the instant between the two steps
    with led(flights, "a", flight):
        pass

    assert seen == [False]


def test_the_end_of_one_flight_never_removes_another() -> None:
    flights = Flights()
    first, _ = flights.join("a", MARK)
    with led(flights, "a", first):
        with flights._lock:
            del flights._flights["a"]  # as after a fork in between
        second, _ = flights.join("a", MARK)

    assert flights.join("a", MARK) == (second, False)


def test_a_flight_that_is_given_up_is_replaced_by_exactly_one_of_those_who_give_it_up() -> None:
    for _ in range(50):
        flights = Flights()
        overdue, _ = flights.join("a", MARK)
        barrier, joined = threading.Barrier(8), list[tuple[object, bool]]()

        def give_up(
            flights: Flights = flights,
            overdue: Flight = overdue,
            barrier: threading.Barrier = barrier,
            joined: list[tuple[object, bool]] = joined,
        ) -> None:
            barrier.wait()
            joined.append(flights.join("a", MARK, instead_of=overdue))

        threads = [threading.Thread(target=give_up) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert sorted(leads for _, leads in joined) == [False] * 7 + [True]
        assert len({id(flight) for flight, _ in joined}) == 1
        assert joined[0][0] is not overdue


def test_the_end_of_a_flight_that_was_given_up_wakes_its_followers_and_leaves_its_successor() -> None:
    flights = Flights()
    overdue, _ = flights.join("a", MARK)
    done = followed(flights)
    with led(flights, "a", overdue):
        successor, leads = flights.join("a", MARK, instead_of=overdue)
    assert leads is True

    assert done.is_set()
    assert not followed(flights).is_set()
    assert flights.join("a", MARK) == (successor, False)
    assert flights.join("a", MARK, instead_of=overdue) == (successor, False)


class Computes:
    """Counts the computes that run at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.running = self.most = self.total = 0

    def __enter__(self) -> None:
        with self._lock:
            self.running += 1
            self.total += 1
            self.most = max(self.most, self.running)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.running -= 1


def test_a_failed_leader_then_a_newcomer_never_gives_two_computes_at_once() -> None:
    for _ in range(200):
        flights, computes = Flights(), Computes()
        failing, retried, arrived = Gate("the leader fails"), Gate("the next compute"), threading.Semaphore(0)
        joins: list[bool] = []

        def call(
            fails: bool,
            flights: Flights = flights,
            computes: Computes = computes,
            failing: Gate = failing,
            retried: Gate = retried,
            arrived: threading.Semaphore = arrived,
            joins: list[bool] = joins,
        ) -> None:
            while True:
                flight, leads = flights.join("a", MARK)
                joins.append(leads)
                arrived.release()
                if not leads:
                    assert flight.done is not None
                    flight.done.wait(10)
                    if flight.landing is not None:
                        return
                    continue
                with led(flights, "a", flight), computes:
                    if fails:
                        failing.pass_through()
                        return
                    retried.pass_through()
                    flight.landing = Landing(lambda: 1, 0.0)
                    return

        leader = threading.Thread(target=call, args=(True,))
        leader.start()
        failing.wait_reached()
        followers = [threading.Thread(target=call, args=(False,)) for _ in range(3)]
        for thread in followers:
            thread.start()
        for _ in range(4):
            arrived.acquire()
        failing.open()
        retried.wait_reached()  # a follower computes again
        newcomers = [threading.Thread(target=call, args=(False,)) for _ in range(3)]
        for thread in newcomers:
            thread.start()
        for _ in range(1 + 2 + 3):  # the new leader, the other two followers, and the newcomers have joined
            arrived.acquire()
        retried.open()
        for thread in (leader, *followers, *newcomers):
            thread.join(10)

        assert computes.most == 1
        assert computes.total == 2
        # Once each, and the three followers once more: nobody met the flight that had ended again and again.
        assert sorted(joins) == [False] * 8 + [True] * 2


def test_a_forked_child_has_no_flights_and_a_lock_of_its_own() -> None:
    flights = Flights()
    flights.join("a", MARK)
    done = followed(flights)
    with flights._lock:  # another thread of the parent held it at the fork
        flights.reset_after_fork()

        assert flights.join("a", MARK)[1] is True
    assert not done.is_set()
