"""What stands for a task's body and its callers in the engine's tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from celery_cachetiers.testing import Gate


class Body:
    """A task's body: counts its runs, and stops at a gate if it is given one."""

    def __init__(
        self, value: object = "value", *, gate: Gate | None = None, error: BaseException | None = None
    ) -> None:
        self._lock = threading.Lock()
        self.value, self.gate, self.error = value, gate, error
        self.calls = self.running = self.most = 0

    def __call__(self) -> object:
        with self._lock:
            self.calls += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            if self.gate is not None:
                self.gate.pass_through()
            if self.error is not None:
                raise self.error
            return self.value
        finally:
            with self._lock:
                self.running -= 1


def never() -> object:
    raise AssertionError("this body must not run")


class Thread(threading.Thread):
    """Runs one call and hands its value, or what it raised, to whoever asks for the result."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._act, self._value, self._error = act, None, None  # type: ignore[var-annotated]  # set by run
        self.start()

    def run(self) -> None:
        try:
            self._value = self._act()
        except BaseException as error:  # handed on to the test
            self._error = error

    def result(self) -> object:
        self.join(20)
        assert not self.is_alive(), "the call hangs"
        if self._error is not None:
            raise self._error
        return self._value


def eventually(condition: Callable[[], bool]) -> None:
    """Polls: for the few states that nothing announces."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.001)
