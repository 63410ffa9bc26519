"""What a user registers as a sink: a function, a class, or an object.

Decides what may be one, when two of them are the same, and which object is opened.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.writes import Write


class _Writes(Protocol):
    def write(self, writes: list[Write]) -> object: ...


Definition = TypeVar("Definition", bound=Callable[[list[Write]], object] | _Writes | type[_Writes])


def place(definition: object, line: tuple[object, ...]) -> tuple[object, ...]:
    """Where something is defined, the same after its module is loaded again.

    Args:
        line: Where it was registered, for what has no name of its own.
    """
    qualname = getattr(definition, "__qualname__", None)
    if qualname is None or "<lambda>" in qualname:
        return line
    return getattr(definition, "__module__", None), qualname


def refuse_unusable(definition: object, where: str) -> None:
    """Checks that something can be a sink.

    Raises:
        ConfigurationError: It cannot.
    """
    write = getattr(definition, "write", None)
    body = write if callable(write) else definition
    allowed = "a callable over a list of Write, or a class or an object with write(writes)"
    if not callable(body) or (isinstance(definition, type) and not callable(write)):
        raise ConfigurationError("sink", definition, allowed, where)
    if inspect.iscoroutinefunction(body) or inspect.isgeneratorfunction(body):
        raise ConfigurationError("sink", definition, f"{allowed}; not async, and no generator", where)
    if isinstance(definition, type) and not _made_without_arguments(definition):
        raise ConfigurationError(
            "sink", definition, "a class that is made without arguments; else give an object", where
        )


def _made_without_arguments(cls: type) -> bool:
    try:
        inspect.signature(cls).bind()
    except TypeError:
        return False
    except ValueError:  # it tells nothing
        return True
    return True


def object_of(definition: Any) -> Any:
    """The object that is to be opened; ``None`` for a function, which has nothing to open.

    A new one for each opening: in another process, or in a thread that was given up, the last one may still be in use.
    """
    if isinstance(definition, type):
        return definition()
    if not callable(getattr(definition, "write", None)):
        return None
    return copy.copy(definition) if hasattr(definition, "open") else definition


def nothing() -> None:
    """In place of an ``open`` or ``close`` that is not there."""
