"""The two seams of a `CachedTask`: what is answered at publish, what runs in a worker, what Celery users rely on."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_type_hints

import pydantic
import pytest
from celery import Celery, Task, chain, chord, group
from celery.result import AsyncResult, EagerResult

from celery_cachetiers import (
    MISSING,
    CachedResult,
    CachedTask,
    CachedTaskMixin,
    CacheTiers,
    ConfigurationError,
    NotCached,
    UncacheableArgument,
    UnusableEntry,
    invalidate_tag,
)
from celery_cachetiers.codec import Codec
from celery_cachetiers.testing import FakeClock, Gate
from tests.integration.apps.local import (
    Count,
    cached_app,
    closing,
    published,
    run_published,
    run_python,
    wait_listening,
    worker_of,
)
from tests.processes import wait_until
from tests.servers import RedisServer


@pytest.fixture
def app(namespace: str, redis_server: RedisServer) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_server.url())) as app:
        yield app


@pytest.fixture
def aged(app: Celery) -> FakeClock:
    """The clock of `app`, which stands still until the test moves it."""
    clock = FakeClock(time.time())
    CacheTiers(app).clock = clock
    return clock


def adder(app: Celery, count: Count | None = None, **options: Any) -> Any:
    def add(x: int, y: int = 0) -> int:
        if count is not None:
            count(x, y)
        return x + y

    return app.task(add, **{"base": CachedTask, "name": "add", **options})


def counting(app: Celery, count: Count, **options: Any) -> Any:
    """A task without arguments that returns how often it ran."""

    def counter() -> int:
        return count()

    return app.task(counter, **{"base": CachedTask, "name": "counter", **options})


# -- what a hit at publish is -------------------------------------------------------------------------------------


def test_a_hit_at_publish_is_a_finished_result(app: Celery) -> None:
    add = adder(app)
    add(1, 2)

    result = add.delay(1, y=2)

    assert isinstance(result, CachedResult)
    assert isinstance(result, AsyncResult)
    assert (result.state, result.ready(), result.successful(), result.failed()) == ("SUCCESS", True, True, False)
    assert (result.get(), result.get(timeout=1), result.result, result.info, result.wait()) == (3, 3, 3, 3, 3)
    assert result.traceback is None
    assert published(app) == []


@pytest.mark.parametrize("look", [lambda r: r.id, str, lambda r: r.as_tuple()[0][0], lambda r: r.task_id])
def test_the_id_of_a_hit_is_stored_when_it_leaves_the_object(app: Celery, look: Any) -> None:
    add = adder(app)
    add(1, 2)
    result = add.delay(1, 2)
    elsewhere = AsyncResult(result._id, app=app)
    assert elsewhere.state == "PENDING"

    seen = look(result)

    assert AsyncResult(seen, app=app).get(timeout=5) == 3
    assert AsyncResult(seen, app=app).state == "SUCCESS"


def test_a_hit_in_memory_at_publish_asks_for_no_tags(app: Celery) -> None:
    asked = Count()

    def tags(x: int, y: int) -> list[str]:
        asked(x, y)
        return [f"x:{x}"]

    add = adder(app, tags=tags)
    wait_listening(app)
    add(1, 2)
    before = len(asked)

    values = [add.delay(1, 2).get(), add(1, 2)]

    assert values == [3, 3]
    assert len(asked) == before
    assert CacheTiers(app).counters.snapshot()["add"].l1_hits == 2


def test_a_hit_at_publish_is_decoded_once(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    add, decoded, decode = adder(app, l1=False), Count(), Codec.decode
    add(1, 2)
    monkeypatch.setattr(Codec, "decode", lambda *args: (decoded(), decode(*args))[1])

    value = add.delay(1, 2).get()

    assert value == 3
    assert len(decoded) == 1


def test_a_hit_whose_id_nobody_saw_costs_the_result_backend_nothing(app: Celery) -> None:
    add = adder(app)
    add(1, 2)

    results = [add.delay(1, 2) for _ in range(5)]

    assert [result.get() for result in results] == [3] * 5
    assert [AsyncResult(result._id, app=app).state for result in results] == ["PENDING"] * 5
    assert len({result._id for result in results}) == 5


@pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning")  # celery 5.7 with redis-py 8
def test_a_redis_result_backend_holds_a_hit_once_its_id_was_seen(redis_server: RedisServer, namespace: str) -> None:
    backend = redis_server.url(1)
    with closing(cached_app(namespace, result_backend=backend)) as app, redis_server.client(1) as client:
        add = adder(app)
        add(1, 2)
        result = add.delay(1, 2)
        key = f"celery-task-meta-{result._id}"
        assert client.exists(key) == 0

        assert result.id == result._id
        stored = json.loads(client.get(key))
        assert (stored["status"], stored["result"], stored["children"]) == ("SUCCESS", 3, [])


def test_an_explicit_task_id_is_stored_at_once(app: Celery) -> None:
    add = adder(app)
    add(1, 2)

    result = add.apply_async((1, 2), task_id="known")

    assert AsyncResult("known", app=app).get(timeout=5) == 3
    assert result.id == "known"


def test_the_stored_value_is_the_cached_one_whatever_the_caller_did_with_its_own(app: Celery) -> None:
    @app.task(base=CachedTask, name="items")
    def items() -> list[int]:
        return [1]

    items()
    result = items.delay()
    result.get().append(2)

    assert AsyncResult(result.id, app=app).get(timeout=5) == [1]


@pytest.mark.parametrize("how", ["option", "declared"])
def test_an_ignored_result_is_never_stored(app: Celery, how: str) -> None:
    add = adder(app, ignore_result=how == "declared")
    add(1, 2)

    options = {"ignore_result": True} if how == "option" else {}
    result = add.apply_async((1, 2), task_id="ignored", **options)

    assert result.get() is None
    assert str(result) == "ignored"
    assert AsyncResult("ignored", app=app).state == "PENDING"
    assert published(app) == []


def test_then_calls_back_at_once(app: Celery) -> None:
    add = adder(app)
    add(1, 2)
    seen: list[Any] = []

    result = add.delay(1, 2)
    result.then(lambda done: seen.append(done.get()))

    assert seen == [3]


def test_a_forgotten_hit_is_gone_from_the_backend(app: Celery) -> None:
    add = adder(app)
    add(1, 2)

    seen, unseen = add.delay(1, 2), add.delay(1, 2)
    known = seen.id
    seen.forget()
    unseen.forget()

    assert AsyncResult(known, app=app).state == "PENDING"
    assert AsyncResult(unseen._id, app=app).state == "PENDING"


# -- what is never answered at publish ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"countdown": 5},
        {"eta": "2999-01-01T00:00:00+00:00"},
        {"retries": 1},
        {"cache_mode": "refresh"},
        {"cache_mode": "bypass"},
        {"cache_mode": "only"},
        {"headers": {"cachetiers_mode": "refresh"}},
    ],
    ids=str,
)
def test_what_rides_on_the_message_is_published_although_there_is_a_hit(app: Celery, options: dict[str, Any]) -> None:
    add = adder(app)
    add(1, 2)

    result = add.apply_async((1, 2), **options)

    assert not isinstance(result, CachedResult)
    assert len(published(app)) == 1


def test_a_link_is_published_and_a_link_error_is_not(app: Celery) -> None:
    add = adder(app)
    add(1, 2)

    linked = add.apply_async((1, 2), link=add.s(5))
    assert not isinstance(linked, CachedResult)
    assert len(published(app)) == 1
    error_linked = add.apply_async((1, 2), link_error=add.s(5))
    assert isinstance(error_linked, CachedResult)
    assert published(app) == []


def test_a_chain_and_a_chord_publish_their_first_tasks(app: Celery) -> None:
    add = adder(app)
    add(1, 2)

    chain(add.s(1, 2), add.s(5)).apply_async()
    assert len(published(app)) == 1
    chord([add.s(1, 2), add.s(1, 2)], add.si(9)).apply_async()
    assert len(published(app)) == 2


@pytest.mark.parametrize("handler", ["before_start", "on_success", "after_return"])
def test_a_task_with_a_handler_of_its_own_is_published(app: Celery, handler: str) -> None:
    base = type("Handling", (CachedTask,), {handler: lambda self, *args, **kwargs: None, "abstract": True})
    add = adder(app, base=base)
    add(1, 2)

    assert not isinstance(add.delay(1, 2), CachedResult)
    assert len(published(app)) == 1


def test_a_task_that_handles_failures_only_is_answered(app: Celery) -> None:
    base = type("Handling", (CachedTask,), {"on_failure": lambda self, *args: None, "abstract": True})
    add = adder(app, base=base)
    add(1, 2)

    assert isinstance(add.delay(1, 2), CachedResult)


@pytest.mark.parametrize("where", ["task", "app"])
def test_publish_hits_can_be_switched_off(app: Celery, where: str) -> None:
    if where == "app":
        app.conf.cachetiers_publish_hits = False
    count = Count()
    add = adder(app, count, **({"publish_hits": False} if where == "task" else {}))
    add(1, 2)

    add.delay(1, 2)
    [result] = run_published(app)

    assert result.get() == 3
    assert len(count) == 1


def test_eager_mode_runs_here_and_is_cached(app: Celery) -> None:
    app.conf.task_always_eager = True
    count = Count()
    add = adder(app, count)

    results = [add.delay(1, 2), add.delay(1, 2)]

    assert [type(result) for result in results] == [EagerResult] * 2
    assert [result.get() for result in results] == [3, 3]
    assert len(count) == 1


def test_a_group_of_hits_and_misses_gives_all_values(app: Celery) -> None:
    count = Count()
    add = adder(app, count)
    add(1, 1)

    with worker_of(app):
        result = group(add.s(1, 1), add.s(2, 2), add.s(1, 1), add.s(3, 3))()
        values = result.get(timeout=30)
        saved = [AsyncResult(each.id, app=app).get(timeout=10) for each in result.results]

    assert values == saved == [2, 4, 2, 6]
    assert len(count) == 3


def test_canvas_over_hits_completes(app: Celery) -> None:
    count = Count()
    add = adder(app, count)

    @app.task(name="total")
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    add(1, 1)
    with worker_of(app):
        chained = chain(add.s(1, 1), add.s(1)).apply_async().get(timeout=30)
        joined = chord([add.s(1, 1), add.s(1, 1), add.s(4)], total.s())().get(timeout=30)
        linked = add.apply_async((1, 1), link=add.s(100))
        linked.get(timeout=30)
        wait_until(lambda: (2, 100) in count.calls, timeout=20, message="the link of a hit")

    assert chained == 3
    assert joined == 8
    assert count.calls.count((1, 1)) == 1


# -- arguments that do not fit ------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", [Task, CachedTask])
def test_wrong_arguments_raise_the_type_error_that_celery_raises(app: Celery, base: Any) -> None:
    add = adder(app, base=base)

    for call in (
        add.delay,
        lambda: add.delay(1, 2, 3),
        lambda: add.apply_async(kwargs={"z": 1}),
        add,
    ):
        with pytest.raises(TypeError, match="argument"):
            call()
    assert published(app) == []
    with worker_of(app), pytest.raises(TypeError, match="argument"):
        app.send_task("add", kwargs={"z": 1}).get(timeout=30)


# -- cache_mode ---------------------------------------------------------------------------------------------------


def test_the_modes_of_a_message(app: Celery) -> None:
    count = Count()
    counter = counting(app, count)
    assert counter() == 1

    def send(mode: str) -> Any:
        counter.apply_async(cache_mode=mode)
        [result] = run_published(app)
        return result.get()

    assert send("bypass") == 2
    assert counter() == 1
    assert send("only") == 1
    assert send("refresh") == 3
    assert counter() == 3
    assert counter.delay().get() == 3
    assert len(count) == 3


def test_only_never_computes(app: Celery) -> None:
    count = Count()
    add = adder(app, count)

    add.apply_async((1, 2), cache_mode="only")
    [result] = run_published(app)

    with pytest.raises(NotCached, match="add: no entry"):
        result.get()
    assert len(count) == 0


def test_not_cached_reaches_the_waiting_caller_as_itself(app: Celery) -> None:
    add = adder(app)

    with worker_of(app), pytest.raises(NotCached) as caught:
        add.apply_async((1, 2), cache_mode="only").get(timeout=30)

    assert caught.value.task == "add"
    assert caught.value.key == add.cache.key(1, 2)


@pytest.mark.parametrize("how", ["signature", "apply", "send_task", "eager"])
def test_every_way_to_call_takes_a_mode(app: Celery, how: str) -> None:
    count = Count()
    counter = counting(app, count)
    counter()

    if how == "signature":
        counter.s().set(cache_mode="refresh").apply_async()
        run_published(app)
    elif how == "apply":
        assert counter.apply(cache_mode="refresh").get() == 2
    elif how == "send_task":
        app.send_task("counter", headers={"cachetiers_mode": "refresh"})
        run_published(app)
    else:
        app.conf.task_always_eager = True
        assert counter.apply_async(cache_mode="refresh").get() == 2

    assert counter() == 2
    assert len(count) == 2


def test_a_mode_survives_a_retry(app: Celery) -> None:
    seen: list[tuple[str, int]] = []
    count = Count()

    @app.task(base=CachedTask, name="flaky", bind=True)
    def flaky(self: Any) -> int:
        seen.append(((self.request.headers or {}).get("cachetiers_mode", ""), self.request.retries))
        if count() == 2:
            raise self.retry(countdown=0, max_retries=3)
        return len(count)

    flaky()
    with worker_of(app):
        value = flaky.apply_async(cache_mode="refresh").get(timeout=30)

    assert value == 3
    assert seen[1:] == [("refresh", 0), ("refresh", 1)]
    assert flaky() == 3


BAD_MODES: dict[str, Callable[[Any], Any]] = {
    "apply_async": lambda task: task.apply_async((1, 2), cache_mode="yes"),
    "apply": lambda task: task.apply((1, 2), cache_mode="yes"),
    "signature": lambda task: task.s(1, 2).set(cache_mode="yes").apply_async(),
    "header": lambda task: task.apply_async((1, 2), headers={"cachetiers_mode": "yes"}),
}


@pytest.mark.parametrize("call", BAD_MODES)
def test_a_bad_mode_is_a_configuration_error(app: Celery, call: str) -> None:
    add = adder(app)

    with pytest.raises(ConfigurationError, match=r"cache_mode='yes'.*'use', 'refresh', 'bypass', 'only'"):
        BAD_MODES[call](add)
    assert published(app) == []


def test_a_foreign_mode_in_a_message_means_use(app: Celery) -> None:
    count = Count()
    add = adder(app, count)
    add(1, 2)

    app.send_task("add", (1, 2), headers={"cachetiers_mode": "of a later version"})
    [result] = run_published(app)

    assert result.get() == 3
    assert len(count) == 1


def test_headers_of_the_user_travel_along(app: Celery) -> None:
    add = adder(app)
    headers = {"trace": "abc"}

    add.apply_async((1, 2), headers=headers)
    [message] = published(app)

    assert message.headers["trace"] == "abc"
    assert message.headers["cachetiers_key"].startswith(add.cache.key(1, 2))
    assert headers == {"trace": "abc"}


# -- every kind of task -------------------------------------------------------------------------------------------


def test_a_direct_call_and_apply_are_cached_and_run_is_raw(app: Celery) -> None:
    count = Count()
    add = adder(app, count)

    assert (add(1, 2), add(1, y=2), add.apply((1, 2)).get(), add.s(1, 2)()) == (3, 3, 3, 3)
    assert len(count) == 1
    assert add.run(1, 2) == 3
    assert len(count) == 2


REQUESTS = """
    from celery import Celery, Task
    from celery_cachetiers import CachedTask

    app = Celery("bound", broker="memory://")

    def requests_of(base):
        seen = []

        def body(self, x):
            request = self.request
            seen.append((request.id, request.called_directly, request.args, request.is_eager, request.retries))

        task = app.task(body, bind=True, base=base, name=base.__name__)
        task(1)
        task.apply((2,), task_id="an id", retries=1, **({} if base is Task else {"cache_mode": "MODE"}))
        return seen

    for line in zip(requests_of(Task), requests_of(CachedTask)):
        print(*line, sep=" | ")
