"""L1's bounds, its marks, its trust, and a model that it agrees with; the promises of every L1 are in conformance."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from celery_cachetiers.entry import MISSING
from celery_cachetiers.local_port import Mark
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.testing import FakeClock, Gate
from celery_cachetiers.tiers.memory import IMMUTABLE, OVERHEAD, SLOTS, MemoryTier, copier

TALLY = Tally()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def tier(clock: FakeClock) -> MemoryTier:
    return MemoryTier(3, 100_000, clock, trusted=True)


def put(tier: MemoryTier, digest: str, value: object = "value", names: tuple[str, ...] = ("tag",), **how: Any) -> bool:
    return tier.put(digest, value, names, how.pop("ttl", 10.0), tier.mark(), **how)


def get(tier: MemoryTier, digest: str) -> object:
    return tier.get(digest, TALLY)


def two_names_of_different_slots() -> tuple[str, str]:
    """Names are hashed with the process' seed, so that two fixed ones may share a slot."""
    return "a", next(name for name in map(str, range(100)) if hash(name) % SLOTS != hash("a") % SLOTS)


# -- bounds ------------------------------------------------------------------------------------------------------------


def test_the_least_recently_used_entry_goes_first(tier: MemoryTier) -> None:
    for digest in "abc":
        put(tier, digest)
    get(tier, "a")
    put(tier, "d")

    assert [digest for digest in "abcd" if get(tier, digest) is not MISSING] == ["a", "c", "d"]
    assert (len(tier), tier.evictions) == (3, 1)


def test_replacing_an_entry_evicts_none(tier: MemoryTier) -> None:
    for digest in "abcabcc":
        put(tier, digest)

    assert (len(tier), tier.evictions) == (3, 0)


def test_bytes_are_bounded_bookkeeping_included(clock: FakeClock) -> None:
    tier = MemoryTier(1000, 10_000, clock, trusted=True)
    for number in range(100):
        put(tier, str(number), b"x" * 600)

    assert len(tier) <= 10_000 // (600 + OVERHEAD)
    assert tier.evictions == 100 - len(tier)
    assert get(tier, "99") == b"x" * 600


def test_a_growing_value_makes_room_at_the_cost_of_others(clock: FakeClock) -> None:
    tier = MemoryTier(1000, 10_000, clock, trusted=True)
    for digest in "abc":
        put(tier, digest, b"x" * 1000)
    put(tier, "a", b"x" * 9000)

    assert get(tier, "a") == b"x" * 9000
    assert len(tier) == 1


def test_a_value_larger_than_the_tier_is_refused_and_evicts_none(clock: FakeClock) -> None:
    tier = MemoryTier(1000, 10_000, clock, trusted=True)
    put(tier, "a")

    assert put(tier, "b", b"x" * 10_000) is False
    assert get(tier, "a") == "value"


@pytest.mark.parametrize("size", [10_000 - OVERHEAD, 10_001 - OVERHEAD])
def test_the_byte_bound_is_exact(clock: FakeClock, size: int) -> None:
    tier = MemoryTier(10, 10_000, clock, trusted=True)
    kept = copier(b"")
    assert kept is not None

    assert put(tier, "a", b"x" * (size - kept[1])) is (size + OVERHEAD <= 10_000)


# -- time --------------------------------------------------------------------------------------------------------------


def test_each_entry_ends_with_its_own_time(tier: MemoryTier, clock: FakeClock) -> None:
    put(tier, "short", ttl=1.0)
    put(tier, "long", ttl=2.0)
    clock.advance(0.999)
    assert get(tier, "short") == "value"
    clock.advance(0.001)

    assert get(tier, "short") is MISSING
    assert tier.resident("short") is None
    assert get(tier, "long") == "value"


def test_an_entry_that_has_ended_takes_no_room(tier: MemoryTier, clock: FakeClock) -> None:
    put(tier, "a", ttl=1.0)
    clock.advance(1.0)
    get(tier, "a")

    assert len(tier) == 0


# -- copies ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 7, 1.5, 1j, "text", b"bytes"])
def test_immutable_scalars_are_shared(tier: MemoryTier, value: object) -> None:
    assert type(value) in IMMUTABLE
    put(tier, "a", value)

    assert get(tier, "a") is value


class _Text(str):
    note = "may be changed"


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, bytearray(b"x"), ([],), _Text("x")])
def test_everything_else_is_copied_for_every_receiver(tier: MemoryTier, value: object) -> None:
    put(tier, "a", value)
    first, second = get(tier, "a"), get(tier, "a")

    assert first == second == value
    assert first is not second
    assert first is not value


def test_changing_what_was_put_or_what_was_got_never_changes_the_next_hit(tier: MemoryTier) -> None:
    value = {"list": [1]}
    put(tier, "a", value)
    value["list"].append(2)
    hit = get(tier, "a")
    assert isinstance(hit, dict)
    hit["list"].append(3)

    assert get(tier, "a") == {"list": [1]}


