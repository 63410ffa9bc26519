"""What Celery's exceptions mean for a leader and its followers.

It decides which exceptions are shared: those that the body raised and that end in FAILURE, if they come back from JSON
as what they were. A retry is not the end; a lost worker, a time limit or a revocation is about one attempt; `Ignore`,
`Reject` and `replace` are instructions to Celery about one message.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery import Task
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError
from celery.utils.serialization import ensure_serializable
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
            return max((when - datetime.now(when.tzinfo)).total_seconds(), 0.0)
        return max(float(when or 0.0), 0.0)

    def dump(self, error: BaseException) -> object | None:
        """Class and arguments; ``None`` if the exception is not shared, or would not come back as it is."""
        if not isinstance(error, Exception) or isinstance(error, OF_ONE_ATTEMPT):
            return None
        try:
            kind = type(error)
            dumped = {
                "exc_type": kind.__qualname__,
                "exc_message": ensure_serializable(list(error.args), dumps),
                "exc_module": kind.__module__,
            }
            again = self.load(loads(dumps(dumped)))
            same = type(again) is kind and again.args == error.args and _own(again) == _own(error)
        except Exception:
            return None
        return dumped if same else None

    def load(self, dumped: object) -> BaseException:
        """A new exception of the same class, if this process knows it; else one that has its name."""
        error = self._task.backend.exception_to_python(dumped)
        if not isinstance(error, BaseException):
            raise TypeError(f"{error!r} is not an exception")
        return error


def _own(error: BaseException) -> dict[str, object]:
    return {name: value for name, value in vars(error).items() if not name.startswith("__")}
