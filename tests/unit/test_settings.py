"""Settings: every way Celery takes them, every bad value named, and what stands in where nothing was said."""

from __future__ import annotations

import math
import sys
import threading
import types
from typing import Any

import pytest
import redis
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError, TierUnavailable
from celery_cachetiers import app as extension
from celery_cachetiers.metrics.tally import Counters
from celery_cachetiers.settings import backend_redis, settings_of


def app_with(**conf: Any) -> Celery:
    app = Celery("settings", broker="memory://", backend=conf.pop("result_backend", None), set_as_current=False)
    app.conf.update(conf)
    return app


BAD: list[tuple[str, object, str]] = [
    *(("cachetiers_ttl", value, "a number above 0") for value in ("5m", -1, 0, True, math.nan)),
    *(("cachetiers_grace", value, "a number of at least 0") for value in (-1, "1", math.nan)),
    *(("cachetiers_l1_maxsize", value, "a whole number of at least 1") for value in (0, -1, 1.5, True, "10")),
    *(("cachetiers_l1_max_bytes", value, "a whole number of at least 1") for value in (0, "64MiB")),
    *(("cachetiers_l1_ttl", value, "a number above 0") for value in (0, "30")),
    *(("cachetiers_max_bytes", value, "a whole number of bytes") for value in (0, 2**31)),
    *(("cachetiers_namespace", value, "1 to 64 letters") for value in ("", "a b", "{x}", "x" * 65, 5, None)),
    *(("cachetiers_lease_ttl", value, "from 0.1 to 3600") for value in (0, 0.05, "10")),
    *(("cachetiers_wait_limit", value, "a number above 0") for value in (0, "x")),
    *(("cachetiers_timeout", value, "from 0.001 to 60") for value in (0, 61, "250ms", None)),
    *(("cachetiers_breaker_window", value, "a number of at least 0") for value in (-1, "5")),
    *(("cachetiers_enabled", value, "True or False") for value in ("yes", 1, None)),
    *(("cachetiers_publish_hits", value, "True or False") for value in (1, "no")),
    *(("cachetiers_strict_keys", value, "True or False") for value in (1, "no")),
    *(("cachetiers_serializer", value, "a name") for value in (5, "")),
    *(
        ("cachetiers_url", value, "redis://host:port/db")
        for value in (
            "localhost:6379", "http://localhost", "redis://", "redis://host:port/0", "redis://host:99999", 5,
            "redis://host/zero", "unix://", "memcached://host", "",
        )
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "allowed"), BAD, ids=lambda value: repr(value)[:40])
def test_a_bad_value_names_setting_value_and_range(name: str, value: object, allowed: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings_of(app_with(**{name: value}))

    assert caught.value.option == name
    assert allowed in caught.value.allowed
    assert repr(value) in str(caught.value)
    assert "app 'settings'" in str(caught.value)


def test_a_bad_setting_is_raised_at_the_first_use_of_a_task() -> None:
    app = app_with(cachetiers_ttl="5m")
    task = app.task(identity, base=CachedTask, name="task", shared=False)

    for use in (lambda: task(1), lambda: task.delay(1), lambda: task.cache.get(1)):
        with pytest.raises(ConfigurationError, match="cachetiers_ttl='5m'"):
            use()


def identity(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("name", "meant"),
    [("cachetiers_tll", "cachetiers_ttl"), ("cachetiers_l1_max_size", "cachetiers_l1_maxsize"),
     ("cachetiers_breaker", "cachetiers_breaker_window")],
)  # fmt: skip
def test_an_unknown_setting_is_refused_with_a_suggestion(name: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name}=.*did you mean {meant}"):
        settings_of(app_with(**{name: 5}))


def test_a_password_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings_of(app_with(cachetiers_url="redis://user:secret@host:port/0"))
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(caught.value)


def test_a_signing_key_is_not_shown() -> None:
    with pytest.raises(ConfigurationError) as caught:
        settings_of(app_with(cachetiers_signing_key="too short"))
    assert "too short" not in str(caught.value)
    assert "16 bytes" in str(caught.value)


def test_the_defaults_are_those_of_the_reference() -> None:
    settings = settings_of(app_with())

    assert (settings.enabled, settings.url, settings.namespace) == (True, None, "cachetiers")
    assert (settings.ttl, settings.grace, settings.jitter) == (300.0, 0.0, 0.0)
    assert (settings.l1_maxsize, settings.l1_max_bytes, settings.l1_ttl) == (10_000, 64 * 1024**2, 30.0)
    assert (settings.max_bytes, settings.compression, settings.signing_key) == (16 * 1024**2, None, ())
    assert (settings.lease_ttl, settings.wait_limit) == (10.0, 300.0)
    assert (settings.timeout, settings.breaker_window) == (0.25, 5.0)
    assert (settings.publish_hits, settings.strict_keys) == (True, False)


# -- every way to say it ------------------------------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("settings_for_a_test")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_settings_come_from_update_and_from_attributes() -> None:
    app = app_with(cachetiers_ttl=60)
    app.conf.cachetiers_grace = 5

    assert (settings_of(app).ttl, settings_of(app).grace) == (60.0, 5.0)


def test_settings_come_from_the_constructor() -> None:
    app = Celery("settings", broker="memory://", set_as_current=False, changes={"cachetiers_ttl": 60})

    assert settings_of(app).ttl == 60.0


def test_settings_come_from_a_module_by_name_and_from_an_object(module: types.ModuleType) -> None:
    module.cachetiers_ttl = 60  # type: ignore[attr-defined]
    for given in (module.__name__, module, {"cachetiers_ttl": 60}):
        app = Celery("settings", broker="memory://", set_as_current=False)
        app.config_from_object(given)
        assert settings_of(app).ttl == 60.0


def test_settings_come_from_a_namespace_as_django_projects_use_it(module: types.ModuleType) -> None:
    module.CELERY_CACHETIERS_TTL = 60  # type: ignore[attr-defined]
    module.CELERY_CACHETIERS_URL = "redis://cache:6379/2"  # type: ignore[attr-defined]
    module.CELERY_TASK_DEFAULT_QUEUE = "q"  # type: ignore[attr-defined]
    module.CACHETIERS_UNRELATED = "of another library"  # type: ignore[attr-defined]
    del module.CACHETIERS_UNRELATED  # type: ignore[attr-defined]
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(module.__name__, namespace="CELERY")

    settings = settings_of(app)
    assert (settings.ttl, settings.url) == (60.0, "redis://cache:6379/2")
    assert app.conf.task_default_queue == "q"


def test_a_namespace_of_ones_own_is_read(module: types.ModuleType) -> None:
    module.QUEUEING_CACHETIERS_TTL = 60  # type: ignore[attr-defined]
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(module.__name__, namespace="QUEUEING")

    assert settings_of(app).ttl == 60.0


def test_a_misspelt_name_in_a_namespace_is_refused_too(module: types.ModuleType) -> None:
    module.CELERY_CACHETIERS_TLL = 60  # type: ignore[attr-defined]
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(module.__name__, namespace="CELERY")

    with pytest.raises(ConfigurationError, match="did you mean cachetiers_ttl"):
        settings_of(app)


def test_upper_case_without_a_namespace_is_read(module: types.ModuleType) -> None:
    module.CACHETIERS_TTL = 60  # type: ignore[attr-defined]
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(module)

    assert settings_of(app).ttl == 60.0
    assert settings_of(app_with(CACHETIERS_TTL=60)).ttl == 60.0


def test_a_later_update_wins_over_a_module(module: types.ModuleType) -> None:
    module.CELERY_CACHETIERS_TTL = 60  # type: ignore[attr-defined]
    app = Celery("settings", broker="memory://", set_as_current=False)
    app.config_from_object(module.__name__, namespace="CELERY")
    app.conf.cachetiers_ttl = 70

    assert settings_of(app).ttl == 70.0


def test_other_settings_that_only_sound_alike_are_left_alone() -> None:
    assert settings_of(app_with(my_cachetiers_ttl="5m", cachetiersttl=1)).ttl == 300.0


def test_a_task_option_wins_over_a_setting() -> None:
    app = app_with(cachetiers_ttl=60, cachetiers_grace=7)
    task = app.task(identity, base=CachedTask, name="task", shared=False, ttl=5, lazy=False)

    policy = task._memoize().policy
    assert (policy.ttl, policy.grace) == (5.0, 7.0)


@pytest.mark.parametrize(("value", "on"), [("0", False), ("false", False), ("OFF", False), ("no", False),
                                           ("1", True), ("true", True), ("", True)])  # fmt: skip
def test_the_environment_wins_over_the_setting(monkeypatch: pytest.MonkeyPatch, value: str, on: bool) -> None:
    monkeypatch.setenv("CACHETIERS_ENABLED", value)

    assert settings_of(app_with()).enabled is on
    assert settings_of(app_with(cachetiers_enabled=False)).enabled is False


def test_an_environment_that_says_neither_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHETIERS_ENABLED", "maybe")

    with pytest.raises(ConfigurationError, match="CACHETIERS_ENABLED='maybe'"):
        settings_of(app_with())


def test_reset_reads_the_settings_anew() -> None:
    app = app_with(cachetiers_ttl=60)
    tiers = CacheTiers(app)
    assert tiers.settings.ttl == 60.0
    app.conf.cachetiers_ttl = 70
    assert tiers.settings.ttl == 60.0

    tiers.reset()

    assert tiers.settings.ttl == 70.0


# -- L2 by default ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "expected"),
    [
        ("redis://localhost:6380/1", ("redis://localhost:6380/1", {})),
        ("redis://user:secret@localhost/1", ("redis://user:secret@localhost/1", {})),
        ("redis+socket:///tmp/redis.sock", ("unix:///tmp/redis.sock?db=0", {})),
        ("redis+socket:///tmp/redis.sock?virtual_host=3", ("unix:///tmp/redis.sock?db=3", {})),
        ("socket:///tmp/redis.sock?virtual_host=/3", ("unix:///tmp/redis.sock?db=3", {})),
        ("cache+memory://", None),
        ("db+sqlite:///results.db", None),
        ("rpc://", None),
        ("sentinel://localhost:26379", None),
        (None, None),
    ],
)
def test_the_result_backend_is_the_default_if_it_is_one_redis(backend: str | None, expected: object) -> None:
    assert backend_redis(app_with(result_backend=backend)) == expected


