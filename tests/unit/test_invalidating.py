"""`invalidates=` on any task: what its body has changed is invalidated when the body ends, however it was called."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery, Task, _state, shared_task, signals
from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from pydantic import BaseModel

from celery_cachetiers import MISSING, CachedTask, CacheTiers, ConfigurationError, TierUnavailable, sink
from celery_cachetiers.events import Event
from celery_cachetiers.invalidating import _on_success

NOWHERE = "redis://127.0.0.1:1/0"
"""Nobody listens there."""


def make_app(**conf: Any) -> Celery:
    app = Celery("inval", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.update(conf)
    return app


class Heard:
    """What an app has invalidated, tag by tag, and what it could not."""

    def __init__(self, app: Celery) -> None:
        self.tags: list[str] = []
        self.failed: list[Mapping[str, object]] = []
        self.handed: list[Mapping[str, object]] = []
        tiers = CacheTiers(app)
        tiers.in_memory = "cachetiers_url" not in app.conf
        tiers.events.subscribe(lambda event, task, details: self.tags.extend(details["names"]), Event.INVALIDATED)
        tiers.events.subscribe(lambda event, task, details: self.failed.append(details), Event.NOT_INVALIDATED)
        tiers.events.subscribe(lambda event, task, details: self.handed.append(details), Event.HANDED_OVER)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = make_app()
    yield app
    CacheTiers(app).reset()


@pytest.fixture
def heard(app: Celery) -> Heard:
    return Heard(app)


def rename(user_id: int, name: str = "nobody") -> str:
    return name


def declare(app: Celery, body: Callable[..., Any] = rename, **options: Any) -> Any:
    return app.task(body, **{"name": "rename", "invalidates": ["user:{user_id}"], "shared": False, **options})


# ---- every way to call ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [Task, CachedTask])
@pytest.mark.parametrize("call", ["direct", "apply", "always_eager"])
def test_a_body_that_has_run_has_invalidated(app: Celery, heard: Heard, base: type, call: str) -> None:
    app.conf.task_always_eager = call == "always_eager"
    task = declare(app, base=base)
    value = {
        "direct": lambda: task(1, name="Ada"),
        "apply": lambda: task.apply((1,), {"name": "Ada"}).get(),
        "always_eager": lambda: task.delay(1, "Ada").get(),
    }[call]()

    assert value == "Ada"
    assert heard.tags == ["user:1"]


def test_it_is_done_before_the_task_has_its_result(app: Celery, heard: Heard) -> None:
    seen: list[list[str]] = []
    task = declare(app)

    def linked(result: str) -> None:
        seen.append(list(heard.tags))

    app.conf.task_always_eager = True
    link = declare(app, linked, name="linked", invalidates=None)
    task.apply((1,), link=link.s())

    assert seen == [["user:1"]]


@pytest.mark.parametrize("when", ["before", "after", "after finalize"])
def test_the_extension_may_be_installed_before_or_after_the_task(when: str) -> None:
    app = make_app()
    if when == "before":
        CacheTiers(app)
    task = declare(app)
    if when == "after finalize":
        app.finalize()
    else:
        assert task.name == "rename"
    heard = Heard(app)

    task(1)

    assert heard.tags == ["user:1"]


def test_a_task_that_comes_after_the_app_was_finalized_is_wrapped_too(app: Celery, heard: Heard) -> None:
    app.finalize()

    class Rename(Task):
        name = "late class"
        invalidates = ("user:{user_id}",)

        def run(self, user_id: int) -> str:
            return f"{self.name} {user_id}"

    task = app.register_task(Rename())
    assert (task(1), declare(app, name="late")(2)) == ("late class 1", "nobody")

    assert heard.tags == ["user:1", "user:2"]


def test_a_shared_task_invalidates_in_every_app_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_state, "_on_app_finalizers", set(_state._on_app_finalizers))  # type: ignore[attr-defined]
    first, second = make_app(), make_app()
    heard = [Heard(first), Heard(second)]
    shared_task(rename, name="shared rename", invalidates=["user:{user_id}"])

    first.tasks["shared rename"](1)
    second.tasks["shared rename"](2)

    assert [each.tags for each in heard] == [["user:1"], ["user:2"]]


def test_a_task_invalidates_although_nobody_has_installed_the_extension(app: Celery) -> None:
    other = make_app()
    app.conf.update(cachetiers_url=NOWHERE, task_always_eager=True)
    plain, task = declare(other, invalidates=None), declare(app)

    with pytest.raises(TierUnavailable):
        task(1)
    assert plain(1) == "nobody"
    assert not hasattr(other, "_cachetiers")


def test_a_base_that_keeps_the_hook_to_itself_is_seen_at_finalize(app: Celery, heard: Heard) -> None:
    class Base(Task):
        abstract = True

        @classmethod
        def on_bound(cls, app: Celery) -> None:
            pass

    task = declare(app, base=Base)
    app.finalize()
    task(1)

    assert heard.tags == ["user:1"]


def test_a_bound_task_has_its_request_and_self_is_no_argument(app: Celery, heard: Heard) -> None:
    def bound(self: Any, user_id: int) -> Any:
        return self.request.id

    task = declare(app, bound, bind=True)

    assert task.apply((1,), task_id="known").get() == "known"
    assert heard.tags == ["user:1"]


class User(BaseModel):
    id: int
    name: str


@pytest.mark.parametrize("base", [Task, CachedTask])
@pytest.mark.parametrize("retries", [{}, {"autoretry_for": (OSError,)}])
def test_the_fields_of_a_pydantic_model_can_be_named(
    app: Celery, heard: Heard, base: type, retries: dict[str, Any]
) -> None:
    def save(user: User) -> User:
        assert isinstance(user, User)
        return user

    save.__annotations__ = {"user": User, "return": User}  # Celery 5.5 does not look behind strings
    task = declare(app, save, pydantic=True, base=base, invalidates=["user:{user.id}", "name:{user[name]}"], **retries)

    assert task.apply(({"id": 1, "name": "Ada"},)).get() == {"id": 1, "name": "Ada"}
    assert heard.tags == ["name:Ada", "user:1"]


def test_a_pydantic_task_that_is_cached_is_known_for_one_however_often_its_body_is_wrapped(
    app: Celery, heard: Heard
) -> None:
    def save(user: User) -> int:
        return user.id

    task = declare(app, save, pydantic=True, base=CachedTask, autoretry_for=(OSError,), invalidates=["u:{user.id}"])
    type(task._get_current_object())._dump_pydantic_arguments = None  # as before Celery 5.7
    for _ in range(2):
        assert task._memoize()._takes_models


def test_a_body_that_changes_its_arguments_invalidates_what_it_was_given(app: Celery, heard: Heard) -> None:
    def consume(user: dict[str, int]) -> None:
        user.clear()

    declare(app, consume, invalidates=["user:{user[id]}"])({"id": 1})

    assert heard.tags == ["user:1"]


def test_several_tags_go_in_one_step_and_a_leading_at_is_no_tag_of_the_library(app: Celery) -> None:
    steps: list[object] = []
    CacheTiers(app).in_memory = True
    CacheTiers(app).events.subscribe(lambda event, task, details: steps.append(details["names"]), Event.INVALIDATED)

    declare(app, invalidates=["user:{user_id}", "users", "@all"])(1)

    assert steps == [("@@all", "user:1", "users")]


def test_a_suspended_extension_leaves_bodies_alone(app: Celery, heard: Heard) -> None:
    CacheTiers(app).suspended = True

    assert declare(app)(1, "Ada") == "Ada"
    assert heard.tags == []


# ---- cached tasks ----------------------------------------------------------------------------------------------------


def test_a_hit_invalidates_nothing_and_is_not_answered_at_publish(app: Celery, heard: Heard) -> None:
    task = declare(app, base=CachedTask, ttl=60)
    task(1, "Ada")
    heard.tags.clear()

    assert task(1, "Ada") == "Ada"
    assert heard.tags == []
    assert task.cache.info().l1_hits == 1
    assert not task.memoized.answers_at_publish
    assert declare(app, base=CachedTask, name="other", invalidates=None).memoized.answers_at_publish


def test_what_invalidates_its_own_tag_is_never_stored(app: Celery, heard: Heard) -> None:
    task = declare(app, base=CachedTask, ttl=60, tags=["user:{user_id}"])

    assert [task(1, "Ada"), task(1, "Ada")] == ["Ada", "Ada"]
    assert task.cache.info().computes == 2


def test_a_shared_error_invalidates_nothing_as_no_body_has_run(app: Celery, heard: Heard) -> None:
    task = declare(app, base=CachedTask, autoretry_for=(OSError,))
    task.memoized  # noqa: B018 - wraps the body once more

    with pytest.raises(ValueError, match="shared"):
        task._fail((1,), {}, ValueError("shared"))

    assert heard.tags == []
    task(1)
    assert heard.tags == ["user:1"]


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [ValueError("no"), Ignore(), Reject("no"), Retry("later"), KeyboardInterrupt(), SystemExit(1)], ids=repr
)
@pytest.mark.parametrize("on_failure", [True, False])
def test_a_body_that_fails_may_have_written(app: Celery, heard: Heard, error: BaseException, on_failure: bool) -> None:
    def fail(user_id: int) -> None:
        raise error

    task = declare(app, fail, invalidate_on_failure=on_failure)
    with pytest.raises(type(error)) as caught:
        task(1)

    assert caught.value is error
    assert heard.tags == (["user:1"] if on_failure else [])


@pytest.mark.parametrize("base", [Task, CachedTask])
@pytest.mark.parametrize("kind", ["function", "class"])
def test_every_attempt_of_a_retried_task_invalidates_before_the_next_is_sent(
    app: Celery, heard: Heard, base: type, kind: str
) -> None:
    attempts: list[int] = []

    def flaky(user_id: int) -> int:
        attempts.append(user_id)
        if len(attempts) < 3:
            raise OSError("not yet")
        return len(attempts)

    options: dict[str, Any] = {"autoretry_for": (OSError,), "retry_backoff": False, "default_retry_delay": 0}
    if kind == "function":
        task = declare(app, flaky, base=base, **options)
    else:
        more = {"name": "rename", "invalidates": ["user:{user_id}"], "run": staticmethod(flaky)}
        task = app.register_task(type("Flaky", (base,), {**options, **more})())

    assert task.apply((1,)).get() == 3
    assert heard.tags == ["user:1"] * 3

    sent: list[list[str]] = []

    def note(**_: Any) -> None:
        sent.append(list(heard.tags))

    attempts.clear()
    heard.tags.clear()
    signals.before_task_publish.connect(note)
    task.push_request(id="known", args=(1,), kwargs={}, called_directly=False, retries=0, delivery_info={})
    try:
        with pytest.raises(Retry):
            task.run(1)
    finally:
        task.pop_request()
    assert sent == [["user:1"]]


def test_a_retry_that_the_body_asks_for_counts_as_a_failure(app: Celery, heard: Heard) -> None:
    def retried(self: Any, user_id: int) -> int:
        if self.request.retries < 1:
            raise self.retry(countdown=0)
        return user_id

    only_success = declare(app, retried, bind=True, invalidate_on_failure=False)
    assert only_success.apply((1,)).get() == 1
    assert heard.tags == ["user:1"]

    assert declare(app, retried, bind=True, name="each").apply((2,)).get() == 2
    assert heard.tags == ["user:1", "user:2", "user:2"]


def test_wrong_arguments_raise_the_bodys_own_error_and_are_no_fault_of_the_declaration(
    app: Celery, heard: Heard
) -> None:
    task = declare(app)

    with pytest.raises(TypeError, match=r"rename\(\) missing 1 required positional argument"):
        task()
    assert (heard.tags, heard.failed) == ([], [])


@pytest.mark.parametrize(
    "error", [WorkerLostError("killed"), TimeLimitExceeded(1), ValueError("told by the body itself")], ids=repr
)
def test_a_body_that_was_killed_is_spoken_for_by_the_workers_main_process(
    app: Celery, heard: Heard, error: Exception
) -> None:
    task = declare(app, on_commit=False)

    signals.task_failure.send(sender=task._get_current_object(), task_id="1", exception=error, args=[1], kwargs={})

    assert heard.tags == ([] if isinstance(error, ValueError) else ["user:1"])


@pytest.mark.parametrize("terminated", [True, False])
def test_so_is_one_that_was_terminated(app: Celery, heard: Heard, terminated: bool) -> None:
    class Request:
        args, kwargs = (1,), {"name": "Ada"}

    task = declare(app)._get_current_object()
    signals.task_revoked.send(sender=task, request=Request, terminated=terminated, signum=None, expired=False)

    assert heard.tags == (["user:1"] if terminated else [])


# ---- callables -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [Task, CachedTask])
def test_a_callable_gets_the_arguments_by_name_and_the_result(app: Celery, heard: Heard, base: type) -> None:
    got: list[Any] = []

    def which(arguments: Mapping[str, Any], result: Any) -> list[str]:
        got.append((dict(arguments), result))
        return [f"user:{arguments['user_id']}", "user:1"]

    declare(app, base=base, invalidates=which)(1)

    assert got == [({"user_id": 1, "name": "nobody"}, "nobody")]
    assert heard.tags == ["user:1"]


def test_a_callable_gets_missing_where_the_body_failed(app: Celery, heard: Heard) -> None:
    with pytest.raises(ValueError, match="the body's own"):
        declare(app, fail, invalidates=lambda arguments, result: ["failed"] if result is MISSING else ["done"])(1)

    assert heard.tags == ["failed"]


def test_a_callable_gets_missing_where_a_value_is_deleted_and_is_asked_once(app: Celery, heard: Heard) -> None:
    got: list[object] = []

    def which(arguments: Mapping[str, Any], result: Any) -> list[str]:
        got.append(result)
        return [f"user:{arguments['user_id']}"]

    sink("invalidating.deletions")(lambda writes: None)
    options = {"sink": "invalidating.deletions", "write": "through"}
    declare(app, base=CachedTask, invalidates=which, **options).cache.delete(1)

    assert got == [MISSING]
    assert heard.tags[1:] == ["user:1"]


def _raise(arguments: object, result: object) -> list[str]:
    raise LookupError("no idea")


@pytest.mark.parametrize(
    ("invalidates", "done"),
    [
        (_raise, []),
        (lambda arguments, result: "user:1", []),
        (lambda arguments, result: None, []),
        (lambda arguments, result: 5, []),
        (lambda arguments, result: ["good", "", "never seen"], ["good"]),
        (["user:{user_id.missing}", "good"], ["good"]),
        (["{name}", "good"], ["good"]),
    ],
)
def test_what_cannot_be_said_fails_no_task_and_is_told(
    app: Celery, heard: Heard, caplog: pytest.LogCaptureFixture, invalidates: Any, done: list[str]
) -> None:
    task = declare(app, invalidates=invalidates)
    with caplog.at_level(logging.ERROR, "celery_cachetiers"):
        assert task(1, "") == ""

    assert heard.tags == done
    assert [details["tags"] for details in heard.failed] == [()]
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "rename has run" in record.getMessage()


def test_a_decorator_that_hides_the_arguments_is_told(app: Celery, heard: Heard) -> None:
    def hidden(*args: Any) -> str:
        return "done"

    hidden.__wrapped__ = rename  # type: ignore[attr-defined]  # it says that it takes a user_id

    assert declare(app, hidden)() == "done"
    assert len(heard.failed) == 1


# ---- Redis and the broker away ---------------------------------------------------------------------------------------


def messages(app: Celery) -> list[Any]:
    with app.connection_for_read() as connection:
        queue = app.amqp.queues["handed"](connection.default_channel)
        queue.declare()
        found = []
        while (message := queue.get(no_ack=True)) is not None:
            found.append((message.headers["task"], message.payload[0]))
    return found


@pytest.fixture
def away() -> Iterator[Celery]:
    """An app whose Redis cannot be reached, and whose broker can."""
    app = make_app(cachetiers_url=NOWHERE, task_default_queue="handed")
    CacheTiers(app)
    messages(app)
    yield app
    CacheTiers(app).reset()


def fail(user_id: int) -> None:
    raise ValueError("the body's own")


def test_without_redis_a_worker_is_asked_through_the_broker(away: Celery, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard(away)
    with caplog.at_level(logging.WARNING, "celery_cachetiers"):
        assert declare(away, invalidates=["user:{user_id}", "@x"])(1, "Ada") == "Ada"
        with pytest.raises(ValueError, match="the body's own"):
            declare(away, fail, name="failing")(2)

    expected = [("celery_cachetiers.invalidate_tags", [[*tags]]) for tags in (["@x", "user:1"], ["user:2"])]
    assert messages(away) == expected
    assert [details["operation"] for details in heard.handed] == ["invalidate_tags"] * 2
    assert caplog.text.count("a worker was asked to invalidate") == 2


@pytest.mark.parametrize("how", ["apply", "always_eager", "always_eager, direct"])
def test_an_eager_task_does_not_publish_into_itself(away: Celery, how: str) -> None:
    heard = Heard(away)
    away.conf.task_always_eager = how != "apply"
    task = declare(away)
    call = {"apply": task.apply, "always_eager": task.apply_async}.get(how, lambda args: task(*args))
    with pytest.raises(TierUnavailable) as caught:
        call((1,)).get()

    assert "the broker" not in str(caught.value)
    assert heard.handed == []

    assert messages(away) == []


def test_with_the_broker_away_too_it_raises(caplog: pytest.LogCaptureFixture) -> None:
    app = make_app(broker_url=NOWHERE, cachetiers_url=NOWHERE, task_publish_retry=False)
    app.conf.broker_transport_options = {"socket_connect_timeout": 1, "max_retries": 0}
    heard = Heard(app)

    with pytest.raises(TierUnavailable, match="nor has the broker taken it"):
        declare(app)(1)
    with pytest.raises(ValueError, match="the body's own") as caught:
        declare(app, fail, name="failing")(2)

    assert "['user:2'] could not be invalidated" in caught.value.__notes__[0]
    CacheTiers(app).invalidations["rename"].was_killed([3], {})
    assert [details["tags"] for details in heard.failed] == [("user:2",), ("user:3",)]
    CacheTiers(app).reset()


def test_switched_off_without_servers_it_fails_no_task() -> None:
    app = make_app(cachetiers_url=NOWHERE, cachetiers_enabled=False, task_always_eager=True)
    heard = Heard(app)

    assert declare(app).delay(1, "Ada").get() == "Ada"
    assert [details["tags"] for details in heard.failed] == [("user:1",)]
    CacheTiers(app).reset()


def test_a_setting_that_cannot_be_used_is_said_before_the_body_writes(app: Celery) -> None:
    app.conf.cachetiers_ttl = "5m"
    ran: list[int] = []

    def note(user_id: int) -> None:
        ran.append(user_id)

    task = declare(app, note)
    CacheTiers(app)

    with pytest.raises(ConfigurationError, match="cachetiers_ttl"):
        task(1)
    assert ran == []


# ---- cut short -------------------------------------------------------------------------------------------------------

INTERRUPTS = [SoftTimeLimitExceeded(), SystemExit(0), KeyboardInterrupt(), RuntimeError("a fault of ours")]


@pytest.fixture
def cut() -> Iterator[Celery]:
    """An app whose invalidations are cut short, and whose broker can be reached."""
    app = make_app(task_default_queue="handed")
    CacheTiers(app).in_memory = True
    messages(app)
    yield app
    CacheTiers(app).reset()


def cut_short(app: Celery, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def invalidate(names: object) -> None:
        raise error

    monkeypatch.setattr(CacheTiers(app).cache, "invalidate", invalidate)


@pytest.mark.parametrize("interrupt", INTERRUPTS, ids=repr)
@pytest.mark.parametrize("body", [rename, fail])
def test_what_is_cut_short_is_done_by_a_worker(
    cut: Celery, monkeypatch: pytest.MonkeyPatch, interrupt: BaseException, body: Callable[..., Any]
) -> None:
    heard = Heard(cut)
    cut_short(cut, monkeypatch, interrupt)

    with pytest.raises(type(interrupt)) as caught:
        declare(cut, body)(1)

    assert caught.value is interrupt
    assert messages(cut) == [("celery_cachetiers.invalidate_tags", [["user:1"]])]
    assert (len(heard.handed), heard.failed) == (1, [])


@pytest.mark.parametrize("how", ["broker away", "eager"])
def test_and_told_where_no_worker_can_be_asked(
    cut: Celery, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    heard = Heard(cut)
    cut_short(cut, monkeypatch, SoftTimeLimitExceeded())
    task = declare(cut)
    if how == "broker away":
        cut.conf.broker_url, cut.conf.task_publish_retry = NOWHERE, False
        cut.conf.broker_transport_options = {"socket_connect_timeout": 1, "max_retries": 0}
    with caplog.at_level(logging.ERROR, "celery_cachetiers"), pytest.raises(SoftTimeLimitExceeded):
        task.apply((1,), throw=True) if how == "eager" else task(1)

    assert [details["tags"] for details in heard.failed] == [("user:1",)]
    assert "rename has run, and not all that it changed was invalidated" in caplog.text


def test_a_time_limit_that_strikes_while_a_worker_is_asked_does_not_keep_it_from_being_asked(
    away: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard, strikes = Heard(away), [SoftTimeLimitExceeded()]
    operation = away.tasks["celery_cachetiers.invalidate_tags"]
    send = operation.apply_async

    def apply_async(*args: Any, **options: Any) -> Any:
        if strikes:
            raise strikes.pop()
        return send(*args, **options)

    monkeypatch.setattr(operation, "apply_async", apply_async)
    with pytest.raises(SoftTimeLimitExceeded):
        declare(away)(1)

    assert messages(away) == [("celery_cachetiers.invalidate_tags", [["user:1"]])]
    assert heard.failed == []


def test_a_time_limit_that_strikes_while_a_callable_is_asked_is_the_bodys(app: Celery, heard: Heard) -> None:
    def which(arguments: object, result: object) -> Iterator[str]:
        yield "found"
        raise SoftTimeLimitExceeded

    with pytest.raises(SoftTimeLimitExceeded):
        declare(app, invalidates=which)(1)

    assert heard.tags == ["found"]
    assert [details["tags"] for details in heard.failed] == [()]


# ---- declarations ----------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"invalidates": "user:{user_id}"}, "invalidates", "a list or tuple of templates"),
    ({"invalidates": []}, "invalidates", "a list or tuple of templates"),
    ({"invalidates": [5]}, "invalidates", "a list or tuple of templates"),
    ({"invalidates": ["user:{id}"]}, "invalidates", "'id' is not among the task's arguments (user_id, name)"),
    ({"invalidates": ["user:{"]}, "invalidates", "matching braces"),
    ({"invalidates": lambda arguments: []}, "invalidates", "a callable over (arguments, result)"),
    ({"invalidate_on_failure": "no"}, "invalidate_on_failure", "True or False"),
    ({"on_commit": "default"}, "on_commit", "a SQLAlchemy session"),
    ({"invalidates": None, "invalidate_on_failure": False}, "invalidate_on_failure", "goes with invalidates"),
]


@pytest.mark.parametrize(("options", "option", "allowed"), BAD, ids=str)
@pytest.mark.parametrize("base", [Task, CachedTask])
def test_a_bad_declaration_names_task_option_value_and_range(
    app: Celery, base: type, options: dict[str, Any], option: str, allowed: str
) -> None:
    CacheTiers(app)
    with pytest.raises(ConfigurationError) as caught:
        declare(app, base=base, lazy=False, **options)

    assert (caught.value.option, caught.value.where) == (option, "task rename")
    assert allowed in caught.value.allowed


@pytest.mark.parametrize("base", [Task, CachedTask])
def test_it_passes_through_finalize_for_a_worker_to_see(app: Celery, base: type) -> None:
    CacheTiers(app)
    declare(app, base=base, invalidates=["user:{id}"])

    with pytest.raises(ConfigurationError, match="'id' is not among"):
        app.finalize()


@pytest.mark.parametrize("base", [Task, CachedTask])
def test_a_task_with_a_bad_declaration_does_not_run_at_the_second_try_either(app: Celery, base: type) -> None:
    task = declare(app, base=base, invalidates=["user:{id}"])

    for _ in range(2):
        with pytest.raises(ConfigurationError, match="'id' is not among"):
            task(1)


def test_on_commit_of_somebody_elses_task_is_left_alone_and_a_base_may_set_ours_for_many(app: Celery) -> None:
    CacheTiers(app)

    class Base(CachedTask):
        abstract = True
        on_commit = False
        invalidate_on_failure = False

    assert declare(app, name="plain", invalidates=None, on_commit="theirs", lazy=False)(1, "a") == "a"
    assert declare(app, base=Base, invalidates=None, lazy=False)(1, "b") == "b"
    assert declare(app, name="cached", base=CachedTask, invalidates=None, on_commit=False, lazy=False)(1, "c") == "c"
    with pytest.raises(ConfigurationError, match="goes with invalidates"):
        declare(app, name="bad", base=CachedTask, invalidates=None, invalidate_on_failure=False, lazy=False)


@pytest.mark.parametrize("installed", [True, False])
def test_a_sink_of_a_task_that_is_not_cached_is_refused(app: Celery, installed: bool) -> None:
    if installed:
        CacheTiers(app)
    with pytest.raises(ConfigurationError, match=r"sink='orders' of task rename .* base=CachedTask"):
        declare(app, invalidates=None, sink="orders", write="behind", lazy=False)

    for name, others in (("a", {"sink": "orders"}), ("b", {"write": "behind"}), ("c", {"sink": 5, "write": "behind"})):
        assert declare(app, name=name, invalidates=None, lazy=False, **others)(1, "Ada") == "Ada"


@pytest.mark.parametrize("value", ["user:{user_id}", ["user:{user_id}"]])
def test_a_near_miss_on_a_task_that_is_not_cached_is_a_warning(
    app: Celery, caplog: pytest.LogCaptureFixture, value: object
) -> None:
    assert declare(app, invalidates=None, invalidate=value)(1, "Ada") == "Ada"
    app.finalize()

    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "of task rename: did you mean invalidates=?" in record.getMessage()


def test_what_may_be_another_librarys_is_none(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    for number, value in enumerate([True, [], [5], {"a": 1}, print]):
        declare(app, name=f"theirs {number}", invalidates=None, invalidate=value, lazy=False)
    declare(app, invalidate=["user:{user_id}"], lazy=False)

    assert caplog.records == []


# ---- where there is no body to wrap ----------------------------------------------------------------------------------


class Unwrappable(Task):
    abstract = True

    def __setattr__(self, name: str, value: object) -> None:
        if name in ("run", "_orig_run"):
            raise AttributeError(name)
        super().__setattr__(name, value)


def test_a_body_that_cannot_be_wrapped_is_followed_by_the_signals_once(app: Celery, heard: Heard) -> None:
    task = declare(app, base=Unwrappable, invalidates=lambda arguments, result: [f"{arguments['user_id']}:{result}"])
    wrapped = declare(app, name="wrapped")
    try:
        task.apply((1, "Ada"))
        wrapped.apply((2,))
        signals.task_failure.send(sender=task._get_current_object(), exception=ValueError(), args=(3,), kwargs={})
    finally:
        signals.task_success.disconnect(_on_success)

    assert heard.tags == ["1:Ada", "user:2", f"3:{MISSING}"]
