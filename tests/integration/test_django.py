"""In a Django project: settings under `CELERY_`, and `delay_on_commit`; and what it says without Django."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.integration.apps.local import run_python
from tests.processes import unavailable
from tests.servers import RedisServer

PROJECT = """
    import os, sys, types
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={
            "default": {"ENGINE": "django.db.backends.sqlite3", "NAME": os.environ.get("DATABASE", ":memory:")},
            "archive": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"},
        },
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
    from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError, MISSING, TierUnavailable
    from celery_cachetiers import clear, invalidate_key, invalidate_tag, invalidate_tags
    from celery_cachetiers.events import Event

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

CHANGES = """
    heard = []
    CacheTiers(app).events.subscribe(lambda event, task, details: heard.append(details["names"][0]), Event.INVALIDATED)

    @app.task(invalidates=["order:{number}"])
    def change(number):
        if number < 0:
            raise LookupError
        return number

    def said():
        found = " ".join(heard) or "nothing"
        heard.clear()
        return found
"""


@pytest.fixture(autouse=True)
def django() -> None:
    if importlib.util.find_spec("django") is None:
        unavailable("Django is not installed: pip install celery-cachetiers[test]")


def project(body: str, redis_server: RedisServer, namespace: str, **env: str) -> list[str]:
    return run_python(PROJECT + body + END, **{"URL": redis_server.url(), "NS": namespace, **env}).splitlines()


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


# ---- invalidating at the commit --------------------------------------------------------------------------------------


def test_what_is_computed_before_the_commit_is_not_shown_after_it(
    redis_server: RedisServer, namespace: str, tmp_path: Path
) -> None:
    """Two connections to one database: the other one computes from the old row while the change is not committed."""
    body = """
    import threading

    def run(sql, *values):
        with connection.cursor() as cursor:
            cursor.execute(sql, values)
            return cursor.fetchall()

    run("CREATE TABLE orders (number INTEGER, price INTEGER)")
    run("INSERT INTO orders VALUES (1, 10), (2, 10)")

    @app.task(base=CachedTask, tags=["order:{number}"])
    def price(number):
        return run("SELECT price FROM orders WHERE number = %s", number)[0][0]

    @app.task(invalidates=["order:{number}"])
    def change(number, price):
        run("UPDATE orders SET price = %s WHERE number = %s", price, number)

    def elsewhere(number):
        def look():
            found.append(price(number))
            connection.close()
        found = []
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return found[0]

    with transaction.atomic():
        change(1, 11)
        run("UPDATE orders SET price = 12 WHERE number = 2")
        invalidate_tag("order:2")
        print("before", elsewhere(1), elsewhere(2))
    print("after", price(1), price(2), elsewhere(1), elsewhere(2))
    """
    lines = project(body, redis_server, namespace, DATABASE=str(tmp_path / "orders.sqlite3"))
    assert lines == ["before 10 10", "after 11 12 11 12"]


def test_every_way_to_invalidate_waits_for_the_commit_and_is_dropped_on_a_rollback(
    redis_server: RedisServer, namespace: str
) -> None:
    acts = {
        "change(1)": "order:1",
        "change.apply((1,)).get()": "order:1",
        "invalidate_tag('order:1')": "order:1",
        "invalidate_tags(['order:1'])": "order:1",
        "invalidate_tag('order:1', on_commit=True)": "order:1",
        "CacheTiers(app).invalidate_tag('order:1')": "order:1",
        "invalidate_key('0' * 32)": "@key:" + "0" * 32,
        "clear('total')": "@task:total",
    }
    body = CHANGES + "".join(
        f"""
    with transaction.atomic():
        {act}
        print(said(), end=" | ")
    print(said(), end=" | ")
    try:
        with transaction.atomic():
            {act}
            raise LookupError
    except LookupError:
        print(said(), end=" | ")
    {act}
    print(said())
    """
        for act in acts
    )
    assert project(body, redis_server, namespace) == [f"nothing | {name} | nothing | {name}" for name in acts.values()]


def test_false_acts_at_once_and_so_do_the_tasks_of_the_same_names(redis_server: RedisServer, namespace: str) -> None:
    body = (
        CHANGES
        + """
    app.conf.task_always_eager = True

    @app.task(invalidates=["hasty:{number}"], on_commit=False)
    def hasty(number):
        return number

    with transaction.atomic():
        hasty(1)
        invalidate_tag("order:2", on_commit=False)
        invalidate_tag.delay("order:3")
        print(said())
    """
    )
    assert project(body, redis_server, namespace) == ["hasty:1 order:2 order:3"]