def test_tls_options_come_with_the_result_backend() -> None:
    app = app_with(
        result_backend="rediss://localhost/1",
        redis_backend_use_ssl={"ssl_ca_certs": "/ca.pem", "ssl_cert_reqs": "required"},
    )

    found = backend_redis(app)
    assert found is not None
    url, options = found
    assert url == "rediss://localhost/1"
    assert options["ssl_ca_certs"] == "/ca.pem"


@pytest.mark.parametrize(
    "backend",
    ["rediss://localhost:1/1", "rediss://localhost:1/1?ssl_cert_reqs=CERT_NONE",
     "rediss://localhost:1/1?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=%2Fetc%2Fssl%2Fcerts%2Fca-certificates.crt",
     "rediss://localhost:1/1?ssl_cert_reqs=none", "redis+socket:///nowhere/redis.sock?virtual_host=1",
     "redis://localhost:1/1?health_check_interval=5"],
)  # fmt: skip
def test_every_url_that_celery_takes_lets_tasks_run(backend: str) -> None:
    """Nothing listens there: the value is computed, and no fault of the URL's own shows."""
    app = app_with(result_backend=backend, cachetiers_timeout=0.05)
    task = app.task(identity, base=CachedTask, name="task", shared=False)

    assert task(5) == 5
    assert isinstance(why_not_reached(app), OSError | redis.ConnectionError)
    CacheTiers(app).reset()