def test_a_value_that_cannot_be_pickled_is_shared_only_if_it_need_not_be(tier: MemoryTier) -> None:
    assert put(tier, "a", lambda: None) is False
    assert get(tier, "a") is MISSING


def test_a_value_is_copied_outside_the_lock(tier: MemoryTier) -> None:
    put(tier, "slow", _SlowToUnpickle())
    _SlowToUnpickle.gate = gate = Gate("unpickling")
    thread = threading.Thread(target=get, args=(tier, "slow"))
    thread.start()
    gate.wait_reached()
    put(tier, "b", 1)  # would hang if the lock were held

    assert get(tier, "b") == 1
    gate.open()
    thread.join()


class _SlowToUnpickle:
    gate: Gate | None = None

    def __reduce__(self) -> tuple[object, ...]:
        return _unpickle_slowly, ()


def _unpickle_slowly() -> str:
    if _SlowToUnpickle.gate is not None:
        _SlowToUnpickle.gate.pass_through()
    return "copied"


# -- marks -------------------------------------------------------------------------------------------------------------


def test_an_announcement_between_the_mark_and_the_put_refuses_the_value(tier: MemoryTier) -> None:
    mark = tier.mark()
    tier.invalidate(["tag"])

    assert tier.put("a", 1, ("tag", "other"), 10.0, mark) is False
    assert tier.current(mark, ["tag"]) is False


def test_an_announcement_of_other_names_refuses_nothing(tier: MemoryTier) -> None:
    ours, other = two_names_of_different_slots()
    mark = tier.mark()
    tier.invalidate([other])

    assert tier.current(mark, [ours]) is True
    assert tier.put("a", 1, (ours,), 10.0, mark) is True
    assert get(tier, "a") == 1


def test_a_value_under_an_old_but_current_mark_ends_with_the_next_announcement(tier: MemoryTier) -> None:
    ours, other = two_names_of_different_slots()
    mark = tier.mark()
    tier.invalidate([other])
    tier.put("a", 1, (ours,), 10.0, mark)
    tier.invalidate([ours])

    assert get(tier, "a") is MISSING


def test_names_that_share_a_slot_cost_a_miss_never_a_stale_hit(tier: MemoryTier) -> None:
    twin = next(name for name in map(str, range(10 * SLOTS * 10)) if hash(name) % SLOTS == hash("a") % SLOTS)
    put(tier, "x", names=("a",))
    tier.invalidate([twin])

    assert get(tier, "x") is MISSING


def test_clearing_refuses_what_was_read_before_it(tier: MemoryTier) -> None:
    put(tier, "a")
    mark = tier.mark()
    tier.clear()

    assert get(tier, "a") is MISSING
    assert tier.current(mark, ["tag"]) is False
    assert tier.put("a", 1, ("tag",), 10.0, mark) is False
    assert put(tier, "a") is True


def test_invalidating_nothing_changes_nothing(tier: MemoryTier) -> None:
    put(tier, "a")
    tier.invalidate([])

    assert get(tier, "a") == "value"


# -- trust -------------------------------------------------------------------------------------------------------------


def test_without_a_backplane_heard_of_there_is_neither_hit_nor_put(clock: FakeClock) -> None:
    tier = MemoryTier(3, 10_000, clock, trusted=False)
    assert put(tier, "a") is False
    tier.trusted_until = clock.monotonic() + 5

    assert tier.trusted() is True
    assert put(tier, "a") is True
    assert get(tier, "a") == "value"


def test_trust_ends_with_silence_and_comes_back_with_the_next_message(clock: FakeClock) -> None:
    tier = MemoryTier(3, 10_000, clock, trusted=False)
    tier.trusted_until = clock.monotonic() + 5
    put(tier, "a")
    clock.advance(5)
    assert (get(tier, "a"), tier.resident("a"), tier.trusted()) == (MISSING, None, False)
    assert put(tier, "b") is False
    tier.trusted_until = clock.monotonic() + 5  # the same connection: nothing was lost

    assert get(tier, "a") == "value"


def test_after_a_gap_nothing_from_before_is_served_or_put(clock: FakeClock) -> None:
    tier = MemoryTier(3, 10_000, clock, trusted=False)
    tier.trusted_until = clock.monotonic() + 5
    put(tier, "a")
    mark = tier.mark()
    tier.distrust()
    assert get(tier, "a") is MISSING
    assert put(tier, "a") is False
    tier.trusted_until = clock.monotonic() + 5

    assert get(tier, "a") is MISSING
    assert tier.put("a", 1, ("tag",), 10.0, mark) is False
    assert put(tier, "a") is True


def test_a_gap_changes_nothing_where_there_is_no_l2_to_disagree_with(tier: MemoryTier) -> None:
    tier.distrust()

    assert tier.trusted() is True
    assert put(tier, "a") is True


