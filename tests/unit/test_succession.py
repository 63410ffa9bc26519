"""What goes on with a body before its end: `retry` and `replace` are sent after the invalidation, not before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from celery import Celery, Task, signals
from celery.exceptions import Ignore, MaxRetriesExceededError, Retry, SoftTimeLimitExceeded
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from celery_cachetiers import MISSING, CachedTask, CacheTiers
from celery_cachetiers.events import Event

NOWHERE = "redis://127.0.0.1:1/0"


class Log(list[str]):
    """What was invalidated and what was published, in the order in which it was."""


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("succession", broker="memory://", backend="cache+memory://", set_as_current=False)
    CacheTiers(app).in_memory = True
    yield app
    CacheTiers(app).reset()


@pytest.fixture
def log(app: Celery) -> Iterator[Log]:
    log = Log()

    def published(sender: str | None = None, **_: object) -> None:
        log.append(f"publishes {sender}")

    tiers = CacheTiers(app)
    tiers.events.subscribe(lambda event, task, details: log.extend(details["names"]), Event.INVALIDATED)
    tiers.events.subscribe(lambda event, task, details: log.append("not invalidated"), Event.NOT_INVALIDATED)
    signals.before_task_publish.connect(published)
    yield log
    signals.before_task_publish.disconnect(published)


def run(task: Any, *args: Any, **request: Any) -> Any:
    """As a worker runs it."""
    task.push_request(
        **{"id": "known", "args": args, "kwargs": {}, "called_directly": False, "retries": 0, "delivery_info": {},
           **request},
    )  # fmt: skip
    try:
        return task.run(*args)
    finally:
        task.pop_request()


def declare(app: Celery, body: Callable[..., Any], **options: Any) -> Any:
    options = {"name": "writer", "invalidates": ["row:{row}"], "bind": True, "shared": False, **options}
    return app.task(body, **options)


def retried(self: Any, row: int) -> int:
    raise self.retry(countdown=0)


def replaced(self: Any, row: int) -> int:
    reader = self.app.tasks["reader"]
    raise self.replace(reader.s(row))


def again_and_on(self: Any, row: int) -> int:
    self.retry(countdown=0, throw=False)
    return row


def read(row: int) -> int:
    return row


@pytest.fixture(autouse=True)
def reader(app: Celery) -> Any:
    return app.task(read, name="reader", shared=False)


SENDING = {"retry": (retried, Retry, "writer"), "replace": (replaced, Ignore, "reader")}


@pytest.mark.parametrize("base", [Task, CachedTask])
@pytest.mark.parametrize("kind", SENDING)
def test_what_goes_on_is_sent_after_the_invalidation(app: Celery, log: Log, kind: str, base: type) -> None:
    body, end, sent = SENDING[kind]
    task = declare(app, body, base=base)

    with pytest.raises(end):
        run(task, 1)

    assert log == ["row:1", f"publishes {sent}", "row:1"]


def test_so_is_each_attempt_that_autoretry_sends(app: Celery, log: Log) -> None:
    def fails(self: Any, row: int) -> int:
        raise OSError("not yet")

    with pytest.raises(Retry):
        run(declare(app, fails, autoretry_for=(OSError,), default_retry_delay=0), 1)

    assert log == ["row:1", "publishes writer"]


def test_a_class_and_its_own_retry_are_seen_too(app: Celery, log: Log) -> None:
    class Writer(Task):
        name = "class"
        invalidates = ("row:{row}",)

        def retry(self, *args: Any, **kwargs: Any) -> Any:
            return super().retry(*args, **{"countdown": 0, **kwargs})

        def run(self, row: int) -> None:
            self.retry()

    with pytest.raises(Retry):
        run(app.register_task(Writer()), 1)

    assert log == ["row:1", "publishes class", "row:1"]


def test_a_body_that_goes_on_after_its_retry_is_asked_again_at_its_end(app: Celery, log: Log) -> None:
    asked: list[object] = []

    def which(arguments: Mapping[str, object], result: object) -> list[str]:
        asked.append(result)
        return [f"result:{result}"]

    assert run(declare(app, again_and_on, invalidates=which), 1) == 1
    assert asked == [MISSING, 1]
    assert log == [f"result:{MISSING}", "publishes writer", "result:1", f"result:{MISSING}"]


def test_a_callable_is_asked_once_where_the_body_ends_there(app: Celery, log: Log) -> None:
    asked: list[object] = []

    def which(arguments: Mapping[str, object], result: object) -> list[str]:
        asked.append(result)
        return [""]

    with pytest.raises(Retry):
        run(declare(app, retried, invalidates=which), 1)

    assert asked == [MISSING]
    assert log == ["not invalidated", "publishes writer"]


def test_what_cannot_be_said_is_told_once_for_each_time_it_was_asked(app: Celery, log: Log) -> None:
    assert run(declare(app, again_and_on, invalidates=lambda arguments, result: [""]), 1) == 1

    assert log == ["not invalidated", "publishes writer", "not invalidated"]


def test_a_time_limit_that_strikes_before_it_is_sent_ends_the_body_and_sends_nothing(app: Celery, log: Log) -> None:
    def which(arguments: Mapping[str, object], result: object) -> Iterator[str]:
        yield "found"
        raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        run(declare(app, retried, invalidates=which), 1)

    assert log == ["not invalidated", "found", "found"]


@pytest.mark.parametrize("kind", SENDING)
def test_nothing_is_invalidated_by_what_writes_nothing_before_it_returns(app: Celery, log: Log, kind: str) -> None:
    body, end, sent = SENDING[kind]
    with pytest.raises(end):
        run(declare(app, body, invalidate_on_failure=False), 1)

    assert log == [f"publishes {sent}"]


@pytest.mark.parametrize("how", ["eager", "direct"])
def test_a_retry_that_sends_nothing_invalidates_at_the_end_alone(app: Celery, log: Log, how: str) -> None:
    eager = {"is_eager": True} if how == "eager" else {"called_directly": True}
    with pytest.raises(Retry):
        run(declare(app, retried), 1, **eager)

    assert log == ["row:1"]


def test_an_eager_replacement_runs_inside_the_body_and_finds_it_invalidated(app: Celery, log: Log) -> None:
    seen: list[list[str]] = []

    def look(row: int) -> None:
        seen.append(list(log))

    app.task(look, name="looks", shared=False)

    def eager(self: Any, row: int) -> None:
        return self.replace(self.app.tasks["looks"].s(row))  # type: ignore[no-any-return]

    declare(app, eager).apply((1,)).get()

    assert seen == [["row:1"]]


def test_a_retry_outside_of_the_body_is_nobodys(app: Celery, log: Log) -> None:
    task = declare(app, retried)

    def retries_another(self: Any, row: int) -> None:
        task.retry(countdown=0)

    other = declare(app, retries_another, name="other", invalidates=["other:{row}"])
    task.push_request(id="known", args=(1,), kwargs={}, called_directly=False, retries=0, delivery_info={})
    try:
        with pytest.raises(Retry):
            task.retry(countdown=0)
        with pytest.raises(Retry):
            run(other, 2)
    finally:
        task.pop_request()

    assert log == ["publishes writer", "publishes writer", "other:2"]


def test_the_inner_run_of_a_body_that_calls_itself_goes_on_with_its_own(app: Celery, log: Log) -> None:
    def nested(self: Any, row: int) -> None:
        if row < 2:
            self.run(row + 1)
        self.retry(countdown=0)

    with pytest.raises(Retry):
        run(declare(app, nested), 1)

    assert log == ["row:2", "publishes writer", "row:2", "row:1"]


def test_a_retry_too_many_is_the_bodys_failure(app: Celery, log: Log) -> None:
    with pytest.raises(MaxRetriesExceededError):
        run(declare(app, retried, max_retries=1), 1, retries=1)

    assert set(log) == {"row:1"}


def test_where_nobody_takes_the_invalidation_the_body_goes_on_all_the_same() -> None:
    app = Celery("away", broker=NOWHERE, set_as_current=False)
    app.conf.update(cachetiers_url=NOWHERE, task_publish_retry=False)
    app.conf.broker_transport_options = {"socket_connect_timeout": 1, "max_retries": 0}
    failed: list[object] = []
    CacheTiers(app).events.subscribe(lambda event, task, details: failed.append(details["tags"]), Event.NOT_INVALIDATED)
    sent: list[object] = []
    task = declare(app, retried)
    task.apply_async = lambda *args, **options: sent.append(args)

    with pytest.raises(Retry):
        run(task, 1)

    assert len(sent) == 1
    assert failed == [("row:1",)] * 2
    CacheTiers(app).reset()


@pytest.mark.parametrize("commits", [True, False])
def test_what_waits_for_a_commit_does_so_until_the_end(app: Celery, log: Log, commits: bool) -> None:
    engine = create_engine("sqlite://")
    with Session(engine) as session:

        def sends(self: Any, row: int) -> None:
            session.execute(text("SELECT 1"))
            if commits:
                session.commit()
                session.execute(text("SELECT 1"))
            self.retry(countdown=0)

        with pytest.raises(Retry):
            run(declare(app, sends, on_commit=session), 1)

        assert log == (["row:1"] if commits else []) + ["publishes writer"] + (["row:1"] if commits else [])
        session.commit()
        assert log[-1] == "row:1"
    engine.dispose()
