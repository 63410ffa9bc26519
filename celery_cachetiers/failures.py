"""What Celery's exceptions mean for a leader and its followers.

It decides which exceptions are shared: those that the body raised and that end in FAILURE, if they come back from JSON
as what they were. A retry is not the end; a lost worker, a time limit or a revocation is about one attempt; `Ignore`,
`Reject` and `replace` are instructions to Celery about one message.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.utils.serialization import ensure_serializable
from celery.utils.time import maybe_make_aware
from kombu.utils.json import dumps, loads

OF_ONE_ATTEMPT = (
    Retry, Ignore, Reject, TaskRevokedError, SoftTimeLimitExceeded, TimeLimitExceeded, Terminated, WorkerLostError,
    MemoryError,
)  # fmt: skip


class TaskFailures:
    """The exceptions of one task's body.

    Concurrency: keeps nothing between calls.
    """

    def __init__(self, task: Task[Any, Any]) -> None:
        self._task = task

    def retry_in(self, error: BaseException) -> float | None:
        """Seconds until the retry is due that the body has sent; ``None`` for anything else."""
        if not isinstance(error, Retry) or getattr(error, "is_eager", False):
            return None
        when: Any = error.when
        if isinstance(when, datetime):
            due: datetime = maybe_make_aware(when)  # without a zone it is UTC to Celery
            return max((due - datetime.now(UTC)).total_seconds(), 0.0)
        return max(float(when or 0.0), 0.0)

    def dump(self, error: BaseException) -> object | None:
        """Class and arguments; ``None`` if the exception is not shared, or would not come back as it is."""
        if not _is_shared(error):
            return None
        try:
            kind = type(error)
            dumped = {
                "exc_type": kind.__qualname__,
                "exc_message": ensure_serializable(list(_reduced(error)[1]), dumps),
                "exc_module": kind.__module__,
            }
            again = self.load(loads(dumps(dumped)))
            same = type(again) is kind and _contents(again) == _contents(error)
        except Exception:
            return None
        return dumped if same else None

    def load(self, dumped: object) -> BaseException:
        """A new exception of the same class, if this process knows it; else one that has its name.

        Raises:
            TypeError: It is none that `dump` would have shared.
        """
        error = self._task.backend.exception_to_python(dumped)
        if not _is_shared(error):
            raise TypeError(f"{error!r} is not a failure of a task's body")
        assert isinstance(error, BaseException)
        return error


def _is_shared(error: object) -> bool:
    return isinstance(error, Exception) and not isinstance(error, OF_ONE_ATTEMPT)


def _reduced(error: BaseException) -> Any:
    """As for pickle: the arguments may be others than ``args`` (`OSError` leaves the name of the file out there)."""
    return error.__reduce_ex__(4)


def _contents(error: BaseException) -> tuple[object, ...]:
    """All that tells it from another one of its class, except what Python itself adds, such as notes."""
    _, arguments, *more = _reduced(error)
    attributes = {name: value for state in more if state for name, value in dict(state).items() if name[:2] != "__"}
    state = object.__getstate__(error)
    slots = state[1] if isinstance(state, tuple) else None
    # An enum's member equals what JSON makes of it, as an ordered dict does; they do not look the same.
    return error.args, arguments, repr((error.args, arguments)), attributes, slots
