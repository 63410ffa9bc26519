"""In a Django project: settings under `CELERY_`, and `delay_on_commit`; and what it says without Django."""

from __future__ import annotations

import importlib.util

import pytest

from tests.integration.apps.local import run_python
from tests.processes import unavailable
from tests.servers import RedisServer

PROJECT = """
    import os, sys, types
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        USE_TZ=True,
        SECRET_KEY="x" * 50,
        CELERY_BROKER_URL="memory://",
        CELERY_RESULT_BACKEND="cache+memory://",
        CELERY_TASK_DEFAULT_QUEUE="orders",
        CELERY_CACHETIERS_URL=os.environ["URL"],
        CELERY_CACHETIERS_NAMESPACE=os.environ["NS"],
        CELERY_CACHETIERS_TTL=77,
        CACHES={"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}},
    )
    django.setup()

    from celery import Celery
    from django.db import connection, transaction
    from celery_cachetiers import CachedTask, CacheTiers, MISSING

    app = Celery("shop")
    app.config_from_object("django.conf:settings", namespace="CELERY")
    runs = []

    @app.task(base=CachedTask, tags=["order:{number}"])
    def total(number):
        runs.append(number)
        return 10 * number

    def messages():
        found = 0
        with app.connection_for_read() as broker:
            queue = app.amqp.queues["orders"](broker.default_channel)
            queue.declare()
            while queue.get(no_ack=True) is not None:
                found += 1
        return found
"""

END = """
    CacheTiers(app).reset()
    connection.close()
"""


@pytest.fixture(autouse=True)
def django() -> None:
    if importlib.util.find_spec("django") is None:
        unavailable("Django is not installed: pip install celery-cachetiers[test]")


def project(body: str, redis_server: RedisServer, namespace: str) -> list[str]:
    return run_python(PROJECT + body + END, URL=redis_server.url(), NS=namespace).splitlines()


def test_settings_are_read_from_django(redis_server: RedisServer, namespace: str) -> None:
    body = """
    tiers = CacheTiers(app)
    print(tiers.settings.ttl, tiers.settings.namespace == os.environ["NS"], tiers.settings.url == os.environ["URL"])
    print([total(4), total(4), total.delay(4).get()], len(runs))
    """
    assert project(body, redis_server, namespace) == ["77.0 True True", "[40, 40, 40] 1"]
    with redis_server.client() as client:
        assert len(list(client.scan_iter(f"{namespace}:*:e:*"))) == 1


def test_a_task_waits_for_the_commit(redis_server: RedisServer, namespace: str) -> None:
    body = """
    with transaction.atomic():
        total.delay_on_commit(4)
        total.apply_async_on_commit((5,), queue="orders")
        print("inside", messages())
    print("committed", messages())
    try:
        with transaction.atomic():
            total.delay_on_commit(6)
            raise LookupError
    except LookupError:
        print("rolled back", messages())
    total.delay_on_commit(7)
    print("outside", messages())
    """
    expected = ["inside 0", "committed 2", "rolled back 0", "outside 1"]
    assert project(body, redis_server, namespace) == expected


def test_a_hit_on_commit_publishes_nothing(redis_server: RedisServer, namespace: str) -> None:
    body = """
    total(4)
    with transaction.atomic():
        total.delay_on_commit(4)
    print(messages(), total.cache.info().l1_hits + total.cache.info().l2_hits)
    """
    assert project(body, redis_server, namespace) == ["0 1"]


def test_the_fixup_of_celery_and_our_base_agree(redis_server: RedisServer, namespace: str) -> None:
    """With DJANGO_SETTINGS_MODULE Celery makes DjangoTask the app's base: plain tasks stay plain, ours stay cached."""
    body = """
    sys.modules["shop_settings"] = types.ModuleType("shop_settings")
    sys.modules["shop_settings"].__dict__.update(
        {name: getattr(settings, name) for name in dir(settings) if name.isupper() and settings.is_overridden(name)}
    )
    os.environ["DJANGO_SETTINGS_MODULE"] = "shop_settings"
    fixed = Celery("fixed", set_as_current=False)
    fixed.config_from_object("django.conf:settings", namespace="CELERY")

    @fixed.task(base=CachedTask, shared=False)
    def cached(number):
        runs.append(number)
        return number

    @fixed.task(shared=False)
    def plain(number):
        return number

    print([cached(1), cached(1), plain(1)], runs, hasattr(plain, "delay_on_commit"), hasattr(cached, "delay_on_commit"))
    CacheTiers(fixed).reset()
    """
    assert project(body, redis_server, namespace) == ["[1, 1, 1] [1] True True"]


def test_without_django_it_says_what_to_install() -> None:
    program = """
        import sys

        class Blocker:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "django":
                    raise ImportError("no django here")

        sys.meta_path.insert(0, Blocker())
        from celery import Celery
        from celery_cachetiers import CachedTask, ConfigurationError

        app = Celery("plain", broker="memory://")

        @app.task(base=CachedTask, name="double")
        def double(n):
            return 2 * n

        print(double(2))
        for act in (double.delay_on_commit, double.apply_async_on_commit):
            try:
                act(2)
            except ConfigurationError as error:
                print(error)
    """
    lines = run_python(program).splitlines()

    assert lines[0] == "4"
    assert len(lines) == 3
    assert all("pip install django" in line for line in lines[1:])