def test_a_fork_leaves_nothing_and_the_lock_of_the_parent_behind(clock: FakeClock) -> None:
    tier = MemoryTier(3, 10_000, clock, trusted=False)
    tier.trusted_until = clock.monotonic() + 5
    put(tier, "a")
    with tier._lock:  # another thread of the parent held it at the fork
        tier.reset_after_fork()

        assert get(tier, "a") is MISSING
        assert tier.trusted() is False


def test_the_repr_shows_fill_and_trust(tier: MemoryTier) -> None:
    put(tier, "a", b"x" * 100)

    assert "1 entries" in repr(tier)
    assert "trusted" in repr(tier)


def test_threads_that_put_get_and_invalidate_never_see_a_value_older_than_its_announcement(clock: FakeClock) -> None:
    tier = MemoryTier(50, 1_000_000, clock, trusted=True)
    source, current, wrong, done = [0], [0], list[tuple[object, int]](), threading.Event()

    def read() -> None:
        while not done.is_set():
            least = current[0]
            value = get(tier, "a")
            if isinstance(value, int) and value < least:
                wrong.append((value, least))

    def write_late() -> None:
        while not done.is_set():
            mark = tier.mark()
            value = source[0]
            tier.put("a", value, ("tag",), 10.0, mark)

    threads = [threading.Thread(target=target) for target in (read, read, write_late, write_late)]
    for thread in threads:
        thread.start()
    for number in range(1, 3000):
        source[0] = number  # as in the engine: the source changes, is announced, and then readers may rely on it
        tier.invalidate(["tag"])
        current[0] = number
    done.set()
    for thread in threads:
        thread.join()

    assert wrong == []


# -- a model -----------------------------------------------------------------------------------------------------------

DIGESTS, NAMES = st.sampled_from("abcd"), st.sets(st.sampled_from(["t1", "t2", "t3"]), min_size=1)


class MemoryTierAgreesWithAModel(RuleBasedStateMachine):
    """The model keeps everything for ever and remembers when each name was last announced.

    A tier may miss where the model has a value (slots are shared, room is short); it may never have another value.
    """

    @initialize()
    def start(self) -> None:
        self.clock = FakeClock()
        self.tier = MemoryTier(100, 1_000_000, self.clock, trusted=True)
        self.now = 0
        self.announced = dict.fromkeys(["t1", "t2", "t3"], 0)
        self.cleared = 0
        self.values: dict[str, tuple[int, float, frozenset[str], int]] = {}
        self.marks: list[tuple[Mark, int]] = []
        self.collide = len({hash(name) % SLOTS for name in self.announced}) < len(self.announced)

    def refused(self, names: frozenset[str], taken: int) -> bool:
        return taken < self.cleared or any(self.announced[name] > taken for name in names)

    @rule()
    def mark(self) -> None:
        self.marks.append((self.tier.mark(), self.now))

    @rule(digest=DIGESTS, names=NAMES, ttl=st.sampled_from([1.0, 2.0]), back=st.integers(0, 3))
    def put(self, digest: str, names: set[str], ttl: float, back: int) -> None:
        mark, taken = self.marks[-1 - back] if back < len(self.marks) else (self.tier.mark(), self.now)
        self.now += 1
        put = self.tier.put(digest, self.now, tuple(names), ttl, mark)
        allowed = not self.refused(frozenset(names), taken)
        assert put <= allowed
        assert put == allowed or self.collide
        if put:
            self.values[digest] = (self.now, self.clock.monotonic() + ttl, frozenset(names), taken)

    @rule(names=NAMES)
    def invalidate(self, names: set[str]) -> None:
        self.now += 1
        self.tier.invalidate(names)
        self.announced.update(dict.fromkeys(names, self.now))

    @rule(digest=DIGESTS)
    def discard(self, digest: str) -> None:
        self.tier.discard(digest)
        self.values.pop(digest, None)

    @rule(gap=st.booleans())
    def clear(self, gap: bool) -> None:
        self.now += 1
        self.cleared = self.now
        self.tier.distrust() if gap else self.tier.clear()
        self.values.clear()

    @rule(seconds=st.sampled_from([0.5, 1.0]))
    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @invariant()
    def it_answers_as_the_model(self) -> None:
        if not hasattr(self, "tier"):
            return
        for digest in "abcd":
            value, expires, names, taken = self.values.get(digest, (None, 0.0, frozenset(), 0))
            live = value is not None and self.clock.monotonic() < expires and not self.refused(names, taken)
            got = get(self.tier, digest)
            assert got is MISSING or (live and got == value), (digest, got, value)
            assert not live or got == value or self.collide


TestMemoryTierAgreesWithAModel = MemoryTierAgreesWithAModel.TestCase
TestMemoryTierAgreesWithAModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