def test_a_savepoint_a_failure_and_another_database(redis_server: RedisServer, namespace: str) -> None:
    body = (
        CHANGES
        + """
    with transaction.atomic():
        try:
            with transaction.atomic():
                change(-1)
        except LookupError:
            pass
        with transaction.atomic():
            change(1)
        print(said())
    print(said())

    with transaction.atomic(using="archive"):
        change(2)
        print(said())
    print(said())

    with transaction.atomic(), transaction.atomic(using="archive"):
        change(3)
    print(said())
    """
    )
    assert project(body, redis_server, namespace) == ["nothing", "order:1", "nothing", "order:2", "order:3 order:3"]


def test_what_is_put_and_invalidated_by_arguments_waits_too(redis_server: RedisServer, namespace: str) -> None:
    body = """
    @app.task(base=CachedTask, on_commit=False)
    def hasty(number):
        return number

    def seen():
        return [total.cache.get(1), total.cache.get(2), total.cache.get(3), hasty.cache.get(1)]

    def change(fail=False):
        with transaction.atomic():
            total.cache.put((1,), "new")
            total.cache.put_many([((2,), "new")])
            total.cache.invalidate(3)
            hasty.cache.put((1,), "hasty")
            print(seen())
            if fail:
                raise LookupError

    total(1), total(3)
    try:
        change(fail=True)
    except LookupError:
        print(seen())
    change()
    print(seen())
    with transaction.atomic(), transaction.atomic(using="archive"):
        total.cache.put((1,), "newer")
    print(seen())
    """
    assert project(body, redis_server, namespace) == [
        *["[10, MISSING, 30, 'hasty']"] * 3,
        "['new', 'new', MISSING, 'hasty']",
        "[MISSING, 'new', MISSING, 'hasty']",
    ]


def test_true_is_refused_while_transactions_are_managed_by_hand(redis_server: RedisServer, namespace: str) -> None:
    body = (
        CHANGES
        + """
    ran = []

    @app.task(invalidates=["order:{number}"], on_commit=True)
    def insists(number):
        ran.append(number)

    def tried(act):
        try:
            act()
        except ConfigurationError as error:
            return f"{error.option}={error.value}"
        return said()

    acts = [lambda: insists(1), lambda: invalidate_tag("order:2", on_commit=True), lambda: invalidate_tag("order:3")]
    print(*map(tried, acts))
    transaction.set_autocommit(False)
    print(*map(tried, acts), ran)
    transaction.commit()
    transaction.set_autocommit(True)
    print(*map(tried, acts))
    """
    )
    assert project(body, redis_server, namespace) == [
        "order:1 order:2 order:3",
        "on_commit=True on_commit=True order:3 [1]",
        "order:1 order:2 order:3",
    ]


def test_where_redis_is_away_at_the_commit_a_message_is_sent(redis_server: RedisServer, namespace: str) -> None:
    body = (
        CHANGES
        + """
    with transaction.atomic():
        change(1)
        invalidate_tag("order:2")
        print(messages())
    print(messages())
    try:
        invalidate_tag("order:3")
    except TierUnavailable:
        print("the caller is told")
    """
    )
    lines = project(body, redis_server, namespace, URL="redis://127.0.0.1:1/0")
    assert lines == ["0", "2", "the caller is told"]


def test_true_asks_for_django_and_a_session_for_nothing_of_it(redis_server: RedisServer, namespace: str) -> None:
    program = """
        import sys
        sys.modules["django"] = None
        from celery import Celery
        from celery_cachetiers import CacheTiers, ConfigurationError

        app = Celery("plain", broker="memory://")
        CacheTiers(app).in_memory = True

        def change(number):
            return number

        options = {"invalidates": ["order:{number}"], "lazy": False, "shared": False}
        for name, on_commit in (("change", True), ("by session", lambda: None), ("by default", None)):
            try:
                print(app.task(change, name=name, on_commit=on_commit, **options)(1))
            except ConfigurationError as error:
                print(error)
    """
    refused, *others = run_python(program).splitlines()

    assert refused.startswith("on_commit=True of task change is not usable: on_commit=True needs a configured Django")
    assert others == ["1", "1"]


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
