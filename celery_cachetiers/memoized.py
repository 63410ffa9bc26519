"""From a Celery task and its arguments to the engine's `Call`: policy, key and tags, each resolved once per task."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from celery import Task

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.binder import compile_binder
from celery_cachetiers.body import takes_models, with_models
from celery_cachetiers.call import Call, Memo, ResultTagging
from celery_cachetiers.dialects import dialect_of
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import UncacheableArgument
from celery_cachetiers.events import Event
from celery_cachetiers.failures import TaskFailures
from celery_cachetiers.journal_port import NEWEST
from celery_cachetiers.keys import KeyMaker
from celery_cachetiers.policy import Policy
from celery_cachetiers.templates import compile_result_tags, compile_tags, escape_tags, namespace_tag, task_tag

logger = logging.getLogger("celery_cachetiers")

TagsOf = Callable[[object], tuple[str, ...]]
"""From a body's value to tags."""

HANDLERS = ("before_start", "on_success", "after_return")


class Memoized:
    """One task of one app, memoized.

    Raises:
        ConfigurationError: An option or a setting is not usable.
    """

    def __init__(self, task: Task[Any, Any], options: Mapping[str, object]) -> None:
        self.extension = CacheTiers(task.app)
        self.name: str = task.name
        self.policy = Policy.resolve(options, self.extension.settings, f"task {self.name}")
        self.enabled = self.policy.cache_enabled and self.extension.settings.enabled
        self.cache = self.extension.cache
        codec, tally = self.extension.codec(self.policy), self.extension.counters.of(self.name)
        find = self.policy.tags_from
        tagging = ResultTagging(compile_result_tags(find), self.extension.seen_tags) if find is not None else None
        self.outlet = self.extension.writes.outlet(self.name, self.policy) if self.policy.sink is not None else None
        self.memo = Memo(self.name, self.policy, codec, tally, TaskFailures(task), tagging=tagging, outlet=self.outlet)
        self.binder = compile_binder(task.run, skip_first=False)
        self.keys = key_maker(self.name, self.binder, task.serializer, self.policy)
        self._own_tags = compile_tags(self.policy.tags, self.binder.names, self.binder.var_keyword is not None)
        self._implicit = (namespace_tag(), task_tag(self.name))
        self._takes_models = takes_models(task)
        self._told: set[str] = set()
        self.answers_at_publish = (
            self.policy.publish_hits and not self.policy.invalidates and not _overrides(task, HANDLERS)
        )
        # What runs in a worker's main process is ours and Celery's: a task with code of its own there goes to the pool.
        self.calls_itself: bool = getattr(task, "calls_itself", False)
        self.answers_in_main = not (_overrides(task, HANDLERS) or self.calls_itself)
        self.fails_in_main = self.answers_in_main and not _overrides(task, ("on_failure", "on_retry"))

    def call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
        """The call. Raises `TypeError` for wrong arguments, `UncacheableArgument` for one without a canonical form."""
        values = self.binder(args, kwargs)
        return Call(self.memo, self.keys.digest_of(values), lambda: self._tags(values))

    def write(
        self,
        call: Call | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        value: object,
        tags: tuple[str, ...],
    ) -> None:
        """Hands the value of a body that has run to the task's sink.

        What the body has invalidated may have been computed anew before the sink had it: then it is invalidated again,
        by the flush, or here if the sink has it already.

        Args:
            tags: What the body has invalidated, escaped.

        Raises as `TaskOutlet.deliver`; `TierUnavailable` when neither Redis nor the broker has taken the invalidation.
        """
        assert self.outlet is not None
        digest, place = (call.digest, call.place) if call is not None else ("", NEWEST)
        past = self.outlet.deliver(digest, args, kwargs, value, place=place, tags=tags)
        if past and tags and not self.extension.suspended:
            self.extension.invalidations[self.name].repeat(tags)

    def waiting(self, call: Call) -> object:
        """After a miss, for who does not compute: the value that waits for the task's sink, or `MISSING`; counted."""
        found = self.outlet.waiting(call.digest) if self.outlet is not None else MISSING
        if found is MISSING:
            self.extension.events.emit(Event.MISS, self.name, key=call.digest)
        else:
            self.extension.events.emit(Event.HIT, self.name, tier="journal", stale=False, key=call.digest)
        return found

    @contextmanager
    def running(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[TagsOf]:
        """While the body runs: what tells from its value the tags, escaped, that the task declares to invalidate.

        Those that the arguments give are rendered before it, as it may change them.
        """
        invalidation = self.extension.invalidations.get(self.name)
        if invalidation is None:
            yield lambda value: ()
            return
        with invalidation.beginning(args, dict(kwargs)) as begun:
            yield partial(invalidation.tags_of, begun)

    def invalidated_by(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: object) -> tuple[str, ...]:
        """The same for a value that comes without its body."""
        invalidation = self.extension.invalidations.get(self.name)
        return () if invalidation is None else invalidation.tags_of(invalidation.begin(args, dict(kwargs)), value)

    def call_or_none(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        """The same; ``None`` if the call runs uncached, which is said once per argument and counted.

        Raises:
            UncacheableArgument: Under ``cachetiers_strict_keys``.
        """
        try:
            return self.call(args, kwargs)
        except UncacheableArgument as error:
            self.run_uncached(error.argument, error)
        except TypeError:
            pass  # the arguments do not fit: the body's own TypeError is Celery's to show
        return None

    def seated_call(self, digest: str, tags: tuple[str, ...]) -> Call:
        """The call whose key and tags the worker's main process has derived from the message."""
        return Call(self.memo, digest, lambda: tags)

    def quiet_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call | None:
        """The call with its tags; ``None`` if it runs uncached. Whoever runs it counts and says so, not this method."""
        try:
            call = self.call(args, kwargs)
            call.tags  # noqa: B018 - rendered here, where a fault of theirs is handled
        except Exception:
            return None
        return call

    def has_tags(self, call: Call) -> bool:
        """Renders the tags; false if they cannot be, and the call runs uncached. Raises as `call_or_none`."""
        try:
            call.tags  # noqa: B018 - rendered here, where a fault of theirs is handled
        except Exception as error:
            self.run_uncached("tags", error)
            return False
        return True

    def run_uncached(self, argument: str, error: Exception) -> None:
        """Counts a call that has no key or no tags, and warns once per task and argument."""
        if self.extension.settings.strict_keys:
            raise error
        self.extension.events.emit(Event.UNCACHEABLE, self.name, argument=argument)
        if argument not in self._told:
            self._told.add(argument)
            logger.warning("celery-cachetiers: %s runs uncached because of %r: %s", self.name, argument, error)

    def _tags(self, values: tuple[Any, ...]) -> tuple[str, ...]:
        arguments = self.binder.arguments(values)
        own = self._own_tags(with_models(arguments) if self._takes_models else arguments)
        return (*self._implicit, *escape_tags(own)) if own else self._implicit


def key_maker(name: str, binder: Any, serializer: str, policy: Policy) -> KeyMaker:
    """What makes the keys of one task. Raises `ConfigurationError`."""
    return KeyMaker(
        task_name=name,
        binder=binder,
        dialect=dialect_of(serializer),
        version=policy.version,
        ignore=policy.ignore,
        key=policy.key,
    )


def _overrides(task: Task[Any, Any], names: Iterable[str]) -> bool:
    return any(getattr(type(task), name) is not getattr(Task, name) for name in names)
