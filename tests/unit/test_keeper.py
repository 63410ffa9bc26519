"""Leases are renewed at a third of their time, whatever happens to the store; a lost one is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.leases.keeper import Keeper
from celery_cachetiers.ports import Leading, LeaseRequest
from celery_cachetiers.testing import FakeClock, FaultyStore, Gate, MemoryStore


class Stage:
    """A keeper whose thread is told when to look at the clock: by a lease that is due at once and kept for a moment."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.memory = MemoryStore(self.clock)
        self.store = Counted(self.memory)
        self.lost: list[LeaseRequest] = []
        self.told = threading.Event()
        self.keeper = Keeper(self.store, self.clock, self._on_lost)

    def _on_lost(self, request: LeaseRequest) -> None:
        self.lost.append(request)
        self.told.set()

    def lead(self, digest: str, lease_ttl: float = 9.0) -> LeaseRequest:
        request = LeaseRequest(digest, ("tag",), f"token of {digest}", lease_ttl, 100.0, None)
        assert isinstance(self.memory.lease(request), Leading)
        return request

    def look(self) -> None:
        """Wakes the keeper's thread, as a lapse of time would, and returns when it has renewed what was due."""
        with self.keeper._changed:
            self.keeper._changed.notify()

    def renewed(self, *digests: str) -> bool:
        """Whether these were renewed, in any order, since last asked."""
        return self.store.wait(digests)


class Counted(FaultyStore):
    """Tells which renewals have been asked for."""

    def __init__(self, store: MemoryStore) -> None:
        super().__init__(store)
        self._changed = threading.Condition()
        self.asked: list[str] = []
        self.error: BaseException | None = None

    def renew(self, request: LeaseRequest) -> bool:
        try:
            if self.error is not None:
                raise self.error
            return super().renew(request)
        finally:
            with self._changed:
                self.asked.append(request.digest)
                self._changed.notify_all()

    def wait(self, digests: tuple[str, ...]) -> bool:
        with self._changed:
            there = self._changed.wait_for(lambda: sorted(self.asked) == sorted(digests), 5)
            self.asked.clear()
            return there


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage()
    yield stage
    stage.store.heal()
    stage.keeper.close()
    if stage.keeper._thread is not None:
        stage.keeper._thread.join(5)


@contextmanager
def nothing_happens(stage: Stage) -> Iterator[None]:
    """The block causes no renewal: a marker that is due at once is the only one."""
    yield
    marker = stage.lead("marker", lease_ttl=3600.0)
    with stage.keeper.keeping(marker):
        stage.keeper._kept[marker.token].due = 0.0
        stage.look()
        assert stage.renewed("marker")


def test_a_lease_is_renewed_at_a_third_of_its_time(stage: Stage) -> None:
    with stage.keeper.keeping(stage.lead("a", lease_ttl=9.0)):
        with nothing_happens(stage):
            stage.clock.advance(2.9)
        for _ in range(3):
            stage.clock.advance(3.0)
            stage.look()
            assert stage.renewed("a")

    assert stage.lost == []


def test_each_lease_has_its_own_rhythm(stage: Stage) -> None:
    with stage.keeper.keeping(stage.lead("short", lease_ttl=3.0)), stage.keeper.keeping(stage.lead("long", 9.0)):
        stage.clock.advance(1.0)
        stage.look()
        assert stage.renewed("short")
        stage.clock.advance(2.0)
        stage.look()

        assert stage.renewed("short", "long")


def test_a_lease_that_needs_it_sooner_wakes_the_thread(stage: Stage) -> None:
    with stage.keeper.keeping(stage.lead("long", lease_ttl=3600.0)):
        with nothing_happens(stage):
            pass
        soon = stage.lead("soon", lease_ttl=0.1)
        with stage.keeper.keeping(soon):
            stage.clock.advance(0.09)

            assert stage.renewed("soon")  # within a thirtieth of a second, not of an hour


