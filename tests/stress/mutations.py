"""One mechanism at a time taken out, in the processes of the staleness test alone, to see that the test notices."""

from __future__ import annotations

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from celery_cachetiers.backplane.ears import Ears
from celery_cachetiers.events import Event
from celery_cachetiers.tiers import redis
from celery_cachetiers.tiers.memory import MemoryTier
from celery_cachetiers.tiers.redis import RedisStore

LONGEST_PAUSE = 0.01


def dawdle() -> None:
    """No mutation: now and then a thread is not run for a while after Redis has answered, as on a busy machine."""

    def slowed(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            answer = step(*args, **kwargs)
            if random.random() < 0.3:
                time.sleep(LONGEST_PAUSE * random.random())
            return answer

        return run

    for name in ("read", "lease", "commit", "confirms"):
        setattr(RedisStore, name, slowed(getattr(RedisStore, name)))


def nothing() -> None:
    """As it is."""


def stamp_after_compute() -> None:
    """The versions are noted when the value is stored: the leader takes its lease once more under those of now."""
    commit = RedisStore.commit

    def late(store: RedisStore, request: Any, *args: Any, **kwargs: Any) -> int:
        store.lease(request._replace(now=None))
        return commit(store, request, *args, **kwargs)

    RedisStore.commit = late  # type: ignore[method-assign]


def no_guard() -> None:
    """L1 takes what was read before an announcement that has arrived meanwhile."""
    put = MemoryTier.put

    def unguarded(
        tier: MemoryTier, digest: str, value: object, names: tuple[str, ...], ttl: float, mark: object, **options: Any
    ) -> bool:
        return put(tier, digest, value, names, ttl, tier.mark(), **options)

    MemoryTier.put = unguarded  # type: ignore[assignment,method-assign]


def no_flush_on_gap() -> None:
    """L1 is trusted although the backplane was lost."""

    def gap(ears: Ears) -> None:
        ears._wake_ups.wake_all()
        ears._events.emit(Event.GAP)

    Ears.gap = gap  # type: ignore[method-assign]


def no_log() -> None:
    """A value is stored under the tags of its result, whatever was invalidated since its compute began."""
    checked = "if noted[i] and tonumber(noted[i]) > tonumber(ARGV[11]) then outcome = -1 end"
    assert checked in redis._COMMIT.source.decode(), "commit.lua reads differently now"
    redis._COMMIT.source = redis._COMMIT.source.replace(checked.encode(), b"")
    redis._COMMIT.sha = hashlib.sha1(redis._COMMIT.source, usedforsecurity=False).hexdigest()


def deaf() -> None:
    """Announcements come in and are not acted on."""
    Ears.invalidated = lambda ears, names: None  # type: ignore[method-assign,assignment]


MUTATIONS: Mapping[str, Callable[[], None]] = {
    each.__name__: each for each in (nothing, stamp_after_compute, no_guard, no_flush_on_gap, no_log, deaf)
}
