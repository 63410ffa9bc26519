"""Which exceptions followers share: those that ended the body in FAILURE, and come back from JSON as what they were."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from enum import IntEnum, StrEnum
from typing import Any
from uuid import UUID

import pytest
from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery import Celery
from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry, TaskRevokedError
from kombu.utils.json import dumps, loads

from celery_cachetiers.failures import TaskFailures
from celery_cachetiers.seat import GivenBack


def body() -> None:
    """Of the task whose failures these are."""


@pytest.fixture
def failures() -> TaskFailures:
    app = Celery("failures", set_as_current=False)
    return TaskFailures(app.task(body))


class Plain(Exception):
    pass


class WithAttributes(Exception):
    """Its attributes follow from its arguments."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class OtherArguments(Exception):
    """Is made of one thing and says another."""

    def __init__(self, user: int) -> None:
        super().__init__(f"no user {user}")


class Reduced(OtherArguments):
    """The same, and says what it is made of."""

    def __init__(self, user: int) -> None:
        super().__init__(user)
        self.user = user

    def __reduce__(self) -> Any:
        return Reduced, (self.user,)


class KeywordOnly(Exception):
    def __init__(self, message: str, *, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class InASlot(Exception):
    __slots__ = ("status",)

    def __init__(self, message: str, *, status: int = 500) -> None:
        super().__init__(message)
        self.status = status


class Fussy(Exception):
    def __init__(self, one: object, two: object) -> None:
        super().__init__(f"{one} {two}")


class Touchy(Exception):
    """An argument of it cannot be compared."""


class Incomparable:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __hash__ = None  # type: ignore[assignment]  # nor hashed


class Colour(StrEnum):
    RED = "red"


class Level(IntEnum):
    HIGH = 3


class Outer:
    class Nested(ValueError):
        pass


def carried(error: BaseException, **attributes: object) -> Any:
    for name, value in attributes.items():
        setattr(error, name, value)
    return error


def local_class() -> Exception:
    class Local(Exception):
        pass

    return Local("of a function")


def noted() -> Exception:
    error = ValueError("with a note")
    error.add_note("more about it")
    return error


SHARED = [
    ValueError(),
    ValueError("reason"),
    ValueError("grün", 1, 2.5, None, True),
    KeyError("missing"),
    ZeroDivisionError("division by zero"),
    Plain({"a": [1, {"b": None}]}),
    Plain(datetime(2026, 1, 2, tzinfo=UTC), UUID(int=1), b"bytes"),
    WithAttributes(404, "not found"),
    KeywordOnly("the default is the default"),
    InASlot("the default is the default"),
    Outer.Nested("nested"),
    OSError(2, "No such file or directory"),
    OSError(2, "No such file or directory", "/etc/nothing"),
    Reduced(1),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    MaxRetriesExceededError("given up"),
    TimeoutError("the body's own"),
    noted(),
]


@pytest.mark.parametrize("error", SHARED, ids=repr)
def test_an_exception_that_the_body_raised_comes_back_as_it_was(failures: TaskFailures, error: Exception) -> None:
    dumped = failures.dump(error)
    assert dumped is not None
    again = failures.load(loads(dumps(dumped)))

    assert again is not error
    assert type(again) is type(error)
    assert (again.args, str(again), repr(again)) == (error.args, str(error), repr(error))


def test_each_load_makes_another_exception(failures: TaskFailures) -> None:
    dumped = failures.dump(WithAttributes(404, "not found"))
    first, second = failures.load(dumped), failures.load(dumped)
    assert isinstance(first, WithAttributes)
    assert (first.code, first.reason) == (404, "not found")

    assert first is not second


def test_the_original_keeps_traceback_and_cause_and_the_copy_has_none(failures: TaskFailures) -> None:
    with pytest.raises(ValueError, match="reason") as raised:
        raise ValueError("reason") from KeyError("cause")
    again = failures.load(failures.dump(raised.value))

    assert (again.__traceback__, again.__cause__) == (None, None)


LOST_ON_THE_WAY = [
    Plain((1, 2)),  # JSON makes a list of it
    Plain({1: "an int key"}),
    Plain(object()),
    Plain(float("nan")),
    Plain({"a set"}),
    Touchy(Incomparable()),
    ValueError(Colour.RED),  # equal to what JSON makes of it, and another thing
    ValueError("too", Level.HIGH),
    Plain({"levels": [Level.HIGH]}),
    Plain(OrderedDict(a=1)),
    WithAttributes(Level.HIGH, "the attribute follows"),
    OtherArguments(1),
    KeywordOnly("with another status", status=404),
    InASlot("with another status", status=404),
    Fussy("one", "two"),
    carried(ValueError("reason"), hint="set by hand"),
    ImportError("no module", name="nothing"),
    ExceptionGroup("several", [ValueError("one")]),
    local_class(),
    type("MadeUp", (Exception,), {"__module__": "nowhere"})("of no module"),
]


@pytest.mark.parametrize("error", LOST_ON_THE_WAY, ids=lambda error: type(error).__name__)
def test_an_exception_that_would_not_come_back_as_it_was_is_not_shared(
    failures: TaskFailures, error: Exception
) -> None:
    assert failures.dump(error) is None


OF_ONE_ATTEMPT = [
    Retry("again", when=1),
    Ignore("me"),
    Reject("me", requeue=True),
    GivenBack("elsewhere:1", 5.0),
    TaskRevokedError("revoked"),
    SoftTimeLimitExceeded("soft"),
    TimeLimitExceeded(10),
    Terminated(15),
    WorkerLostError("lost"),
    MemoryError("none left"),
    KeyboardInterrupt(),
    SystemExit(1),
    GeneratorExit(),
    type("OwnRetry", (Ignore,), {})("a subclass"),
]


@pytest.mark.parametrize("error", OF_ONE_ATTEMPT, ids=lambda error: type(error).__name__)
def test_what_is_about_one_attempt_is_not_shared(failures: TaskFailures, error: BaseException) -> None:
    assert failures.dump(error) is None


def of(kind: str, module: str | None = "builtins", *args: object) -> dict[str, object]:
    return {"exc_type": kind, "exc_module": module, "exc_message": list(args)}


def test_an_exception_of_a_class_that_is_not_known_here_has_its_name(failures: TaskFailures) -> None:
    again = failures.load(of("Gone", "a_module_of_another_process", "reason"))

    assert type(again).__name__ == "Gone"
    assert again.args == ("reason",)


@pytest.mark.parametrize(
    "dumped",
    [
        None,
        {},
        [],
        "ValueError",
        7,
        {"exc_type": "ValueError"},
        {"exc_message": ["reason"]},
        of("system", "os", "true"),
        of("eval", "builtins", "1"),
        of("SystemExit", "builtins", 1),
        of("KeyboardInterrupt"),
        of("Ignore", "celery.exceptions"),
        of("Reject", "celery.exceptions"),
        of("Retry", "celery.exceptions"),
        of("MemoryError"),
    ],
    ids=str,
)
def test_what_is_no_failure_of_a_body_is_not_loaded(failures: TaskFailures, dumped: object) -> None:
    """Foreign bytes may neither end the process nor make a task's message vanish."""
    loaded: BaseException | None = None
    try:
        loaded = failures.load(dumped)
    except Exception:
        return

    assert dumped == {"exc_type": "ValueError"}  # enough to go by
    assert type(loaded).__name__ == "ValueError"


# -- retries -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def far_from_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(os.environ, "TZ", "Etc/GMT+7")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(("when", "seconds"), [(None, 0.0), (0, 0.0), (30, 30.0), (2.5, 2.5), (-5, 0.0)], ids=str)
def test_a_retry_is_due_after_its_countdown(failures: TaskFailures, when: Any, seconds: float) -> None:
    assert failures.retry_in(Retry(when=when)) == seconds


@pytest.mark.usefixtures("far_from_utc")
@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=5, minutes=30)), None], ids=str)
def test_a_retry_with_an_eta_is_due_then_and_celery_takes_one_without_a_zone_for_utc(
    failures: TaskFailures, zone: timezone | None
) -> None:
    eta = datetime.now(zone or UTC) + timedelta(seconds=1000)
    seconds = failures.retry_in(Retry(when=eta if zone else eta.replace(tzinfo=None)))

    assert seconds is not None
    assert 990 < seconds <= 1000


def test_a_retry_whose_eta_has_passed_is_due_at_once(failures: TaskFailures) -> None:
    assert failures.retry_in(Retry(when=datetime.now(UTC) - timedelta(hours=1))) == 0.0


@pytest.mark.parametrize(
    "error", [Retry(when=5, is_eager=True), ValueError("reason"), Ignore(), Reject(), SystemExit()], ids=repr
)
def test_what_sends_no_message_again_is_no_retry(failures: TaskFailures, error: BaseException) -> None:
    """An eager retry runs inside the attempt that raises it."""
    assert failures.retry_in(error) is None
