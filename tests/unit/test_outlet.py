"""The outlet: under which sequence a value is written, and when it goes past the journal."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from celery_cachetiers.clock import SystemClock
from celery_cachetiers.codec import Codec
from celery_cachetiers.delivery import Flushed
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import ConfigurationError, JournalFull, SinkUnavailable, TierUnavailable, UnusableEntry
from celery_cachetiers.events import Event, Events
from celery_cachetiers.flush import Flusher
from celery_cachetiers.journal_port import Place, Record
from celery_cachetiers.journaling import CHECK_EVERY, UNNOTED, LocalSequences, SafeJournal, Unnoted
from celery_cachetiers.leases.repeat import repeating
from celery_cachetiers.outlet import TaskOutlet
from celery_cachetiers.records import packed, unpacked
from celery_cachetiers.sinks import Sink, SinkPolicy
from celery_cachetiers.testing import Gate
from celery_cachetiers.testing.clock import FakeClock
from celery_cachetiers.testing.memory_journal import MemoryJournal
from celery_cachetiers.writes import Write

SINK, TASK = "orders", "proj.order"
K1, K2, K3 = "1" * 32, "2" * 32, "3" * 32


class Target:
    """A sink that notes what it gets, fails if told to, and may stop at a gate."""

    def __init__(self) -> None:
        self.got: list[Write] = []
        self.error: Exception | None = None
        self.gate: Gate | None = None

    def __call__(self, writes: list[Write]) -> None:
        if self.gate is not None:
            self.gate.pass_through()
        if self.error is not None:
            raise self.error
        self.got += writes

    def values(self) -> list[object]:
        return [write.value for write in self.got]


class Journal(MemoryJournal):
    """That is away if told so."""

    away = False
    why_unsafe: str | None = None
    looked = 0

    def _check(self) -> None:
        if self.away:
            raise TierUnavailable("away")

    def write(self, *args: Any, **options: Any) -> list[int]:
        self._check()
        return super().write(*args, **options)

    def begin(self, sink: str, key: str) -> tuple[Record | None, int]:
        self._check()
        return super().begin(sink, key)

    def sequence(self, sink: str) -> int:
        self._check()
        return super().sequence(sink)

    def note(self, sink: str, taken: Sequence[tuple[str, int]], *, must_try: bool = False) -> None:
        self._check()
        super().note(sink, taken)

    def overtaken(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        self._check()
        return super().overtaken(sink, written)

    def claim(self, *args: Any, **options: Any) -> list[Record]:
        self._check()
        return super().claim(*args, **options)

    def unsafe(self) -> str | None:
        self._check()
        self.looked += 1
        return self.why_unsafe


@dataclass
class Stage:
    """One task's outlet in one process, with a flusher beside it."""

    target: Target
    sink: Sink
    clock: Any
    journal: Journal
    events: Events = field(default_factory=Events)
    asked: list[str] = field(default_factory=list)
    heard: list[tuple[Event, dict[str, object]]] = field(default_factory=list)
    pumped: int = 0
    unnoted: Unnoted = field(default_factory=Unnoted)

    def __post_init__(self) -> None:
        self.events.subscribe(lambda event, task, details: self.heard.append((event, details)))
        self.codec = Codec("json", ["json"], None, 10_000, ())
        self.flusher = Flusher(
            self.journal, self.sink, lambda record: unpacked(self.codec, record), lambda tags: None,
            repeat=repeating, clock=self.clock, events=self.events,
        )  # fmt: skip
        self.safe = SafeJournal(self.journal, self.send_flush, self.clock.monotonic)
        self.outlet = self.make(self.safe)

    def make(self, safe: SafeJournal | None) -> TaskOutlet:
        return TaskOutlet(
            TASK, self.sink, self.codec, self.clock, self.events, LocalSequences(self.clock), self.unnoted,
            journal=safe, numbers=self.journal, pump=self,
        )  # fmt: skip

    # -- the pump -----------------------------------------------------------------------------------------------------

    def flush_key(self, sink: Sink, key: str) -> Flushed:
        try:
            return self.flusher.flush_key(key)
        except TierUnavailable:
            return Flushed()

    def flush_batch(self, sink: Sink) -> Flushed:
        self.pumped += 1
        return self.flusher.flush(0.0)

    def send_flush(self, sink: str) -> None:
        self.asked.append(sink)

    # -- what a test asks ---------------------------------------------------------------------------------------------

    def deliver(self, key: str, value: object, **options: Any) -> bool:
        return self.outlet.deliver(key, (1,), {}, value, **options)

    def pending(self) -> dict[str, object]:
        """What waits, by key."""
        dirty = self.journal.shared.sinks[SINK].dirty
        return {key: unpacked(self.codec, each.record)[0].value for key, each in dirty.items()}

    def reasons(self) -> list[object]:
        return [details["reason"] for event, details in self.heard if event is Event.UNUSABLE]


