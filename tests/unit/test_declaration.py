"""A task class is checked when it is created: what is wrong is named with option, value and allowed range."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
from celery import Celery, Task

from celery_cachetiers import CachedTask, CachedTaskMixin, CacheTiersError, ConfigurationError


@pytest.fixture
def app() -> Celery:
    return Celery("declaration", broker="memory://", set_as_current=False)


def declare(app: Celery, **options: Any) -> Any:
    def profile(user_id: int, verbose: bool = False) -> str:
        return f"{user_id}"

    return app.task(profile, **{"name": "profile", "base": CachedTask, "lazy": False, "shared": False, **options})


NUMBER = "a number above 0"
BAD: list[tuple[str, object, str]] = [
    *(("ttl", value, NUMBER) for value in ("5m", -1, 0, True, math.nan, math.inf, [300])),
    *(("grace", value, "a number of at least 0") for value in ("5m", -1, False, math.nan)),
    *(("jitter", value, "a number of at least 0") for value in ("5m", -1, False, math.inf)),
    *(("refresh_ahead", value, "a number above 0, at most 1") for value in (0, 1.5, "0.8", True)),
    *(("beta", value, NUMBER) for value in (0, -1, "1")),
    *(("lease_ttl", value, "from 0.1 to 3600") for value in (0, 0.01, 3601, "10")),
    *(("wait_limit", value, NUMBER) for value in (0, -1, "300")),
    *(("l1_ttl", value, NUMBER) for value in (0, "30")),
    *(("l1", value, "True or False") for value in (1, "yes")),
    *(("l1_copy", value, "True or False") for value in (0, "no")),
    *(("publish_hits", value, "True or False") for value in (1, "no")),
    *(("cache_enabled", value, "True or False") for value in (0, "no")),
    *(("max_bytes", value, "a whole number of bytes") for value in (0, -1, 1.5, True, 2**40, "16MiB")),
    *(("consistency", value, "one of 'eventual', 'strict'") for value in ("weak", True, 1)),
    *(("coalesce", value, "one of 'wait', 'publish', False") for value in ("Publish", True, 0, "no")),
    *(("tags", value, "a list or tuple") for value in ("user:{user_id}", 5, [1], [""], {"a": 1})),
    *(("ignore", value, "a list or tuple") for value in ("verbose", 5, [1])),
    *(("version", value, "text or a whole number") for value in (1.5, True, ["1"])),
    *(("invalidates", value, "a list or tuple") for value in ("user:{user_id}", 5, [1], [""], {"a": 1})),
    *(("invalidate_on_failure", value, "True or False") for value in (1, "no")),
    *(("on_commit", value, "a SQLAlchemy session or scoped_session") for value in ("default", 5, object())),
    *(("key", value, "a callable") for value in ("user_id", 5)),
    *(("cache_if", value, "a callable") for value in (True, "result")),
    *(("ttl_from", value, "a callable") for value in (60, "result")),
    *(("cache_serializer", value, "a name") for value in (5, "")),
]


@pytest.mark.parametrize(("option", "value", "allowed"), BAD, ids=lambda value: repr(value)[:30])
def test_a_bad_value_names_option_value_and_range(app: Celery, option: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declare(app, **{option: value})

    error = caught.value
    assert (error.option, error.where) == (option, "task profile")
    assert error.value is value or error.value == value
    assert allowed in error.allowed
    assert str(error) == f"{option}={value!r} of task profile is not usable: {error.allowed}"
    assert isinstance(error, CacheTiersError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("option", ["tags_from", "ttl_from", "cache_if"])
def test_what_is_asked_about_the_result_takes_one_argument(app: Celery, option: str) -> None:
    for function in (lambda a, b: 0, lambda: 0, lambda *, result: 0):
        with pytest.raises(ConfigurationError, match=rf"{option}=.*a callable over \(result\), 1 positional argument"):
            declare(app, **{option: function})

    for function in (lambda a, b=1: 0, lambda *all: 0, len, bool, str, functools.partial(max, 1)):
        assert declare(app, name=f"fine {function}", **{option: function}).name


@pytest.mark.parametrize(
    "option",
    ["cache_errors", "error_ttl", "fail_safe"],
)
def test_an_option_that_is_not_built_yet_is_refused(app: Celery, option: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}=.*does not have the feature yet"):
        declare(app, **{option: False})


@pytest.mark.parametrize(
    ("name", "meant"),
    [("tag", "tags"), ("ttls", "ttl"), ("ignored", "ignore"), ("jiter", "jitter"), ("publish_hit", "publish_hits"),
     ("consistancy", "consistency"), ("cache_enable", "cache_enabled"), ("refresh_a_head", "refresh_ahead"),
     ("lease_tll", "lease_ttl")],
)  # fmt: skip
def test_a_near_miss_of_an_option_is_refused_with_a_suggestion(app: Celery, name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}=.*did you mean {meant}") as caught:
        declare(app, **{name: 5})
    assert caught.value.option == name


def test_options_of_celery_and_of_users_are_left_alone(app: Celery) -> None:
    task = declare(
        app, serializer="json", rate_limit="5/m", max_retries=3, default_retry_delay=5, retry_backoff=True,
        my_own="x", owner="team", time_limit=30, typing=True, trail=False,
    )  # fmt: skip

    assert task(1) == "1"


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        (["user:{nobody}"], "'nobody' is not among the task's arguments (user_id, verbose)"),
        (["user:{}"], "a field begins with the name of an argument"),
        (["user:{0}"], "a field begins with the name of an argument"),
        (["user:{user_id"], "matching braces"),
        (["user:{user_id._secret}"], "private"),
        (["fine", "a\nb"], "control characters"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_refused(app: Celery, tags: list[str], named: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        declare(app, tags=tags)

    assert caught.value.option == "tags"
    assert named in str(caught.value)
    assert "task profile" in str(caught.value)


def test_ignoring_what_is_no_argument_is_refused(app: Celery) -> None:
    with pytest.raises(ConfigurationError, match=r"ignore=.*task profile") as caught:
        declare(app, ignore=("request_id",))
    assert "request_id" in str(caught.value)


def test_a_jitter_that_eats_the_ttl_is_refused_at_first_use(app: Celery) -> None:
    task = declare(app, ttl=5, jitter=5)

    with pytest.raises(ConfigurationError, match=r"jitter=5.0.*below ttl=5.0"):
        task(1)


def test_a_lazy_task_is_checked_when_it_is_bound(app: Celery) -> None:
    declare(app, ttl="5m", lazy=True)

    with pytest.raises(ConfigurationError, match="ttl='5m'"):
        app.finalize()


def test_the_error_passes_through_finalize_for_a_worker_to_see() -> None:
    app = Celery("worker", broker="memory://", set_as_current=False)
    declare(app, tag=["user"], lazy=True)

    with pytest.raises(ConfigurationError, match="did you mean tags"):
        app.tasks  # noqa: B018 - what a worker asks for at start


def test_a_class_is_checked_like_a_decorator() -> None:
    with pytest.raises(ConfigurationError, match=r"ttl='5m' of task .*Report"):

        class Report(CachedTask):
            ttl = "5m"

    with pytest.raises(ConfigurationError, match="did you mean tags"):

        class Other(CachedTask):
            name = "other"
            tag = ("x",)

            def run(self, x: int) -> int:
                return x


def test_a_base_may_set_options_for_its_tasks(app: Celery) -> None:
    class Slow(CachedTask):
        abstract = True
        ttl = 3600
        l1 = False

    task = declare(app, base=Slow, ttl=60)

    policy = task._memoize().policy
    assert (policy.ttl, policy.l1) == (60.0, False)


def test_a_template_of_the_base_is_checked_against_each_task() -> None:
    class Base(CachedTask):
        abstract = True
        tags = ("user:{user_id}",)

    app = Celery("bases", broker="memory://", set_as_current=False)
    declare(app, base=Base)
    with pytest.raises(ConfigurationError, match="'user_id' is not among"):
        app.task(identity, base=Base, lazy=False, shared=False, name="other")


def identity(x: int) -> int:
    return x


def test_none_means_as_the_app_says(app: Celery) -> None:
    app.conf.cachetiers_ttl = 42

    task = declare(app, ttl=None, grace=None, tags=None, key=None)

    assert task._memoize().policy.ttl == 42.0


def test_self_of_a_bound_task_is_no_argument(app: Celery) -> None:
    def bound(self: Any, user_id: int) -> int:
        return user_id

    app.task(bound, base=CachedTask, bind=True, name="fine", tags=["user:{user_id}"], lazy=False, shared=False)
    with pytest.raises(ConfigurationError, match="'self' is not among"):
        app.task(bound, base=CachedTask, bind=True, name="bad", tags=["{self}"], lazy=False, shared=False)


def test_open_keyword_arguments_allow_any_template(app: Celery) -> None:
    def open_ended(**kwargs: Any) -> int:
        return len(kwargs)

    task = app.task(open_ended, base=CachedTask, name="open", tags=["user:{user_id}"], lazy=False, shared=False)

    assert task(user_id=1) == 1


def test_a_mixin_with_a_base_of_ones_own_is_checked_too() -> None:
    class Plain(Task):
        abstract = True

    with pytest.raises(ConfigurationError, match="ttl=-1"):

        class Base(CachedTaskMixin, Plain):
            abstract = True
            ttl = -1


def test_an_own_attribute_of_a_base_without_the_cache_is_no_near_miss() -> None:
    class Plain(Task):
        abstract = True
        tag = "of the project"

    class Base(CachedTaskMixin, Plain):
        abstract = True
        tag = "of the project, again"

    assert Base.tag


@pytest.mark.parametrize("given", [{"sink": "orders"}, {"write": "behind"}, {"write": "through"}])
def test_a_sink_and_the_way_to_it_go_together(app: Celery, given: dict[str, str]) -> None:
    [missing] = {"sink", "write"} - given.keys()

    with pytest.raises(ConfigurationError, match=f"{missing}=None"):
        declare(app, **given)


def test_a_base_may_say_one_of_them_and_its_tasks_the_other() -> None:
    class Ordering(CachedTask):
        abstract = True
        sink = "orders"

    class Order(Ordering):
        name = "order"
        write = "behind"

        def run(self, number: int) -> int:
            return number

    assert (Order.sink, Order.write) == ("orders", "behind")
