"""``task.cache``: what is cached of one task, for code that asks, puts and invalidates by arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from celery_cachetiers.attempt import Terms
from celery_cachetiers.call import Call
from celery_cachetiers.entry import MISSING
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.policy import Policy

Dump = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


class TaskCache:
    """What is cached of one task. Arguments are the task's own; a call without a key raises `UncacheableArgument`.

    Args:
        dump: Turns arguments into what the worker will see.
        body: Runs the task, uncached.
    """

    def __init__(self, memoized: Memoized, dump: Dump, body: Callable[..., Any]) -> None:
        self._memoized, self._dump, self._body = memoized, dump, body

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key of a call: 32 hex characters."""
        return self._call(args, kwargs).digest

    def get(self, *args: Any, **kwargs: Any) -> Any:
        """The cached value, one that may be served stale included, or `MISSING`. Costs: at most 1 round trip."""
        if not self._on():
            return MISSING
        reading = self._memoized.cache.look(self._call(args, kwargs))
        return MISSING if reading is None else reading.value

    def put(
        self, args: tuple[Any, ...], value: object, kwargs: Mapping[str, Any] | None = None, *, ttl: float | None = None
    ) -> None:
        """Stores a value as if the body had just returned it; a leader that computes the key now is refused.

        Args:
            args: The call's positional arguments, as a tuple.
            ttl: Seconds this value is fresh; the task's ``ttl`` by default.

        Raises:
            UnusableEntry: It cannot be serialized, or is larger than ``max_bytes``.
            TierUnavailable: L2 was not reached, or is full.

        Costs: 1 round trip.
        """
        if not isinstance(args, (tuple, list)):
            raise TypeError(f"put takes the call's positional arguments as a tuple, not {args!r}")
        if ttl is not None:
            ttl = replace(self._memoized.policy, **Policy.check({"ttl": ttl}, self._memoized.name)).ttl
        if self._on():
            self._memoized.cache.put(self._call(tuple(args), kwargs or {}), value, ttl)

    def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Removes the entry; a leader that computes the key now is refused. Costs: 1 round trip.

        Raises:
            TierUnavailable: L2 was not reached.
        """
        self._memoized.cache.invalidate_key(self._call(args, kwargs).digest, self._memoized.name)

    def refresh(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the body here and now, replaces the entry, and returns the value."""
        compute = partial(self._body, *args, **kwargs)
        if not self._on():
            return compute()
        return self._memoized.cache.fetch(self._call(args, kwargs), compute, Terms(refresh=True))

    def info(self) -> Tally:
        """What this process has counted for the task since it began."""
        return replace(self._memoized.memo.tally)

    def __repr__(self) -> str:
        return f"<TaskCache of {self._memoized.name}: {self.info()}>"

    def _on(self) -> bool:
        return self._memoized.enabled and not self._memoized.extension.suspended

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        return self._memoized.call(*self._dump(args, dict(kwargs)))