Make = Callable[..., Stage]


@pytest.fixture
def make() -> Iterator[Make]:
    """`make(clock=..., **sink_options)`."""
    stages: list[Stage] = []

    def stage(*, clock: Any = None, **options: Any) -> Stage:
        clock = clock or FakeClock()
        target = Target()
        stages.append(Stage(target, Sink(SINK, target, SinkPolicy(**options)), clock, Journal(clock)))
        return stages[-1]

    yield stage
    for each in stages:
        each.sink.close()


@pytest.fixture
def stage(make: Make) -> Stage:
    return make()


# ---- behind ----------------------------------------------------------------------------------------------------------


def test_a_value_waits_in_the_journal_and_comes_out_as_it_went_in(stage: Stage) -> None:
    past = stage.outlet.deliver(K1, (1, "x"), {"kind": "y"}, {"total": 3}, tags=["day"])

    assert not past
    assert stage.target.got == []
    record, _ = stage.journal.begin(SINK, K1)
    assert record is not None
    write, tags = unpacked(stage.codec, record)
    assert write == Write(TASK, (1, "x"), {"kind": "y"}, K1, {"total": 3}, False, record.sequence, stage.clock.time())
    assert tags == ("day",)


def test_what_waits_answers_in_place_of_the_body(stage: Stage) -> None:
    stage.deliver(K1, None)

    value, place = stage.outlet.begin(K1)
    assert value is None
    assert place.sequence > stage.journal.shared.sinks[SINK].dirty[K1].record.sequence
    assert stage.outlet.begin(K2)[0] is MISSING


def test_a_record_is_not_an_entry_and_one_of_another_key_is_refused(stage: Stage) -> None:
    signed = Codec("json", ["json"], None, 10_000, (b"a key of some length",))
    write = Write(TASK, (), {}, K1, 1, False, 0, 1.0)
    body = packed(signed, write, ())

    with pytest.raises(UnusableEntry):
        unpacked(signed, Record(K2, 1, body))


def test_a_value_that_cannot_be_serialized_goes_through(stage: Stage) -> None:
    value = object()

    assert stage.deliver(K1, value)
    assert stage.target.values() == [value]
    assert stage.pending() == {}
    assert stage.reasons() == ["unserializable"]


def test_a_value_that_cannot_be_serialized_comes_after_the_one_that_waits_and_ends_it(stage: Stage) -> None:
    value = object()
    stage.deliver(K1, "older")
    stage.deliver(K1, value)

    assert stage.target.values() == ["older", value]
    assert stage.target.got[0].sequence < stage.target.got[1].sequence
    assert stage.outlet.begin(K1)[0] is MISSING


def test_a_call_without_a_key_goes_through(stage: Stage) -> None:
    stage.deliver("", 1)

    assert [(write.key, write.value) for write in stage.target.got] == [("", 1)]
    assert stage.target.got[0].sequence > 0


def test_several_writes_are_one_write_to_the_journal_and_what_it_cannot_hold_goes_through(stage: Stage) -> None:
    odd = object()
    items = [(K1, (1,), {}, "a"), (K2, (2,), {}, odd), (K3, (3,), {}, "c")]

    assert stage.outlet.deliver_all(items, tags=[["t1"], ["t2"], ["t3"]])
    assert stage.pending() == {K1: "a", K3: "c"}
    assert stage.target.values() == [odd]
    record, _ = stage.journal.begin(SINK, K3)
    assert record is not None
    assert unpacked(stage.codec, record)[1] == ("t3",)


