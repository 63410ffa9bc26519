"""From the journal to the sink: nothing is lost, nothing blocks the others, and only the sink's own failure counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from celery_cachetiers.delivery import CLAIM_SECONDS, GIVE_UP_SECONDS
from celery_cachetiers.errors import SinkRejected, SinkTimeout, SinkUnavailable, TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.flush import Flushed
from celery_cachetiers.journal_port import Record
from celery_cachetiers.testing import Gate
from celery_cachetiers.trouble import MAX_BACK_OFF, back_off
from celery_cachetiers.writes import Write
from tests.unit.flushing import SINK, Stage, unpack

EIGHT = ["a", "b", "c", "d", "e", "f", "g", "h"]


@pytest.fixture
def stage() -> Stage:
    return Stage()


# -- what goes well ----------------------------------------------------------------------------------------------------


def test_what_was_written_reaches_the_sink_in_its_order_and_leaves_the_journal(stage: Stage) -> None:
    first, *_, last = stage.write("c", "a", "b", body="1")

    assert stage.flusher.flush(10.0) == Flushed(taken=3)
    assert stage.sink.calls == [["c", "a", "b"]]
    assert stage.sink.rows["c"] == (first, "1")
    assert stage.sink.rows["b"] == (last, "1")
    assert stage.waiting() == []


def test_a_journal_in_which_nothing_is_due_calls_nobody(stage: Stage) -> None:
    assert stage.flusher.flush(10.0) == Flushed()
    assert (stage.sink.calls, stage.heard, stage.repeat.every) == ([], [], [])


def test_batches_are_of_the_sinks_size_and_come_until_nothing_is_due() -> None:
    stage = Stage(batch_size=3)
    stage.write(*EIGHT)

    assert stage.flusher.flush(10.0) == Flushed(taken=8)
    assert stage.sink.calls == [EIGHT[:3], EIGHT[3:6], EIGHT[6:]]


def test_no_batch_begins_after_the_time_is_up() -> None:
    stage = Stage(batch_size=2)
    stage.write(*EIGHT)
    stage.sink.act = lambda keys: stage.clock.advance(3.0)

    assert stage.flusher.flush(5.0) == Flushed(taken=4)
    assert stage.flusher.flush(0.0) == Flushed(taken=2)
    assert stage.waiting() == EIGHT[6:]


def test_a_write_that_comes_while_the_sink_writes_is_delivered_next(stage: Stage) -> None:
    stage.write("a", body="old")

    def rewrite(keys: list[str]) -> None:
        stage.sink.heal()
        stage.write("a", body="new")

    stage.sink.act = rewrite

    assert stage.flusher.flush(10.0) == Flushed(taken=2)
    assert stage.sink.calls == [["a"], ["a"]]
    assert stage.sink.rows["a"][1] == "new"


def test_one_key_is_delivered_at_once_though_it_is_not_due(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.fail(SinkUnavailable())
    stage.flusher.flush(10.0)
    stage.sink.heal()

    assert stage.flusher.flush_key("b") == Flushed(taken=1)
    assert stage.flusher.flush_key("b") == Flushed()
    assert stage.waiting() == ["a"]


def test_several_flushers_have_each_record_in_one_hand() -> None:
    stage, gate = Stage(batch_size=4), Gate()
    stage.write(*EIGHT)

    def wait(keys: list[str]) -> None:
        if "a" in keys:
            gate.pass_through()

    stage.sink.act = wait
    slow = threading.Thread(target=stage.flusher.flush, args=(0.0,))
    slow.start()
    gate.wait_reached()

    assert stage.another().flush(10.0) == Flushed(taken=4)
    assert stage.flusher.flush_key("a") == Flushed()
    gate.open()
    slow.join(10.0)
    assert stage.sink.calls == [EIGHT[:4], EIGHT[4:]]
    assert stage.waiting() == []


def test_a_batch_is_told_with_what_became_of_it(stage: Stage) -> None:
    stage.write("a", "b", body="!")
    stage.write("c", "d")
    stage.sink.act = lambda keys: stage.clock.advance(2.0)
    stage.flusher.flush(10.0)

    assert stage.told(Event.FLUSHED) == [
        {"sink": SINK, "seconds": 2.0, "taken": 2, "failed": 0, "buried": 2, "left": 0}
    ]


# -- claims ------------------------------------------------------------------------------------------------------------


def test_a_slow_sink_keeps_its_claims_as_long_as_it_lives(stage: Stage) -> None:
    stage.write("a", "b")

    def write_slowly(keys: list[str]) -> None:
        for _ in range(10):
            stage.clock.advance(CLAIM_SECONDS / 3)
            stage.repeat.fire()
        assert stage.due() == []

    stage.sink.act = write_slowly

    assert stage.flusher.flush(0.0) == Flushed(taken=2)
    assert stage.repeat.every == [CLAIM_SECONDS / 3]
    assert stage.repeat.acts == []
    assert len(stage.sink.calls) == 1


def test_what_is_settled_is_renewed_no_more(stage: Stage) -> None:
    stage.write("a", "b")
    renewed: list[list[str]] = []
    renew = stage.journal.renew
    stage.journal.renew = lambda sink, token, keys, seconds: (  # type: ignore[method-assign]  # spies
        renewed.append(list(keys)) or renew(sink, token, keys, seconds)
    )

    def act(keys: list[str]) -> None:
        stage.repeat.fire()
        if len(keys) == 2:
            raise ValueError

    stage.sink.act = act
    stage.flusher.flush(0.0)

    assert renewed == [["a", "b"], ["a", "b"], ["b"]]


def test_a_dead_flushers_records_are_delivered_by_the_next_one_after_the_claim(stage: Stage) -> None:
    stage.write("a", "b")
    stage.journal.claim(SINK, "dead", 10, CLAIM_SECONDS)

    stage.clock.advance(CLAIM_SECONDS - 0.1)
    assert stage.flusher.flush(10.0) == Flushed()
    stage.clock.advance(0.2)
    assert stage.flusher.flush(10.0) == Flushed(taken=2)


def test_a_record_whose_claim_was_lost_meanwhile_is_acknowledged_by_nobody(stage: Stage) -> None:
    stage.write("a", "b")

    def lose(keys: list[str]) -> None:
        stage.clock.advance(CLAIM_SECONDS + 1)
        assert [each.key for each in stage.journal.claim(SINK, "other", 1, CLAIM_SECONDS)] == ["a"]

    stage.sink.act = lose
    stage.flusher.flush(0.0)
    stage.sink.heal()

    assert stage.waiting() == ["a"]
    stage.clock.advance(CLAIM_SECONDS + 1)
    assert stage.flusher.flush(10.0) == Flushed(taken=1)


@pytest.mark.parametrize("error", [ValueError(), SinkUnavailable()])
def test_a_record_whose_claim_was_lost_is_not_given_back_by_the_loser(stage: Stage, error: Exception) -> None:
    stage.write("a")

    def lose(keys: list[str]) -> None:
        stage.clock.advance(CLAIM_SECONDS + 1)
        stage.journal.claim(SINK, "other", 1, CLAIM_SECONDS)
        raise error

    stage.sink.act = lose
    stage.flusher.flush(0.0)

    assert stage.due() == []
    assert stage.attempts() == {}


def test_every_batch_has_a_token_of_its_own() -> None:
    stage = Stage(batch_size=1)
    stage.write("a", "b", "c")
    tokens: list[str] = []

    def look(keys: list[str]) -> None:
        tokens.extend(each.token for each in stage.journal.shared.sinks[SINK].dirty.values() if each.token)

    stage.sink.act = look
    stage.flusher.flush(0.0)
    stage.flusher.flush(0.0)
    stage.another().flush(0.0)

    assert len(tokens) == len(set(tokens)) == 3


# -- tags --------------------------------------------------------------------------------------------------------------


def test_tags_are_invalidated_once_each_after_the_sink_and_before_the_acknowledgement(stage: Stage) -> None:
    stage.write("a", body="1|x,y")
    stage.write("b", body="2|y,z")
    seen: list[tuple[list[str], int, list[str]]] = []
    flusher = stage.another(
        invalidate=lambda tags: seen.append((list(tags), len(stage.sink.rows), stage.waiting())),
    )
    flusher.flush(10.0)

    assert seen == [(["x", "y", "z"], 2, ["a", "b"])]
    assert stage.waiting() == []


def test_without_tags_nothing_is_invalidated(stage: Stage) -> None:
    stage.write("a")
    stage.flusher.flush(10.0)

    assert stage.invalidated == []


def test_only_the_tags_of_what_was_taken_are_invalidated(stage: Stage) -> None:
    for key in "abcd":
        stage.write(key, body=f"1|{key}")
    stage.sink.poison("c")
    stage.flusher.flush(10.0)

    assert sorted(tag for tags in stage.invalidated for tag in tags) == ["a", "b", "d"]


def test_what_could_not_be_invalidated_is_delivered_again_and_has_not_failed(stage: Stage) -> None:
    stage.write("a", "b", body="1|x")
    calls: list[Sequence[str]] = []

    def away(tags: Sequence[str]) -> None:
        calls.append(tags)
        raise TierUnavailable("away")

    assert stage.another(invalidate=away).flush(10.0) == Flushed(left=2)
    assert calls == [["x"]]
    assert stage.waiting() == ["a", "b"]
    assert stage.due() == []
    assert stage.attempts() == {}
    stage.clock.advance(1.0)
    assert stage.flusher.flush(10.0) == Flushed(taken=2)
    assert stage.invalidated == [["x"]]


# -- a record that fails -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", EIGHT)
def test_a_poisoned_record_fails_alone_and_all_others_are_taken(poison: str) -> None:
    stage = Stage(backoff=10.0)
    stage.write(*EIGHT)
    stage.sink.poison(poison)

    assert stage.flusher.flush(100.0) == Flushed(taken=7, failed=1)
    assert stage.attempts() == {poison: 1}
    assert stage.sink.rows.keys() == set(EIGHT) - {poison}
    assert len(stage.sink.calls) <= 7


def test_several_poisoned_records_fail_alone(stage: Stage) -> None:
    stage.write(*EIGHT)
    stage.sink.poison("b", "c", "h")

    assert stage.flusher.flush(100.0) == Flushed(taken=5, failed=3)
    assert stage.attempts() == {"b": 1, "c": 1, "h": 1}


def test_two_poisoned_records_at_the_head_hold_the_others_up_for_one_back_off_only(stage: Stage) -> None:
    stage.write(*EIGHT)
    stage.sink.poison("a", "h")

    assert stage.flusher.flush(100.0) == Flushed(left=8)
    stage.clock.advance(2.0)
    assert stage.flusher.flush(100.0) == Flushed(taken=6, failed=2)
    assert stage.attempts() == {"a": 1, "h": 1}


def test_a_record_that_fails_is_tried_again_after_a_back_off_that_doubles() -> None:
    stage = Stage(attempts=10, backoff=4.0)
    stage.write("a")
    stage.sink.poison("a")
    for attempt, longest in enumerate([4.0, 8.0, 16.0, 32.0, 60.0, 60.0], start=1):
        stage.write("good")
        assert stage.flusher.flush(100.0) == Flushed(taken=1, failed=1)
        assert stage.attempts() == {"a": attempt}
        stage.clock.advance(longest / 2 - 0.01)
        assert stage.due() == []
        stage.clock.advance(longest / 2 + 0.01)
        assert stage.due() == ["a"]


def test_back_off_has_a_jitter_and_an_end() -> None:
    many = {back_off(1.0, 0) for _ in range(50)}

    assert len(many) > 10
    assert 0.5 <= min(many) <= max(many) <= 1.0
    assert MAX_BACK_OFF / 2 <= back_off(1.0, 10_000) <= MAX_BACK_OFF
    assert back_off(0.0, 10_000) == 0.0


def test_after_its_last_attempt_a_record_is_buried_with_what_it_failed_with() -> None:
    stage = Stage(attempts=3, backoff=0.0)
    [sequence] = stage.write("a", body="1|x")
    stage.sink.poison("a", error=ValueError("no such\n  column"))

    for expected in (Flushed(taken=1, failed=1), Flushed(taken=1, failed=1), Flushed(taken=1, buried=1)):
        stage.write("good")
        stage.clock.advance(1.0)
        assert stage.flusher.flush(0.0) == expected
    [buried] = stage.journal.buried(SINK, 0, 10)
    assert buried.record == Record("a", sequence, b"1|x", attempts=3)
    assert buried.reason == "ValueError: no such column"
    assert "Traceback" in buried.details
    assert "in write" in buried.details
    assert stage.waiting() == []
    assert stage.invalidated == []
    told = (Event.BURIED, "task", {"sink": SINK, "key": "a", "attempts": 3, "reason": "ValueError: no such column"})
    assert told in stage.heard


def test_a_poisoned_record_that_is_buried_lets_all_others_through() -> None:
    stage = Stage(attempts=1)
    stage.write(*EIGHT)
    stage.sink.poison("d")

    assert stage.flusher.flush(100.0) == Flushed(taken=7, buried=1)
    assert stage.dead() == ["d"]


def test_a_record_that_was_written_again_while_it_failed_for_the_last_time_is_not_buried() -> None:
    stage = Stage(attempts=1)
    stage.write("a", body="bad")
    stage.write("b")

    def fail_once(keys: list[str]) -> None:
        if keys == ["a"]:
            stage.write("a", body="good")
            stage.sink.heal()
        raise ValueError

    stage.sink.act = fail_once

    assert stage.flusher.flush(100.0) == Flushed(taken=2, failed=1)
    assert stage.dead() == []
    assert stage.sink.rows["a"][1] == "good"


def test_an_error_without_a_text_is_no_reason_to_stop() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    stage = Stage(attempts=1)
    stage.write("a", "b")
    stage.sink.poison("a", error=Mute())

    assert stage.flusher.flush(100.0) == Flushed(taken=1, buried=1)
    assert "Mute" in stage.journal.buried(SINK, 0, 1)[0].reason


def test_every_failed_call_is_told(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.poison("a", error=ValueError("no"))
    stage.flusher.flush(100.0)

    told = [(each["sink"], each["records"], each["error"]) for each in stage.told(Event.SINK_FAILED)]
    assert told == [(SINK, 2, "ValueError: no"), (SINK, 1, "ValueError: no")]


# -- a record that cannot be read --------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_buried_at_once_and_blocks_nobody(stage: Stage) -> None:
    stage.write("a")
    stage.write("b", body="!")
    stage.write("c")

    assert stage.flusher.flush(10.0) == Flushed(taken=2, buried=1)
    assert stage.sink.calls == [["a", "c"]]
    [buried] = stage.journal.buried(SINK, 0, 10)
    assert (buried.record.key, buried.record.body) == ("b", b"!")
    assert "undecodable" in buried.reason
    assert [event for event, task, _ in stage.heard if event is Event.BURIED and task == ""] == [Event.BURIED]


def test_a_reader_that_breaks_blocks_nobody(stage: Stage) -> None:
    stage.write("a", "b")

    def breaks(record: Record) -> tuple[Write, tuple[str, ...]]:
        if record.key == "a":
            raise KeyError("a")
        return unpack(record)

    assert stage.another(unpack=breaks).flush(10.0) == Flushed(taken=1, buried=1)
    assert stage.dead() == ["a"]


# -- a sink that is down -----------------------------------------------------------------------------------------------


def test_a_sink_that_says_it_is_down_is_left_alone_and_nothing_has_failed() -> None:
    stage = Stage(batch_size=4)
    stage.write(*EIGHT)
    stage.sink.fail(SinkUnavailable("down"))

    assert stage.flusher.flush(10.0) == Flushed(left=4)
    assert stage.sink.calls == [EIGHT[:4]]
    assert stage.attempts() == {}
    assert stage.due() == EIGHT[4:]
    stage.clock.advance(1.0)
    assert sorted(stage.due()) == EIGHT


@pytest.mark.parametrize("error", [SinkUnavailable(), ValueError()])
def test_the_longer_a_sink_is_down_the_longer_it_is_left_alone(error: Exception) -> None:
    stage = Stage(backoff=4.0)
    stage.write("a")
    stage.sink.fail(error)
    for longest in (4.0, 8.0, 16.0, 32.0, 60.0, 60.0):
        assert stage.flusher.flush(10.0) == Flushed(left=1)
        stage.clock.advance(longest / 2 - 0.01)
        assert stage.due() == []
        stage.clock.advance(longest / 2 + 0.01)
        assert stage.due() == ["a"]
    stage.sink.heal()
    stage.flusher.flush(10.0)
    stage.write("a")
    stage.sink.fail(error)
    stage.flusher.flush(10.0)
    stage.clock.advance(4.0)

    assert stage.due() == ["a"]


def test_a_sink_that_fails_whatever_it_is_given_is_asked_a_few_times_for_a_whole_batch() -> None:
    stage = Stage(batch_size=64)
    keys = [f"{number:03}" for number in range(128)]
    stage.write(*keys)
    stage.sink.fail(ValueError("disk full"))

    assert stage.flusher.flush(10.0) == Flushed(left=64)
    assert [len(call) for call in stage.sink.calls] == [64, 32, 16, 8, 4, 2, 1, 63]
    assert stage.attempts() == {}


@pytest.mark.parametrize("keys", [EIGHT, ["a"]])
def test_a_sink_that_is_down_and_does_not_say_so_has_nothing_buried(keys: list[str]) -> None:
    stage = Stage(attempts=3, backoff=0.05)
    stage.write(*keys)
    stage.sink.fail(OSError("no route to host"))
    for _ in range(500):
        assert stage.flusher.flush(1.0).buried == 0
        stage.clock.advance(100.0)
    assert (stage.attempts(), stage.dead()) == ({}, [])
    stage.flusher.flush(1.0)
    stage.sink.heal()
    stage.clock.advance(MAX_BACK_OFF)

    assert stage.flusher.flush(1.0) == Flushed(taken=len(keys))


@pytest.mark.parametrize("keys", [EIGHT, ["a"]])
def test_where_every_record_is_poison_each_is_buried_a_day_after_it_failed_first(keys: list[str]) -> None:
    stage = Stage(attempts=3)
    stage.write(*keys)
    stage.sink.fail(ValueError("no"))
    begun = stage.clock.time()
    while stage.clock.time() < begun + GIVE_UP_SECONDS:
        stage.flusher.flush(1.0)
        stage.clock.advance(1000.0)
    assert stage.dead() == []
    for _ in range(2 * len(keys)):
        stage.flusher.flush(1.0)
        stage.clock.advance(1000.0)

    assert sorted(stage.dead()) == keys
    assert stage.waiting() == []


def test_a_record_that_fails_alone_has_failed_if_anything_was_taken_since_it_last_has() -> None:
    stage = Stage(backoff=10.0)
    stage.write("a")
    stage.sink.poison("a")
    assert stage.flusher.flush(1.0) == Flushed(left=1)
    stage.clock.advance(1.0)
    stage.write("b")
    assert stage.flusher.flush(1.0) == Flushed(taken=1)
    stage.clock.advance(10.0)

    assert stage.another().flush(1.0) == Flushed(failed=1)
    stage.clock.advance(20.0)
    assert stage.another().flush(1.0) == Flushed(left=1)
    assert stage.attempts() == {"a": 1}


def test_what_has_failed_alone_comes_after_what_was_with_it_the_next_time() -> None:
    stage = Stage(backoff=10.0)
    stage.write(*EIGHT)
    stage.sink.fail(ValueError())
    stage.flusher.flush(1.0)

    dirty, now = stage.journal.shared.sinks[SINK].dirty, stage.clock.time()
    assert dirty["a"].due[0] - now == pytest.approx(2 * (dirty["b"].due[0] - now))
    stage.clock.advance(20.0)
    assert stage.due() == [*EIGHT[1:], "a"]


def test_a_sink_that_goes_down_in_the_middle_of_a_batch_has_not_failed_with_the_rest(stage: Stage) -> None:
    stage.write(*EIGHT)
    stage.sink.poison("c")
    down = stage.sink.act

    def act(keys: list[str]) -> None:
        down(keys)
        if "d" in keys:
            raise SinkUnavailable

    stage.sink.act = act

    assert stage.flusher.flush(10.0) == Flushed(taken=2, failed=1, left=5)
    assert stage.attempts() == {"c": 1}


# -- a sink that rejects some ------------------------------------------------------------------------------------------


def test_a_sink_that_rejects_some_has_taken_the_others(stage: Stage) -> None:
    stage.write("a", "b", "c", "d", body="1|x")
    stage.sink.fail(SinkRejected({"b": ValueError("b is bad"), "d": KeyError("d")}))

    assert stage.flusher.flush(10.0) == Flushed(taken=2, failed=2)
    assert stage.sink.calls == [["a", "b", "c", "d"]]
    assert stage.attempts() == {"b": 1, "d": 1}
    assert stage.waiting() == ["b", "d"]
    assert stage.invalidated == [["x"]]


def test_what_a_sink_rejects_again_and_again_is_buried_with_its_own_error() -> None:
    stage = Stage(attempts=2, backoff=0.0)
    stage.write("a", "b")
    stage.sink.poison("b", error=SinkRejected({"b": ValueError("b is bad")}))

    assert stage.flusher.flush(10.0) == Flushed(taken=1, failed=1, buried=1)
    assert [each.reason for each in stage.journal.buried(SINK, 0, 10)] == ["ValueError: b is bad"]


def test_a_sink_that_rejects_everything_has_failed_with_each(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.fail(SinkRejected({"a": ValueError(), "b": ValueError()}))

    assert stage.flusher.flush(10.0) == Flushed(failed=2)
    assert stage.invalidated == []


def test_a_sink_that_rejects_what_it_was_not_given_is_not_believed(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.poison("b", error=SinkRejected({"B": ValueError()}))

    assert stage.flusher.flush(10.0) == Flushed(taken=1, failed=1)
    assert stage.attempts() == {"b": 1}


def test_what_a_sink_rejects_is_left_if_the_others_could_not_be_invalidated(stage: Stage) -> None:
    stage.write("a", "b", body="1|x")
    stage.sink.fail(SinkRejected({"b": ValueError()}))

    def away(tags: Sequence[str]) -> None:
        raise TierUnavailable

    assert stage.another(invalidate=away).flush(10.0) == Flushed(left=2)
    assert stage.attempts() == {}


# -- a sink that hangs -------------------------------------------------------------------------------------------------


def test_a_sink_that_hangs_is_left_alone_and_nothing_has_failed(stage: Stage) -> None:
    stage.write(*EIGHT)
    stage.sink.fail(SinkTimeout(SINK, 30.0))

    assert stage.flusher.flush(10.0) == Flushed(left=8)
    assert stage.sink.calls == [EIGHT]
    assert stage.attempts() == {}
    assert stage.due() == []


def test_what_hangs_again_is_tried_in_ever_smaller_pieces_until_one_hangs_alone_and_is_buried() -> None:
    stage = Stage(attempts=2)
    stage.write(*EIGHT)
    stage.sink.poison("f", error=SinkTimeout(SINK, 30.0))
    for number in range(20):
        stage.write(f"good {number}")
        stage.flusher.flush(10.0)
        stage.clock.advance(2 * MAX_BACK_OFF)
        if stage.dead():
            break

    assert stage.dead() == ["f"]
    assert stage.sink.rows.keys() >= set(EIGHT) - {"f"}
    hangs = [len(call) for call in stage.sink.calls if "f" in call]
    assert hangs == [9, 4, 2, 1, 1]
    assert "0 suspects" in repr(stage.flusher)


def test_what_has_never_hung_is_not_tried_together_with_what_has(stage: Stage) -> None:
    stage.write("a", "b", "c")
    stage.sink.poison("b", error=SinkTimeout(SINK, 30.0))
    stage.flusher.flush(10.0)
    stage.clock.advance(1.0)
    stage.write("x", "y", "z")
    stage.sink.calls.clear()
    stage.flusher.flush(10.0)

    assert stage.sink.calls == [["x", "y", "z"], ["a"], ["b"], ["c"]]
    assert stage.attempts() == {"b": 1}


def test_what_was_taken_after_a_hang_is_suspected_no_more(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.fail(SinkTimeout(SINK, 30.0))
    stage.flusher.flush(10.0)
    stage.sink.heal()
    stage.clock.advance(1.0)
    stage.flusher.flush(10.0)
    stage.write("a", "b")
    stage.flusher.flush(10.0)

    assert stage.sink.calls == [["a", "b"], ["a"], ["b"], ["a", "b"]]


def test_what_is_suspected_is_not_tried_with_what_is_left_after_a_failure(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.fail(SinkTimeout(SINK, 30.0))
    stage.flusher.flush(10.0)
    stage.clock.advance(1.0)
    stage.write("x", "y")
    stage.sink.calls.clear()
    stage.sink.fail(ValueError())
    stage.flusher.flush(10.0)

    assert stage.sink.calls == [["x", "y"], ["x"], ["y"]]


# -- an end in the middle ----------------------------------------------------------------------------------------------


class SoftLimit(Exception):
    """As Celery's, which is an `Exception`."""


