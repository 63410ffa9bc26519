"""What one task's body invalidates, by ``invalidates=``: before the body's result can be seen.

It decides which tags, and what becomes of them when Redis cannot be reached; `commits` knows when. Which tasks there
are, and what Celery tells of a body that cannot tell itself, is `invalidating`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Any

from celery.exceptions import SoftTimeLimitExceeded

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.binder import compile_binder
from celery_cachetiers.body import Body, dumped, takes_models, with_models
from celery_cachetiers.commits import Wait, Watch, open_transactions
from celery_cachetiers.declaration import check_invalidation
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import TagError, TierUnavailable
from celery_cachetiers.succession import Succession
from celery_cachetiers.tag_names import checked_tag, escape_tag, user_tag
from celery_cachetiers.tasks import or_hand_over, tell_lost
from celery_cachetiers.templates import TagTemplate


@dataclass(slots=True)
class Run:
    """One run of a body.

    Attributes:
        arguments: By name; ``None`` if they do not fit.
        tags: What the templates gave before it ran.
        watch: Whether the session commits meanwhile.
        errors: What could not be rendered.
        told: How many of these have been told.
        interrupt: What has struck while the callable was asked: raised when the others are invalidated.
        asked: Whether the callable was, if there is one.
        goes_on: Whether it was asked before the end, as the body has sent the message that goes on with it.
    """

    arguments: Mapping[str, object] | None
    watch: Watch
    tags: list[str] = field(default_factory=list)
    errors: list[Exception] = field(default_factory=list)
    told: int = 0
    interrupt: SoftTimeLimitExceeded | None = None
    asked: bool = False
    goes_on: bool = False

    def go_on(self) -> None:
        """Raises what has struck meanwhile."""
        if self.interrupt is not None:
            raise self.interrupt


_next: ContextVar[tuple[Invalidation, Run] | None] = ContextVar("cachetiers_next_run", default=None)
"""The run that was begun for the body which is about to be called."""


class Invalidation:
    """What one task's body invalidates.

    Concurrency: keeps nothing between runs.

    Raises:
        ConfigurationError: The options do not fit the task.
    """

    def __init__(self, tiers: CacheTiers, task: Any, options: Mapping[str, Any], where: str) -> None:
        self.tiers, self.task, self.name, self.is_wrapped = tiers, task, str(task.name), True
        self._where = where
        self._binder = compile_binder(task.run, skip_first=False)
        self._takes_models = takes_models(task)
        self.templates = check_invalidation(type(task), options, self._binder, where)
        invalidates = options.get("invalidates")
        self._ask: Callable[[Mapping[str, object], object], Iterable[str]] | None = (
            invalidates if callable(invalidates) else None
        )
        self._on_failure = options.get("invalidate_on_failure", True)
        self._on_commit = options.get("on_commit")
        self.succession = Succession(self.before_going_on)

    def around(self, run: Body) -> Body:
        """The body, and then the invalidation."""

        @wraps(run)
        def invalidating(*args: Any, **kwargs: Any) -> Any:
            if self.tiers.suspended:
                return run(*args, **kwargs)
            begun = self._begun() or self.begin(args, kwargs)
            try:
                with self.succession.during(begun):
                    result = run(*args, **kwargs)
            except BaseException as error:
                self.has_failed(begun, error)
                raise
            self.has_succeeded(begun, result)
            return result

        return invalidating

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Run:
        """Before the body, which may change what it was given.

        Raises:
            ConfigurationError: The app's settings cannot be used, or there is no Django: said before the body writes.
        """
        self.tiers.cache  # noqa: B018 - made here if it was not
        if self._on_commit is True:
            open_transactions(True, self._where)
        begun = Run(None, Watch(self._on_commit))
        try:
            values = self._binder(*dumped(self.task, args, kwargs))
        except Exception as error:
            begun.errors.append(error)
            return begun
        arguments = self._binder.arguments(values)
        begun.arguments = with_models(arguments) if self._takes_models else arguments
        for template in self.templates:
            self._render(template, begun)
        return begun

    @contextmanager
    def beginning(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Run]:
        """A run that is begun here, for the body which is called in the block: for a caller that asks it afterwards."""
        begun = self.begin(args, kwargs)
        before = _next.set((self, begun))
        try:
            yield begun
        finally:
            _next.reset(before)

    def _begun(self) -> Run | None:
        """The run that was begun for this call; no other call, such as one that the body makes, gets it."""
        invalidation, begun = _next.get() or (None, None)
        if invalidation is not self:
            return None
        _next.set(None)
        return begun

    def tags_of(self, begun: Run, result: object) -> tuple[str, ...]:
        """What a body that gave this result has changed, escaped; what cannot be told is logged, and not among it."""
        self._find(begun, result)
        return tuple(sorted({escape_tag(tag) for tag in begun.tags}))

    def repeat(self, names: Iterable[str]) -> None:
        """Invalidates again what a body has changed, given escaped. Raises `TierUnavailable` as `has_succeeded`."""
        self._act([tag for name in names if (tag := user_tag(name)) is not None])

    def before_going_on(self, begun: Run) -> None:
        """Invalidates before the body sends its next attempt, or what replaces it; its end invalidates again.

        A callable is told what it would be told at the end: such a body has no result. What waits for a commit goes on
        waiting, as the message does not.
        """
        if not self._on_failure:
            return
        begun.goes_on = True
        self._find(begun, MISSING)
        if begun.tags and (not self._waits(begun) or begun.watch.has_committed()):
            try:
                self._act(begun.tags)
            except TierUnavailable as fault:  # the body goes on all the same
                self._report(fault, begun.tags)
        begun.go_on()

    def has_succeeded(self, begun: Run, result: object) -> None:
        """Invalidates. Raises `TierUnavailable` when neither Redis nor the broker has taken it."""
        if begun.goes_on:  # and has a result after all: retry(throw=False)
            begun.asked = False
        self._invalidate(begun, result)

    def has_failed(self, begun: Run, error: BaseException) -> None:
        """Invalidates too, as the body may have written; what it raised is what its caller gets, whatever happens here.

        A `Retry`, `Ignore` or `Reject` is raised by a body that has run so far.
        """
        has_run = begun.arguments is not None or type(error) is not type(begun.errors[0])
        if not (self._on_failure and has_run):
            return
        try:
            self._invalidate(begun, MISSING)
        except TierUnavailable as fault:
            self._report(fault, begun.tags)
            error.add_note(f"celery-cachetiers: {begun.tags!r} could not be invalidated: {fault}")

    def was_killed(self, args: Any, kwargs: Any) -> None:
        """Invalidates in the worker's main process, for a body that could not: its transactions have ended with it."""
        if not self._on_failure or self.tiers.suspended:
            return
        begun = self.begin(tuple(args or ()), dict(kwargs or {}))
        self._find(begun, MISSING)
        if not begun.tags:
            return
        try:
            self._act(begun.tags)
        except TierUnavailable as fault:
            self._report(fault, begun.tags)

    def _render(self, template: TagTemplate, begun: Run) -> None:
        assert begun.arguments is not None
        try:
            begun.tags.append(checked_tag(template.render(begun.arguments)))
        except TagError as error:
            begun.errors.append(error)

    def _find(self, begun: Run, result: object) -> None:
        """What the callable says; and what could not be found is told, after all that could. Once for each run."""
        if begun.asked:
            return
        begun.asked = True
        if self._ask is not None and begun.arguments is not None:
            try:
                found = self._ask(begun.arguments, result)
                if isinstance(found, str) or found is None:
                    raise TagError(found, "tags are a list, which may be empty")
                for tag in found:
                    begun.tags.append(checked_tag(tag))
            except Exception as error:
                begun.errors.append(error)
                if isinstance(error, SoftTimeLimitExceeded):
                    begun.interrupt = error
        untold, begun.told = begun.errors[begun.told :], len(begun.errors)
        for each in untold:
            self._report(each, [])

    def _invalidate(self, begun: Run, result: object) -> None:
        self._find(begun, result)
        if begun.tags:
            act, waits = partial(self._act, begun.tags), self._waits(begun)
            if not waits or begun.watch.has_committed():
                act()
            for wait in waits:
                wait(act)
        begun.go_on()

    def _waits(self, begun: Run) -> list[Wait]:
        try:
            return open_transactions(self._on_commit, self._where)
        except Exception as fault:  # early does no harm, and is not too late
            self._report(fault, begun.tags)
            return []

    def _act(self, tags: list[str]) -> None:
        names = sorted({escape_tag(tag) for tag in tags})
        act = partial(self.tiers.cache.invalidate, names)
        eager = bool(self.task.request.is_eager)
        try:
            or_hand_over(self.tiers, act, "invalidate_tags", sorted(set(tags)), task=self.name, eager=eager)
        except TierUnavailable as error:
            if self.tiers.settings.enabled:
                raise
            self._report(error, tags)  # switched off, as in tests without servers: no fault of ours fails a task

    def _report(self, error: BaseException, tags: list[str]) -> None:
        tell_lost(self.tiers, self.name, error, tags)