def test_what_goes_through_is_cut_into_batches(make: Make) -> None:
    stage = make(batch_size=2)
    stage.journal.away = True
    sizes: list[int] = []
    stage.sink.definition = lambda writes: sizes.append(len(writes))

    stage.outlet.deliver_all([(f"{number:032x}", (), {}, number) for number in range(5)])
    assert sizes == [2, 2, 1]


# ---- the journal is away ---------------------------------------------------------------------------------------------


def test_without_the_journal_the_sink_gets_the_value_once_and_at_once(stage: Stage) -> None:
    stage.journal.away = True

    value, place = stage.outlet.begin(K1)
    assert value is MISSING
    assert stage.deliver(K1, "v", place=place)
    assert [(write.value, write.sequence) for write in stage.target.got] == [("v", place.sequence)]
    assert {details["step"] for event, details in stage.heard if event is Event.FAILED_OPEN} == {
        "look into the journal",
        "write into the journal",
    }


def test_sequences_of_this_process_grow_though_its_clock_stands_still(stage: Stage) -> None:
    stage.journal.away = True

    drawn = [stage.outlet.begin(K1)[1].sequence for _ in range(3)]
    assert drawn == sorted(set(drawn))
    assert drawn[0] == int(stage.clock.time() * 1e6)


def test_without_journal_and_sink_the_caller_has_the_sinks_error(stage: Stage) -> None:
    stage.journal.away, stage.target.error = True, LookupError("no table")

    with pytest.raises(LookupError, match="no table"):
        stage.deliver(K1, "v")


def test_a_server_that_would_lose_records_is_refused_at_the_first_write(stage: Stage) -> None:
    stage.journal.why_unsafe = "it forgets"

    with pytest.raises(ConfigurationError, match="it forgets"):
        stage.deliver(K1, "v")
    assert stage.pending() == {}
    assert stage.target.got == []