@pytest.mark.parametrize("error", [SystemExit(), KeyboardInterrupt(), GeneratorExit(), SoftLimit()])
def test_an_interrupted_batch_is_given_back_at_once_and_nothing_has_failed(stage: Stage, error: Any) -> None:
    stage.write(*EIGHT)
    stage.sink.fail(error)

    with pytest.raises(type(error)):
        stage.another(interrupts=(SoftLimit,)).flush(10.0)
    assert stage.due() == EIGHT
    assert stage.attempts() == {}
    assert stage.sink.calls == [EIGHT]
    assert stage.repeat.acts == []


def test_only_what_was_not_taken_is_given_back_when_it_is_interrupted(stage: Stage) -> None:
    stage.write("a", "b", "c", "d")

    def act(keys: list[str]) -> None:
        if len(keys) > 2:
            raise ValueError
        if "c" in keys:
            raise KeyboardInterrupt

    stage.sink.act = act

    with pytest.raises(KeyboardInterrupt):
        stage.flusher.flush(10.0)
    assert stage.due() == ["c", "d"]
    assert stage.sink.rows.keys() == {"a", "b"}


@pytest.mark.parametrize("where", ["unpack", "invalidate"])
def test_an_interrupt_beside_the_sink_gives_the_batch_back_too(stage: Stage, where: str) -> None:
    stage.write("a", "b", body="1|x")

    def interrupt(_: object) -> Any:
        raise SoftLimit

    with pytest.raises(SoftLimit):
        stage.another(interrupts=(SoftLimit,), **{where: interrupt}).flush(10.0)
    assert stage.due() == ["a", "b"]
    assert stage.dead() == []


