"""What a task class may say: its options are checked when it is created, before there is an app or a setting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from celery_cachetiers.binder import compile_binder
from celery_cachetiers.dialects import Dialect
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.keys import KeyMaker
from celery_cachetiers.policy import Policy, near_miss
from celery_cachetiers.templates import compile_tags


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
    _refuse_misspelt(cls, where)
    if own.get("run") is not None:
        _check_against_signature(_unbound(cls, own["run"]), options, where)


def options_of(cls: type) -> dict[str, Any]:
    """The task options that the class or its bases set; ``None`` stands for "as the app says"."""
    found = {}
    for name in Policy.names():
        value = getattr(cls, name, None)
        if value is not None:
            found[name] = value
    return found


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


def _check_against_signature(run: Callable[..., Any], options: Mapping[str, Any], where: str) -> None:
    """Checks the options that name arguments."""
    binder = compile_binder(run, skip_first=False)
    try:
        compile_tags(options.get("tags", ()), binder.names, binder.var_keyword is not None)
        KeyMaker(where, binder, Dialect.NATIVE, "", options.get("ignore", ()), options.get("key"))
    except ConfigurationError as error:
        raise ConfigurationError(error.option, error.value, error.allowed, where) from None