def why_not_reached(app: Celery) -> BaseException | None:
    """The driver's error: a connection that failed, or options that it would never connect with."""
    with pytest.raises(TierUnavailable) as caught:
        CacheTiers(app).clear()
    return caught.value.__cause__


@pytest.mark.parametrize("query", ["sokcet_timeout=3", "unknown=1"])
def test_a_url_with_an_option_that_the_driver_lacks_is_refused(query: str) -> None:
    app = app_with(cachetiers_url=f"redis://localhost:1/0?{query}")
    task = app.task(identity, base=CachedTask, name="task", shared=False)

    with pytest.raises(ConfigurationError, match="cachetiers_url"):
        task(5)


@pytest.mark.parametrize("requirement", ["CERT_NONE", "CERT_OPTIONAL", "CERT_REQUIRED", "none", "required"])
def test_the_tls_options_may_be_named_as_celery_names_them(requirement: str) -> None:
    app = app_with(
        result_backend="rediss://localhost:1/1", redis_backend_use_ssl={"ssl_cert_reqs": requirement},
        cachetiers_timeout=0.05,
    )  # fmt: skip

    assert isinstance(why_not_reached(app), OSError | redis.ConnectionError)
    CacheTiers(app).reset()


def test_the_tls_options_of_celery_let_tasks_run() -> None:
    import ssl

    app = app_with(
        result_backend="rediss://localhost:1/1",
        redis_backend_use_ssl={"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": None},
        cachetiers_timeout=0.05,
    )

    assert isinstance(why_not_reached(app), OSError | redis.ConnectionError)
    CacheTiers(app).reset()


@pytest.mark.parametrize("option", ["serializer", "compression"])
def test_a_codec_that_kombu_does_not_know_is_refused_at_first_use(option: str) -> None:
    app = app_with(**{f"cachetiers_{option}": "jsn"})
    task = app.task(identity, base=CachedTask, name="task", shared=False)

    with pytest.raises(ConfigurationError, match="jsn"):
        task(1)


def test_threads_that_bind_their_first_tasks_at_once_share_one_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    app, others = app_with(), list[CacheTiers]()

    class Slow(Counters):
        """Whoever makes the first one is overtaken by another thread, which makes and installs its own."""

        def __init__(self) -> None:
            monkeypatch.setattr(extension, "Counters", Counters)
            overtaking = threading.Thread(target=lambda: others.append(CacheTiers(app)))
            overtaking.start()
            overtaking.join(10)
            super().__init__()

    monkeypatch.setattr(extension, "Counters", Slow)

    overtaken = CacheTiers(app)

    assert others == [overtaken]
    assert CacheTiers(app) is overtaken
