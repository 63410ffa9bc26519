"""The waiting room's table under any order of events; and what the short ways through it must not miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from celery_cachetiers.call import Call
from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.ports import Free, Held
from celery_cachetiers.room import Action, Give, Guest, Hold, Look, LookLater, PutBack, Room, Send
from celery_cachetiers.testing import FakeClock, InMemoryProcess

VALUE = Shared(copy=lambda: "value")
STALE = Shared(copy=lambda: "old", stale=True)
FAILURE = Shared(error=lambda: ValueError("no"))


class House:
    """A room with a clock, requests that are plain objects, and a pool that begins with them when the test says so."""

    def __init__(self, capacity: int = 100) -> None:
        self.clock, self.process = FakeClock(), InMemoryProcess()
        self.began: dict[object, float] = {}
        self.room = Room(self.clock.monotonic, self.began.get)
        self.room.capacity = capacity

    def guest(self, task_id: str, key: str = "a", **options: Any) -> Guest:
        call: Call = self.process.call(key, **options)
        return Guest(f"request {task_id}", task_id, call, self.clock.monotonic())

    def arrive(self, *task_ids: str, **options: Any) -> list[Guest]:
        """Requests that come one after the other; what is done with them is left to `kinds`."""
        guests = [self.guest(task_id, **options) for task_id in task_ids]
        for guest in guests:
            self.room.arrive(guest)
        return guests

    def begin(self, guest: Guest) -> None:
        self.began[guest.request] = self.clock.monotonic()

    def led(self, *followers: str, **options: Any) -> list[Guest]:
        """A leader whose body runs, and its followers."""
        leader, *others = self.arrive("leader", *followers, **options)
        self.begin(leader)
        return [leader, *others]

    def end(self, guest: Guest, *, lost: bool = False) -> Look:
        (look,) = self.room.ended(guest, lost=lost)
        assert isinstance(look, Look)
        return look

    def ids(self) -> list[str]:
        return [guest.task_id for guest in self.room.guests()]


@pytest.fixture
def house() -> House:
    return House()


def kinds(actions: Sequence[Action]) -> list[tuple[str, str]]:
    return [(type(action).__name__, getattr(getattr(action, "guest", None), "task_id", "")) for action in actions]


def test_the_end_of_a_request_that_nobody_waits_for_needs_no_look(house: House) -> None:
    (alone,) = house.arrive("a")

    assert house.room.ended_alone(alone) is True
    assert list(house.room) == []
    leader, _ = house.led("b")
    assert house.room.ended_alone(leader) is False


def test_whoever_comes_after_a_failure_was_seen_leads_although_the_leaders_end_was_not_told_yet(house: House) -> None:
    house.led("b")
    (look,) = house.room.woken(house.guest("b").call.digest)
    assert isinstance(look, Look)
    house.room.looked(look, FAILURE)

    assert kinds(house.room.arrive(house.guest("retry of b"))) == [("Send", "retry of b")]


# -- all at random -----------------------------------------------------------------------------------------------------


class RandomHouse(RuleBasedStateMachine):
    """Any order of events; an owner that does what the room returns."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(capacity=5)
        self.fate: dict[str, str] = {}
        self.number = 0
        self.due = 0

    def do(self, actions: list[Action]) -> tuple[list[Guest], list[Look]]:
        sent, looks = [], []
        for action in actions:
            match action:
                case Hold(guest):
                    self.fate[guest.task_id] = "held"
                case Send(guest):
                    self.fate[guest.task_id] = "sent"
                    sent.append(guest)
                case Give(guest):
                    self.fate[guest.task_id] = "answered"
                case PutBack(guest):
                    self.fate[guest.task_id] = "put back"
                case Look():
                    looks.append(action)
                case LookLater():
                    self.due += 1
        self.pending_looks = getattr(self, "pending_looks", 0) + len(looks)
        self._sent.extend(sent)
        self._looks.extend(looks)
        return sent, looks

    @property
    def _sent(self) -> list[Guest]:
        return self.__dict__.setdefault("sent_guests", [])  # type: ignore[no-any-return]

    @property
    def _looks(self) -> list[Look]:
        return self.__dict__.setdefault("open_looks", [])  # type: ignore[no-any-return]

    @rule(key=st.sampled_from("ab"), grace=st.sampled_from([0.0, 30.0]))
    def arrive(self, key: str, grace: float) -> None:
        self.number += 1
        self.do(self.house.room.arrive(self.house.guest(f"t{self.number}", key=key, grace=grace, wait_limit=20.0)))

    @rule(at=st.integers(0, 9))
    def begin(self, at: int) -> None:
        if at < len(self._sent):
            self.house.begin(self._sent[at])

    @rule(at=st.integers(0, 9), lost=st.booleans())
    def end(self, at: int, lost: bool) -> None:
        if at < len(self._sent):
            guest = self._sent.pop(at)
            self.fate[guest.task_id] = "ended"
            if lost or not self.house.room.ended_alone(guest):
                self.do(self.house.room.ended(guest, lost=lost))

    @rule(at=st.integers(0, 9), holder=st.sampled_from(["x:1", "y:1"]))
    def give_back(self, at: int, holder: str) -> None:
        if at < len(self._sent):
            guest = self._sent.pop(at)
            self.house.began.pop(guest.request, None)
            self.do(self.house.room.given_back(guest, holder))

    @rule(at=st.integers(0, 9), seen=st.sampled_from([None, VALUE, STALE, FAILURE, Free(), Held("x:1", 5.0)]))
    def look(self, at: int, seen: Watched | None) -> None:
        if at < len(self._looks):
            self.do(self.house.room.looked(self._looks.pop(at), seen))

    @rule(seconds=st.floats(0.0, 15.0))
    def pass_time(self, seconds: float) -> None:
        self.house.clock.advance(seconds)
        self.do(self.house.room.overdue())

    @rule()
    def wake(self) -> None:
        self.do(self.house.room.woken_all())

    @rule(at=st.integers(0, 9))
    def leave(self, at: int) -> None:
        guests = self.house.room.guests()
        if at < len(guests) and self.house.room.leave(guests[at]):
            self.fate[guests[at].task_id] = "left"

    @invariant()
    def nobody_is_lost(self) -> None:
        held = sorted(guest.task_id for guest in self.house.room.guests())
        assert held == sorted(task_id for task_id, fate in self.fate.items() if fate == "held")
        assert len(held) == self.house.room.held <= self.house.room.capacity
        sent = sorted(guest.task_id for guest in self._sent)
        assert sent == sorted(task_id for task_id, fate in self.fate.items() if fate == "sent")

    @invariant()
    def nobody_is_stranded(self) -> None:
        for table in self.house.room:
            assert table.looking or not table.gone, "a lease that is to be freed"
            if table.held:
                assert table.runs is not None or table.looking or table.due > 0.0, table

    def teardown(self) -> None:
        """Whatever has happened: when all have ended and every look finds nothing, everybody has had their turn."""
        for _ in range(200):
            while self._sent:
                self.house.begin(self._sent[0])
                self.end(0, False)
            while self._looks:
                self.look(0, Free())
            if not self.house.room.held:
                break
            self.house.clock.advance(60.0)
            self.wake()
        assert self.house.room.held == 0
        while self._sent:
            self.end(0, False)
        while self._looks:
            self.look(0, Free())
        assert list(self.house.room) == []


TestRandomHouse = RandomHouse.TestCase
TestRandomHouse.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
