"""A collector for prometheus-client, for any process of an app; the extra ``prometheus`` brings that.

``REGISTRY.register(CacheTiersCollector(app))``: what is told, and what it costs, is said in `exporting`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from celery import Celery

from celery_cachetiers.exporting import Readings
from celery_cachetiers.metrics.exported import METRICS, TASKS, Metric

try:
    from prometheus_client import CollectorRegistry, start_http_server
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        "celery_cachetiers.prometheus needs prometheus-client: pip install 'celery-cachetiers[prometheus]'"
    ) from error

Family = CounterMetricFamily | GaugeMetricFamily


class CacheTiersCollector(Collector):
    """The metrics of an app's cache, read anew for each scrape; see the reference of metrics for their names.

    Args:
        app: The app.
        source: ``"all"``: the sums of all processes, as Redis has them, the journal and L2's server: for one target in
            a deployment. ``"process"``: this very process, with no command to Redis: for each process that has a
            target of its own. Do not add up both.
        max_tasks: Tasks that are told apart by the label ``task``, the first ones seen; the rest is ``other``.

    Raises:
        ConfigurationError: An argument cannot be used.

    Concurrency: scrapes may come from several threads. A server that is away makes a scrape shorter, and
        ``cachetiers_up`` 0; none fails, and none waits for longer than a few times ``cachetiers_timeout``.
    """

    def __init__(self, app: Celery, source: Literal["all", "process"] = "all", max_tasks: int = TASKS) -> None:
        self._readings = Readings(app, source, max_tasks)

    def describe(self) -> list[Family]:
        """Which metrics there are, without asking anybody: a registry wants to know as the collector is registered."""
        return list(self._families().values())

    def collect(self) -> Iterator[Family]:
        """One reading."""
        families = self._families()
        for sample in self._readings.read():
            families[sample.metric].add_metric(list(sample.labels), float(sample.value))
        yield from families.values()

    def _families(self) -> dict[Metric, Family]:
        return {metric: _family(metric) for metric in METRICS if metric.source in ("both", self._readings.source)}


def _family(metric: Metric) -> Family:
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    return kind(metric.name, metric.meaning[0].upper() + metric.meaning[1:] + ".", labels=metric.labels)


@contextmanager
def serving(app: Celery, host: str, port: int) -> Iterator[str]:
    """Serves the sums of all processes while the block runs, and nothing else; yields the URL.

    Raises:
        OSError: It cannot listen there.
    """
    registry = CollectorRegistry()
    registry.register(CacheTiersCollector(app))
    server, thread = start_http_server(port, host, registry)
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
