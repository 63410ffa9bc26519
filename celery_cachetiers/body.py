"""A task's own function, and what is put around it: where a wrapper of ours goes, and what is found inside of it.

Celery runs ``task.run``, or with ``autoretry_for`` a function of its own around ``task._orig_run``. Ours go inside of
that one, so that each attempt passes them.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from celery_cachetiers.dialects import SCALARS

Body = Callable[..., Any]

_INSIDE = "_cachetiers_inside"


def wrap_body(task: Any, around: Callable[[Body], Body]) -> None:
    """Puts a function around the task's own.

    Args:
        around: Makes it; `functools.wraps` keeps the signature that keys, tags and Celery's checks are made from.

    Raises:
        Exception: The task does not let its ``run`` be replaced.
    """
    name = "_orig_run" if hasattr(task, "_orig_run") else "run"
    inside = getattr(task, name)
    outside = around(inside)
    setattr(outside, _INSIDE, inside)
    setattr(task, name, outside)


def takes_models(task: Any) -> bool:
    """Whether it is declared with ``pydantic=True``: before Celery 5.7 only the function around its body tells."""
    body = getattr(task, "_orig_run", task.run)
    while hasattr(body, _INSIDE):
        body = getattr(body, _INSIDE)
    wrapped = getattr(body, "__globals__", {}).get("__name__") == "celery.app.base"
    return wrapped or getattr(task, "_dump_pydantic_arguments", None) is not None


def dumped(task: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments as the worker will see them: Celery dumps the models of ``pydantic=True`` tasks."""
    dump = getattr(task, "_dump_pydantic_arguments", None)
    if dump is None:
        return args, kwargs
    found = dump(args, kwargs)
    return tuple(found[0]), dict(found[1])


def kept(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments that stay as they are now, whatever the body does to those it gets; what cannot be copied is shared."""
    return tuple(map(_copied, args)), {name: _copied(value) for name, value in kwargs.items()}


def _copied(value: Any) -> Any:
    if type(value) in SCALARS:
        return value
    try:
        return deepcopy(value)
    except Exception:  # a lock, an open file: such a call has no key either
        return value


def with_models(arguments: dict[str, object]) -> dict[str, object]:
    """The arguments of a ``pydantic=True`` task, as templates and callables get them."""
    return {name: Model(value) if type(value) is dict else value for name, value in arguments.items()}


class Model(dict[str, Any]):
    """A pydantic model as the worker has it, dumped: its fields can be reached by either spelling in a template."""

    def __getattr__(self, name: str) -> Any:
        try:
            value = self[name]
        except KeyError:
            raise AttributeError(name) from None
        return Model(value) if type(value) is dict else value