@pytest.mark.parametrize("method", ["claim", "acknowledge"])
def test_a_journal_that_goes_away_is_heard_of_and_what_was_claimed_comes_again(stage: Stage, method: str) -> None:
    stage.write("a", "b")
    real: dict[str, Callable[..., Any]] = {}

    def away(*_: object, **__: object) -> Any:
        raise TierUnavailable("away")

    for name in (method, "give_back"):
        real[name] = getattr(stage.journal, name)
        setattr(stage.journal, name, away)
    with pytest.raises(TierUnavailable):
        stage.flusher.flush(10.0)
    for name, was in real.items():
        setattr(stage.journal, name, was)
    stage.clock.advance(CLAIM_SECONDS)

    assert stage.flusher.flush(10.0) == Flushed(taken=2)
    assert stage.attempts() == {}


def test_claims_that_cannot_be_given_back_run_out_by_themselves(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stage.write("a")

    def away(*_: object, **__: object) -> None:
        raise TierUnavailable("away")

    monkeypatch.setattr(stage.journal, "give_back", away)
    stage.sink.fail(SinkUnavailable())
    assert stage.flusher.flush(10.0) == Flushed(left=1)
    stage.clock.advance(CLAIM_SECONDS)
    stage.sink.fail(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        stage.flusher.flush(10.0)
    monkeypatch.undo()

    assert caplog.text.count("run out by themselves") == 2
    assert stage.due() == []
    stage.clock.advance(CLAIM_SECONDS)
    assert stage.due() == ["a"]


def test_the_states_are_seen_in_the_repr(stage: Stage) -> None:
    stage.write("a", "b")
    stage.sink.fail(SinkTimeout(SINK, 1.0))
    stage.flusher.flush(1.0)

    assert repr(stage.flusher) == "<Flusher: orders, <Trouble: 1 outages, 2 suspects>>"