def test_a_lease_is_let_go_when_its_compute_ends_well_or_badly(stage: Stage) -> None:
    for error in (None, RuntimeError(), KeyboardInterrupt()):
        with pytest.raises(type(error)) if error else _no_error(), stage.keeper.keeping(stage.lead("a")):
            if error:
                raise error
        with nothing_happens(stage):
            stage.clock.advance(9.0)

    assert repr(stage.keeper) == "<Keeper: 0 leases>"


@contextmanager
def _no_error() -> Iterator[None]:
    yield


def test_a_lost_lease_is_told_once_and_not_renewed_again(stage: Stage) -> None:
    request = stage.lead("a", lease_ttl=9.0)
    with stage.keeper.keeping(request):
        stage.memory.fence("a")
        stage.clock.advance(3.0)
        stage.look()
        assert stage.renewed("a")
        assert stage.told.wait(5)
        with nothing_happens(stage):
            stage.clock.advance(3.0)

    assert stage.lost == [request]


def test_a_lease_that_was_let_go_while_it_was_renewed_is_not_told_as_lost(stage: Stage) -> None:
    gate: Gate | None = None
    with stage.keeper.keeping(stage.lead("a", lease_ttl=9.0)):
        gate = stage.store.hold("renew")
        stage.clock.advance(3.0)
        stage.look()
        gate.wait_reached()
    stage.memory.fence("a")
    gate.open()
    assert stage.renewed("a")
    with nothing_happens(stage):
        pass

    assert stage.lost == []


@pytest.mark.parametrize(("error", "logged"), [(TierUnavailable("down"), 0), (RuntimeError("a bug"), 1)])
def test_a_store_that_fails_is_asked_again_in_time_and_the_compute_hears_nothing(
    stage: Stage, error: Exception, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    with stage.keeper.keeping(stage.lead("a", lease_ttl=9.0)):
        stage.store.error = error
        stage.clock.advance(3.0)
        stage.look()
        assert stage.renewed("a")
        stage.store.error = None
        stage.clock.advance(3.0)
        stage.look()
        assert stage.renewed("a")

    assert stage.lost == []
    assert len(caplog.records) == logged


def test_leases_come_and_go_while_a_renewal_hangs(stage: Stage) -> None:
    gate = stage.store.hold("renew")
    with stage.keeper.keeping(stage.lead("a", lease_ttl=9.0)):
        stage.clock.advance(3.0)
        stage.look()
        gate.wait_reached()
        with stage.keeper.keeping(stage.lead("b")):  # would hang if the keeper held its lock during the call
            pass
        gate.open()

        assert stage.renewed("a")


def test_one_thread_keeps_all_leases_and_starts_with_the_first(stage: Stage) -> None:
    def keepers() -> int:
        return sum(thread.name == "cachetiers-keeper" for thread in threading.enumerate())

    before = keepers()
    assert stage.keeper._thread is None
    with stage.keeper.keeping(stage.lead("a")), stage.keeper.keeping(stage.lead("b")):
        assert keepers() == before + 1


def test_a_closed_keeper_ends_its_thread(stage: Stage) -> None:
    with stage.keeper.keeping(stage.lead("a")):
        thread = stage.keeper._thread
        assert thread is not None
        stage.keeper.close()
        thread.join(5)

        assert not thread.is_alive()


def test_a_closed_keeper_starts_no_thread(stage: Stage) -> None:
    stage.keeper.close()
    with stage.keeper.keeping(stage.lead("a")):
        assert stage.keeper._thread is None


def test_a_forked_child_has_neither_leases_nor_thread_and_starts_its_own(stage: Stage) -> None:
    with stage.keeper.keeping(stage.lead("parents")):
        parents = stage.keeper._thread
        assert parents is not None
        stage.keeper.close()
        parents.join(5)  # a fork leaves the parent's threads behind
        with stage.keeper._changed:  # another thread of the parent held it at the fork
            stage.keeper.reset_after_fork()
            assert repr(stage.keeper) == "<Keeper: 0 leases>"
            with stage.keeper.keeping(stage.lead("childs")):
                assert stage.keeper._thread is not parents
                stage.clock.advance(3.0)
                stage.look()

                assert stage.renewed("childs")
