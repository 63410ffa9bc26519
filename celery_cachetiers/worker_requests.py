"""What the waiting room asks of a worker's requests, and what it does to those that leave it."""

from __future__ import annotations

import time
from typing import Any, Final

from billiard.einfo import ExceptionWithTraceback  # type: ignore[attr-defined]  # not in the stubs
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.worker import state

from celery_cachetiers.seat import GivenBack

LOST: Final = (WorkerLostError, Terminated, TimeLimitExceeded, SystemExit)


def let_go(request: Any) -> None:
    """Its ends are told to nobody but Celery from now on: what told the room of them refers to it, a cycle."""
    for name in ("on_success", "on_failure", "on_timeout"):
        request.__dict__.pop(name, None)


def started(request: Any) -> float | None:
    """When the pool began with it, by the monotonic clock."""
    if request.time_start is None:
        return None
    return time.monotonic() - max(time.time() - float(request.time_start), 0.0)


def exception_of(einfo: Any) -> Any:
    exception = einfo.exception
    return exception.exc if isinstance(exception, ExceptionWithTraceback) else exception


def given_back(einfo: Any) -> GivenBack | None:
    exception = exception_of(einfo)
    return exception if isinstance(exception, GivenBack) else None


def may_be_revoked(request: Any) -> bool:
    return bool(request.expires or request.id in state.revoked or (state.revoked_stamps and request.stamped_headers))


def put_back_now(request: Any) -> None:
    """Rejects it, so that the broker delivers it again at once."""
    state.task_ready(request)
    request.reject(requeue=True)


def done_with(request: Any) -> None:
    state.task_ready(request)
    request.acknowledge()
