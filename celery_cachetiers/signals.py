"""Signals: what the engine tells of itself, as Celery tells it: ``cache_hit.connect(receiver, sender=profile)``.

While a signal has no receiver, it subscribes to no engine's events and costs nothing; with the first one it subscribes
to those of every installed app, and leaves them with the last. What a signal says of an event is decided here, too.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from celery import Celery
from celery.utils.dispatch import Signal

from celery_cachetiers.events import Event, Events
from celery_cachetiers.tag_names import user_tag

__all__ = ["cache_hit", "cache_miss", "cache_stored", "hit_ratio_reported", "tag_invalidated"]

Tell = Callable[[Signal, Celery, Event, str, dict[str, Any]], None]
"""Sends a signal for an event."""


class Source(Protocol):
    """An installed extension."""

    app: Celery
    events: Events


_lock = threading.Lock()
_sources: weakref.WeakSet[Any] = weakref.WeakSet()


class CacheSignal(Signal):
    """A `celery.utils.dispatch.Signal` that listens to the installed apps' events as long as somebody listens to it.

    A receiver runs in the thread in which the event happened. What it raises is logged by Celery and goes no further.
    A receiver that was referenced weakly and is gone is noticed at the next event.

    Args:
        name: For its repr.
        arguments: What receivers get besides ``sender`` and ``signal``.
        tell: Sends it for an event.
        events: Those that it may be sent for.
        in_l1: It also wants the hits in L1, which emit no event.

    Concurrency: one lock for all signals guards who listens; sending takes Celery's own, one per signal. Both are made
    anew in a forked child.
    """

    def __init__(self, name: str, arguments: list[str], tell: Tell, *events: Event, in_l1: bool = False) -> None:
        super().__init__(name=name, providing_args=arguments)
        self.tell, self._events, self._in_l1 = tell, events, in_l1

    def connect(self, *args: Any, **kwargs: Any) -> Any:
        """As `celery.utils.dispatch.Signal.connect`, as a function and as a decorator."""
        connected = super().connect(*args, **kwargs)
        if args and callable(args[0]):
            self.settle()
            return connected

        def connect(receiver: Any) -> Any:
            done = connected(receiver)
            self.settle()
            return done

        return connect

    def disconnect(self, *args: Any, **kwargs: Any) -> Any:
        """As `celery.utils.dispatch.Signal.disconnect`."""
        disconnected = super().disconnect(*args, **kwargs)
        self.settle()
        return disconnected

    def settle(self) -> None:
        """Listens to every source, or to none, as there are receivers or not."""
        with _lock:
            for source in _sources:
                self._settle(source)

    def _settle(self, source: Source) -> None:
        feed = Feed(self, source.app)
        wanted, events = bool(self.receivers), source.events
        if wanted == events.hears(feed):
            return
        if not wanted:
            events.unsubscribe(feed)
            return
        events.subscribe(feed, *self._events)
        if self._in_l1:
            events.subscribe_to_l1_hits(feed)

    def reset_after_fork(self) -> None:
        """Celery's lock, which another thread of the parent may have held."""
        self.lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Feed:
    """The subscriber between one app's events and one signal."""

    signal: CacheSignal
    app: Celery

    def __call__(self, event: Event, task: str, details: dict[str, Any]) -> None:
        self.signal.tell(self.signal, self.app, event, task, details)
        if not self.signal.receivers:  # the last one was weak, and is gone
            self.signal.settle()


def feed(source: Source) -> None:
    """Lets the signals know of an app's events."""
    with _lock:
        _sources.add(source)
        for signal in _SIGNALS:
            signal._settle(source)


def _sender(app: Celery, task: str) -> Any:
    """The task object that users have; the name of one that the app does not know."""
    return app.tasks.get(task, task)


def _hit(signal: Signal, app: Celery, event: Event, task: str, details: dict[str, Any]) -> None:
    coalesced = event is Event.COALESCED
    if coalesced and details["outcome"] != "value":
        return
    tier, stale = ("leader", False) if coalesced else (details["tier"], details["stale"])
    signal.send(_sender(app, task), tier=tier, stale=stale, key=details["key"])


def _miss(signal: Signal, app: Celery, event: Event, task: str, details: dict[str, Any]) -> None:
    signal.send(_sender(app, task), key=details["key"])


def _stored(signal: Signal, app: Celery, event: Event, task: str, details: dict[str, Any]) -> None:
    signal.send(_sender(app, task), key=details["key"], size=details["size"])


def _invalidated(signal: Signal, app: Celery, event: Event, task: str, details: dict[str, Any]) -> None:
    """The library's own names, of keys, tasks and the namespace, are no tags of the user's.

    Nor has anybody invalidated a tag whose version Redis has lost.
    """
    if details.get("tracked"):
        return
    for tag in map(user_tag, details["names"]):
        if tag is not None:
            signal.send(app, tag=tag, heard=event is Event.HEARD)


def _reported(signal: Signal, app: Celery, event: Event, task: str, details: dict[str, Any]) -> None:
    signal.send(app, ratio=details["report"].ratio, report=details["report"])


cache_hit = CacheSignal("cache_hit", ["tier", "stale", "key"], _hit, Event.HIT, Event.COALESCED, in_l1=True)
cache_miss = CacheSignal("cache_miss", ["key"], _miss, Event.MISS)
cache_stored = CacheSignal("cache_stored", ["key", "size"], _stored, Event.STORED)
tag_invalidated = CacheSignal("tag_invalidated", ["tag", "heard"], _invalidated, Event.INVALIDATED, Event.HEARD)
hit_ratio_reported = CacheSignal("hit_ratio_reported", ["ratio", "report"], _reported, Event.REPORTED)

_SIGNALS = (cache_hit, cache_miss, cache_stored, tag_invalidated, hit_ratio_reported)


def _reset_children() -> None:
    global _lock  # noqa: PLW0603 - the parent's may be held by a thread that the child does not have
    _lock = threading.Lock()
    for signal in _SIGNALS:
        signal.reset_after_fork()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_reset_children)