def test_a_server_that_forgets_later_is_written_past_until_it_does_no_more(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    stage = make(clock=FakeClock())
    stage.deliver(K1, 1)
    stage.journal.why_unsafe = "it forgets"
    stage.clock.advance(CHECK_EVERY - 1)
    stage.deliver(K1, 2)
    stage.clock.advance(1)
    for value in (3, 4):
        stage.deliver(K2, value)
    assert (stage.pending(), stage.target.values()) == ({K1: 2}, [3, 4])
    assert stage.journal.looked == 2
    assert caplog.text.count("safe no more") == 1
    stage.journal.why_unsafe = None
    stage.clock.advance(CHECK_EVERY)
    stage.deliver(K3, 5)

    assert stage.pending() == {K1: 2, K3: 5}


def test_after_an_outage_the_server_is_looked_at_again_as_it_may_be_another_one(stage: Stage) -> None:
    stage.safe.look_again()
    stage.deliver(K1, 1)
    stage.journal.why_unsafe = "it forgets"
    stage.safe.look_again()
    stage.deliver(K2, 2)

    assert (stage.pending(), stage.target.values()) == ({K1: 1}, [2])


def test_a_server_that_was_away_is_looked_at_once_it_is_back_and_then_no_more(stage: Stage) -> None:
    stage.journal.away, stage.journal.why_unsafe = True, "it forgets"
    stage.deliver(K1, "v")
    stage.journal.away = False
    with pytest.raises(ConfigurationError):
        stage.deliver(K1, "v")
    stage.journal.why_unsafe, stage.journal.looked = None, 0
    stage.deliver(K1, "v")
    stage.deliver(K1, "v")

    assert stage.journal.looked == 1


# ---- through ---------------------------------------------------------------------------------------------------------


def test_through_has_its_sequence_from_the_journal_in_which_nothing_waits(stage: Stage) -> None:
    through = stage.make(None)
    value, place = through.begin(K1)

    assert value is MISSING
    assert through.deliver(K1, (1,), {}, "v", place=place)
    assert [(write.value, write.sequence) for write in stage.target.got] == [("v", place.sequence)]
    assert stage.pending() == {}


def test_through_draws_its_own_sequences_where_the_journal_is_away(stage: Stage) -> None:
    stage.journal.away = True
    through = stage.make(None)

    _, place = through.begin(K1)
    through.deliver(K1, (1,), {}, "v")
    assert stage.target.got[0].sequence > place.sequence


# ---- order -----------------------------------------------------------------------------------------------------------


def test_what_a_leader_computes_does_not_displace_what_was_put_meanwhile(stage: Stage) -> None:
    _, place = stage.outlet.begin(K1)
    stage.deliver(K1, "put")
    stage.deliver(K1, "computed", place=place)

    assert stage.pending() == {K1: "put"}
    stage.flusher.flush(10)
    assert stage.target.values() == ["put"]


def test_nor_what_was_put_and_flushed_meanwhile(stage: Stage) -> None:
    for key, write in ((K1, stage.deliver), (K2, partial(stage.deliver, deleted=True))):
        _, place = stage.outlet.begin(key)
        write(key, "put")
        assert stage.flusher.flush(0.0).taken == 1

        assert stage.deliver(key, "computed", place=place) is False
        assert stage.pending() == {}
        assert stage.outlet.begin(key)[0] is MISSING
    assert stage.target.values() == ["put", "put"]


def test_nor_does_it_reach_a_sink_that_is_written_through(stage: Stage) -> None:
    through = stage.make(None)
    _, place = through.begin(K1)
    _, other = through.begin(K2)
    through.deliver(K1, (1,), {}, "put")

    through.deliver(K1, (1,), {}, "computed", place=place)
    through.deliver(K2, (1,), {}, "computed", place=other)
    assert stage.target.values() == ["put", "computed"]


def test_nor_where_it_goes_past_the_journal_which_remembers_it(make: Make) -> None:
    stage = make(max_pending=1, when_full="through")
    stage.deliver(K1, "waits")
    _, place = stage.outlet.begin(K2)
    stage.deliver(K2, "put")
    stage.deliver(K2, "computed", place=place)

    assert stage.target.values() == ["put"]


def test_a_write_past_a_journal_that_was_away_ends_what_waited_there_as_soon_as_it_answers(stage: Stage) -> None:
    stage.deliver(K1, "waits")
    stage.deliver(K2, "waits")
    stage.journal.away = True
    stage.deliver(K1, "past")
    assert stage.outlet.begin(K1)[0] is MISSING
    stage.journal.away = False

    assert stage.outlet.begin(K3)[0] is MISSING
    assert stage.pending() == {K2: "waits"}
    assert stage.target.values() == ["past"]


def test_so_many_writes_past_a_journal_that_is_away_are_kept_the_newest(stage: Stage) -> None:
    keys, now = [str(number) for number in range(UNNOTED + 2)], stage.journal.sequence(SINK)
    stage.unnoted.add(SINK, [(key, now + number) for number, key in enumerate(keys)])
    stage.unnoted.add(SINK, [(keys[5], now)])
    stage.unnoted.tell(stage.journal, SINK)

    taken = stage.journal.overtaken(SINK, [(key, now + number) for number, key in enumerate(keys)])
    assert taken == [False, False, *[True] * UNNOTED]


def test_a_forked_process_leaves_it_to_its_parent_to_tell(stage: Stage) -> None:
    stage.unnoted.add(SINK, [(K1, 5)])
    stage.unnoted.reset_after_fork()
    stage.unnoted.tell(stage.journal, SINK)

    assert stage.journal.overtaken(SINK, [(K1, 5)]) == [False]


def test_what_a_sink_refuses_at_once_is_not_remembered(stage: Stage) -> None:
    through = stage.make(None)
    _, place = through.begin(K1)
    stage.target.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        through.deliver(K1, (1,), {}, "put")
    stage.target.error = None
    through.deliver(K1, (1,), {}, "computed", place=place)

    assert stage.target.values() == ["computed"]


def test_nor_in_the_sink_though_it_comes_later(stage: Stage) -> None:
    _, place = stage.outlet.begin(K1)
    stage.deliver(K1, "put")
    stage.flusher.flush(10)
    stage.deliver(K1, "computed", place=place)
    stage.flusher.flush(10)

    assert max(stage.target.got, key=lambda write: write.sequence).value == "put"


# ---- a look that has failed ------------------------------------------------------------------------------------------


def unseen(stage: Stage, key: str = K1) -> Place:
    """The place of a compute that begins while the journal is away for a moment."""
    stage.journal.away = True
    _, place = stage.outlet.begin(key)
    stage.journal.away = False
    return place


def test_a_value_whose_compute_could_not_look_yields_to_what_waits(stage: Stage) -> None:
    stage.deliver(K1, "acknowledged")
    place = unseen(stage)
    stage.deliver(K1, "computed", place=place)
    stage.deliver(K2, "computed", place=unseen(stage, K2))

    assert not place.looked
    assert stage.pending() == {K1: "acknowledged", K2: "computed"}


def test_so_it_does_if_it_cannot_be_serialized(stage: Stage) -> None:
    value = object()
    stage.deliver(K1, "acknowledged")
    stage.deliver(K1, value, place=unseen(stage))
    assert stage.target.values() == ["acknowledged"]

    stage.deliver(K1, value, place=unseen(stage))
    assert stage.target.values() == ["acknowledged", value]


def test_what_is_computed_over_a_record_that_cannot_be_read_is_older_than_it(stage: Stage) -> None:
    [sequence] = stage.journal.write(SINK, [(K1, b"of another release")], 10)
    value, place = stage.outlet.begin(K1)
    stage.deliver(K1, "computed", place=place)

    assert value is MISSING
    assert place == Place(sequence - 1, looked=False)
    [record] = stage.journal.claim(SINK, "other", 10, 10.0)
    assert record.body == b"of another release"


# ---- deletions -------------------------------------------------------------------------------------------------------


def test_a_deletion_reaches_the_sink_before_the_body_looks(stage: Stage) -> None:
    stage.deliver(K1, None, deleted=True)

    value, place = stage.outlet.begin(K1)
    assert value is MISSING
    assert [(write.deleted, write.key) for write in stage.target.got] == [(True, K1)]
    assert place.sequence > stage.target.got[0].sequence


def test_what_is_computed_while_a_deletion_cannot_be_delivered_is_older_than_it(stage: Stage) -> None:
    stage.deliver(K1, "row")
    stage.flusher.flush(10)
    stage.deliver(K1, None, deleted=True)
    stage.target.error = LookupError("no table")
    value, place = stage.outlet.begin(K1)
    stage.deliver(K1, "row again", place=place)

    assert value is MISSING
    assert stage.pending() == {K1: None}
    stage.target.error = None
    stage.clock.advance(60)
    stage.flusher.flush(10)
    assert [write.deleted for write in stage.target.got] == [False, True]


def test_what_waits_reaches_the_sink_before_a_body_that_runs_anyway(stage: Stage) -> None:
    stage.deliver(K1, "waits")
    place = stage.outlet.begin_anyway(K1)
    assert stage.target.values() == ["waits"]

    stage.deliver(K1, "computed", place=place)
    assert stage.pending() == {K1: "computed"}


def test_what_a_body_gives_that_ran_anyway_yields_to_what_the_sink_did_not_take(stage: Stage) -> None:
    stage.deliver(K1, "waits")
    stage.target.error = SinkUnavailable("down")
    place = stage.outlet.begin_anyway(K1)
    assert place.looked is False
    stage.target.error = None

    stage.deliver(K1, "computed", place=place)
    assert stage.pending() == {K1: "waits"}
    stage.flusher.flush_key(K1)
    stage.deliver(K1, "computed", place=place)
    assert (stage.target.values(), stage.pending()) == (["waits"], {})


def test_a_deletion_in_another_flushers_hands_is_waited_for(make: Make) -> None:
    stage = make(clock=SystemClock())
    stage.deliver(K1, None, deleted=True)
    [record] = stage.journal.claim(SINK, "other", 1, 10.0)
    came, original = threading.Event(), stage.flush_key

    def seen(sink: Sink, key: str) -> Flushed:
        came.set()
        return original(sink, key)

    stage.flush_key = seen  # type: ignore[method-assign]
    found: list[Any] = []
    reader = threading.Thread(target=lambda: found.append(stage.outlet.begin(K1)))
    reader.start()
    assert came.wait(10)
    assert not found
    stage.journal.acknowledge(SINK, "other", [(K1, record.sequence)])
    reader.join(10)

    assert found[0][0] is MISSING
    assert found[0][1].sequence > record.sequence


# ---- a full journal --------------------------------------------------------------------------------------------------


def test_full_and_raise_raises_and_the_sink_gets_nothing(make: Make) -> None:
    stage = make(max_pending=1, when_full="raise")
    stage.deliver(K1, 1)

    with pytest.raises(JournalFull, match="orders is full: 1 writes"):
        stage.deliver(K2, 2)
    assert stage.pending() == {K1: 1}
    assert stage.target.got == []


def test_full_and_through_writes_to_the_sink(make: Make) -> None:
    stage = make(max_pending=1, when_full="through")
    stage.deliver(K1, 1)

    assert stage.deliver(K2, 2)
    assert stage.target.values() == [2]
    assert stage.pending() == {K1: 1}


def test_full_or_not_a_key_that_waits_already_is_rewritten(make: Make) -> None:
    stage = make(max_pending=1, when_full="raise")
    stage.deliver(K1, 1)
    stage.deliver(K1, 2)

    assert stage.pending() == {K1: 2}


def test_full_and_block_makes_room_by_itself_as_no_slot_may_be_left_for_a_flush(make: Make) -> None:
    stage = make(max_pending=1, when_full="block")
    stage.deliver(K1, 1)
    stage.deliver(K2, 2)

    assert stage.target.values() == [1]
    assert stage.pending() == {K2: 2}


def test_full_and_block_goes_on_as_soon_as_another_flusher_has_made_room(make: Make) -> None:
    stage = make(max_pending=1, when_full="block", clock=SystemClock())
    stage.deliver(K1, 1)
    [record] = stage.journal.claim(SINK, "other", 1, 10.0)
    found_full = threading.Event()
    stage.send_flush = lambda sink: found_full.set()  # type: ignore[method-assign]
    stage.safe.send_flush = stage.send_flush
    writer = threading.Thread(target=stage.deliver, args=(K2, 2))
    writer.start()
    assert found_full.wait(10)
    assert stage.pending() == {K1: 1}
    stage.journal.acknowledge(SINK, "other", [(K1, record.sequence)])
    writer.join(10)

    assert stage.pending() == {K2: 2}
    assert stage.target.got == []


def test_full_and_block_raises_when_its_time_is_up(make: Make) -> None:
    stage = make(max_pending=1, when_full="block", time_limit=5.0)
    stage.deliver(K1, 1)
    stage.journal.claim(SINK, "other", 1, 100.0)
    flush_batch = stage.flush_batch

    def and_time_passes(sink: Sink) -> Flushed:
        stage.clock.advance(2.0)
        return flush_batch(sink)

    stage.flush_batch = and_time_passes  # type: ignore[method-assign]
    with pytest.raises(JournalFull):
        stage.deliver(K2, 2)
    assert stage.pumped == 3


def test_however_many_writes_find_it_full_a_worker_is_asked_once_in_a_while(make: Make) -> None:
    stage = make(max_pending=1, when_full="raise")
    stage.deliver(K1, 1)
    for _ in range(20):
        with pytest.raises(JournalFull):
            stage.deliver(K2, 2)
    assert stage.asked == [SINK]

    stage.clock.advance(1.0)
    with pytest.raises(JournalFull):
        stage.deliver(K2, 2)
    assert stage.asked == [SINK, SINK]


# ---- who asks for a flush --------------------------------------------------------------------------------------------


def test_each_full_batch_that_a_process_has_written_asks_for_a_flush(make: Make) -> None:
    stage = make(batch_size=3)
    asked = []
    for number in range(7):
        stage.deliver(f"{number:032x}", number)
        asked.append(len(stage.asked))

    assert asked == [0, 0, 1, 1, 1, 2, 2]


def test_a_forked_process_counts_from_zero_under_a_lock_of_its_own(make: Make) -> None:
    stage = make(batch_size=2)
    stage.deliver(K1, 1)
    stage.safe._lock.acquire()
    stage.safe.reset_after_fork()
    stage.deliver(K2, 2)

    assert stage.asked == []
