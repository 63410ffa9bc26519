"""`Celery(task_cls=CachedTask)`: every task of the app has our base, Celery's own among them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError


@pytest.fixture
def app() -> Iterator[Celery]:
    made = Celery("wide", broker="memory://", backend="cache+memory://", task_cls=CachedTask, set_as_current=False)
    made.conf.task_always_eager = True
    yield made
    CacheTiers(made).reset()


def test_a_task_that_says_nothing_of_caching_is_not_cached(app: Celery) -> None:
    ran = []

    @app.task(shared=False)
    def plain(number: int) -> int:
        ran.append(number)
        return number

    plain(1), plain.apply(args=(1,)).get(), plain.delay(1).get()

    assert ran == [1, 1, 1]


def test_a_task_that_sets_one_option_is_cached(app: Celery) -> None:
    ran = []

    @app.task(shared=False, ttl=60)
    def cached(number: int) -> int:
        ran.append(number)
        return number

    cached(1), cached.apply(args=(1,)).get(), cached.delay(1).get()

    assert ran == [1]


def test_celerys_own_tasks_are_not_cached(app: Celery) -> None:
    own = [task for name, task in app.tasks.items() if name.startswith("celery.")]

    assert own
    assert [task.name for task in own if isinstance(task, CachedTask) and task._memoize().enabled] == []


def test_to_invalidate_is_never_answered_from_the_cache(app: Celery) -> None:
    ran = []

    @app.task(shared=False, ttl=60, tags=["n:{number}"])
    def cached(number: int) -> int:
        ran.append(number)
        return number

    for _ in range(3):
        cached(1)
        app.tasks["celery_cachetiers.invalidate_tag"].delay("n:1").get()

    assert ran == [1, 1, 1]


def test_a_bad_option_is_refused_there_too(app: Celery) -> None:
    @app.task(shared=False, ttl="5m")
    def lazily_bound() -> None: ...

    with pytest.raises(ConfigurationError, match="ttl='5m'"):
        lazily_bound.name  # noqa: B018 - Celery makes the class at first use
