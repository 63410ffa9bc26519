"""Signals: who hears of what, that receivers harm nobody, and that nothing listens while nobody is connected."""

from __future__ import annotations

import gc
import json
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import MISSING, CachedTask, CacheTiers, signals
from celery_cachetiers.events import Event
from celery_cachetiers.metrics.report import Report
from celery_cachetiers.signals import cache_hit, cache_miss, cache_stored, hit_ratio_reported, tag_invalidated
from celery_cachetiers.testing import Gate

ALL = (cache_hit, cache_miss, cache_stored, hit_ratio_reported, tag_invalidated)


@pytest.fixture(autouse=True)
def _nobody_connected() -> Iterator[None]:
    yield
    for signal in ALL:
        signal.receivers.clear()
        signal.settle()


def make_app(name: str = "proj") -> Celery:
    app = Celery(name, broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.task_always_eager = False
    CacheTiers(app).in_memory = True
    return app


@pytest.fixture
def app() -> Iterator[Celery]:
    app = make_app()
    yield app
    CacheTiers(app).reset()


def square(app: Celery, **options: Any) -> Any:
    @app.task(base=CachedTask, name="square", shared=False, **options)
    def square(x: int) -> int:
        return x * x

    return square


class Heard:
    """A receiver that keeps what it was told."""

    def __init__(self) -> None:
        self.told: list[dict[str, Any]] = []

    def __call__(self, sender: Any, **kwargs: Any) -> None:
        del kwargs["signal"]
        self.told.append({"sender": sender, **kwargs})

    def __len__(self) -> int:
        return len(self.told)


def listening(app: Celery) -> set[str]:
    """The names of the signals that subscribe to an app's events."""
    events = CacheTiers(app).events
    found = [each for group in (*events._subscribers.values(), events.of_l1) for each in group]
    return {str(each.signal.name) for each in found if isinstance(each, signals.Feed)}


# -- what they say --------------------------------------------------------------------------------------------------


def test_the_exported_signals_are_these_four() -> None:
    assert signals.__all__ == [signal.name for signal in ALL]


def test_a_miss_then_a_value_stored_then_a_hit(app: Celery) -> None:
    task, heard = square(app), {signal.name: Heard() for signal in ALL}
    for signal in ALL:
        signal.connect(heard[signal.name])

    assert task(3) == 9
    assert task(3) == 9

    me, key = app.tasks["square"], task.cache.key(3)
    (stored,) = heard["cache_stored"].told
    assert heard["cache_miss"].told == [{"sender": me, "key": key}]
    assert (stored["sender"], stored["key"]) == (me, key)
    assert stored["size"] > 0
    assert heard["cache_hit"].told == [{"sender": me, "tier": "l1", "stale": False, "key": key}]
    assert heard["tag_invalidated"].told == []


@pytest.mark.parametrize("how", ["task", "bound task", "before it is bound", "decorator", "decorator of a bound task"])
def test_a_receiver_connected_for_one_task_hears_of_that_task_only(app: Celery, how: str) -> None:
    task, heard = square(app), Heard()

    @app.task(base=CachedTask, name="other", shared=False)
    def other(x: int) -> int:
        return x

    match how:
        case "task":
            task.cache.key(1)
            cache_hit.connect(heard, sender=task)
        case "bound task":
            cache_hit.connect(heard, sender=app.tasks["square"])
        case "before it is bound":
            cache_hit.connect(heard, sender=task)
        case "decorator":
            cache_hit.connect(sender=task)(heard)
        case "decorator of a bound task":
            cache_hit.connect(sender=app.tasks["square"])(heard)
    for _ in range(2):
        task(2)
        other(2)

    assert [told["sender"].name for told in heard.told] == ["square"]


@pytest.mark.parametrize("seam", ["call", "cache.get", "apply_async", "strict", "inside a body"])
def test_a_hit_in_memory_is_heard_once_whichever_way_it_is_asked_for(app: Celery, seam: str) -> None:
    task = square(app, **({"consistency": "strict"} if seam == "strict" else {}))

    @app.task(base=CachedTask, name="outer", shared=False)
    def outer() -> int:
        return int(task(2))

    task(2)
    heard = Heard()
    cache_hit.connect(heard, sender=task)
    ask: dict[str, Callable[[], Any]] = {
        "call": lambda: task(2),
        "cache.get": lambda: task.cache.get(2),
        "apply_async": lambda: task.delay(2).get(timeout=1),
        "strict": lambda: task(2),
        "inside a body": outer,
    }

    assert ask[seam]() == 4
    assert [(told["tier"], told["stale"]) for told in heard.told] == [("l1", False)]
    assert task.cache.info().l1_hits == 1


def test_a_call_that_found_nothing_to_read_is_no_hit(app: Celery) -> None:
    task, heard = square(app), Heard()
    task.cache.key(1)
    cache_hit.connect(heard)

    assert task.cache.get(2) is MISSING
    assert heard.told == []


def test_a_follower_is_answered_by_its_leader(app: Celery) -> None:
    gate, heard = Gate("compute"), Heard()

    @app.task(base=CachedTask, name="slow", shared=False)
    def slow() -> int:
        gate.pass_through()
        return 1

    cache_hit.connect(heard, sender=slow)
    held = threading.Event()
    flights = app.tasks["slow"].memoized.cache._follower.flights
    join = flights.join

    def joined(*args: Any, **kwargs: Any) -> Any:
        flight, leads = join(*args, **kwargs)
        if not leads:
            held.set()
        return flight, leads

    flights.join = joined
    with ThreadPoolExecutor(2) as pool:
        led = pool.submit(slow)
        gate.wait_reached()
        followed = pool.submit(slow)
        assert held.wait(10)
        gate.open()
        assert (led.result(10), followed.result(10)) == (1, 1)

    assert [(told["tier"], told["stale"]) for told in heard.told] == [("leader", False)]


@pytest.mark.parametrize(("outcome", "sent"), [("value", 1), ("error", 0), ("follows", 0)])
def test_only_a_leaders_value_is_an_answer(app: Celery, outcome: str, sent: int) -> None:
    heard = Heard()
    cache_hit.connect(heard)
    CacheTiers(app).events.emit(Event.COALESCED, "square", key="k", outcome=outcome)

    assert len(heard) == sent


def test_a_task_that_the_app_does_not_know_is_named(app: Celery) -> None:
    heard = Heard()
    cache_miss.connect(heard)
    CacheTiers(app).events.emit(Event.MISS, "gone", key="k")

    assert heard.told == [{"sender": "gone", "key": "k"}]


def test_an_invalidation_is_told_by_the_users_names_one_by_one(app: Celery) -> None:
    heard = Heard()
    tag_invalidated.connect(heard, sender=app)
    CacheTiers(app).invalidate_tags(["user:1", "@all", "@@x"])

    assert heard.told == [{"sender": app, "tag": tag, "heard": False} for tag in ("user:1", "@all", "@@x")]


def test_what_is_no_tag_of_the_users_is_not_told_as_one(app: Celery) -> None:
    task, heard = square(app), Heard()
    tag_invalidated.connect(heard)
    CacheTiers(app).clear()
    CacheTiers(app).clear("square")
    task.cache.invalidate(1)

    assert heard.told == []


def test_an_invalidation_elsewhere_is_told_as_heard(app: Celery) -> None:
    heard = Heard()
    tag_invalidated.connect(heard)
    CacheTiers(app).events.emit(Event.HEARD, names=("user:1", "@key:0"))

    assert heard.told == [{"sender": app, "tag": "user:1", "heard": True}]


def test_each_apps_receivers_hear_of_that_app_only(app: Celery) -> None:
    other, heard = make_app("other"), Heard()
    mine, theirs = square(app), square(other)
    for task in (mine, theirs):
        task(1)
    cache_hit.connect(heard, sender=mine)
    for task in (mine, theirs):
        task(1)
    CacheTiers(other).reset()

    assert [told["sender"] for told in heard.told] == [app.tasks["square"]]


# -- receivers that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signal", ALL, ids=lambda signal: str(signal.name))
def test_what_a_receiver_raises_is_logged_and_never_reaches_the_caller(
    app: Celery, signal: Any, caplog: pytest.LogCaptureFixture
) -> None:
    task, heard = square(app), Heard()

    def fail(**kwargs: Any) -> None:
        raise RuntimeError("broken receiver")

    signal.connect(fail)
    signal.connect(heard)
    with caplog.at_level(logging.ERROR):
        assert task(3) == 9
        assert task(3) == 9
        assert task.delay(3).get(timeout=1) == 9
        CacheTiers(app).invalidate_tag("user:1")
        CacheTiers(app).events.emit(Event.REPORTED, report=Report(0.0, None, 0.9, {}))

    assert len(heard) >= 1
    assert "broken receiver" in caplog.text


def test_a_fault_of_the_signal_itself_does_not_reach_the_caller_of_a_hit(
    app: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    task, heard = square(app), Heard()
    task(3)
    cache_hit.connect(heard)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken signal")

    monkeypatch.setattr(cache_hit, "send", fail)

    assert task(3) == 9
    assert "a subscriber of hit failed" in caplog.text


# -- nobody listens ---------------------------------------------------------------------------------------------------


def test_nothing_listens_until_somebody_connects_and_again_after_the_last_has_left(app: Celery) -> None:
    task, first, second = square(app), Heard(), Heard()
    assert listening(app) == set()

    cache_hit.connect(first)
    cache_hit.connect(second, sender=task)
    task.cache.key(1)
    assert listening(app) == {"cache_hit"}
    cache_hit.disconnect(first)
    assert listening(app) == {"cache_hit"}
    cache_hit.disconnect(second, sender=task)

    assert listening(app) == set()
    assert CacheTiers(app).events.of_l1 == ()


@pytest.mark.parametrize("signal", ALL, ids=lambda signal: str(signal.name))
def test_only_those_who_want_hits_make_a_hit_in_memory_tell_of_itself(app: Celery, signal: Any) -> None:
    heard = Heard()
    signal.connect(heard)

    assert listening(app) == {signal.name}
    assert bool(CacheTiers(app).events.of_l1) == (signal is cache_hit)


def test_an_app_that_is_installed_later_is_heard_too() -> None:
    heard = Heard()
    cache_miss.connect(heard)
    app = make_app("later")
    square(app)(1)
    CacheTiers(app).reset()

    assert [told["sender"] for told in heard.told] == [app.tasks["square"]]


def test_connecting_twice_tells_once(app: Celery) -> None:
    task, heard = square(app), Heard()
    for _ in range(2):
        cache_miss.connect(heard)
    task(1)

    assert len(heard) == 1


def test_a_receiver_that_was_referenced_weakly_and_died_leaves_nothing_behind(app: Celery) -> None:
    task, heard = square(app), Heard()
    task(1)
    gone = weakref.ref(heard)
    cache_hit.connect(heard)
    task(1)
    assert len(heard) == 1

    del heard
    gc.collect()
    assert gone() is None
    assert task(1) == 1

    assert listening(app) == set()
    assert cache_hit.receivers == []


def test_a_weak_receiver_that_died_does_not_silence_the_others(app: Celery) -> None:
    task, heard = square(app), Heard()
    cache_miss.connect(Heard())
    cache_miss.connect(heard)
    gc.collect()
    task(1)

    assert len(heard) == 1
    assert listening(app) == {"cache_miss"}


def test_an_app_that_is_gone_is_not_kept_by_the_signals() -> None:
    heard = Heard()
    cache_hit.connect(heard)
    app = make_app("gone")
    square(app)(1)
    CacheTiers(app).reset()
    known = weakref.ref(CacheTiers(app))
    app.close()
    del app
    gc.collect()

    assert known() is None


# -- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12: a fork with threads, as prefork's
def test_a_child_forked_while_every_lock_is_held_hears_of_its_own_calls(app: Celery) -> None:
    task, heard = square(app), Heard()
    task(1)
    cache_hit.connect(heard)
    task(1)
    read, write = os.pipe()
    with cache_hit.lock, signals._lock, CacheTiers(app).events._lock:
        pid = os.fork()
        if pid == 0:  # pragma: no cover - in the child
            try:
                os.write(write, json.dumps(_in_child(task, heard)).encode())
            finally:
                os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)

    assert json.loads(text) == [["l1", "l1"], False]
    assert len(heard) == 1


def _in_child(task: Any, heard: Heard) -> list[Any]:  # pragma: no cover
    def work() -> None:
        task(1)
        task(1)
        cache_hit.disconnect(heard)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(10)
    return [[told["tier"] for told in heard.told], thread.is_alive()]
