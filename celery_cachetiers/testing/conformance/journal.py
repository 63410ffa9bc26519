"""What every journal of write-behind promises: order, sequences, claims, acknowledgement by sequence, a dead-letter."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from celery_cachetiers.journal_port import FULL, REMEMBERED_SECONDS, Backlog, Exhumed, Journal, Record

PLENTY = 1_000_000
LONG = 30.0
SHORT = 0.1


@dataclass
class JournalUnderTest:
    """What a subclass' ``journal`` fixture returns: two processes at one journal, which tests may share.

    Attributes:
        ours, theirs: A journal in each of the two processes.
        set_last_sequence: Sets what the journal has noted as a sink's last sequence; ``None`` loses it.
        now: Epoch seconds by the journal's clock.
        advance: Lets so many seconds pass; by default it sleeps.
        sink: A sink that no other test uses.
    """

    ours: Journal
    theirs: Journal
    set_last_sequence: Callable[[str, int | None], None]
    now: Callable[[], float] = time.time
    advance: Callable[[float], None] = time.sleep
    sink: str = field(default_factory=lambda: f"s{os.urandom(6).hex()}")

    def write(self, *keys: str, body: bytes = b"body", max_pending: int = PLENTY) -> list[int]:
        """Writes under these keys, in one call."""
        return self.ours.write(self.sink, [(key, body) for key in keys], max_pending)

    def claim(self, token: str = "ours", limit: int = 100, seconds: float = LONG, key: str = "") -> list[Record]:
        """Claims in our process."""
        return self.ours.claim(self.sink, token, limit, seconds, key)

    def claim_there(self, token: str = "theirs", limit: int = 100, seconds: float = LONG) -> list[Record]:
        """Claims in the other process."""
        return self.theirs.claim(self.sink, token, limit, seconds)

    def look(self, key: str) -> Record | None:
        """What waits, as our process sees it."""
        return self.ours.look(self.sink, key)

    def look_there(self, key: str) -> Record | None:
        """The same in the other process."""
        return self.theirs.look(self.sink, key)

    def acknowledge(self, records: Sequence[Record], token: str = "ours") -> int:
        """Acknowledges what was claimed."""
        return self.ours.acknowledge(self.sink, token, pairs(records))

    def give_back(
        self, records: Sequence[Record], delay: float = 0.0, *, failed: bool = False, token: str = "ours"
    ) -> None:
        """Gives back what was claimed."""
        self.ours.give_back(self.sink, token, pairs(records), delay, failed=failed)

    def bury(self, record: Record, token: str = "ours", reason: str = "reason") -> bool:
        """Buries what was claimed."""
        return self.ours.bury(self.sink, token, record, reason, "details")

    def dead(self, *keys: str) -> list[Record]:
        """Writes these and buries each of them."""
        self.write(*keys)
        records = self.claim()
        assert [self.bury(record) for record in records] == [True] * len(keys)
        return records

    def backlog(self) -> Backlog:
        """How much waits, as the other process sees it."""
        return self.theirs.backlog(self.sink)

    def buried(self, offset: int = 0, limit: int = 100) -> list[str]:
        """Keys in the dead-letter, as the other process sees it."""
        return names(each.record for each in self.theirs.buried(self.sink, offset, limit))


def pairs(records: Sequence[Record]) -> list[tuple[str, int]]:
    """Key and sequence of each."""
    return [(record.key, record.sequence) for record in records]


def names(records: object) -> list[str]:
    """Their keys."""
    return [record.key for record in records]  # type: ignore[attr-defined]  # any iterable of records


class JournalConformance:
    """Subclass it with a fixture ``journal`` that returns a `JournalUnderTest` with a sink of its own.

    ```
    class TestMyJournal(JournalConformance):
        @pytest.fixture
        def journal(self): ...
    ```
    """

    # -- writing ------------------------------------------------------------------------------------------------------

    def test_what_was_written_is_claimed_in_any_process(self, journal: JournalUnderTest) -> None:
        for body in (b"body", b"", b"\x00\r\n\xff" * 1000):
            [sequence] = journal.write("a", body=body)
            [record] = journal.claim_there()

            assert record == Record("a", sequence, body, 0)
            journal.theirs.acknowledge(journal.sink, "theirs", pairs([record]))

    def test_writing_nothing_does_nothing(self, journal: JournalUnderTest) -> None:
        assert journal.write() == []
        assert journal.backlog() == Backlog(0, None, 0)

    def test_records_come_in_the_order_in_which_they_were_written(self, journal: JournalUnderTest) -> None:
        keys = [f"{number * 7919 % 1009:04}" for number in range(1, 1009)]
        journal.write(*keys[:3])
        journal.write(*keys[3:600])
        for key in keys[600:603]:
            journal.write(key)
        journal.write(*keys[603:])

        assert names(journal.claim(limit=400)) == keys[:400]
        assert names(journal.claim_there(limit=400)) == keys[400:800]
        assert names(journal.claim(limit=400)) == keys[800:]
        assert journal.claim() == []

    def test_a_rewritten_key_keeps_its_place_and_has_its_newest_value_and_sequence(
        self, journal: JournalUnderTest
    ) -> None:
        first, _ = journal.write("b", "a", body=b"old")
        [last] = journal.write("b", body=b"new")
        found = journal.claim()

        assert first < last
        assert names(found) == ["b", "a"]
        assert (found[0].sequence, found[0].body) == (last, b"new")

    def test_a_key_written_twice_in_one_call_is_one_record(self, journal: JournalUnderTest) -> None:
        written = journal.ours.write(journal.sink, [("a", b"1"), ("b", b"2"), ("a", b"3")], PLENTY)
        found = journal.claim()

        assert written == sorted(set(written))
        assert [(each.key, each.sequence, each.body) for each in found] == [
            ("a", written[2], b"3"),
            ("b", written[1], b"2"),
        ]

    def test_sinks_do_not_see_each_other(self, journal: JournalUnderTest) -> None:
        other = replace(journal, sink=f"{journal.sink}-other")
        journal.write("a", body=b"ours")
        other.write("a", "b", body=b"theirs")

        assert [each.body for each in journal.claim()] == [b"ours"]
        assert names(other.claim()) == ["a", "b"]
        assert (journal.backlog().pending, other.backlog().pending) == (1, 2)

    # -- a full journal -----------------------------------------------------------------------------------------------

    def test_a_full_journal_takes_no_other_key_and_still_takes_one_that_it_has(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b", max_pending=2)
        answers = journal.write("c", "a", "d", body=b"new", max_pending=2)

        assert [answer == FULL for answer in answers] == [True, False, True]
        assert [(each.key, each.body) for each in journal.claim()] == [("a", b"new"), ("b", b"body")]

    def test_a_journal_gets_full_within_one_call(self, journal: JournalUnderTest) -> None:
        answers = journal.write("a", "b", "a", "c", max_pending=2)

        assert [answer == FULL for answer in answers] == [False, False, False, True]
        assert journal.backlog().pending == 2

    def test_what_is_claimed_counts_as_there_and_what_was_taken_makes_room(self, journal: JournalUnderTest) -> None:
        journal.write("a", max_pending=1)
        claimed = journal.claim()

        assert journal.write("b", max_pending=1) == [FULL]
        journal.acknowledge(claimed)
        assert journal.write("b", max_pending=1) != [FULL]

    # -- sequences ----------------------------------------------------------------------------------------------------

    def test_sequences_grow_with_every_write_of_every_process(self, journal: JournalUnderTest) -> None:
        sequences = journal.write("a", "b", "a")
        sequences += journal.theirs.write(journal.sink, [("c", b""), ("a", b"")], PLENTY)
        sequences.append(journal.ours.sequence(journal.sink))
        sequences.append(journal.theirs.sequence(journal.sink))
        sequences += journal.write("d")

        assert sequences == sorted(set(sequences))

    def test_a_sequence_is_not_below_the_clock(self, journal: JournalUnderTest) -> None:
        before = int(journal.now() * 1e6) - 1_000_000
        [written] = journal.write("a")
        journal.advance(0.01)
        past = journal.ours.sequence(journal.sink)

        assert before < written
        assert written + 10_000 <= past < before + 60_000_000

    def test_sequences_grow_although_the_last_one_was_lost(self, journal: JournalUnderTest) -> None:
        lost = [*journal.write("a", "b"), journal.ours.sequence(journal.sink)]
        journal.advance(0.001)
        follows: tuple[Callable[[], int], ...] = (
            lambda: journal.write("a")[0],
            lambda: journal.ours.sequence(journal.sink),
        )
        for follow in follows:
            journal.set_last_sequence(journal.sink, None)

            assert follow() > max(lost)

    def test_sequences_grow_although_the_clock_has_stepped_back(self, journal: JournalUnderTest) -> None:
        ahead = int(journal.now() * 1e6) + 3_600_000_000
        journal.set_last_sequence(journal.sink, ahead)

        assert journal.write("a", "b") == [ahead + 1, ahead + 2]
        assert journal.ours.sequence(journal.sink) == ahead + 3
        assert journal.write("a") == [ahead + 4]
        assert [each.sequence for each in journal.claim()] == [ahead + 4, ahead + 2]

    # -- looking ------------------------------------------------------------------------------------------------------

    def test_a_dirty_value_is_seen_until_its_sink_has_taken_it(self, journal: JournalUnderTest) -> None:
        [sequence] = journal.write("a")
        expected = Record("a", sequence, b"body")

        assert journal.look_there("a") == expected
        journal.give_back(journal.claim(), failed=True)
        claimed = journal.claim()
        assert journal.look_there("a") == expected
        journal.acknowledge(claimed)
        assert journal.look_there("a") is None

    def test_what_was_never_written_is_not_dirty(self, journal: JournalUnderTest) -> None:
        journal.write("a")

        assert journal.look("b") is None

    # -- claims -------------------------------------------------------------------------------------------------------

    def test_a_claimed_record_is_nobody_elses(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b", "c")

        assert names(journal.claim(limit=2)) == ["a", "b"]
        assert names(journal.claim_there()) == ["c"]
        assert journal.claim() == []

    def test_a_claim_that_has_run_out_is_taken_over_in_the_same_order(self, journal: JournalUnderTest) -> None:
        journal.write("c", "a", "b")
        journal.claim(seconds=SHORT)

        assert journal.claim_there() == []
        journal.advance(SHORT * 1.5)
        assert names(journal.claim_there()) == ["c", "a", "b"]
        assert journal.claim() == []

    def test_a_renewed_claim_lasts(self, journal: JournalUnderTest) -> None:
        journal.write("c", "a", "b")
        journal.claim(seconds=SHORT)

        assert journal.ours.renew(journal.sink, "ours", ["c", "a", "unknown"], SHORT * 10) == 2
        journal.advance(SHORT * 1.5)
        assert names(journal.claim_there()) == ["b"]
        journal.advance(SHORT * 10)
        assert names(journal.claim_there()) == ["c", "a"]

    def test_a_claim_is_renewed_from_now(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        journal.claim(seconds=LONG)
        journal.ours.renew(journal.sink, "ours", ["a"], SHORT)
        journal.advance(SHORT * 1.5)

        assert names(journal.claim_there()) == ["a"]

    def test_who_has_lost_a_claim_changes_nothing(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        lost = journal.claim(seconds=SHORT)
        journal.advance(SHORT * 1.5)
        held = journal.claim_there()

        assert journal.acknowledge(lost) == 0
        journal.give_back(lost, failed=True)
        assert journal.bury(lost[0]) is False
        assert journal.ours.renew(journal.sink, "ours", ["a"], LONG * 10) == 0
        assert journal.claim() == []
        assert journal.backlog().pending == 1
        assert journal.buried() == []
        journal.theirs.give_back(journal.sink, "theirs", pairs(held), 0.0, failed=False)
        assert [each.attempts for each in journal.claim_there()] == [0]

    def test_who_has_lost_a_claim_renews_nothing(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        journal.claim(seconds=SHORT)
        journal.advance(SHORT * 1.5)
        journal.claim_there(seconds=SHORT)
        journal.ours.renew(journal.sink, "ours", ["a"], LONG)
        journal.advance(SHORT * 1.5)

        assert names(journal.claim("third")) == ["a"]

    def test_a_claim_that_was_lost_does_not_come_back_with_another_write(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        lost = journal.claim(seconds=SHORT)
        journal.advance(SHORT * 1.5)
        journal.theirs.acknowledge(journal.sink, "theirs", pairs(journal.claim_there()))
        [sequence] = journal.write("a")

        assert journal.acknowledge([Record("a", sequence, b"")]) == 0
        assert journal.ours.renew(journal.sink, "ours", names(lost), LONG) == 0
        assert pairs(journal.claim_there()) == [("a", sequence)]

    def test_a_claim_that_has_run_out_but_is_nobody_elses_still_counts(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        claimed = journal.claim(seconds=SHORT)
        journal.advance(SHORT * 1.5)

        assert journal.acknowledge(claimed) == 1

    # -- one key by name ----------------------------------------------------------------------------------------------

    def test_one_key_is_claimed_by_its_name(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b", "c")

        assert names(journal.claim(key="b")) == ["b"]
        assert names(journal.claim_there()) == ["a", "c"]
        assert journal.claim(key="unknown") == []

    def test_a_key_that_is_asked_for_by_name_need_not_be_due(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        journal.give_back(journal.claim(), LONG)

        assert names(journal.claim(key="a")) == ["a"]
        assert names(journal.claim(key="a")) == []

    def test_a_claimed_key_is_not_had_by_its_name_until_the_claim_has_run_out(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        journal.claim_there(seconds=SHORT)

        assert journal.claim(key="a") == []
        journal.advance(SHORT * 1.5)
        assert names(journal.claim(key="a")) == ["a"]
        assert journal.claim_there() == []

    # -- acknowledging ------------------------------------------------------------------------------------------------

    def test_what_was_taken_is_gone(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b")
        claimed = journal.claim(seconds=SHORT)

        assert journal.acknowledge(claimed) == 2
        assert journal.acknowledge(claimed) == 0
        journal.advance(SHORT * 1.5)
        assert journal.claim() == []
        assert journal.backlog() == Backlog(0, None, 0)

    def test_what_nobody_has_claimed_is_not_acknowledged(self, journal: JournalUnderTest) -> None:
        [sequence] = journal.write("a")

        assert journal.acknowledge([Record("a", sequence, b"")]) == 0
        assert journal.backlog().pending == 1

    def test_a_record_that_was_written_again_meanwhile_stays_and_is_due_at_once(
        self, journal: JournalUnderTest
    ) -> None:
        journal.write("a", "b", body=b"old")
        claimed = journal.claim()
        [sequence] = journal.write("a", body=b"new")

        assert journal.claim_there() == []
        assert journal.acknowledge(claimed) == 1
        assert journal.claim_there() == [Record("a", sequence, b"new")]

    def test_a_record_that_was_written_again_has_no_attempts(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b", "c")
        journal.give_back(journal.claim(), failed=True)
        journal.write("a")
        claimed = journal.claim()
        assert [each.attempts for each in claimed] == [0, 1, 1]
        journal.write("b")
        journal.acknowledge(claimed[1:])
        journal.write("c")

        assert [each.attempts for each in journal.claim_there()] == [0, 0]

    # -- giving back --------------------------------------------------------------------------------------------------

    def test_what_was_given_back_is_due_after_its_delay(self, journal: JournalUnderTest) -> None:
        journal.write("c", "a", "b")
        journal.give_back(journal.claim(), SHORT)

        assert journal.claim_there() == []
        journal.advance(SHORT * 1.5)
        assert names(journal.claim_there()) == ["c", "a", "b"]

    def test_without_a_delay_it_is_due_at_once(self, journal: JournalUnderTest) -> None:
        journal.write("c", "a", "b")
        journal.give_back(journal.claim())

        assert names(journal.claim_there()) == ["c", "a", "b"]

    def test_an_attempt_is_counted_for_what_has_failed_only(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b")
        for expected in ([0, 0], [1, 0], [2, 0]):
            one, other = journal.claim()
            assert [one.attempts, other.attempts] == expected
            journal.give_back([one], failed=True)
            journal.give_back([other])

    def test_a_record_that_has_failed_alone_says_for_how_long(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b", "c")
        a, b, c = journal.claim()
        assert [each.failing_for for each in (a, b, c)] == [0.0, 0.0, 0.0]
        journal.ours.give_back(journal.sink, "ours", pairs([a]), 0.0, failed=False, doubted=True)
        journal.give_back([b], failed=True)
        journal.give_back([c])
        journal.advance(0.2)
        found = journal.claim()
        assert [each.attempts for each in found] == [0, 1, 0]
        assert [each.failing_for >= 0.2 for each in found] == [True, True, False]
        assert found[0].failing_for < 60
        journal.ours.give_back(journal.sink, "ours", pairs(found), 0.0, failed=False, doubted=True)
        journal.write("b")
        found = journal.claim_there()

        assert [(each.attempts, each.failing_for >= 0.2) for each in found] == [(0, True), (0, False), (0, False)]

    def test_a_record_that_has_failed_alone_says_whether_a_later_write_was_taken_since(
        self, journal: JournalUnderTest
    ) -> None:
        journal.write("before", "a")
        claimed = journal.claim()
        journal.advance(0.01)
        journal.ours.give_back(journal.sink, "ours", pairs(claimed[1:]), 0.0, failed=False, doubted=True)
        journal.acknowledge(claimed[:1])
        claimed = journal.claim()
        assert [each.taken_since for each in claimed] == [False]
        journal.give_back(claimed)
        journal.advance(0.01)
        journal.write("after")
        journal.acknowledge(journal.claim(key="after"))
        claimed = journal.claim()
        assert [each.taken_since for each in claimed] == [True]
        journal.advance(0.01)
        journal.give_back(claimed, failed=True)

        assert [each.taken_since for each in journal.claim()] == [False]

    def test_what_was_written_again_is_due_at_once_and_has_no_attempt(self, journal: JournalUnderTest) -> None:
        journal.write("a", body=b"old")
        claimed = journal.claim()
        [sequence] = journal.write("a", body=b"new")
        journal.give_back(claimed, LONG, failed=True)

        assert journal.claim_there() == [Record("a", sequence, b"new")]

    def test_a_record_that_waits_out_its_delay_keeps_waiting_when_it_is_written_again(
        self, journal: JournalUnderTest
    ) -> None:
        journal.write("a")
        journal.give_back(journal.claim(), LONG, failed=True)
        journal.write("a")

        assert journal.claim() == []
        assert [each.attempts for each in journal.claim(key="a")] == [0]

    # -- the dead-letter ----------------------------------------------------------------------------------------------

    def test_what_was_buried_is_in_the_dead_letter_and_nowhere_else(self, journal: JournalUnderTest) -> None:
        journal.write("a", body=b"\x00body")
        [record] = journal.claim(seconds=SHORT)
        last = replace(record, attempts=5)

        assert journal.ours.bury(journal.sink, "ours", last, "ValueError: nö", "Trace\nback \ud800") is True
        [buried] = journal.theirs.buried(journal.sink, 0, 10)
        assert (buried.record, buried.reason, buried.details) == (last, "ValueError: nö", "Trace\nback \ud800")
        assert abs(buried.buried_at - journal.now()) < 60
        journal.advance(SHORT * 1.5)
        assert journal.claim() == []
        assert journal.look("a") is None
        assert journal.backlog() == Backlog(0, None, 1)

    def test_a_record_that_was_written_again_meanwhile_is_not_buried_and_due_at_once(
        self, journal: JournalUnderTest
    ) -> None:
        journal.write("a", body=b"old")
        [record] = journal.claim()
        [sequence] = journal.write("a", body=b"new")

        assert journal.bury(record) is False
        assert journal.buried() == []
        assert journal.claim_there() == [Record("a", sequence, b"new")]

    def test_the_dead_letter_is_read_in_parts_the_oldest_first(self, journal: JournalUnderTest) -> None:
        for key in ("c", "a", "d", "b"):
            journal.dead(key)
            journal.advance(0.001)

        assert journal.buried() == ["c", "a", "d", "b"]
        assert journal.buried(offset=1, limit=2) == ["a", "d"]
        assert journal.buried(offset=3) == ["b"]
        assert journal.buried(offset=4) == []
        assert journal.buried(limit=0) == []

    def test_a_key_is_in_the_dead_letter_once_with_its_newest_value(self, journal: JournalUnderTest) -> None:
        journal.dead("a")
        journal.advance(0.001)
        journal.dead("b")
        journal.advance(0.001)
        [newest] = journal.dead("a")
        buried = journal.theirs.buried(journal.sink, 0, 10)

        assert [each.record.key for each in buried] == ["b", "a"]
        assert buried[1].record.sequence == newest.sequence

    def test_a_newer_value_in_the_dead_letter_stays(self, journal: JournalUnderTest) -> None:
        _, begun = journal.ours.begin(journal.sink, "a")
        [newer] = journal.dead("a")
        journal.ours.write(journal.sink, [("a", b"older")], PLENTY, sequences=[begun])
        [older] = journal.claim()

        assert older.sequence < newer.sequence
        assert journal.bury(older) is True
        assert [each.record for each in journal.theirs.buried(journal.sink, 0, 10)] == [newer]
        assert journal.backlog() == Backlog(0, None, 1)

    def test_what_was_exhumed_is_due_under_its_sequence_and_without_attempts(self, journal: JournalUnderTest) -> None:
        [dead, _] = journal.dead("a", "b")

        assert journal.theirs.exhume(journal.sink, ["a", "unknown"]) == Exhumed(1)
        assert journal.buried() == ["b"]
        assert journal.claim() == [dead]
        assert journal.backlog().pending == 1
        assert journal.backlog().oldest is not None

    def test_what_was_exhumed_is_acknowledged_and_gone(self, journal: JournalUnderTest) -> None:
        journal.dead("a")
        journal.ours.exhume(journal.sink, ["a"])

        assert journal.acknowledge(journal.claim()) == 1
        assert journal.backlog() == Backlog(0, None, 0)

    def test_what_was_exhumed_never_displaces_a_newer_write(self, journal: JournalUnderTest) -> None:
        journal.dead("a")
        [sequence] = journal.write("a", body=b"newer")
        claimed = journal.claim()

        assert journal.ours.exhume(journal.sink, ["a"]) == Exhumed(0, overtaken=1)
        assert journal.buried() == []
        assert journal.look("a") == Record("a", sequence, b"newer")
        assert journal.claim_there() == []
        assert journal.acknowledge(claimed) == 1

    def test_of_an_exhumed_and_a_waiting_record_the_newer_one_wins_in_the_place_of_the_other(
        self, journal: JournalUnderTest
    ) -> None:
        journal.set_last_sequence(journal.sink, int(journal.now() * 1e6) + 3_600_000_000)
        [dead] = journal.dead("a")
        journal.set_last_sequence(journal.sink, None)
        journal.advance(0.001)
        journal.write("a", body=b"older, though written later")
        journal.give_back(journal.claim(), failed=True)
        claimed = journal.claim()

        assert journal.ours.exhume(journal.sink, ["a"]) == Exhumed(1)
        assert journal.claim_there() == []
        assert journal.acknowledge(claimed) == 0
        assert journal.claim_there() == [dead]

    def test_what_was_exhumed_is_in_the_dead_letter_no_more(self, journal: JournalUnderTest) -> None:
        journal.dead("a")
        journal.ours.exhume(journal.sink, ["a"])

        assert journal.ours.exhume(journal.sink, ["a"]) == Exhumed(0)
        assert journal.ours.drop(journal.sink, ["a"]) == 0

    def test_attempts_are_buried_with_their_record(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        journal.give_back(journal.claim(), failed=True)
        journal.bury(journal.claim()[0])
        journal.write("a")

        assert [each.attempts for each in journal.claim()] == [0]

    def test_attempts_do_not_come_back_from_the_grave(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        journal.give_back(journal.claim(), failed=True)
        [record] = journal.claim()
        journal.bury(replace(record, attempts=2))
        journal.ours.exhume(journal.sink, ["a"])

        assert [each.attempts for each in journal.claim()] == [0]

    def test_many_are_exhumed_in_the_order_they_are_named(self, journal: JournalUnderTest) -> None:
        keys = [f"{number * 7919 % 1009:04}" for number in range(1, 1009)]
        journal.write(*keys)
        for record in journal.claim(limit=2000):
            journal.bury(record)

        assert journal.ours.exhume(journal.sink, keys) == Exhumed(len(keys))
        assert names(journal.claim(limit=2000)) == keys

    def test_what_was_dropped_is_gone_for_good(self, journal: JournalUnderTest) -> None:
        journal.dead("a", "b")

        assert journal.theirs.drop(journal.sink, ["a", "unknown"]) == 1
        assert journal.theirs.drop(journal.sink, []) == 0
        assert journal.buried() == ["b"]
        assert journal.ours.exhume(journal.sink, ["a"]) == Exhumed(0)
        assert journal.claim() == []

    # -- what was computed before it is written -----------------------------------------------------------------------

    def test_a_compute_begins_with_what_waits_and_a_sequence_below_all_later_ones(
        self, journal: JournalUnderTest
    ) -> None:
        nothing, first = journal.ours.begin(journal.sink, "a")
        [written] = journal.write("a")
        waits, second = journal.theirs.begin(journal.sink, "a")
        [later] = journal.write("b")

        assert nothing is None
        assert waits is not None
        assert waits.sequence == written
        assert first < written < second < later

    def test_a_sequence_is_drawn_once_although_the_clock_has_stepped_back(self, journal: JournalUnderTest) -> None:
        ahead = int(journal.now() * 1e6) + 3_600_000_000
        journal.set_last_sequence(journal.sink, ahead)
        drawn = [journal.ours.begin(journal.sink, "a")[1] for _ in range(2)]
        journal.ours.write(journal.sink, [("a", b"")], PLENTY, sequences=drawn[:1])

        assert drawn == [ahead + 1, ahead + 2]
        assert journal.write("b") == [ahead + 3]

    def test_a_write_under_an_older_sequence_does_not_displace_a_newer_one(self, journal: JournalUnderTest) -> None:
        _, begun = journal.ours.begin(journal.sink, "a")
        [newer] = journal.theirs.write(journal.sink, [("a", b"newer")], 10)

        assert journal.ours.write(journal.sink, [("a", b"older")], 10, sequences=[begun]) == [begun]
        record = journal.look("a")
        assert record is not None
        assert (record.sequence, record.body) == (newer, b"newer")

    def test_a_write_under_a_sequence_of_its_own_keeps_it(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        _, begun = journal.ours.begin(journal.sink, "a")
        _, next_begun = journal.ours.begin(journal.sink, "b")

        taken = journal.ours.write(journal.sink, [("a", b"1"), ("b", b"2")], 10, sequences=[begun, next_begun])
        assert taken == [begun, next_begun]
        [later] = journal.write("c")
        assert later > next_begun
        record = journal.look("a")
        assert record is not None
        assert (record.sequence, record.body) == (begun, b"1")

    def test_a_write_that_yields_does_not_displace_what_waits_whatever_its_sequence(
        self, journal: JournalUnderTest
    ) -> None:
        [waits] = journal.write("a", body=b"waits", max_pending=1)
        unseen = waits + 60_000_000

        given = journal.ours.write(journal.sink, [("a", b"unseen")], 1, sequences=[unseen], yields=True)
        assert given == [unseen]
        [record] = journal.claim()
        assert (record.sequence, record.body) == (waits, b"waits")
        journal.ours.write(journal.sink, [("a", b"unseen")], 1, sequences=[unseen], yields=True)
        assert journal.acknowledge([record]) == 1
        assert journal.backlog().pending == 0

    def test_a_write_that_yields_is_taken_where_nothing_waits(self, journal: JournalUnderTest) -> None:
        [waits] = journal.write("a")
        given = [waits + 1, waits + 2]

        assert journal.ours.write(journal.sink, [("b", b"1"), ("c", b"2")], 2, sequences=given, yields=True) == [
            given[0],
            FULL,
        ]
        assert [(each.key, each.sequence) for each in journal.claim()] == [("a", waits), ("b", given[0])]

    def test_a_write_stands_until_it_is_written_again_or_taken(self, journal: JournalUnderTest) -> None:
        written = list(zip("abc", journal.write("a", "b", "c"), strict=True))
        assert journal.theirs.stands(journal.sink, written) == [True, True, True]
        journal.write("a")
        records = journal.claim(key="b")
        assert journal.theirs.stands(journal.sink, written) == [False, True, True]
        journal.acknowledge(records)

        assert journal.theirs.stands(journal.sink, written) == [False, False, True]
        assert journal.theirs.stands(journal.sink, []) == []

    # -- what the sink has taken --------------------------------------------------------------------------------------

    def test_a_write_that_began_before_one_that_was_taken_is_overtaken(self, journal: JournalUnderTest) -> None:
        _, begun = journal.ours.begin(journal.sink, "a")
        _, begun_there = journal.theirs.begin(journal.sink, "b")
        journal.write("a", "b")
        journal.acknowledge(journal.claim())

        given = journal.ours.write(journal.sink, [("a", b"older"), ("c", b"1")], 1, sequences=[begun, begun])
        assert given == [begun, begun]
        given = journal.theirs.write(journal.sink, [("b", b"older")], 1, sequences=[begun_there], yields=True)
        assert given == [begun_there]
        assert names(journal.claim()) == ["c"]

    def test_so_it_is_when_the_newer_one_was_written_again_meanwhile(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        claimed = journal.claim()
        _, begun = journal.ours.begin(journal.sink, "a")
        journal.write("a")
        journal.acknowledge(claimed)
        journal.acknowledge(journal.claim())

        journal.ours.write(journal.sink, [("a", b"older")], PLENTY, sequences=[begun])
        assert journal.backlog().pending == 0

    def test_what_begins_after_one_that_was_taken_is_taken(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        claimed = journal.claim()
        _, begun = journal.ours.begin(journal.sink, "a")
        journal.acknowledge(claimed)
        journal.ours.write(journal.sink, [("a", b"newer")], PLENTY, sequences=[begun])

        assert [(each.sequence, each.body) for each in journal.claim()] == [(begun, b"newer")]

    def test_who_has_lost_a_claim_has_its_sink_remembered(self, journal: JournalUnderTest) -> None:
        _, begun = journal.ours.begin(journal.sink, "a")
        [taken] = journal.write("a")
        lost = journal.claim(seconds=SHORT)
        journal.advance(SHORT * 1.5)
        journal.claim_there()
        journal.acknowledge(lost)

        assert journal.theirs.overtaken(journal.sink, [("a", begun), ("a", taken)]) == [True, True]

    def test_what_was_taken_is_known_by_key_and_sequence(self, journal: JournalUnderTest) -> None:
        [first, _] = journal.write("a", "b")
        [last] = journal.write("a")
        journal.acknowledge(journal.claim(key="a"))
        asked = [("a", first), ("a", last), ("a", last + 1), ("b", first), ("c", first)]

        assert journal.theirs.overtaken(journal.sink, asked) == [True, True, False, False, False]
        assert journal.theirs.overtaken(journal.sink, []) == []

    def test_of_two_that_were_taken_the_higher_sequence_is_remembered(self, journal: JournalUnderTest) -> None:
        sequence = journal.ours.sequence(journal.sink)
        journal.ours.note(journal.sink, [("a", sequence)])
        journal.theirs.note(journal.sink, [("a", sequence - 1)])

        assert journal.ours.overtaken(journal.sink, [("a", sequence)]) == [True]

    def test_what_was_taken_is_remembered_for_an_hour_after_its_write(self, journal: JournalUnderTest) -> None:
        [now] = journal.write("now")
        old = now - int((REMEMBERED_SECONDS + 60) * 1e6)
        journal.ours.write(journal.sink, [("old", b"")], PLENTY, sequences=[old])
        journal.ours.note(journal.sink, [("noted", old)])
        journal.acknowledge(journal.claim())
        journal.write("next")
        journal.acknowledge(journal.claim())

        asked = [("now", now), ("old", old), ("noted", old)]
        assert journal.ours.overtaken(journal.sink, asked) == [True, False, False]

    def test_what_went_past_the_journal_is_remembered_and_ends_an_older_record(self, journal: JournalUnderTest) -> None:
        _, begun = journal.ours.begin(journal.sink, "a")
        journal.write("a", "b", "c")
        journal.give_back(journal.claim(key="a"), failed=True)
        claimed = journal.claim(key="b")
        past = journal.ours.sequence(journal.sink)
        [later] = journal.write("c")
        journal.theirs.note(journal.sink, [("a", past), ("b", past), ("c", past)])

        assert journal.look("a") is None
        assert journal.acknowledge(claimed) == 0
        journal.ours.write(journal.sink, [("a", b"older")], PLENTY, sequences=[begun])
        assert journal.claim() == [Record("c", later, b"body")]
        assert journal.backlog().pending == 1
        journal.write("a")
        assert [each.attempts for each in journal.claim()] == [0]

    def test_what_went_past_the_journal_though_it_is_there_is_there_no_more(self, journal: JournalUnderTest) -> None:
        journal.ours.note(journal.sink, list(zip("ab", journal.write("a", "b"), strict=True)))

        assert journal.backlog() == Backlog(0, None, 0)
        assert journal.claim() == []

    def test_later_sequences_are_above_what_went_past_the_journal(self, journal: JournalUnderTest) -> None:
        ahead = int(journal.now() * 1e6) + 60_000_000
        journal.ours.note(journal.sink, [("a", ahead)])

        assert journal.write("a") == [ahead + 1]
        journal.ours.note(journal.sink, [("a", ahead)])
        assert journal.ours.sequence(journal.sink) == ahead + 2

    def test_what_a_taken_write_has_overtaken_does_not_come_back_from_the_dead_letter(
        self, journal: JournalUnderTest
    ) -> None:
        journal.dead("a", "b", "c", "d")
        journal.write("a")
        journal.acknowledge(journal.claim())
        journal.ours.note(journal.sink, [("b", journal.ours.sequence(journal.sink))])
        journal.write("c")

        assert journal.theirs.exhume(journal.sink, ["a", "b", "c", "d", "e"]) == Exhumed(1, overtaken=3)
        assert journal.buried() == []
        assert names(journal.claim()) == ["c", "d"]

    def test_nor_if_that_is_longer_ago_than_what_was_taken_is_remembered(self, journal: JournalUnderTest) -> None:
        now = journal.ours.sequence(journal.sink)
        old = now - int((REMEMBERED_SECONDS + 60) * 1e6)
        for sequence in (old, old + 1):
            journal.ours.write(journal.sink, [("a", b""), ("b", b""), ("c", b"")], PLENTY, sequences=[sequence] * 3)
            claimed = journal.claim()
            if sequence == old:
                assert [journal.bury(each) for each in claimed] == [True, True, True]
            else:
                journal.acknowledge(claimed[:2])
                journal.ours.note(journal.sink, [("c", sequence)])
        journal.write("next")
        journal.acknowledge(journal.claim())
        journal.ours.drop(journal.sink, ["b"])
        journal.ours.write(journal.sink, [("b", b"")], PLENTY, sequences=[old])
        [record] = journal.claim()
        journal.bury(record)

        assert journal.ours.overtaken(journal.sink, [("a", old), ("c", old)]) == [False, False]
        assert journal.ours.exhume(journal.sink, ["a", "b", "c"]) == Exhumed(1, overtaken=2)

    def test_what_was_taken_before_it_was_written_does_not_keep_it_in_the_dead_letter(
        self, journal: JournalUnderTest
    ) -> None:
        journal.write("a")
        journal.acknowledge(journal.claim())
        journal.dead("a")
        journal.write("a")
        journal.acknowledge(journal.claim())
        journal.dead("a")

        assert journal.ours.exhume(journal.sink, ["a"]) == Exhumed(1)

    # -- the backlog --------------------------------------------------------------------------------------------------

    def test_the_backlog_counts_what_is_claimed_and_what_waits_out_a_delay(self, journal: JournalUnderTest) -> None:
        journal.write("a", "b", "c", "d")
        claimed = journal.claim(limit=3)
        journal.give_back(claimed[:1], LONG)
        journal.bury(claimed[1])

        backlog = journal.backlog()
        assert (backlog.pending, backlog.buried) == (3, 1)

    def test_the_backlog_is_as_old_as_the_first_write_that_no_sink_has_taken(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        first = journal.now()
        journal.advance(0.2)
        journal.write("a", "b")

        assert abs(_oldest(journal) - first) < 0.1
        journal.acknowledge(journal.claim(limit=1))
        assert abs(_oldest(journal) - first - 0.2) < 0.1

    def test_a_key_that_is_written_all_the_time_does_not_age(self, journal: JournalUnderTest) -> None:
        journal.write("a")
        for _ in range(2):
            journal.advance(0.2)
            journal.write("a")
            claimed = journal.claim()
            journal.write("a")
            journal.acknowledge(claimed)

            assert abs(_oldest(journal) - journal.now()) < 0.1

    # -- flushes on their way -----------------------------------------------------------------------------------------

    def test_one_flush_is_on_its_way_until_it_has_arrived_or_its_time_is_over(self, journal: JournalUnderTest) -> None:
        journal.ours.arrived()

        assert journal.ours.announce(LONG) is True
        assert journal.theirs.announce(LONG) is False
        journal.theirs.arrived()
        assert journal.theirs.announce(SHORT) is True
        assert journal.ours.announce(LONG) is False
        journal.advance(SHORT * 1.5)
        assert journal.ours.announce(LONG) is True
        journal.ours.arrived()

    def test_nothing_is_known_against_a_server_that_keeps_what_it_has(self, journal: JournalUnderTest) -> None:
        assert journal.ours.unsafe() is None


def _oldest(journal: JournalUnderTest) -> float:
    oldest = journal.backlog().oldest
    assert oldest is not None
    return oldest
