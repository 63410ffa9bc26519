"""What a sink gets, and how a journal holds it until then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Write:
    """One value on its way to its sink.

    Attributes:
        task: Name of the task whose value it is.
        args: The call's positional arguments, as they were before the body ran and came back from the journal's
            serializer; models of ``pydantic=True`` tasks as dicts.
        kwargs: Its keyword arguments.
        key: The call's key, 32 hex characters; "" for a call without one.
        value: What the body returned, or what was put; ``None`` for a deleted one.
        deleted: It is a tombstone: ``task.cache.delete(...)``.
        sequence: Grows with every write of its sink, also over restarts: a sink that keeps the highest one of each key
            never takes an older value over a newer one, however often and in which order they come.
        written_at: When it was written, epoch seconds.
    """

    task: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    key: str
    value: Any
    deleted: bool
    sequence: int
    written_at: float
