"""Answers requests in a worker's main process, through Celery's own tracer, off its loop.

Acknowledgement, events, signals, link, chain, chord and stamps are Celery's; the body does not run. A thread of its own
does it, as the tracer stores results: a result backend that hangs must not keep the loop from its broker.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Final

from billiard.einfo import ExceptionInfo
from celery.app.trace import fast_trace_task, trace_task_ret

from celery_cachetiers.seat import Answer, give_seat
from celery_cachetiers.worker_requests import let_go

FORK_PATIENCE: Final = 1.0
"""Seconds that a fork waits for the answer under way: a child must not inherit a lock in the middle of it."""


class _Quiet:
    """Held while an answer is given, and while the process forks."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._for_fork = False

    def before_fork(self) -> None:
        self._for_fork = self.lock.acquire(timeout=FORK_PATIENCE)

    def after_in_parent(self) -> None:
        if self._for_fork:
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.Lock()


_quiet = _Quiet()
if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(
        before=_quiet.before_fork, after_in_parent=_quiet.after_in_parent, after_in_child=_quiet.after_in_child
    )


class Answering:
    """One thread that answers, in the order in which it was asked to.

    Args:
        app: The worker's app.
        soon: Runs a function where the worker's requests may be touched.
    """

    def __init__(self, app: Any, soon: Callable[[Callable[[], None]], None]) -> None:
        self._app, self._soon = app, soon
        self._thread = ThreadPoolExecutor(1, "cachetiers-answers")
        self._asked: dict[Future[None], Any] = {}

    def give(self, request: Any, answer: Answer, tell: Callable[[], object] = lambda: None) -> None:
        """Answers a request; to be called where the worker's requests may be touched.

        A revoked or expired one is discarded, as the pool would do.

        Args:
            tell: Called when it is answered indeed, just before.
        """
        if request.revoked():
            return
        let_go(request)
        # Its "process" is this one: nobody may end it for the sake of one request.
        request.terminate = request.cancel = _nothing
        give_seat(request, answer)
        request.on_accepted(os.getpid(), time.monotonic())
        asked = self._thread.submit(self._trace, request, tell)
        self._asked[asked] = request
        asked.add_done_callback(lambda done: self._asked.pop(done, None))

    def close(self, patience: float) -> list[Any]:
        """Takes no more, waits up to so many seconds for the answer under way, and returns the requests not begun."""
        left = [request for asked, request in list(self._asked.items()) if asked.cancel()]
        wait(list(self._asked), patience)
        self._thread.shutdown(wait=False)
        return left

    def _trace(self, request: Any, tell: Callable[[], object]) -> None:
        args = (request.type, request.id, request.request_dict, request._payload, None, None)
        try:
            with _quiet.lock:
                tell()
                if self._app.use_fast_trace_task:
                    traced = fast_trace_task(*args)
                else:
                    traced = trace_task_ret(*args, app=self._app)
        except BaseException:  # a Reject passes through the tracer
            failure = ExceptionInfo()
            self._soon(lambda: request.on_failure(failure))
        else:
            self._soon(lambda: request.on_success(traced))


def _nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of ending a process."""