"""


@pytest.mark.parametrize("mode", ["use", "bypass", "refresh"])
def test_the_request_of_a_bound_task_is_celerys_own(mode: str) -> None:
    """Stock and cached side by side, in a process where no worker has patched `Task.__call__`."""
    lines = [line.split(" | ") for line in run_python(REQUESTS.replace("MODE", mode)).splitlines()]

    assert [cached for _, cached in lines] == [stock for stock, _ in lines]


def test_a_bound_task_knows_its_request_in_a_worker(app: Celery) -> None:
    @app.task(base=CachedTask, name="who", bind=True)
    def who(self: Any, x: int) -> list[Any]:
        return [self.request.id, self.request.called_directly, self.request.args, self.request.delivery_info is None]

    with worker_of(app):
        result = who.delay(1)
        value = result.get(timeout=30)

    assert value == [result.id, False, [1], False]


def test_a_shared_task_is_cached(redis_server: RedisServer, namespace: str) -> None:
    program = """
        import os
        from celery import Celery, shared_task
        from celery_cachetiers import CachedTask, CacheTiers

        runs = []

        @shared_task(base=CachedTask, tags=["n:{n}"])
        def double(n):
            runs.append(n)
            return 2 * n

        app = Celery("shared", broker="memory://")
        app.conf.update(cachetiers_url=os.environ["URL"], cachetiers_namespace=os.environ["NS"])
        values = [double(4), double(n=4), double.apply((4,)).get()]
        CacheTiers(app).invalidate_tag("n:4")
        print(values, double(4), len(runs))
        CacheTiers(app).reset()
    """
    assert run_python(program, URL=redis_server.url(), NS=namespace) == "[8, 8, 8] 8 2"


def test_a_class_based_task_is_cached(app: Celery) -> None:
    count = Count()

    class Add(CachedTask):
        name = "class.add"
        tags = ("sum:{x}",)

        def run(self, x: int, y: int = 0) -> int:
            count(x, y, self.name)
            return x + y

    add = app.register_task(Add())

    assert (add(1, 2), add(1, y=2), add.delay(1, 2).get()) == (3, 3, 3)
    CacheTiers(app).invalidate_tag("sum:1")
    assert add(1, 2) == 3
    assert count.calls == [(1, 2, "class.add")] * 2


def test_autoretry_for_retries_and_then_caches(app: Celery) -> None:
    count = Count()

    @app.task(base=CachedTask, name="flaky", autoretry_for=(OSError,), retry_backoff=False, default_retry_delay=0)
    def flaky(x: int) -> int:
        if count(x) == 1:
            raise OSError("once")
        return x

    with worker_of(app):
        value = flaky.delay(7).get(timeout=30)

    assert value == 7
    assert flaky(7) == 7
    assert len(count) == 2


class User(pydantic.BaseModel):
    id: int
    name: str = "someone"


def _sent(user: User) -> Any:
    """What a caller may pass: before Celery 5.7 the broker's serializer gets the model as it is, and refuses it."""
    return user if hasattr(Task, "_dump_pydantic_arguments") else user.model_dump(mode="json")


