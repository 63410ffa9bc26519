"""Sinks: what may be one, in which thread it lives, and what a batch that hangs or a fork leaves behind."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import logging
import pickle
import sqlite3
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import celery_cachetiers
from celery_cachetiers import (
    ConfigurationError,
    JournalFull,
    SinkRejected,
    SinkTimeout,
    SinkUnavailable,
    Write,
    sink,
    sinks,
)
from celery_cachetiers.sinks import Sink, SinkPolicy, find, registered
from tests.processes import wait_until

pytestmark = pytest.mark.usefixtures("own_sinks")

NAN = float("nan")
COUNTS: list[object] = [0, -1, 1.5, "100", True, None, NAN]

BAD_OPTIONS: dict[str, list[object]] = {
    "batch_size": [*COUNTS, 1001],
    "max_delay": [0, -1, True, "5m", NAN],
    "attempts": COUNTS,
    "backoff": [-1, True, "1", None, NAN],
    "time_limit": [0, 0.05, 3601, True, None, "30", NAN],
    "max_pending": COUNTS,
    "when_full": ["wait", "", None, True],
    "durability": ["fsync", "", True, 1],
}


@pytest.fixture
def made() -> Iterator[Callable[..., Sink]]:
    """`made(target, **options)` makes a sink that is closed in the end."""
    everything: list[Sink] = []

    def make(target: Any, **options: Any) -> Sink:
        everything.append(Sink("orders", target, SinkPolicy(**options)))
        return everything[-1]

    yield make
    for each in everything:
        each.close()


def a_write(key: str = "k1", value: object = 1, *, sequence: int = 1, deleted: bool = False) -> Write:
    return Write("proj.order", (1,), {}, key, value, deleted, sequence, 1_700_000_000.0)


class Recorder:
    """Tells what was done with it, and in which threads."""

    made: list[Recorder]

    def __init__(self) -> None:
        self.acts: list[tuple[str, int]] = []
        type(self).made.append(self)

    def _act(self, name: str) -> None:
        self.acts.append((name, threading.get_ident()))

    def open(self) -> None:
        self._act("open")

    def write(self, writes: list[Write]) -> None:
        self._act("write")

    def close(self) -> None:
        self._act("close")

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.acts]

    @property
    def threads(self) -> set[int]:
        return {thread for _, thread in self.acts}


@pytest.fixture
def recorder() -> type[Recorder]:
    return type("Recording", (Recorder,), {"made": []})


# -- options and names ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "value"), [(name, value) for name, bad in BAD_OPTIONS.items() for value in bad])
def test_a_bad_option_is_refused_with_its_name_value_and_range(option: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as refused:
        sink("orders", **{option: value})  # type: ignore[arg-type]

    field = next(field for field in dataclasses.fields(SinkPolicy) if field.name == option)
    assert refused.value.option == option
    assert refused.value.value is value
    assert refused.value.allowed == field.metadata["rule"].allowed
    assert refused.value.where == "sink orders"


def test_a_journal_without_room_for_the_batch_that_was_asked_for_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"max_pending=10 of sink orders .*at least batch_size=100"):
        sink("orders", batch_size=100, max_pending=10)

    sink("orders", batch_size=100, max_pending=100)(print)
    sink("small", max_pending=10)(print)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "{a}", "é", "x" * 65, 5, None, "a\n"])
def test_a_bad_name_is_refused(name: object) -> None:
    with pytest.raises(ConfigurationError, match=r"1 to 64 letters, digits or any of _ \. -"):
        sink(name)  # type: ignore[arg-type]


def test_every_option_is_tested_and_has_the_default_of_its_signature() -> None:
    fields = {field.name: field.default for field in dataclasses.fields(SinkPolicy)}
    parameters = inspect.signature(sink).parameters

    assert fields == {name: each.default for name, each in parameters.items() if name != "name"}
    assert set(fields) == set(BAD_OPTIONS)


def test_what_is_decorated_comes_back_unchanged_and_is_found_with_its_options() -> None:
    def save(writes: list[Write]) -> None: ...

    assert sink("orders", batch_size=1000, max_delay=2, durability="disk")(save) is save

    found = find("orders")
    assert found.definition is save
    assert found.options == SinkPolicy(batch_size=1000, max_delay=2.0, durability="disk")
    assert registered() == {"orders": found}


def test_an_unknown_name_is_told_the_known_ones() -> None:
    sink("users")(print)
    sink("orders")(print)

    with pytest.raises(ConfigurationError, match=r"sink='order' .*\(orders, users\)"):
        find("order")


def test_a_name_has_one_sink() -> None:
    def save(writes: list[Write]) -> None: ...
    def other(writes: list[Write]) -> None: ...

    sink("orders")(save)

    with pytest.raises(ConfigurationError, match="a name of its own"):
        sink("orders")(other)
    assert find("orders").definition is save


def test_a_module_that_is_loaded_again_replaces_its_sinks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sinks_of_a_test.py").write_text(
        "from celery_cachetiers import sink\n"
        "class Save:\n"
        "    def write(self, writes): ...\n"
        "@sink('function')\n"
        "def save(writes): ...\n"
        "sink('class')(Save)\n"
        "sink('object')(Save())\n"
        "sink('lambda')(lambda writes: None)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("sinks_of_a_test")
    before = {name: each.definition for name, each in registered().items()}

    importlib.reload(module)

    after = {name: each.definition for name, each in registered().items()}
    assert set(after) == {"function", "class", "object", "lambda"}
    assert all(after[name] is not before[name] for name in after)
    del sys.modules["sinks_of_a_test"]


def test_who_has_found_a_sink_before_it_was_replaced_writes_to_the_new_one() -> None:
    def replace(got: list[object], **options: Any) -> None:
        sink("orders", **options)(lambda writes: got.extend(write.value for write in writes))

    old: list[object] = []
    new: list[object] = []
    for got, options in ((old, {}), (new, {"batch_size": 7})):
        replace(got, **options)
        found = find("orders")
        if got is old:
            held = found
        held.write([a_write()])

    assert (old, new) == ([1], [1])
    assert held.options.batch_size == held.batch_size == 7


async def _async(writes: list[Write]) -> None: ...


def _generator(writes: list[Write]) -> Iterator[None]:
    yield


class _NoWrite:
    def open(self) -> None: ...


class _Async:
    async def write(self, writes: list[Write]) -> None: ...


class _Argument:
    def __init__(self, path: str) -> None: ...
    def write(self, writes: list[Write]) -> None: ...


@pytest.mark.parametrize("target", [_async, _generator, _NoWrite, _NoWrite(), _Async, _Async(), _Argument, 5, None])
def test_what_would_never_write_is_refused(target: Any) -> None:
    with pytest.raises(ConfigurationError, match="sink"):
        sink("orders")(target)
    assert registered() == {}


# -- its thread -------------------------------------------------------------------------------------------------------


def test_open_write_and_close_run_in_one_thread_of_its_own(made: Any, recorder: type[Recorder]) -> None:
    orders = made(recorder)
    orders.write([a_write()])
    orders.write([a_write()])
    orders.close()

    (only,) = recorder.made
    assert only.names == ["open", "write", "write", "close"]
    assert len(only.threads) == 1
    assert threading.get_ident() not in only.threads


def test_nothing_is_made_and_no_thread_started_before_the_first_write(recorder: type[Recorder]) -> None:
    unused = Sink("unused", recorder, SinkPolicy())
    unused.write([])
    unused.close()

    assert recorder.made == []
    assert "not open" in repr(unused)
    assert "cachetiers-sink-unused" not in [thread.name for thread in threading.enumerate()]


def test_a_connection_bound_to_its_thread_works(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "orders.db"

    class Save:
        def open(self) -> None:
            self.db = sqlite3.connect(path)  # check_same_thread
            self.db.execute("CREATE TABLE orders (key TEXT)")

        def write(self, writes: list[Write]) -> None:
            with self.db:
                self.db.executemany("INSERT INTO orders VALUES (?)", [(write.key,) for write in writes])

        def close(self) -> None:
            self.db.close()

    orders = made(Save)
    orders.write([a_write("k1"), a_write("k2")])
    orders.close()

    with sqlite3.connect(path) as db:
        assert db.execute("SELECT key FROM orders").fetchall() == [("k1",), ("k2",)]
    db.close()


def test_a_function_gets_the_list(made: Any) -> None:
    given: list[list[Write]] = []
    writes = [a_write("k1"), a_write("k2")]
    made(given.append).write(writes)

    assert given == [writes]


def test_an_object_with_open_is_copied_and_one_without_is_used_as_it_is(made: Any) -> None:
    class Plain:
        writes = 0

        def write(self, writes: list[Write]) -> None:
            self.writes += len(writes)

    class Opened(Plain):
        def open(self) -> None:
            self.writes = 0

    plain, opened = Plain(), Opened()
    made(plain).write([a_write()])
    made(opened).write([a_write()])

    assert (plain.writes, opened.writes) == (1, 0)


def test_batches_of_several_threads_come_one_after_the_other(made: Any) -> None:
    inside: list[int] = []
    most: list[int] = []

    def save(writes: list[Write]) -> None:
        inside.append(1)
        most.append(len(inside))
        inside.pop()

    orders = made(save)
    threads = [threading.Thread(target=orders.write, args=([a_write()],)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert most == [1] * 20


def test_a_sink_may_write_to_itself(made: Any) -> None:
    given: list[str] = []

    def save(writes: list[Write]) -> None:
        given.extend(write.key for write in writes)
        if writes[0].key == "outer":
            orders.write([a_write("inner")])

    orders = made(save)
    orders.write([a_write("outer")])

    assert given == ["outer", "inner"]


def test_a_write_after_close_opens_anew(made: Any, recorder: type[Recorder]) -> None:
    orders = made(recorder)
    orders.write([a_write()])
    orders.close()
    orders.write([a_write()])

    assert [each.names for each in recorder.made] == [["open", "write", "close"], ["open", "write"]]


def test_a_process_without_room_for_a_thread_has_an_unavailable_sink(
    made: Any, monkeypatch: pytest.MonkeyPatch, recorder: type[Recorder]
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    orders = made(recorder)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(SinkUnavailable, match="no thread"):
            orders.write([a_write()])
    orders.write([a_write()])

    assert len(recorder.made) == 1


# -- failures ---------------------------------------------------------------------------------------------------------


def test_the_sinks_exception_comes_through_as_it_is_with_its_traceback(made: Any) -> None:
    error = KeyError("orders")

    def broken_save(writes: list[Write]) -> None:
        raise error

    with pytest.raises(KeyError) as raised:
        made(broken_save).write([a_write()])

    assert raised.value is error
    assert "broken_save" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]


def test_an_open_that_fails_is_tried_again_next_time(made: Any, recorder: type[Recorder]) -> None:
    class Failing(recorder):  # type: ignore[misc, valid-type]
        def open(self) -> None:
            super().open()
            if len(self.made) == 1:
                raise OSError("the database is away")

    orders = made(Failing)
    with pytest.raises(SinkUnavailable, match="away") as raised:  # nobody's attempt counts
        orders.write([a_write()])
    orders.write([a_write()])

    assert isinstance(raised.value.__cause__, OSError)
    assert [each.names for each in recorder.made] == [["open"], ["open", "write"]]


@pytest.mark.parametrize(("error", "opened"), [(OSError("broken pipe"), 2), (SinkRejected({"k1": ValueError()}), 1)])
def test_a_batch_that_failed_leaves_nothing_to_the_next_one(
    made: Any, recorder: type[Recorder], error: Exception, opened: int
) -> None:
    class Failing(recorder):  # type: ignore[misc, valid-type]
        def write(self, writes: list[Write]) -> None:
            super().write(writes)
            if writes[0].key == "bad":
                raise error

    orders = made(Failing)
    with pytest.raises(type(error)):
        orders.write([a_write("bad")])
    orders.write([a_write("good")])

    assert len(recorder.made) == opened
    assert recorder.made[0].names[:2] == ["open", "write"]
    assert ("close" in recorder.made[0].names) is (opened == 2)


def test_a_close_that_fails_is_logged_and_harms_nobody(made: Any, caplog: pytest.LogCaptureFixture) -> None:
    class Save:
        def write(self, writes: list[Write]) -> None: ...
        def close(self) -> None:
            raise OSError("gone before")

    orders = made(Save)
    orders.write([a_write()])
    orders.close()

    assert "sink orders could not be closed" in caplog.text


# -- a batch that hangs -----------------------------------------------------------------------------------------------


class Hanging(Recorder):
    """Hangs with the batch "hang", until it is let go."""

    made: list[Recorder]
    gate: threading.Event
    closed: threading.Event

    def write(self, writes: list[Write]) -> None:
        super().write(writes)
        if writes[0].key.startswith("hang"):
            self.gate.wait(60)
            if writes[0].key == "hang and fail":
                raise OSError("reset by peer")

    def close(self) -> None:
        super().close()
        self.closed.set()


def until_it_writes(hanging: type[Hanging]) -> None:
    wait_until(lambda: any("write" in each.names for each in hanging.made), timeout=10, message="the first write")


@pytest.fixture
def hanging() -> Iterator[type[Hanging]]:
    gate = threading.Event()
    yield type("HangingHere", (Hanging,), {"made": [], "gate": gate, "closed": threading.Event()})
    gate.set()


def test_a_batch_past_its_limit_is_given_up_and_the_next_has_a_new_thread(made: Any, hanging: type[Hanging]) -> None:
    orders = made(hanging, time_limit=0.1)
    with pytest.raises(SinkTimeout) as raised:
        orders.write([a_write("hang")])
    orders.write([a_write()])

    assert (raised.value.sink, raised.value.seconds) == ("orders", 0.1)
    first, second = hanging.made
    assert (first.names, second.names) == (["open", "write"], ["open", "write"])
    assert first.threads.isdisjoint(second.threads)


@pytest.mark.parametrize(
    ("key", "fate"), [("hang", "has been written after all"), ("hang and fail", "failed: OSError")]
)
def test_what_comes_late_is_logged_and_its_object_closed_where_it_was_opened(
    made: Any, hanging: type[Hanging], caplog: pytest.LogCaptureFixture, key: str, fate: str
) -> None:
    orders = made(hanging, time_limit=0.1)
    with pytest.raises(SinkTimeout):
        orders.write([a_write(key)])
    orders.write([a_write()])
    hanging.gate.set()
    assert hanging.closed.wait(10)

    first, second = hanging.made
    assert first.names == ["open", "write", "close"]
    assert len(first.threads) == 1
    assert second.names == ["open", "write"]
    assert f"a batch of sink orders that was given up {fate}" in caplog.text


def test_an_open_that_hangs_is_given_up_as_well(made: Any) -> None:
    gate = threading.Event()

    class Save:
        def open(self) -> None:
            gate.wait(60)

        def write(self, writes: list[Write]) -> None: ...

    orders = made(Save, time_limit=0.1)
    with pytest.raises(SinkTimeout):
        orders.write([a_write()])
    gate.set()
    orders.write([a_write()])


def test_who_waits_behind_a_batch_that_hangs_has_a_new_thread_and_all_its_time(
    made: Any, hanging: type[Hanging]
) -> None:
    orders = made(hanging, time_limit=0.3)
    caught: list[BaseException] = []
    behind = threading.Thread(target=orders.write, args=([a_write("behind")],))

    def write_and_hang() -> None:
        try:
            orders.write([a_write("hang")])
        except SinkTimeout as error:
            caught.append(error)

    first = threading.Thread(target=write_and_hang)
    first.start()
    until_it_writes(hanging)
    behind.start()
    first.join()
    behind.join()

    assert len(caught) == 1
    assert [each.names for each in hanging.made] == [["open", "write"], ["open", "write"]]


def test_threads_that_hang_are_bounded(made: Any, hanging: type[Hanging], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "HANGING_LIMIT", 2)
    orders = made(hanging, time_limit=0.1)
    for _ in range(2):
        with pytest.raises(SinkTimeout):
            orders.write([a_write("hang")])

    with pytest.raises(SinkUnavailable, match="2 threads of sink orders hang"):
        orders.write([a_write()])
    assert len(hanging.made) == 2
    assert "2 given up" in repr(orders)


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_wait_leaves_the_batch_to_its_thread(
    made: Any, hanging: type[Hanging], monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    started = threading.Event()
    monkeypatch.setattr(hanging, "open", lambda self: (Recorder.open(self), started.set())[0])

    def interrupted(batch: object, seconds: float) -> bool:
        started.wait(10)
        raise interrupt

    orders = made(hanging)
    with monkeypatch.context() as patch:
        patch.setattr(sinks.Batch, "wait", interrupted)
        with pytest.raises(interrupt):
            orders.write([a_write("hang")])
    orders.write([a_write()])
    hanging.gate.set()
    assert hanging.closed.wait(10)

    assert [each.names for each in hanging.made] == [["open", "write", "close"], ["open", "write"]]


def test_a_batch_that_finishes_as_its_time_ends_has_its_outcome() -> None:
    batch = sinks.Batch([a_write()])
    error = ValueError("refused")

    assert batch.finish(error)
    assert not batch.give_up()
    with pytest.raises(ValueError, match="refused"):
        batch.outcome()

    late = sinks.Batch([a_write()])
    assert late.give_up()
    assert not late.finish(error)
    late.outcome()


def test_close_does_not_wait_for_what_was_given_up(made: Any, hanging: type[Hanging]) -> None:
    orders = made(hanging, time_limit=0.1)
    with pytest.raises(SinkTimeout):
        orders.write([a_write("hang")])

    orders.close()

    assert hanging.made[0].names == ["open", "write"]


# -- the end of a process ---------------------------------------------------------------------------------------------


def test_the_end_of_a_pool_process_closes_its_sinks(made: Any, recorder: type[Recorder]) -> None:
    from celery.signals import worker_process_shutdown

    orders = made(recorder)
    orders.write([a_write()])
    worker_process_shutdown.send(sender=None, pid=1, exitcode=0)

    assert recorder.made[0].names == ["open", "write", "close"]


def test_a_sink_that_is_busy_at_the_end_is_not_waited_for_long(
    made: Any, hanging: type[Hanging], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sinks, "CLOSE_PATIENCE", 0.0)
    orders = made(hanging)
    thread = threading.Thread(target=orders.write, args=([a_write("hang")],))
    thread.start()
    until_it_writes(hanging)

    with caplog.at_level(logging.WARNING):
        sinks.close_all()

    assert "sink orders was not closed in time" in caplog.text
    hanging.gate.set()
    thread.join(10)
    assert hanging.closed.wait(10)


def test_after_a_fork_the_parents_thread_is_kept_and_not_used(
    made: Any, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(sinks, "keep_for_ever", kept.append)
    orders = made(recorder)
    orders.write([a_write()])

    orders.reset_after_fork()
    orders.write([a_write()])

    assert len(recorder.made) == 2
    (writer,) = kept
    writer.stop()
    assert writer.gone.wait(10)


def test_a_fork_that_python_was_not_told_of_shows_in_the_process_id(
    made: Any, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Any] = []
    monkeypatch.setattr(sinks, "keep_for_ever", kept.append)
    orders = made(recorder)
    orders.write([a_write()])
    with monkeypatch.context() as patch:
        patch.setattr(sinks.os, "getpid", lambda: 1)
        orders.write([a_write()])

    assert len(recorder.made) == 2
    kept[0].stop()
    assert kept[0].gone.wait(10)


# -- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (SinkTimeout("orders", 30.0), "sink orders has not taken a batch within time_limit=30 seconds"),
        (SinkUnavailable("away"), "away"),
        (SinkRejected({"k1": ValueError("no")}), "1 writes were refused, k1: ValueError('no')"),
        (SinkRejected({}), "0 writes were refused"),
        (JournalFull("orders", 10), "the journal of sink orders is full: 10 writes wait for it"),
    ],
)
def test_an_error_tells_what_is_wrong_and_survives_pickle(error: Exception, text: str) -> None:
    copied = pickle.loads(pickle.dumps(error))

    assert str(error) == str(copied) == text
    assert type(copied) is type(error)
    assert isinstance(error, celery_cachetiers.CacheTiersError)
