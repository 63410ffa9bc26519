"""Whom a wake-up reaches."""

from __future__ import annotations

import threading

from celery_cachetiers.backplane.waiters import Waiters


def test_a_wake_up_reaches_all_who_wait_for_the_key_and_nobody_else() -> None:
    waiters = Waiters()
    with waiters.registered("a") as first, waiters.registered("a") as second, waiters.registered("b") as other:
        waiters.wake("a")

        assert [waiter.woken for waiter in (first, second, other)] == [True, True, False]


def test_a_wake_up_between_registering_and_waiting_is_not_lost() -> None:
    waiters = Waiters()
    with waiters.registered("a") as woken:
        waiters.wake("a")

        assert woken.wait(0) is True


def test_a_wake_up_for_a_key_that_nobody_waits_for_does_nothing() -> None:
    waiters = Waiters()
    waiters.wake("a")
    with waiters.registered("a") as woken:
        assert woken.woken is False


def test_a_gap_wakes_everybody() -> None:
    waiters = Waiters()
    with waiters.registered("a") as first, waiters.registered("b") as second:
        waiters.wake_all()

        assert first.woken
        assert second.woken


def test_who_has_left_is_forgotten_and_who_stays_is_not() -> None:
    waiters = Waiters()
    with waiters.registered("a") as stays:
        with waiters.registered("a"):
            assert len(waiters) == 2
        assert len(waiters) == 1
        waiters.wake("a")

        assert stays.woken
    assert repr(waiters) == "<Waiters: 0 for 0 keys>"


def test_leaving_with_an_error_is_leaving() -> None:
    waiters = Waiters()
    try:
        with waiters.registered("a"):
            raise KeyError
    except KeyError:
        pass

    assert len(waiters) == 0


def test_a_forked_child_has_no_waiters_and_a_lock_of_its_own() -> None:
    waiters = Waiters()
    with waiters.registered("a") as parents, waiters._lock:  # another thread of the parent held it at the fork
        waiters.reset_after_fork()
        waiters.wake("a")

        assert parents.woken is False
    assert len(waiters) == 0


def test_whoever_is_told_hears_of_each_wake_up_and_of_none_for_all() -> None:
    waiters, told = Waiters(), list[str | None]()
    waiters.told = told.append
    with waiters.registered("a"):
        waiters.wake("a")
        waiters.wake("nobody waits for it")
        waiters.wake_all()

    assert told == ["a", "nobody waits for it", None]


def test_whoever_is_told_may_look_at_the_waiters() -> None:
    """It is called outside the lock, when those who wait have been woken."""
    waiters, woken = Waiters(), list[bool]()

    def told(digest: str | None) -> None:
        with waiters.registered("another"):
            woken.append(waiter.woken)

    waiters.told = told
    with waiters.registered("a") as waiter:
        waiters.wake("a")
        waiter.clear()
        waiters.wake_all()

    assert woken == [True, True]


def test_after_a_fork_nobody_is_told_until_the_child_says_who() -> None:
    waiters, parents = Waiters(), list[str | None]()
    waiters.told = parents.append
    waiters.reset_after_fork()
    waiters.wake("a")
    waiters.wake_all()

    assert parents == []


def test_a_waiter_that_was_woken_waits_again_once_it_is_cleared() -> None:
    waiters = Waiters()
    with waiters.registered("a") as waiter:
        waiters.wake("a")
        assert waiter.wait(0) is True
        waiter.clear()
        assert waiter.wait(0) is False  # now its event is made
        waiters.wake("a")
        assert waiter.wait(0) is True
        waiter.clear()

        assert waiter.wait(0) is False


def test_threads_that_come_and_go_while_others_wake_are_all_woken() -> None:
    waiters, woken = Waiters(), list[bool]()
    stop = threading.Event()

    def wait() -> None:
        for _ in range(200):
            with waiters.registered("a") as event:
                woken.append(event.wait(10))

    def wake() -> None:
        while not stop.is_set():
            waiters.wake("a")

    threads = [threading.Thread(target=wait) for _ in range(4)]
    waker = threading.Thread(target=wake)
    for thread in (*threads, waker):
        thread.start()
    for thread in threads:
        thread.join()
    stop.set()
    waker.join()

    assert woken == [True] * 800
    assert len(waiters) == 0