def _resolved(function: Callable[..., Any]) -> Callable[..., Any]:
    """With types for annotations: Celery 5.5 does not resolve strings, which the `__future__` import makes of them."""
    function.__annotations__ = get_type_hints(function)
    return function


def test_models_of_the_caller_and_dicts_in_the_worker_are_one_key(app: Celery) -> None:
    count = Count()

    @app.task(base=CachedTask, name="greet", pydantic=True, tags=["user:{user[id]}"])
    @_resolved
    def greet(user: User) -> str:
        count(user)
        return f"hello {user.name}"

    greet.delay(_sent(User(id=1)))
    [message] = published(app)
    args, kwargs, _ = message.payload
    value = greet.apply(args, kwargs, headers=message.headers).get()

    assert value == "hello someone"
    assert args == [{"id": 1, "name": "someone"}]
    assert greet.cache.key(_sent(User(id=1))) == greet.cache.key(*args)
    assert greet.delay(_sent(User(id=1))).get() == "hello someone"
    assert greet.delay(user=_sent(User(id=1))).get() == "hello someone"
    assert published(app) == []
    assert count.calls == [(User(id=1),)]
    CacheTiers(app).invalidate_tag("user:1")
    assert greet.cache.get(_sent(User(id=1))) is MISSING


def test_a_template_reaches_into_a_model(app: Celery) -> None:
    """As the declaration lets it; models arrive as dicts in the worker."""
    count = Count()

    @app.task(base=CachedTask, name="greet", pydantic=True, tags=["user:{user.id}"])
    @_resolved
    def greet(user: User) -> str:
        count(user)
        return user.name

    greet.delay(_sent(User(id=1)))
    run_published(app)

    assert greet.cache.get(_sent(User(id=1))) == "someone"
    CacheTiers(app).invalidate_tag("user:1")
    assert greet.cache.get(_sent(User(id=1))) is MISSING


