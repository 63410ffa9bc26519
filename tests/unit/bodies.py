"""Bodies that stop and count, threads that hand on their result, waits that end when a test lets time pass."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from celery_cachetiers.backplane.waiters import Waiters
from celery_cachetiers.testing import FakeClock, Gate, InMemoryProcess


class Body:
    """A task's body: counts its runs, and stops at a gate if it is given one."""

    def __init__(
        self, value: object = "value", *, gate: Gate | None = None, error: BaseException | None = None
    ) -> None:
        self._lock = threading.Lock()
        self.value, self.gate, self.error = value, gate, error
        self.calls = self.running = self.most = 0

    def __call__(self) -> object:
        with self._lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if self.gate is not None:
                self.gate.pass_through()
            if self.error is not None:
                raise self.error
            return self.value
        finally:
            with self._lock:
                self.running -= 1


def never() -> object:
    raise AssertionError("this body must not run")


class TickingClock(FakeClock):
    """Each look at it takes a microsecond, so that no two instants are equal."""

    def monotonic(self) -> float:
        self.advance(1e-6)
        return super().monotonic()


class Thread(threading.Thread):
    """Runs one call and hands its value, or what it raised, to whoever asks for the result."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._act, self._value, self._error = act, None, None  # type: ignore[var-annotated]  # set by run
        self.start()

    def run(self) -> None:
        try:
            self._value = self._act()
        except BaseException as error:  # handed on to the test
            self._error = error

    def result(self) -> object:
        self.join(20)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._value


class _ClockedEvent:
    """Waits by the fake clock: until it is set, or until so many seconds have passed there."""

    def __init__(self, event: threading.Event, waiters: ClockedWaiters) -> None:
        self._event, self._waiters = event, waiters

    def clear(self) -> None:
        self._event.clear()

    def wait(self, timeout: float) -> bool:
        clock = self._waiters.clock()
        deadline = clock.monotonic() + timeout
        self._waiters.asleep[self] = deadline
        try:
            while not self._event.wait(0.002):
                if clock.monotonic() >= deadline:
                    return False
            return True
        finally:
            del self._waiters.asleep[self]


class ClockedWaiters(Waiters):
    """Waits end when the test advances the clock."""

    def __init__(self, clock: Callable[[], Any]) -> None:
        super().__init__()
        self.clock = clock
        self.asleep: dict[_ClockedEvent, float] = {}

    @contextmanager
    def registered(self, digest: str) -> Iterator[threading.Event]:
        with super().registered(digest) as event:
            yield _ClockedEvent(event, self)  # type: ignore[misc]  # all that the engine uses of an event

    def sleepers(self) -> int:
        """How many wait for an instant that has not come yet."""
        now = self.clock().monotonic()
        return sum(deadline > now for deadline in list(self.asleep.values()))


def eventually(condition: Callable[[], bool]) -> None:
    """Polls: for the few states that nothing announces."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)


def clocked(beside: InMemoryProcess | None = None) -> InMemoryProcess:
    process: InMemoryProcess

    def clock() -> Any:
        return process.clock

    waiters = ClockedWaiters(clock)
    process = InMemoryProcess(beside=beside, wake_ups=waiters)
    return process


def sleepers(*processes: InMemoryProcess) -> int:
    return sum(process.wake_ups.sleepers() for process in processes if isinstance(process.wake_ups, ClockedWaiters))


def pass_time(seconds: float, *leaders: InMemoryProcess, step: float = 1.0) -> None:
    """Time passes, and the leaders' keepers do their work meanwhile."""
    for _ in range(round(seconds / step)):
        leaders[0].clock.advance(step)
        for leader in leaders:
            leader.keeper.renew()


def flown(process: InMemoryProcess) -> int:
    """How many threads wait for a flight of their own process."""
    flights = list(process.cache._follower.flights._flights.values())
    return sum(len(flight.done._cond._waiters) for flight in flights if flight.done)  # type: ignore[attr-defined]
