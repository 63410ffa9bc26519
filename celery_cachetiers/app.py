"""The extension: one `CacheTiers` per Celery app. The only place that names concrete tiers and wires them together."""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.local import Proxy

from celery_cachetiers.backplane.ears import Ears
from celery_cachetiers.backplane.redis import RedisBackplane
from celery_cachetiers.backplane.tracking import Tracking
from celery_cachetiers.backplane.waiters import Waiters
from celery_cachetiers.breaker import Breaker
from celery_cachetiers.cache import TieredCache
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import Clock, SystemClock
from celery_cachetiers.codec import Codec
from celery_cachetiers.commits import Wait, check_on_commit, open_transactions
from celery_cachetiers.counting import Counting, listen
from celery_cachetiers.events import Event, Events
from celery_cachetiers.installed import EVERYWHERE
from celery_cachetiers.keys import checked_key
from celery_cachetiers.leases.keeper import Keeper
from celery_cachetiers.logs import listen as listen_to_events
from celery_cachetiers.metrics.tally import Counters
from celery_cachetiers.parts import Parts
from celery_cachetiers.policy import Policy, Settings
from celery_cachetiers.ports import LeaseRequest
from celery_cachetiers.reporting import Reporting
from celery_cachetiers.roll_call import RollCall
from celery_cachetiers.settings import backend_redis, settings_of
from celery_cachetiers.signals import feed
from celery_cachetiers.tag_names import checked_tag, escape_tag, task_of
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.memory import MemoryTier
from celery_cachetiers.tiers.redis import RedisStore
from celery_cachetiers.tiers.redis_server import RedisServerInfo
from celery_cachetiers.tiers.seen_tags import SeenTags
from celery_cachetiers.tiers.tracked import TrackedTier

if TYPE_CHECKING:
    from celery_cachetiers.invalidation import Invalidation
    from celery_cachetiers.metrics.report import Report
    from celery_cachetiers.registry import Registry
    from celery_cachetiers.write_behind import WriteBehind

logger = logging.getLogger("celery_cachetiers")