def test_callables_as_options_are_not_methods(app: Celery) -> None:
    count = Count()
    add = adder(
        app,
        count,
        key=lambda x, y: x,
        tags=lambda x, y: [f"x:{x}"],
        cache_if=lambda result: result != 9,
        ttl_from=lambda result: 60.0,
    )

    assert (add(1, 2), add(1, 3), add(4, 5), add(4, 5)) == (3, 3, 9, 9)
    assert count.calls == [(1, 2), (4, 5), (4, 5)]
    CacheTiers(app).invalidate_tag("x:1")
    assert add(1, 3) == 4


def test_callables_of_a_class_based_task_are_not_methods(app: Celery) -> None:
    class Add(CachedTask):
        name = "class.add"
        key = lambda x, y: x  # noqa: E731 - as users write it

        def cache_if(result: int) -> bool:
            return result > 0

        def run(self, x: int, y: int) -> int:
            return x + y

    add = app.register_task(Add())

    assert (add(1, 2), add(1, 3)) == (3, 3)


def test_a_base_of_ones_own_keeps_what_it_does(app: Celery) -> None:
    calls: list[str] = []

    class Logged(Task):
        abstract = True

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("base")
            return super().__call__(*args, **kwargs)

        def apply_async(self, *args: Any, **kwargs: Any) -> Any:
            calls.append("publish")
            return super().apply_async(*args, **kwargs)

    class Base(CachedTaskMixin, Logged):
        abstract = True
        ttl = 60

    add = adder(app, base=Base)
    add.delay(1, 2)
    run_published(app)

    assert calls == ["publish", "base"]
    assert (add(1, 2), add.delay(1, 2).get()) == (3, 3)
    assert calls == ["publish", "base"]
    assert add._memoized.policy.ttl == 60.0


