"""``task.cache``: what is cached of one task, for code that asks, puts and invalidates by arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from celery_cachetiers.asking import Asked, ask
from celery_cachetiers.attempt import Terms
from celery_cachetiers.call import Call
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.outlet import BesideWrite, Keyed, TaskOutlet
from celery_cachetiers.policy import Policy
from celery_cachetiers.publishing import checked_mode
from celery_cachetiers.why import Why

Given = tuple[tuple[Any, ...], object] | tuple[tuple[Any, ...], object, Mapping[str, Any]]
Dump = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


class TaskCache:
    """What is cached of one task. Arguments are the task's own; a call without a key raises `UncacheableArgument`.

    Args:
        dump: Turns arguments into what the worker will see.
        body: Runs the task, uncached: called with args, kwargs and perhaps the call.
    """

    def __init__(self, memoized: Memoized, dump: Dump, body: Callable[..., Any]) -> None:
        self._memoized, self._dump, self._body = memoized, dump, body

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key of a call: 32 hex characters."""
        return self._call(args, kwargs).digest

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """The cached value, one that may be served stale included, or `MISSING`.

        Of a task with a sink also the value that waits for that.

        Costs: at most 1 round trip; a miss of a task with ``write="behind"`` 1 more.
        """
        if not self._on():
            return MISSING
        call = self._call(args, kwargs)
        reading = self._memoized.cache.look(call)
        return self._memoized.waiting(call) if reading is None else reading.value

    def put(
        self, args: tuple[Any, ...], value: object, kwargs: Mapping[str, Any] | None = None, *,
        ttl: float | None = None, on_commit: Any = None,
    ) -> None:  # fmt: skip
        """Stores a value as if the body had just returned it; a leader that computes the key now is refused.

        Args:
            args: The call's positional arguments, as a tuple.
            ttl: Seconds this value is fresh; the task's ``ttl`` by default.
            on_commit: As the task option, which says it by default. A value that waits for a commit is kept as it is
                now, and dropped on a rollback.

        Raises:
            ConfigurationError: A write to a sink, which waits for no commit, is to wait for one.
            UnusableEntry: It cannot be serialized, or is larger than ``max_bytes``.
            TierUnavailable: L2 was not reached, or is full.

        Costs: 1 round trip. For a task with a sink 1 more if it declares ``invalidates``, and 2 more if the journal has
            a Redis of its own; with ``write="through"`` 2 more, and the sink's time.
        """
        if not isinstance(args, (tuple, list)):
            raise TypeError(f"put takes the call's positional arguments as a tuple, not {args!r}")
        self.put_many([(args, value, kwargs or {})], ttl=ttl, on_commit=on_commit)

    def put_many(self, items: Iterable[Given], *, ttl: float | None = None, on_commit: Any = None) -> None:
        """The same for several calls: ``[((1,), value), ((2,), value, {"kind": "x"})]``.

        Costs: as one `put`, for every 500 values; with ``write="through"`` 1 round trip more for each value, and 1 for
            each batch.
        """
        rows = [(*self._dump(tuple(args), dict(*kwargs)), value) for args, value, *kwargs in items]
        ttl = self._checked_ttl(ttl)
        calls = [self._memoized.call(args, kwargs) for args, kwargs, _ in rows]
        entries = [(call, value) for call, (_, _, value) in zip(calls, rows, strict=True)]
        outlet = self._memoized.outlet
        if outlet is None:
            if self._on():
                self._put(entries, ttl, self._on_commit if on_commit is None else on_commit)
            return
        if on_commit is not None and on_commit is not False:
            allowed = "None or False: what the sink gets is written when put returns, and does not wait for a commit"
            raise ConfigurationError("on_commit", on_commit, allowed, f"put() of task {self._memoized.name}")
        tags = [self._memoized.invalidated_by(*row) for row in rows]
        writes: list[Keyed] = [(call.digest, *row) for call, row in zip(calls, rows, strict=True)]
        together = outlet.beside(writes, tags) if self._on() else None
        if together is not None:
            self._put_together(outlet, together, entries, ttl)
        else:
            self._put_apart(outlet, writes, tags, entries, ttl)
        self._invalidate([name for names in tags for name in names])

    def _put(self, entries: list[tuple[Call, object]], ttl: float | None, on_commit: Any) -> None:
        tiers, cache, name = self._memoized.extension, self._memoized.cache, self._memoized.name
        waits = tiers.open_transactions(on_commit, "put")
        prepared = cache.prepare(entries, ttl)
        if not (waits and prepared):
            return cache.store(prepared)
        digests = [call.digest for call, _ in entries]
        # With two databases each commits for itself: what is put at the second may be older than what came after the
        # first. So the keys are forgotten at each.
        act = partial(cache.store, prepared) if len(waits) == 1 else partial(self._forget, digests)
        # Nobody repeats a put: where it cannot be done, what was there before must not go on answering.
        instead = ("invalidate_key", digests[0]) if len(digests) == 1 else ("clear", name)
        return tiers.wait(waits, act, *instead)

    def _put_together(
        self, outlet: TaskOutlet, together: BesideWrite, entries: list[tuple[Call, object]], ttl: float | None
    ) -> None:
        try:
            self._memoized.cache.put_all(entries, ttl, together.step)
        except TierUnavailable:
            outlet.settle(together)
            raise
        try:
            outlet.settle(together)
        except BaseException:
            self._forget([call.digest for call, _ in entries])  # nobody has written them
            raise

    def _put_apart(
        self, outlet: TaskOutlet, keyed: list[Keyed], tags: list[tuple[str, ...]],
        entries: list[tuple[Call, object]], ttl: float | None,
    ) -> None:  # fmt: skip
        taken = outlet.deliver_all(keyed, tags=tags)
        if self._on():
            self._memoized.cache.put_all(entries, ttl)
        # Two who put one key may reach journal and cache in another order: then the cache has neither.
        self._forget(outlet.overtaken(taken))

    def _forget(self, digests: list[str]) -> None:
        self._memoized.cache.invalidate_keys(digests, self._memoized.name)

    def delete(self, *args: Any, **kwargs: Any) -> None:
        """Removes the entry, and has the task's sink remove what it has: it gets a `Write` with ``deleted``.

        It waits for no commit, as all that goes to a sink.

        Raises:
            ConfigurationError: The task has no sink; to remove an entry alone is `invalidate`.
            TierUnavailable: L2 was not reached; the sink gets the write all the same.

        Costs: 2 round trips, and 1 more if the task declares ``invalidates``; with ``write="through"`` 1 more, and the
            sink's time.
        """
        outlet = self._memoized.outlet
        if outlet is None:
            raise ConfigurationError("sink", None, "a sink to delete from", f"task {self._memoized.name}")
        args, kwargs = self._dump(args, kwargs)
        call = self._memoized.call(args, kwargs)
        tags = self._memoized.invalidated_by(args, kwargs, MISSING)
        outlet.deliver(call.digest, args, kwargs, None, deleted=True, tags=tags)
        self._forget([call.digest])
        self._invalidate(tags)

    def _invalidate(self, names: Iterable[str]) -> None:
        """What the task declares to invalidate, as its value has changed without its body."""
        self._memoized.cache.invalidate(sorted(set(names)))

    def _checked_ttl(self, ttl: float | None) -> float | None:
        if ttl is None:
            return None
        checked: float = Policy.check({"ttl": ttl}, self._memoized.name)["ttl"]
        return checked

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Removes the entry; a leader that computes the key now is refused. Costs: 1 round trip.

        What the task option ``on_commit`` stands for is waited for, as by the function `invalidate_key`.

        Raises:
            TierUnavailable: L2 was not reached.
        """
        digest, name = self._call(args, kwargs).digest, self._memoized.name
        act = partial(self._memoized.cache.invalidate_key, digest, name)
        self._memoized.extension.when_committed(act, self._on_commit, "invalidate_key", digest)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the body here and now, replaces the entry, and returns the value."""
        if not self._on():
            return self._body(args, kwargs)
        call = self._call(args, kwargs)
        return self._memoized.cache.fetch(call, partial(self._body, args, kwargs, call), Terms(refresh=True))

    def why(self, *args: Any, **kwargs: Any) -> Why:
        """Why this call would be a hit or a miss now: ``print`` it, or see `Why`.

        It only looks: nothing is computed, counted, kept, prolonged or waited for. Where Redis cannot be reached, or
        the call has no key, it says so.

        Costs: 1 round trip; 1 more if the entry has tags that the call does not give, 1 more for a task with a sink.
        """
        return self.explain(args, kwargs)

    def explain(self, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None, *, mode: str = "use") -> Why:
        """The same as `why`, for a call with another ``cache_mode``.

        Raises:
            ConfigurationError: There is no such mode.
        """
        return self.ask(args, kwargs or {}, mode=mode).why

    def ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, mode: str = "use") -> Asked:
        """The same, with the value that the call would be answered with; for the command line."""
        return ask(self._memoized, *self._dump(tuple(args), dict(kwargs)), checked_mode(mode))

    def info(self) -> Tally:
        """What this process has counted for the task since it began."""
        return replace(self._memoized.memo.tally)

    def __repr__(self) -> str:
        return f"<TaskCache of {self._memoized.name}: {self.info()}>"

    @property
    def _on_commit(self) -> Any:
        return self._memoized.policy.on_commit

    def _on(self) -> bool:
        return self._memoized.enabled and not self._memoized.extension.suspended

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return self._memoized.call(*self._dump(args, dict(kwargs)))
