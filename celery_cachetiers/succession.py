"""The messages that go on with a body while it is still running: its next attempt (``retry``), or what replaces it.

What such a message starts must find what the body has changed invalidated. So whoever does something at the end of a
body has it done before these are sent, too. It decides when that is; what is to be done is `invalidation`'s matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

SENDERS = ("retry", "replace")
"""Methods of a task that send a message in place of the one under way."""

_under_way: ContextVar[tuple[tuple[Succession, Any], ...]] = ContextVar("cachetiers_under_way", default=())
"""Whose bodies run here, and their runs: the innermost last."""


class Succession:
    """The runs of one task's body, and the messages that they send to go on.

    Concurrency: runs are told apart by their context, so by thread and by greenlet.

    Args:
        before: Called with the run, before it sends such a message.
    """

    def __init__(self, before: Callable[[Any], None]) -> None:
        self._before = before

    def attend(self, task: Any) -> None:
        """Sees to it that the task's messages wait. Raises whatever a task raises that lets nothing be replaced."""
        for name in SENDERS:
            setattr(task, name, self._around(task, name))

    @contextmanager
    def during(self, run: object) -> Iterator[None]:
        """While the body of the run is called."""
        before = _under_way.set((*_under_way.get(), (self, run)))
        try:
            yield
        finally:
            _under_way.reset(before)

    def _around(self, task: Any, name: str) -> Callable[..., Any]:
        send: Callable[..., Any] = getattr(task, name)

        @wraps(send)
        def sending(*args: Any, **kwargs: Any) -> Any:
            for whose, run in reversed(_under_way.get()):
                if whose is self and not _sends_nothing(task, name):
                    self._before(run)
                    break
            return send(*args, **kwargs)

        return sending


def _sends_nothing(task: Any, name: str) -> bool:
    """An eager retry begins when the body has ended, and that of a direct call never."""
    return name == "retry" and (task.request.is_eager or task.request.called_directly)