# -- apps, switches -----------------------------------------------------------------------------------------------


def test_two_apps_of_a_process_have_each_their_own_cache(redis_server: RedisServer, namespace: str) -> None:
    with (
        closing(cached_app(f"{namespace}a", redis_server.url())) as first,
        closing(cached_app(f"{namespace}b", redis_server.url())) as second,
    ):
        tasks = [adder(each, tags=["sums"]) for each in (first, second)]
        for task in tasks:
            task(1, 2)

        assert CacheTiers(first) is CacheTiers(first)
        assert CacheTiers(first) is not CacheTiers(second)
        CacheTiers(first).invalidate_tag("sums")
        assert [task.cache.get(1, 2) for task in tasks] == [MISSING, 3]
        assert [task.cache.info().stores for task in tasks] == [1, 1]


def test_the_built_in_tasks_of_an_app_act_on_that_app(redis_server: RedisServer, namespace: str) -> None:
    with (
        closing(cached_app(f"{namespace}a", redis_server.url())) as first,
        closing(cached_app(f"{namespace}b", redis_server.url())) as second,
    ):
        tasks = [adder(each, tags=["sums"]) for each in (first, second)]
        for task in tasks:
            task(1, 2)

        second.tasks["celery_cachetiers.invalidate_tag"].apply(("sums",)).get()
        assert [task.cache.get(1, 2) for task in tasks] == [3, MISSING]
        first.tasks["celery_cachetiers.clear"].apply(("add",)).get()
        assert [task.cache.get(1, 2) for task in tasks] == [MISSING, MISSING]


def test_invalidation_as_a_message_is_done_by_a_worker(app: Celery) -> None:
    add = adder(app, tags=["sum:{x}"])
    add(1, 2)
    add(5)

    with worker_of(app):
        app.tasks["celery_cachetiers.invalidate_tag"].delay("sum:1").get(timeout=30)
        app.tasks["celery_cachetiers.invalidate_key"].delay(add.cache.key(5)).get(timeout=30)

    assert add.cache.get(1, 2) is MISSING
    assert add.cache.get(5) is MISSING


