"""A whole process in memory: engine, L1, a store that can be broken, and time that stands still."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any

from celery_cachetiers.attempt import Terms
from celery_cachetiers.backplane.ears import Ears
from celery_cachetiers.backplane.waiters import Waiters
from celery_cachetiers.cache import TieredCache
from celery_cachetiers.call import Call, Memo, ResultTagging, Unshared
from celery_cachetiers.codec import Codec
from celery_cachetiers.entry import MISSING
from celery_cachetiers.events import Event, Events
from celery_cachetiers.metrics.tally import Counters, Tally
from celery_cachetiers.parts import Parts
from celery_cachetiers.policy import Policy
from celery_cachetiers.ports import Failures, LeaseRequest, Store
from celery_cachetiers.tag_names import escape_tag, namespace_tag, task_tag
from celery_cachetiers.templates import compile_result_tags
from celery_cachetiers.testing.clock import FakeClock
from celery_cachetiers.testing.faults import FaultyStore
from celery_cachetiers.testing.memory_store import MemoryBackplane, MemoryStore
from celery_cachetiers.tiers.memory import MemoryTier
from celery_cachetiers.tiers.seen_tags import SeenTags


class ManualKeeper:
    """A `celery_cachetiers.ports.Renewer` that renews when a test says so.

    Attributes:
        kept: The leases in its hands.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.kept: list[LeaseRequest] = []

    @contextmanager
    def keeping(self, request: LeaseRequest) -> Iterator[None]:
        """Holds a lease until the block ends."""
        with self._lock:
            self.kept.append(request)
        try:
            yield
        finally:
            with self._lock:
                self.kept.remove(request)

    def renew(self) -> list[bool]:
        """Renews every lease in its hands, and says which of them were still held."""
        with self._lock:
            kept = list(self.kept)
        return [self._store.renew(request) for request in kept]

    def close(self) -> None:
        """There is no thread."""

    def reset_after_fork(self) -> None:
        """Without leases."""
        self._lock = threading.Lock()
        self.kept = []


class InMemoryProcess:
    """What one worker or web process has of the library, without Redis and without Celery.

    ```
    here = InMemoryProcess()
    there = InMemoryProcess(beside=here)               # another process on the same "Redis"
    call = here.call("profile:1", tags=["user:1"], ttl=300)
    here.cache.fetch(call, lambda: {"name": "Ann"})
    ```

    Args:
        beside: Shares its clock and what is stored with that process.
        l1_only: Without a store, as an app without Redis.
        wake_ups: Where waiters wait; one of its own by default.
        maxsize: Entries in L1 at most.
        max_bytes: Bytes in L1 at most.
        failures: What the bodies' exceptions mean; by default none is shared, and none is a retry.

    Attributes:
        clock, l1, wake_ups, seen_tags, cache, counters: The parts, ready to look at.
        memory: What is stored, without faults.
        store: The same as the engine sees it: break it here.
        backplane: Cut it here.
        keeper: Renews leases when told to.
        events: All events of this process so far: (event, details).
    """

    def __init__(
        self,
        *,
        beside: InMemoryProcess | None = None,
        l1_only: bool = False,
        wake_ups: Waiters | None = None,
        maxsize: int = 1000,
        max_bytes: int = 1024**2,
        failures: Failures | None = None,
    ) -> None:
        self.clock: FakeClock = FakeClock() if beside is None else beside.clock
        self.memory: MemoryStore = MemoryStore(self.clock, beside=None if beside is None else beside.memory)
        self.store = FaultyStore(self.memory)
        self.l1 = MemoryTier(maxsize, max_bytes, self.clock, trusted=l1_only)
        self.wake_ups = Waiters() if wake_ups is None else wake_ups
        events = Events()
        self.backplane = MemoryBackplane(self.memory, Ears(self.l1, self.wake_ups, events))
        self.keeper = ManualKeeper(self.store)
        self._failures: Failures = Unshared() if failures is None else failures
        self.seen_tags = SeenTags()
        self.counters, self.events = Counters(), list[tuple[Event, dict[str, object]]]()
        events.subscribe(self.counters)
        events.subscribe(lambda event, task, details: self.events.append((event, details)))
        parts = Parts(self.l1, self.wake_ups, self.clock, events)
        if not l1_only:
            parts = Parts(self.l1, self.wake_ups, self.clock, events, self.store, self.backplane, self.keeper)
            self.backplane.start()
        self.cache = TieredCache(parts)

    def call(
        self,
        key: str,
        *,
        task: str = "task",
        tags: Sequence[str] = (),
        codec: Codec | None = None,
        **options: Any,
    ) -> Call:
        """A call of a memoized task.

        Args:
            key: Stands for the arguments.
            tags: As they were rendered from them.
            codec: JSON by default.
            options: Task options such as ``ttl=300.0``, already checked.
        """
        codec = codec or Codec("json", ["json"])
        policy = Policy(**options)
        tagging = None
        if policy.tags_from is not None:
            tagging = ResultTagging(compile_result_tags(policy.tags_from), self.seen_tags)
        memo = Memo(task, policy, codec, self.counters.of(task), self._failures, tagging=tagging)
        names = (namespace_tag(), task_tag(task), *map(escape_tag, sorted(tags)))
        digest = blake2b(f"{task}:{key}".encode(), digest_size=16).hexdigest()
        return Call(memo, digest, lambda: names)

    def get(self, call: Call, compute: Callable[[], object], **how: Any) -> object:
        """The call's value, as a task's ``__call__`` gets it: from L1, else by `TieredCache.fetch`."""
        value = self.cache.recall(call) if not how.get("refresh") else MISSING
        return self.cache.fetch(call, compute, Terms(**how)) if value is MISSING else value

    def count(self, event: Event) -> int:
        """How often it has happened."""
        return sum(happened is event for happened, _ in self.events)

    @property
    def tally(self) -> Tally:
        """What was counted for the task that `call` names by default."""
        return self.counters.of("task")
