"""What a task class may say: its options are checked when it is created, before there is an app or a setting."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final

from celery_cachetiers.binder import Binder, compile_binder
from celery_cachetiers.commits import check_on_commit
from celery_cachetiers.dialects import Dialect
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.keys import KeyMaker
from celery_cachetiers.policy import Policy, check_sink, near_miss
from celery_cachetiers.templates import TagTemplate, compile_tags

INVALIDATION: Final = ("invalidates", "invalidate_on_failure", "on_commit")
"""The task options that any task may have, whatever its base."""


OF_RESULT: Final = frozenset({"tags_from", "ttl_from", "cache_if"})
"""The task options that are called with the result."""


def checked(cls: type) -> None:
    """Checks the options of a task class as it is created, and makes callables among them plain functions of it.

    Raises:
        ConfigurationError: A bad value, a misspelt option, a template or an ``ignore`` that names no argument, an
            option whose feature this version lacks.
    """
    own = vars(cls)
    where = f"task {own.get('name') or cls.__qualname__}"
    for name in Policy.names() & own.keys():
        if callable(own[name]) and not isinstance(own[name], (staticmethod, classmethod, type)):
            setattr(cls, name, staticmethod(own[name]))  # else it would become a method of the task
    options = options_of(cls)
    Policy.check(options, where)
    for name in OF_RESULT & options.keys():
        _check_takes(name, options[name], "result", where)
    _refuse_misspelt(cls, where)
    if own.get("run") is not None:
        binder = compile_binder(_unbound(cls, own["run"]), skip_first=False)
        _check_against_signature(binder, options, where)
        check_invalidation(cls, options, binder, where)
        check_sink(options.get("sink"), options.get("write"), where)


def options_of(cls: type) -> dict[str, Any]:
    """The task options that the class or its bases set; ``None`` stands for "as the app says"."""
    found = {}
    for name in Policy.names():
        value = getattr(cls, name, None)
        if value is not None:
            found[name] = value
    return found


def invalidation_of(cls: type, where: str) -> dict[str, Any]:
    """What the class of any task, cached or not, says about invalidating, each checked on its own.

    Raises:
        ConfigurationError: A bad value.
    """
    given = {name: value for name in INVALIDATION if (value := getattr(cls, name, None)) is not None}
    if "invalidates" not in given:
        given.pop("on_commit", None)  # without the other somebody else's word, for all we know
        refuse_alone(cls, given, where)
    return Policy.check(given, where)


def refuse_uncached(cls: type, where: str) -> None:
    """Refuses on a task that is not cached what only a cached one does, and nobody else can mean.

    Raises:
        ConfigurationError: A sink, with the way to it.
    """
    if has_sink(cls) and not hasattr(cls, "memoized"):
        sink = cls.sink  # type: ignore[attr-defined]
        raise ConfigurationError("sink", sink, "it goes with base=CachedTask, which the task has not", where)


def has_sink(cls: Any) -> bool:
    """Whether a class says both, where its values go and how; one alone may be anybody's."""
    return isinstance(getattr(cls, "sink", None), str) and getattr(cls, "write", None) in ("through", "behind")


def misspelt_invalidates(cls: type) -> object | None:
    """A task's ``invalidate=`` that looks like templates, where there is no ``invalidates=``; it may be another's."""
    value = vars(cls).get("invalidate")
    texts = [value] if isinstance(value, str) else value
    if getattr(cls, "invalidates", None) is not None or not isinstance(texts, (list, tuple)) or not texts:
        return None
    return value if all(isinstance(text, str) for text in texts) else None


def check_invalidation(cls: type, options: Mapping[str, Any], binder: Binder, where: str) -> tuple[TagTemplate, ...]:
    """Checks what a task's class says about invalidating against its arguments; returns the templates.

    Raises:
        ConfigurationError: A template names no argument, a callable does not take (arguments, result), there is
            nothing to invalidate, or no database of the kind that ``on_commit`` names.
    """
    check_on_commit(options.get("on_commit"), where)
    invalidates = options.get("invalidates")
    if invalidates is None:
        refuse_alone(cls, options, where)
        return ()
    if callable(invalidates):
        _check_takes("invalidates", invalidates, "arguments, result", where)
        return ()
    names, open_ended = binder.argument_names, binder.var_keyword is not None
    try:
        return tuple(TagTemplate.parse(text, names, open_ended=open_ended) for text in invalidates)
    except ConfigurationError as error:
        raise ConfigurationError("invalidates", error.value, error.allowed, where) from None


def refuse_alone(cls: type, options: Mapping[str, Any], where: str) -> None:
    """Refuses what a task itself, and not a base for many tasks, says about invalidating nothing.

    Raises:
        ConfigurationError: It does.
    """
    name = "invalidate_on_failure"
    if name in options and name in vars(cls):
        raise ConfigurationError(name, options[name], "it goes with invalidates=[...], which is missing", where)


def _check_takes(option: str, function: Callable[..., Any], names: str, where: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it does not say
        return
    count = names.count(",") + 1
    try:
        signature.bind(*[None] * count)
    except TypeError:
        allowed = f"a callable over ({names}), {count} positional argument{'s' if count > 1 else ''}"
        raise ConfigurationError(option, function, allowed, where) from None


def _refuse_misspelt(cls: type, where: str) -> None:
    for name, value in vars(cls).items():
        if name.startswith("_") or any(name in vars(base) for base in cls.__mro__[1:]):
            continue
        if isinstance(value, (property, staticmethod, classmethod)) or (
            callable(value) and not vars(cls).get("_decorated")
        ):
            continue
        meant = near_miss(name)
        if meant is not None:
            raise ConfigurationError(name, value, f"there is no such option; did you mean {meant}?", where)


def _unbound(cls: type, run: Any) -> Callable[..., Any]:
    """The body as callers see it: without ``self``."""
    if isinstance(run, staticmethod):
        function: Callable[..., Any] = run.__func__
        return function
    bound: Callable[..., Any] = run.__get__(object(), cls)
    return bound


def _check_against_signature(binder: Binder, options: Mapping[str, Any], where: str) -> None:
    """Checks the options that name arguments."""
    try:
        compile_tags(options.get("tags", ()), binder.names, binder.var_keyword is not None)
        KeyMaker(where, binder, Dialect.NATIVE, "", options.get("ignore", ()), options.get("key"))
    except ConfigurationError as error:
        raise ConfigurationError(error.option, error.value, error.allowed, where) from None