INSTALLED = """
    import threading
    from celery import Celery
    from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError, invalidate_tag
    from celery_cachetiers.installed import installed

    def asked():
        try:
            return installed().app.main
        except ConfigurationError as error:
            return error.option

    def in_thread():
        found = []
        thread = threading.Thread(target=lambda: found.append(asked()))
        thread.start()
        thread.join()
        return found[0]

    print(asked(), in_thread())
    only = Celery("only", broker="memory://", set_as_current=False)
    CacheTiers(only)
    print(asked(), in_thread())
    other = Celery("other", broker="memory://", set_as_current=False)
    CacheTiers(other)
    print(asked(), in_thread())
    other.set_current()
    print(asked(), in_thread())
    try:
        invalidate_tag("a")
    except ConfigurationError as error:
        print(error)
"""


def test_the_functions_find_the_current_app_else_the_only_one() -> None:
    lines = run_python(INSTALLED).splitlines()

    assert lines == ["app app", "only only", "app app", "other app"]


FIRST_ACT = """
    from celery import Celery, _state, shared_task
    from celery_cachetiers import CachedTask, ConfigurationError, invalidate_tag

    @shared_task(base=CachedTask, name="shared")
    def shared(n): ...

    if {fallback}:
        try:
            invalidate_tag("user:1")
        except ConfigurationError as error:
            print(error.option, hasattr(_state.default_app, "_cachetiers"))

    app = Celery("{name}", broker="memory://", autofinalize={autofinalize})
    app.conf.task_always_eager = True

    @app.task(base=CachedTask, tags=["user:{{user_id}}"])
    def profile(user_id): ...

    try:
        {act}
    except ConfigurationError as error:
        print(error.option)
    print(hasattr(app, "_cachetiers"))
"""


@pytest.mark.parametrize("act", ['invalidate_tag("user:1")', 'invalidate_tag.delay("user:1").get()'])
@pytest.mark.parametrize("name", ["shop", "default"])
def test_an_invalidation_may_be_the_first_act_of_a_process(act: str, name: str) -> None:
    program = FIRST_ACT.format(fallback=False, name=name, autofinalize=True, act=act)

    assert run_python(program) == "True"


def test_but_neither_celerys_own_app_nor_one_that_its_owner_finalizes_is_finalized_for_it() -> None:
    program = FIRST_ACT.format(fallback=True, name="shop", autofinalize=False, act='invalidate_tag("user:1")')

    assert run_python(program).splitlines() == ["app False", "app", "False"]


def test_the_environment_switches_everything_off(redis_server: RedisServer, namespace: str) -> None:
    program = """
        import os
        from celery import Celery
        from celery_cachetiers import CachedTask, CacheTiers, MISSING

        app = Celery("off", broker="memory://")
        app.conf.update(cachetiers_url=os.environ["URL"], cachetiers_namespace=os.environ["NS"])
        runs = []

        @app.task(base=CachedTask)
        def double(n):
            runs.append(n)
            return 2 * n

        values = [double(4), double(4), double.apply((4,)).get(), type(double.delay(4)).__name__]
        double.cache.put((4,), 9)
        print(values, len(runs), double.cache.get(4) is MISSING, double.cache.refresh(4))
    """
    with redis_server.client() as client:
        expected = "[8, 8, 8, 'AsyncResult'] 3 True 8"
        assert run_python(program, URL=redis_server.url(), NS=namespace, CACHETIERS_ENABLED="0") == expected
        assert list(client.scan_iter(f"{namespace}:*")) == []


@pytest.mark.parametrize("where", ["task", "app"])
def test_a_switched_off_task_runs_as_if_uncached(app: Celery, where: str) -> None:
    if where == "app":
        app.conf.cachetiers_enabled = False
    count = Count()
    add = adder(app, count, **({"cache_enabled": False} if where == "task" else {}))

    assert (add(1, 2), add(1, 2), add.apply((1, 2)).get()) == (3, 3, 3)
    add.delay(1, 2)
    [message] = published(app)

    assert [name for name in message.headers if name.startswith("cachetiers")] == []
    assert len(count) == 3
    assert add.cache.get(1, 2) is MISSING


# -- task.cache ---------------------------------------------------------------------------------------------------


def test_task_cache_asks_puts_and_invalidates(app: Celery) -> None:
    count = Count()
    add = adder(app, count, tags=["sum:{x}"])

    assert add.cache.get(1, 2) is MISSING
    add.cache.put((1,), 30, {"y": 2})
    assert (add.cache.get(1, y=2), add(1, 2), add.delay(1, 2).get()) == (30, 30, 30)
    assert add.cache.refresh(1, 2) == 3
    assert (add.cache.get(1, 2), add(1, 2)) == (3, 3)
    add.cache.invalidate(1, y=2)
    assert add.cache.get(1, 2) is MISSING
    assert add.cache.key(1, 2) == add.cache.key(x=1, y=2) != add.cache.key(1)
    assert len(count) == 1