class CacheTiers:
    """Installs the extension in an app; a second call for the same app returns the same object.

    Optional: the first `CachedTask` that is bound to an app does it. Call it in a process whose only use of the cache
    is to invalidate, or to invalidate in a named app.

    Concurrency: settings are read and connections are opened at first use, once, under a lock; anew after a fork.
    """

    app: Celery
    events: Events
    counters: Counters
    counting: Counting
    roll_call: RollCall
    reporting: Reporting
    clock: Clock
    seen_tags: SeenTags
    suspended: bool = False
    """True makes every task run as if uncached; for tests."""
    in_memory: bool = False
    """True leaves Redis out at the next `reset`; for tests."""
    tasks: weakref.WeakSet[Any]
    invalidations: dict[str, Invalidation]
    """What the app's tasks invalidate, by the name of the task."""
    _settings: Settings | None
    _cache: TieredCache | None
    _writes: WriteBehind | None

    def __new__(cls, app: Celery) -> CacheTiers:
        """The app's extension, installed if it was not."""
        if isinstance(app, Proxy):
            app = app._get_current_object()
        existing = getattr(app, "_cachetiers", None)
        if isinstance(existing, CacheTiers):
            return existing
        self = super().__new__(cls)
        self.app = app
        self.clock = SystemClock()
        self.events, self.counters, self.seen_tags = Events(), Counters(), SeenTags()
        self.events.subscribe(self.counters)
        self.counting, self.roll_call, self.reporting = Counting(self), RollCall(self), Reporting(self)
        listen_to_events(self.events)
        feed(self)
        self.tasks, self.invalidations = weakref.WeakSet(), {}
        self._lock = threading.RLock()
        self._settings, self._cache, self._writes = None, None, None
        # Lives and dies with its app. Threads may bind their first tasks at once: one of them installs. (No lock, as
        # others may hold Celery's: what is bound while an app is finalized gets here too.)
        first: CacheTiers = app.__dict__.setdefault("_cachetiers", self)
        if first is not self:
            return first
        EVERYWHERE.add(self)
        app.steps["consumer"].update(
            ["celery_cachetiers.waiting_room:WaitingRoom", "celery_cachetiers.control:RemoteControl"]
        )
        app.steps["worker"].update(
            [
                "celery_cachetiers.registry:StartCheck",
                "celery_cachetiers.schedule:WriteBehindCheck",
                "celery_cachetiers.reporting:EventSwitch",
            ]
        )
        from celery_cachetiers.invalidating import watch
        from celery_cachetiers.schedule import listen as listen_to_workers
        from celery_cachetiers.tasks import register

        register(app)
        watch(self)
        listen_to_workers()
        listen()
        return self

    @property
    def settings(self) -> Settings:
        """The app's settings, resolved at first use. Raises `ConfigurationError`."""
        if self._settings is None:
            with self._lock:
                if self._settings is None:
                    self._settings = settings_of(self.app)
        return self._settings

    @property
    def cache(self) -> TieredCache:
        """The engine of this process, made at first use; nothing is connected before the first call."""
        if self._cache is None:
            with self._lock:
                if self._cache is None:
                    self._cache = self._build()
        return self._cache

    @property
    def writes(self) -> WriteBehind:
        """The journal of this process, made at first use."""
        if self._writes is None:
            from celery_cachetiers.write_behind import WriteBehind

            with self._lock:
                if self._writes is None:
                    self._writes = WriteBehind(self)
        return self._writes

    def codec(self, policy: Policy) -> Codec:
        """The codec of one task's entries. Raises `ConfigurationError`."""
        conf = self.app.conf
        return Codec(
            serializer=policy.cache_serializer or conf.result_serializer,
            accept=conf.accept_content if conf.result_accept_content is None else conf.result_accept_content,
            compression=self.settings.compression,
            max_bytes=policy.max_bytes,
            signing_keys=self.settings.signing_key,
        )

    def stats(self, task: str | None = None) -> dict[str, Any]:
        """What all processes have counted, added up in Redis, this process' latest included; one task's by its name.

        Returns:
            ``tasks``: name to counters; ``total``: all tasks together; ``ratio``: their hit ratio, ``None`` without
            requests; ``process``: what belongs to no task; ``invalidated``: pattern of the tag to invalidations, the
            most frequent first; ``outdated``: misses that these have made, the same way; ``unusable``: entries that
            could not be read or written, by `UnusableEntry.reason`; ``here``: what L1 of this very process holds, and
            whether it leaves Redis alone just now (``breaker``).

        Raises:
            TierUnavailable: Redis was not reached.

        Costs: 2 round trips, and 1 more for each 500 tasks; never on the path of a call.
        """
        return {**self.counting.totals(task).as_dict(), "here": self.counting.here()}

    def history(self, since: float = 0.0) -> list[Report]:
        """The hit-ratio reports of the last days, the oldest first.

        Args:
            since: Epoch seconds; reports that were made before are left out.

        Raises:
            TierUnavailable: Redis was not reached.

        Costs: 1 round trip; never on the path of a call.
        """
        return self.reporting.history(since)

    @property
    def registry(self) -> Registry:
        """Which tasks depend on which tags, and which invalidate them, as declared; finalizes the app."""
        from celery_cachetiers.registry import Registry

        return Registry(self.app.tasks.values())

    def invalidate_tag(self, tag: str, on_commit: Any = None) -> None:
        """Makes every entry under a tag a miss, in every process that reads L2, before it returns.

        Args:
            on_commit: ``None`` waits for the commit if Django has an atomic block open here, ``False`` does not; a
                SQLAlchemy session (or a callable that returns it) waits for its commit. What waits is dropped on a
                rollback, and handed to a worker if Redis cannot be reached at the commit.

        Raises:
            TagError: The tag cannot be one.
            TierUnavailable: Redis was not reached: the entries may still be served; repeat it.
            ConfigurationError: There is nothing of the kind that ``on_commit`` names.

        Costs: 1 round trip, whatever the number of entries.
        """
        self.invalidate_tags([tag], on_commit)

    def invalidate_tags(self, tags: Sequence[str], on_commit: Any = None) -> None:
        """The same for several tags at once, in one round trip."""
        if isinstance(tags, str):
            raise TypeError(f"invalidate_tags takes a list of tags, not the string {tags!r}; see invalidate_tag")
        given = list(tags)
        names = [escape_tag(checked_tag(tag)) for tag in given]
        self.when_committed(lambda: self.cache.invalidate(names), on_commit, "invalidate_tags", given)

    def invalidate_key(self, key: str, on_commit: Any = None) -> None:
        """Removes one entry by its key, as ``task.cache.key(...)`` gives it; a leader that computes it is refused."""
        digest = checked_key(key)
        self.when_committed(lambda: self.cache.invalidate_key(digest), on_commit, "invalidate_key", digest)

    def clear(self, task: str | None = None, on_commit: Any = None) -> None:
        """Makes every entry of one task (by name), or of the whole namespace, a miss. Costs: 1 round trip."""
        self.when_committed(lambda: self.cache.clear(task), on_commit, "clear", task)

    def when_committed(self, act: Callable[[], None], on_commit: Any, operation: str, *args: object) -> None:
        """Acts now, for the caller to repeat; or after the commit, when nobody would: then a worker is asked to.

        Args:
            operation: The built-in task that does what is needed with these arguments.
        """
        waits = self.open_transactions(on_commit, operation)
        if not waits:
            return act()
        self.wait(waits, act, operation, *args)
        return None

    def open_transactions(self, on_commit: Any, operation: str) -> list[Wait]:
        """What an ``on_commit=`` stands for here and now. Raises `ConfigurationError`."""
        check_on_commit(on_commit, f"{operation}()")
        return open_transactions(on_commit, f"{operation}()")

    def wait(self, waits: list[Wait], act: Callable[[], None], operation: str, *args: object) -> None:
        """Acts at each of these commits. Raises and asks as `when_committed`."""
        self.cache  # noqa: B018 - what is wrong with the settings is said here, not in the midst of a commit
        from celery_cachetiers.tasks import or_hand_over

        for wait in waits:
            wait(partial(or_hand_over, self, act, operation, *args))

    def reset(self) -> None:
        """Closes connections and forgets settings, so that the next call reads ``app.conf`` anew; for tests."""
        with self._lock:
            cache, writes = self._cache, self._writes
            self._settings, self._cache, self._writes = None, None, None
            for task in self.tasks:
                task._memoized = None
        self.counting.reset()
        for part in (cache, writes):
            if part is not None:
                part.close()

    def __repr__(self) -> str:
        parts = self._cache.parts if self._cache is not None else "not used yet"
        return f"<CacheTiers of {self.app!r}: {parts}>"

    def _build(self) -> TieredCache:
        settings = self.settings
        where = self.where()
        kind = TrackedTier if settings.l1_tracking and where is not None else MemoryTier
        l1 = kind(settings.l1_maxsize, settings.l1_max_bytes, self.clock, trusted=where is None)
        wake_ups = Waiters()
        if where is None:
            if not self.in_memory:
                logger.warning("celery-cachetiers: no cachetiers_url and no Redis result backend: memory (L1) only")
            return TieredCache(Parts(l1, wake_ups, self.clock, self.events))
        url, options = where
        breaker = Breaker(settings.breaker_window, self.clock, self._breaker_changed)
        client = RedisClient(url, settings.timeout, breaker, **options)
        layout = Layout(settings.namespace)
        ears = Ears(l1, wake_ups, self.events, self.roll_call.answer)
        tracking = Tracking(client, layout, l1, ears, self.clock) if isinstance(l1, TrackedTier) else None
        backplane = RedisBackplane(client, layout, ears, self.clock, tracking)
        store = RedisStore(client, layout, lambda: backplane.inbox, self._unusable)
        keeper = Keeper(store, self.clock, self._lease_lost)
        return TieredCache(Parts(l1, wake_ups, self.clock, self.events, store, backplane, keeper))

    def server(self) -> RedisServerInfo | None:
        """The server of L2, to be asked about itself, on connections of its own, which the caller closes.

        ``None`` for an app that has memory only.
        """
        client = self.client()
        return None if client is None else RedisServerInfo(client)

    def client(self) -> RedisClient | None:
        """A client of L2 beside that of the calls, on connections of its own, which the caller closes.

        Its failures open no task's breaker. ``None`` for an app that has memory only.
        """
        where = self.where()
        return None if where is None else self.client_of(*where)

    def client_of(self, url: str, options: dict[str, Any] | None = None) -> RedisClient:
        """The same, of any server."""
        return RedisClient(url, self.settings.timeout, Breaker(0.0, self.clock), **(options or {}))

    def where(self) -> tuple[str, dict[str, Any]] | None:
        """URL of L2 and options for its connections; ``None`` for an app that has memory only."""
        if self.in_memory:
            return None
        if self.settings.url is not None:
            return self.settings.url, {}
        return backend_redis(self.app)

    def where_writes_wait(self) -> tuple[str, dict[str, Any]] | None:
        """The same of the journal; equal to `where` if it lies beside the entries."""
        if self.in_memory or self.settings.journal_url is None:
            return self.where()
        return self.settings.journal_url, {}

    def _breaker_changed(self, opened: bool) -> None:
        self.events.emit(Event.BREAKER_OPENED if opened else Event.BREAKER_CLOSED)

    def _lease_lost(self, lost: LeaseRequest) -> None:
        owner = next(filter(None, map(task_of, lost.tags)), "")
        self.events.emit(Event.LEASE_LOST, owner, key=lost.digest)

    def _unusable(self, reason: str) -> None:
        self.events.emit(Event.UNUSABLE, reason=reason)

    def reset_after_fork(self) -> None:
        """In a forked child: nothing of the parent's connections, threads and counts."""
        self._lock = threading.RLock()
        self.counters.reset_after_fork()
        self.counting.reset_after_fork()
        self.events.reset_after_fork()
        self.seen_tags.reset_after_fork()
        for part in (self._cache, self._writes):
            if part is not None:
                part.reset_after_fork()
