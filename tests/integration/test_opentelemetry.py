"""OpenTelemetry: the instruments tell what has happened, from one reading for each collection."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError
from celery_cachetiers.exporting import Readings
from celery_cachetiers.metrics.exported import METRICS
from tests.integration.apps.local import cached_app, closing, run_python
from tests.proxy import RedisProxy

pytest.importorskip("opentelemetry.sdk.metrics", reason="needs opentelemetry-sdk, of the extra [test]")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from celery_cachetiers.opentelemetry import name_of, observe

pytestmark = pytest.mark.usefixtures("own_sinks")

Collected = dict[tuple[str, tuple[tuple[str, Any], ...]], float]


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url(), cachetiers_timeout=0.5)) as app:

        @app.task(base=CachedTask, name="profile")
        def profile(user: int) -> int:
            return user

        yield app


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    reader = InMemoryMetricReader()
    yield reader
    reader.shutdown()


def observed(app: Celery, reader: InMemoryMetricReader, **options: Any) -> None:
    observe(app, meter_provider=MeterProvider([reader], shutdown_on_exit=False), **options)


def collect(reader: InMemoryMetricReader) -> Collected:
    data = reader.get_metrics_data()
    return {
        (metric.name, tuple(sorted((point.attributes or {}).items()))): point.value
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    }


@pytest.mark.parametrize("source", ["all", "process"])
def test_a_collection_tells_what_has_happened(app: Celery, reader: InMemoryMetricReader, source: Any) -> None:
    observed(app, reader, source=source)
    profile: Any = app.tasks["profile"]
    for user in (1, 2, 2):
        profile(user)

    found = collect(reader)

    assert found["cachetiers.misses", (("task", "profile"),)] == 2
    assert sum(value for (name, _), value in found.items() if name == "cachetiers.hits") == 1
    assert found["cachetiers.failed_open", ()] == 0
    told = {metric.name.replace("_", ".", 1) for metric in METRICS if metric.source in ("both", source)}
    assert {name for name, _ in found} <= told
    assert ("cachetiers.up", ()) in found or source == "process"


def test_each_collection_is_one_reading(
    app: Celery, reader: InMemoryMetricReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    readings: list[int] = []
    read = Readings.read
    monkeypatch.setattr(Readings, "read", lambda self: readings.append(1) or read(self))
    observed(app, reader)
    profile: Any = app.tasks["profile"]
    seen = []
    for user in (1, 2, 3):
        profile(user)
        seen.append(collect(reader)["cachetiers.misses", (("task", "profile"),)])

    assert seen == [1, 2, 3]
    assert len(readings) == 3


def test_a_collection_without_redis_says_so(app: Celery, reader: InMemoryMetricReader, redis_proxy: RedisProxy) -> None:
    observed(app, reader, source="all")
    redis_proxy.refuse()

    assert collect(reader) == {("cachetiers.up", ()): 0}


def test_seconds_and_bytes_have_their_units(app: Celery, reader: InMemoryMetricReader) -> None:
    observed(app, reader)
    app.tasks["profile"](1)  # type: ignore[operator]  # the stubs do not know that tasks are called
    data = reader.get_metrics_data()
    assert data is not None
    units = {
        metric.name: metric.unit for resource in data.resource_metrics
        for scope in resource.scope_metrics for metric in scope.metrics
    }  # fmt: skip

    assert units["cachetiers.compute_seconds"] == "s"
    assert units["cachetiers.stored_bytes"] == "By"
    assert units["cachetiers.hits"] == "1"
    assert {name_of(metric) for metric in METRICS} >= units.keys()


def test_an_argument_that_cannot_be_is_named(app: Celery) -> None:
    with pytest.raises(ConfigurationError, match="source"):
        observe(app, source="everything")  # type: ignore[arg-type]  # that is the point
    assert CacheTiers(app)._cache is None, "and nothing was begun"


def test_without_the_extra_the_error_says_what_to_install() -> None:
    told = run_python("""
        import sys
        sys.modules["opentelemetry"] = sys.modules["opentelemetry.metrics"] = None
        try:
            import celery_cachetiers.opentelemetry
        except ImportError as error:
            print(error)
    """)

    assert told.endswith("pip install 'celery-cachetiers[opentelemetry]'")
