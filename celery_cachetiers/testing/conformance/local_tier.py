"""What every L1 promises: never stale after an announcement, never shared with the caller, never raising."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from celery_cachetiers.entry import MISSING
from celery_cachetiers.local_port import LocalTier
from celery_cachetiers.metrics.tally import Tally


@dataclass
class LocalTierUnderTest:
    """What a subclass' ``tier`` fixture returns: an empty, trusted L1 with room for a few small entries.

    Attributes:
        tier: The tier.
        advance: Lets so many seconds pass, by its clock.
    """

    tier: LocalTier
    advance: Callable[[float], None]

    def put(self, digest: str, value: object, names: tuple[str, ...] = ("tag",), ttl: float = 10.0) -> bool:
        """Puts under a mark of this moment."""
        return self.tier.put(digest, value, names, ttl, self.tier.mark())

    def get(self, digest: str) -> object:
        """Gets, uncounted."""
        return self.tier.get(digest, Tally())


class _DoesNotUnpickle:
    def __reduce__(self) -> tuple[object, ...]:
        return _refuse, ()


def _refuse() -> object:
    raise RuntimeError("this value cannot be unpickled")


class LocalTierConformance:
    """Subclass it with a fixture ``tier`` that returns a `LocalTierUnderTest`."""

    def test_what_was_put_is_a_hit_and_counted(self, tier: LocalTierUnderTest) -> None:
        tally = Tally()
        assert tier.put("a", {"x": [1]}) is True

        assert tier.tier.get("a", tally) == {"x": [1]}
        assert tier.tier.get("b", tally) is MISSING
        assert tally.l1_hits == 1

    def test_none_is_a_value(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", None)

        assert tier.get("a") is None

    def test_a_hit_may_be_changed_without_harm(self, tier: LocalTierUnderTest) -> None:
        value = {"x": [1]}
        tier.put("a", value)
        value["x"].append(2)
        first = tier.get("a")
        assert first == {"x": [1]}
        assert isinstance(first, dict)
        first["x"].append(3)

        assert tier.get("a") == {"x": [1]}

    def test_an_entry_ends_with_its_own_time(self, tier: LocalTierUnderTest) -> None:
        tier.put("short", 1, ttl=1.0)
        tier.put("long", 2, ttl=5.0)
        tier.advance(1.0)

        assert tier.get("short") is MISSING
        assert tier.get("long") == 2

    def test_an_announcement_ends_what_is_under_the_name_and_nothing_else(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", 1, ("user:1", "all"))
        tier.put("b", 2, ("user:2", "all"))
        tier.tier.invalidate(["user:1"])

        assert tier.get("a") is MISSING
        assert tier.tier.resident("a") is None
        assert tier.get("b") == 2
        tier.tier.invalidate(["all"])
        assert tier.get("b") is MISSING

    def test_what_was_read_before_an_announcement_is_refused_after_it(self, tier: LocalTierUnderTest) -> None:
        mark = tier.tier.mark()
        tier.tier.invalidate(["user:1"])

        assert tier.tier.current(mark, ["user:1"]) is False
        assert tier.tier.put("a", 1, ("user:1",), 10.0, mark) is False
        assert tier.get("a") is MISSING

    def test_an_announcement_of_other_names_refuses_nothing(self, tier: LocalTierUnderTest) -> None:
        mark = tier.tier.mark()
        tier.tier.invalidate(["user:2"])

        assert tier.tier.current(mark, ["user:1"]) is True
        assert tier.tier.put("a", 1, ("user:1",), 10.0, mark) is True
        assert tier.get("a") == 1

    def test_a_value_put_before_an_announcement_and_again_after_it_is_a_hit(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", 1)
        tier.tier.invalidate(["tag"])
        tier.put("a", 2)

        assert tier.get("a") == 2

    def test_a_discarded_entry_is_a_miss(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", 1)
        tier.tier.discard("a")
        tier.tier.discard("never there")

        assert tier.get("a") is MISSING

    def test_a_resident_tells_its_stamp_and_gives_copies(self, tier: LocalTierUnderTest) -> None:
        tier.tier.put("a", [1], ("tag",), 10.0, tier.tier.mark(), stamp=b"12345678")

        resident = tier.tier.resident("a")
        assert resident is not None
        assert resident.stamp == b"12345678"
        assert resident.copy() == [1]
        assert resident.copy() is not resident.copy()
        assert tier.tier.resident("b") is None

    def test_a_shared_value_is_the_object_itself(self, tier: LocalTierUnderTest) -> None:
        value = [1]
        tier.tier.put("a", value, ("tag",), 10.0, tier.tier.mark(), copy=False)

        assert tier.get("a") is value

    def test_a_value_that_cannot_be_kept_is_refused_in_silence(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", lambda: None)
        tier.put("b", _DoesNotUnpickle())

        assert tier.get("a") is MISSING
        assert tier.get("b") is MISSING

    def test_a_refused_value_leaves_no_older_one_behind(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", "older")
        tier.put("a", lambda: "newer, and cannot be kept")

        assert tier.get("a") is MISSING

    def test_it_stays_bounded(self, tier: LocalTierUnderTest) -> None:
        for number in range(10_000):
            tier.put(f"key:{number}", "x" * 1000)

        kept = [number for number in range(10_000) if tier.tier.resident(f"key:{number}") is not None]
        assert kept
        assert len(kept) < 10_000
        assert kept[-1] == 9_999

    def test_what_lies_there_is_seen_whether_or_not_it_may_answer(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", 1, ("one",), ttl=5.0)
        standing = tier.tier.standing("a")
        assert standing is not None
        assert (standing.seconds_left, standing.touched, standing.live) == (5.0, False, True)
        assert standing.resident.copy() == 1
        tier.tier.invalidate(["one"])
        touched = tier.tier.standing("a")
        tier.advance(6.0)
        past = tier.tier.standing("a")

        assert touched is not None
        assert (touched.touched, touched.live) == (True, False)
        assert past is not None
        assert (past.seconds_left, past.live) == (-1.0, False)
        assert tier.tier.standing("b") is None

    def test_to_look_is_no_use_of_an_entry(self, tier: LocalTierUnderTest) -> None:
        tier.put("first", "x" * 1000)
        for number in range(10_000):
            tier.tier.standing("first")
            tier.put(f"key:{number}", "x" * 1000)

        assert tier.tier.standing("first") is None

    def test_it_is_empty_after_a_fork(self, tier: LocalTierUnderTest) -> None:
        tier.put("a", 1)
        tier.tier.reset_after_fork()

        assert tier.get("a") is MISSING