def test_none_and_false_are_values(app: Celery) -> None:
    count = Count()

    @app.task(base=CachedTask, name="nothing")
    def nothing(x: int) -> None:
        count(x)

    assert (nothing(1), nothing(1), nothing.delay(1).get(), nothing.cache.get(1)) == (None, None, None, None)
    assert len(count) == 1


def test_info_counts_what_happened(app: Celery) -> None:
    add = adder(app)
    wait_listening(app)

    add(1, 2)
    add(1, 2)
    add.delay(1, 2)
    info = add.cache.info()

    assert (info.computes, info.misses, info.stores, info.l1_hits, info.l2_hits) == (1, 1, 1, 2, 0)
    assert info.hit_ratio == pytest.approx(2 / 3)
    add(1, 2)
    assert info.l1_hits == 2


@pytest.mark.parametrize("bad", [0, -1, "5m", True, float("nan")])
def test_put_refuses_a_bad_ttl(app: Celery, bad: object) -> None:
    add = adder(app)

    with pytest.raises(ConfigurationError, match=r"ttl=.*a number above 0"):
        add.cache.put((1, 2), 3, ttl=bad)
    assert add.cache.get(1, 2) is MISSING


@pytest.mark.parametrize("how", ["put", "ttl_from"])
def test_a_ttl_of_ones_own_that_is_shorter_than_the_jitter_still_stores(app: Celery, how: str) -> None:
    add = adder(app, ttl=1000, jitter=900, ttl_from=lambda result: 10.0)
    numbers = range(50)

    for x in numbers:
        if how == "put":
            add.cache.put((x,), x, ttl=10)
        else:
            add(x)

    assert [x for x in numbers if add.cache.get(x) is MISSING] == []


def test_put_refuses_what_is_no_entry(app: Celery) -> None:
    add = adder(app)

    with pytest.raises(UnusableEntry, match="unserializable"):
        add.cache.put((1, 2), object())
    with pytest.raises(TypeError, match="tuple"):
        add.cache.put(1, 2)


# -- what cannot be cached ----------------------------------------------------------------------------------------


