"""Which of a body's exceptions are shared with followers, and as what they arrive; which of them are retries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.exceptions import Ignore, Reject, Retry, TaskRevokedError

from celery_cachetiers import CachedTask
from celery_cachetiers.failures import TaskFailures


class Plain(Exception):
    """Class and arguments are all there is."""


class Coded(Exception):
    """Its constructor takes something else than it keeps as ``args``."""

    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Kept(Exception):
    """What its constructor sets follows from its arguments."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Outer:
    class Inner(Exception):
        """Nested in a class."""


def with_attribute() -> Exception:
    error = Plain("no")
    error.hint = "set later"  # type: ignore[attr-defined]  # that is the point
    return error


def local() -> Exception:
    class Local(Exception):
        pass

    return Local("no")


@pytest.fixture
def failures() -> TaskFailures:
    app = Celery("failures", set_as_current=False)

    @app.task(base=CachedTask, name="t", shared=False)
    def task() -> None:
        pass

    return TaskFailures(task)


@pytest.mark.parametrize(
    "error",
    [
        Plain("no"), Plain(), Plain("a", 1, None, [1, "x"]), Kept(7), Outer.Inner("deep"), ValueError("no"),
        KeyError("key"), FileNotFoundError(2, "gone"), RuntimeError("ünïcode"),
    ],
    ids=repr,
)  # fmt: skip
def test_an_exception_that_comes_back_as_it_was_is_shared(failures: TaskFailures, error: Exception) -> None:
    again = failures.load(failures.dump(error))

    assert type(again) is type(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert again is not error


@pytest.mark.parametrize(
    "error", [Coded(7), with_attribute(), local(), Plain(object()), Plain((1, 2)), Plain({1: 2})], ids=repr
)
def test_an_exception_that_would_come_back_as_another_is_not_shared(failures: TaskFailures, error: Exception) -> None:
    assert failures.dump(error) is None


@pytest.mark.parametrize(
    "error",
    [
        Ignore(), Reject(), Retry(), TaskRevokedError(), SoftTimeLimitExceeded(), TimeLimitExceeded(1), Terminated(15),
        WorkerLostError("lost"), MemoryError(), KeyboardInterrupt(), SystemExit(1), GeneratorExit(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_what_is_about_one_attempt_is_never_shared(failures: TaskFailures, error: BaseException) -> None:
    assert failures.dump(error) is None


@pytest.mark.parametrize("dumped", ["text", 5, None, {"exc_type": "system", "exc_module": "os", "exc_message": ["x"]}])
def test_what_is_no_exception_is_refused(failures: TaskFailures, dumped: object) -> None:
    with pytest.raises(Exception, match=r".") as raised:
        failures.load(dumped)

    assert not isinstance(raised.value, AssertionError)


@pytest.mark.parametrize(
    ("when", "seconds"),
    [
        (30, 30.0), (0.5, 0.5), (None, 0.0), (-3, 0.0), (datetime.now(UTC) + timedelta(seconds=60), 60.0),
        (datetime.now() + timedelta(seconds=60), 60.0), (datetime.now(UTC) - timedelta(hours=1), 0.0),
    ],
    ids=str,
)  # fmt: skip
def test_a_retry_is_due_when_celery_sends_it(failures: TaskFailures, when: Any, seconds: float) -> None:
    assert failures.retry_in(Retry(when=when)) == pytest.approx(seconds, abs=30)


@pytest.mark.parametrize("error", [ValueError(), Ignore(), Retry(is_eager=True, when=5), KeyboardInterrupt()], ids=repr)
def test_nothing_else_is_a_retry(failures: TaskFailures, error: BaseException) -> None:
    assert failures.retry_in(error) is None
