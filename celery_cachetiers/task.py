"""`CachedTask`: the publish seam (`apply_async`) and the execution seam (`__call__`) around a Celery task.

It decides what may be answered without a message and what a worker's call asks the engine for; how a value is found is
`cache`'s matter. Read on in cache.py, then in decisions.py.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, cast

from celery import Celery, Task
from celery.app.task import Context
from celery.exceptions import Ignore

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.attempt import HeldElsewhere, Terms
from celery_cachetiers.body import Body, dumped, kept, wrap_body
from celery_cachetiers.call import Call
from celery_cachetiers.declaration import checked, options_of
from celery_cachetiers.django import OnCommitMixin
from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import NotCached
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.publishing import (
    KEY_HEADER,
    LOOKED_HEADER,
    MODE_HEADER,
    MODES,
    REVALIDATE,
    answer,
    checked_mode,
    coalesce,
    is_plain,
    send_refresh,
)
from celery_cachetiers.seat import Answer, GivenBack, Seat, seat_of
from celery_cachetiers.task_cache import TaskCache

logger = logging.getLogger("celery_cachetiers")

BENCH = Seat("", holds=False)
"""Where nobody holds the request: it blocks where it runs."""


class CachedTaskMixin(OnCommitMixin):
    """Memoizes a task; for projects with a task base of their own: ``class Base(CachedTaskMixin, MyTask)``.

    The class attributes named like task options are their values; see the reference of task options.
    """

    abstract = True
    acks_late = True
    """Memoized work is repeatable, so a message is acknowledged when its task has ended."""

    _memoized: Memoized | None = None
    _lets_errors_through: bool = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Checks the options of the class. Raises `ConfigurationError`."""
        super().__init_subclass__(**kwargs)
        checked(cls)

    @classmethod
    def on_bound(cls, app: Celery) -> None:
        """Installs the extension in the app that the task is bound to."""
        super().on_bound(app)  # type: ignore[misc]  # Task has it
        if cls.name is not None:  # type: ignore[attr-defined]  # a base that somebody looks at binds itself to any app
            CacheTiers(app)

    @property
    def cache(self) -> TaskCache:
        """What is cached of this task: ask, put, invalidate."""
        return TaskCache(self._memoized or self._memoize(), self._dumped, self._run)

    # -- execution seam ---------------------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        memoized = self._memoized or self._memoize()
        if not memoized.enabled or memoized.extension.suspended:
            return self._run(args, kwargs)
        request = _own_request(self)
        seat = seat_of(request)
        if isinstance(seat, Answer):
            return seat.copy() if seat.copy is not None else self._fail(args, kwargs, cast(Any, seat.error)())
        mode = _mode_of(request) if request is not None else "use"
        call: Call | None = None
        if seat is not None and seat.digest and not memoized.calls_itself:  # else the arguments may be others by now
            call = memoized.seated_call(seat.digest, seat.tags)
        elif mode != "bypass":
            call = memoized.call_or_none(*self._dumped(args, kwargs))
        if call is None:
            return self._uncached(mode, args, kwargs)
        cache = memoized.cache
        if mode in ("use", "only"):
            value = cache.recall(call)
            if value is not MISSING:
                return value
        if not memoized.has_tags(call):
            return self._uncached(mode, args, kwargs)
        if mode == "only":
            return _only(memoized, call)
        compute = partial(super().__call__, *args, **kwargs)  # type: ignore[misc]
        if memoized.outlet is not None:
            compute = partial(self._run, args, kwargs, call)
        seat = seat or BENCH
        terms = Terms(
            claim=(request.id or "") if request is not None else "",
            looked=mode == REVALIDATE or _has_looked(request, call),
            refresh=mode == "refresh",
            nonce=seat.nonce,
            take_over=seat.take_over,
            waits_for=seat.waits_for,
            may_block=not seat.holds and mode != REVALIDATE,
            waits_for_store=not seat.holds,
            counts=mode != REVALIDATE,
            fail=partial(self._fail, args, kwargs),
        )
        try:
            return cache.fetch(call, compute, terms)
        except HeldElsewhere as held:
            if mode == REVALIDATE:
                raise Ignore from None  # somebody refreshes it already
            raise GivenBack(held.holder, held.seconds_left) from None

    def _fail(self, args: tuple[Any, ...], kwargs: dict[str, Any], error: BaseException) -> Any:
        """Fails with the leader's exception, as if the body had raised it: ``autoretry_for`` has its say."""
        if not hasattr(self, "_orig_run"):
            raise error
        shared = _shared_error.set(error)
        try:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        finally:
            _shared_error.reset(shared)

    def _uncached(self, mode: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if mode == "only":
            raise NotCached(str(self.name), "(none)")  # type: ignore[attr-defined]
        return self._run(args, kwargs)

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any], call: Call | None = None) -> Any:
        """Runs the body; what it gives goes to the task's sink, if it has one, cached or not."""
        memoized = self.memoized
        if memoized.outlet is None:
            return super().__call__(*args, **kwargs)  # type: ignore[misc]
        given = kept(*self._dumped(args, kwargs))
        if call is None:
            call = memoized.quiet_call(*given)
            if call is not None:
                call.place = memoized.outlet.begin_anyway(call.digest)
        with memoized.running(args, kwargs) as tags_of:
            value = super().__call__(*args, **kwargs)  # type: ignore[misc]
        memoized.write(call, *given, value, tags_of(value))
        return value

    # -- publish seam -----------------------------------------------------------------------------------------------

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        producer: Any = None,
        link: Any = None,
        link_error: Any = None,
        shadow: str | None = None,
        *,
        cache_mode: str | None = None,
        **options: Any,
    ) -> Any:
        """As `celery.Task.apply_async`; a fresh hit is answered by a `CachedResult`, with no message.

        With ``coalesce="publish"`` a duplicate of a call under way gets a `FollowingResult`, with no message either.

        Args:
            cache_mode: ``use`` (default), ``refresh`` (compute and replace), ``bypass`` (neither read nor write),
                ``only`` (never compute: the task raises `NotCached`).

        Costs: a hit in L1 nothing, a hit in L2 1 round trip to it, a miss that round trip and the message; with
            ``coalesce="publish"`` a miss 1 round trip more.
        """
        headers = dict(options.get("headers") or {})
        given = cache_mode if cache_mode is not None else headers.get(MODE_HEADER, "use")
        mode = checked_mode(given, *([REVALIDATE] if cache_mode is None else []))
        if mode != "use" or MODE_HEADER in headers:
            headers[MODE_HEADER] = mode
        send, call, coalesces = partial(super().apply_async, args, kwargs), None, False  # type: ignore[misc]
        memoized: Memoized = self._memoized or self._memoize()
        if mode == "use" and memoized.enabled and not memoized.extension.suspended:
            options = {**self._get_exec_options(), **options}  # type: ignore[attr-defined]
            call = memoized.call_or_none(*self._dumped(tuple(args or ()), dict(kwargs or {})))
            if call is not None:
                headers[KEY_HEADER] = f"{call.digest}:{memoized.keys.fingerprint}"
                plain = memoized.answers_at_publish and not link and is_plain(self, options)
                reading = memoized.cache.look_in_l1(call) if plain else None
                if reading is None and plain and memoized.has_tags(call):
                    reading = memoized.cache.look_in_l2(call)
                    headers[LOOKED_HEADER] = True
                    coalesces = memoized.policy.coalesce == "publish" and task_id is None and not link_error
                if reading is not None:
                    if reading.refresh:
                        send_refresh(memoized, call, reading.stale, send, options)
                    return answer(self, call, reading.value, reading.copy, task_id, options)
        if headers:
            options["headers"] = headers
        send = partial(send, producer=producer, link=link, link_error=link_error, shadow=shadow, **options)
        if coalesces and call is not None:
            return coalesce(self, call, send, options)
        return send(task_id=task_id)

    def apply(self, *args: Any, cache_mode: str | None = None, **options: Any) -> Any:
        """As `celery.Task.apply`, with the same ``cache_mode`` as `apply_async`."""
        if cache_mode is not None:
            options["headers"] = {**(options.get("headers") or {}), MODE_HEADER: checked_mode(cache_mode)}
        return super().apply(*args, **options)  # type: ignore[misc]

    # -- both -------------------------------------------------------------------------------------------------------

    @property
    def calls_itself(self) -> bool:
        """Whether a subclass has a ``__call__`` of its own around ours."""
        return type(self).__call__ is not CachedTaskMixin.__call__

    @property
    def memoized(self) -> Memoized:
        """The task's side of the engine, made at first use. Raises `ConfigurationError`."""
        return self._memoized or self._memoize()

    def _memoize(self) -> Memoized:
        options = options_of(type(self))
        memoized = Memoized(self, options)  # type: ignore[arg-type]
        if _is_app_wide(self) and not options:
            memoized.enabled = False
        self._memoized = memoized
        _let_shared_errors_through(self)
        memoized.extension.tasks.add(self)
        return memoized

    def _dumped(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments as the worker will see them."""
        return dumped(self, args, kwargs)


if TYPE_CHECKING:
    Base = Task[Any, Any]
else:  # generic for the type checker only: at run time that begins with Celery 5.6
    Base = Task


class CachedTask(CachedTaskMixin, Base):
    """A Celery task whose results are cached: ``@app.task(base=CachedTask, ttl=300, tags=["user:{user_id}"])``."""

    abstract = True


def _is_app_wide(task: Any) -> bool:
    """Whether the task has our base only because the whole app has (``Celery(task_cls=...)``).

    Such a task, Celery's own among them, is cached only if it sets an option of ours itself.
    """
    base = task.app.Task
    return issubclass(base, CachedTaskMixin) and isinstance(task, base)


_shared_error: ContextVar[BaseException | None] = ContextVar("cachetiers_shared_error", default=None)


def _let_shared_errors_through(task: Any) -> None:
    """Makes the function that ``autoretry_for`` wraps raise a leader's exception in place of running."""
    if not hasattr(task, "_orig_run") or task._lets_errors_through:
        return

    def around(original: Body) -> Body:
        @wraps(original)
        def run(*args: Any, **kwargs: Any) -> Any:
            error = _shared_error.get()
            if error is None:
                return original(*args, **kwargs)
            _shared_error.set(None)
            raise error

        return run

    wrap_body(task, around)
    task._lets_errors_through = True  # once is enough


def _own_request(task: Any) -> Context | None:
    """The request of the call that the worker's (or ``apply``'s) tracer makes; ``None`` for a direct call."""
    stack = task.request_stack
    if stack is None or _is_idle(stack):  # None: another thread is binding the task just now
        return None
    requests = stack.stack
    if len(requests) != 1:
        return None
    request: Any = requests[0]
    return None if request.called_directly or request._protected else request


def _is_idle(stack: Any) -> bool:
    """Whether no thread has a request of the task: asked of the stack's storage, as its ``top`` costs 1.2 µs then, a
    quarter of an L1 hit. Should Celery change the storage, the answer is no, and ``top`` tells."""
    storage = getattr(getattr(stack, "_local", None), "__storage__", None)
    return storage is not None and not storage


def _mode_of(request: Context) -> str:
    """The mode that a message carries; one that is unknown here, as of a later version, is none."""
    mode = (request.headers or {}).get(MODE_HEADER, "use")
    return mode if mode in (*MODES, REVALIDATE) else "use"


def _has_looked(request: Context | None, call: Call) -> bool:
    """Whether the caller looked for this very key just before it sent the message."""
    headers = (request.headers if request is not None else None) or {}
    return bool(headers.get(LOOKED_HEADER)) and str(headers.get(KEY_HEADER, "")).startswith(call.digest + ":")


def _only(memoized: Memoized, call: Call) -> object:
    reading = memoized.cache.look_in_l2(call)  # L1 has been asked
    value = memoized.waiting(call) if reading is None else reading.value
    if value is MISSING:
        raise NotCached(memoized.name, call.digest)
    return value