def test_an_uncacheable_argument_runs_uncached_with_one_warning(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    count = Count()

    @app.task(base=CachedTask, name="take")
    def take(thing: object) -> int:
        return count()

    with caplog.at_level(logging.WARNING, "celery_cachetiers"):
        values = [take(object()) for _ in range(3)]

    lines = [record.getMessage() for record in caplog.records if record.name == "celery_cachetiers"]
    assert values == [1, 2, 3]
    assert len(lines) == 1
    assert "take" in lines[0]
    assert "thing" in lines[0]


def test_calls_that_run_uncached_are_counted(app: Celery) -> None:
    @app.task(base=CachedTask, name="take")
    def take(thing: object) -> None: ...

    for _ in range(3):
        take(object())

    assert take.cache.info().uncacheable == 3


def test_strict_keys_raise_instead(app: Celery) -> None:
    app.conf.cachetiers_strict_keys = True
    count = Count()

    @app.task(base=CachedTask, name="take")
    def take(thing: object) -> int:
        return count()

    with pytest.raises(UncacheableArgument, match="thing"):
        take(object())
    with pytest.raises(UncacheableArgument, match="thing"):
        take.delay(object())
    assert len(count) == 0


def test_tags_that_cannot_be_rendered_let_the_call_run_uncached(app: Celery, caplog: pytest.LogCaptureFixture) -> None:
    count = Count()

    @app.task(base=CachedTask, name="take", tags=["user:{user[id]}"])
    def take(user: dict[str, int]) -> int:
        return count()

    with caplog.at_level(logging.WARNING, "celery_cachetiers"):
        values = [take({}), take({}), take({"id": 1}), take({"id": 1})]
    take.delay({})

    assert values == [1, 2, 3, 3]
    assert len([record for record in caplog.records if record.name == "celery_cachetiers"]) == 1
    assert len(published(app)) == 1


def test_memory_only_says_so_once(namespace: str, caplog: pytest.LogCaptureFixture) -> None:
    count = Count()
    with caplog.at_level(logging.WARNING, "celery_cachetiers"), closing(cached_app(namespace)) as app:
        add, other = adder(app, count, tags=["sums"]), adder(app, name="other")
        values = [add(1, 2), add(1, 2), add.delay(1, 2).get(), other(1, 2)]
        CacheTiers(app).invalidate_tag("sums")
        values.append(add(1, 2))

    assert values == [3] * 5
    assert len(count) == 2
    assert [record.getMessage() for record in caplog.records if "memory (L1) only" in record.getMessage()] != []
    assert len([record for record in caplog.records if record.name == "celery_cachetiers"]) == 1


def test_a_value_that_json_cannot_carry_reaches_its_caller(app: Celery) -> None:
    things: list[object] = []

    @app.task(base=CachedTask, name="thing")
    def thing() -> object:
        things.append(object())
        return things[-1]

    assert [thing(), thing()] == things
    assert len(things) == 2
    assert thing.cache.info().stores == 0


def test_followers_of_a_value_that_cannot_be_shared_get_their_own(app: Celery) -> None:
    gate, things = Gate("compute"), Count()

    @app.task(base=CachedTask, name="thing")
    def thing() -> object:
        number = things()
        if number == 1:
            gate.pass_through()
        return complex(number, 0)

    with ThreadPoolExecutor(4) as pool:
        led = pool.submit(thing)
        gate.wait_reached()
        followed = [pool.submit(thing) for _ in range(3)]
        gate.open()
        values = {future.result(30) for future in (led, *followed)}

    assert values == {1 + 0j, 2 + 0j, 3 + 0j, 4 + 0j}


@pytest.mark.parametrize("l1", [True, False])
def test_what_a_caller_does_with_a_hit_harms_no_later_hit(app: Celery, l1: bool) -> None:
    @app.task(base=CachedTask, name="nested", l1=l1)
    def nested() -> dict[str, list[int]]:
        return {"items": [1]}

    wait_listening(app)
    for ask in (nested, nested, nested.cache.get, lambda: nested.delay().get(), nested):
        value = ask()
        assert value == {"items": [1]}
        value["items"].append(2)
        value["more"] = 1


# -- stale values -------------------------------------------------------------------------------------------------


def test_a_stale_hit_at_publish_sends_one_refresh_for_many_hits(app: Celery, aged: FakeClock) -> None:
    count = Count()
    counter = counting(app, count, ttl=10, grace=100, lease_ttl=60.0)
    counter()
    aged.advance(11)

    values = [counter.delay().get() for _ in range(10)]
    messages = published(app)

    assert values == [1] * 10
    assert [message.headers["cachetiers_mode"] for message in messages] == ["revalidate"]
    [message] = messages
    counter.apply(task_id=message.headers["id"], headers=message.headers)
    assert [counter.delay().get() for _ in range(3)] == [2] * 3
    assert published(app) == []
    assert len(count) == 2


def test_a_stale_value_answers_at_once_while_one_leader_computes(
    app: Celery, aged: FakeClock, namespace: str, redis_server: RedisServer
) -> None:
    gate, count = Gate("compute"), Count()

    def body() -> int:
        number = count()
        if number == 2:
            gate.pass_through()
        return number

    with closing(cached_app(namespace, redis_server.url())) as elsewhere, ThreadPoolExecutor(8) as pool:
        CacheTiers(elsewhere).clock = aged
        options = {"base": CachedTask, "name": "counter", "ttl": 10, "grace": 100, "lease_ttl": 60.0}
        here, there = app.task(body, **options), elsewhere.task(body, **options)
        here()
        aged.advance(11)
        led = pool.submit(here)
        gate.wait_reached()
        stale = [pool.submit(task).result(30) for task in (here, there, here, there)]
        gate.open()
        fresh = led.result(30)

    assert stale == [1] * 4
    assert fresh == 2
    assert len(count) == 2


def test_a_hit_past_the_share_of_its_ttl_sends_one_refresh(app: Celery, aged: FakeClock) -> None:
    count = Count()
    counter = counting(app, count, ttl=100, refresh_ahead=0.8, lease_ttl=60.0)
    counter()
    aged.advance(70)
    assert counter.delay().get() == 1
    assert published(app) == []
    aged.advance(15)

    values = [counter.delay().get() for _ in range(5)]
    [message] = published(app)
    counter.apply(task_id=message.headers["id"], headers=message.headers)

    assert values == [1] * 5
    assert counter.delay().get() == 2
    assert published(app) == []


def test_past_its_grace_an_entry_is_gone(app: Celery, aged: FakeClock) -> None:
    count = Count()
    counter = counting(app, count, ttl=10, grace=20)
    counter()
    aged.advance(31)

    assert counter.cache.get() is MISSING
    assert counter() == 2


def test_a_refresh_that_somebody_else_has_done_is_answered_without_a_compute(app: Celery, aged: FakeClock) -> None:
    count = Count()
    counter = counting(app, count, ttl=10, grace=100)
    counter()
    aged.advance(11)
    counter.delay()
    [message] = published(app)
    counter.cache.refresh()

    counter.apply(task_id=message.headers["id"], headers=message.headers)

    assert len(count) == 2


# -- threads ------------------------------------------------------------------------------------------------------


def test_threads_that_make_the_first_call_at_once_compute_once(app: Celery) -> None:
    count, barrier = Count(), threading.Barrier(16)
    add = adder(app, count)

    def ask(_: int) -> int:
        barrier.wait(30)
        value: int = add(1, 2)
        return value

    with ThreadPoolExecutor(16) as pool:
        values = list(pool.map(ask, range(16)))

    assert values == [3] * 16
    assert len(count) == 1


def test_the_functions_are_tasks_too() -> None:
    assert invalidate_tag.name == "celery_cachetiers.invalidate_tag"
    assert json.loads(json.dumps(invalidate_tag.name)) == invalidate_tag.name
