"""The same numbers as asynchronous instruments of OpenTelemetry; the extra ``opentelemetry`` brings its API.

``observe(app)``: what is told, and what it costs, is said in `exporting`. Who collects, when, and where to: the SDK.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from celery import Celery

from celery_cachetiers.exporting import Readings
from celery_cachetiers.identity import DISTRIBUTION
from celery_cachetiers.metrics.exported import METRICS, TASKS, Metric, Sample

try:
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation, get_meter
except ImportError as error:
    raise ImportError(
        "celery_cachetiers.opentelemetry needs opentelemetry-api: pip install 'celery-cachetiers[opentelemetry]'"
    ) from error


def observe(
    app: Celery, source: Literal["all", "process"] = "process", max_tasks: int = TASKS,
    meter_provider: MeterProvider | None = None,
) -> None:  # fmt: skip
    """Has the metrics of an app's cache read anew for each collection, from now on; call it once in a process.

    Args:
        app: The app.
        source: As `celery_cachetiers.prometheus.CacheTiersCollector` has it: ``"all"`` in one process of a deployment,
            ``"process"`` in each. Do not add up both.
        max_tasks: Tasks that are told apart by the attribute ``task``, the first ones seen; the rest is ``other``.
        meter_provider: The global one unless said otherwise.

    Raises:
        ConfigurationError: An argument cannot be used.
    """
    shared = _Shared(Readings(app, source, max_tasks))
    meter = get_meter(DISTRIBUTION, meter_provider=meter_provider)
    for metric in METRICS:
        if metric.source in ("both", source):
            counts = metric.kind == "counter"
            create: Any = meter.create_observable_counter if counts else meter.create_observable_gauge
            create(name_of(metric), [shared.callback(metric)], unit=_unit(metric), description=metric.meaning)


def name_of(metric: Metric) -> str:
    """What it is called there.

    >>> from celery_cachetiers.metrics.exported import HITS
    >>> name_of(HITS)
    'cachetiers.hits'
    """
    return metric.name.replace("_", ".", 1)


def _unit(metric: Metric) -> str:
    return "s" if metric.name.endswith("_seconds") else "By" if metric.name.endswith("_bytes") else "1"


class _Shared:
    """One reading for all instruments of a collection: the next one begins when one of them asks again.

    Concurrency: none needed; collections at once may read more often than they must.
    """

    def __init__(self, readings: Readings) -> None:
        self._readings = readings
        self._asked: set[Metric] = set()
        self._samples: list[Sample] | None = None

    def callback(self, metric: Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """What an instrument calls."""

        def observations(_: CallbackOptions) -> list[Observation]:
            return [
                Observation(sample.value, _attributes(sample))
                for sample in self._for(metric)
                if sample.metric is metric
            ]

        return observations

    def _for(self, metric: Metric) -> list[Sample]:
        samples = self._samples
        if samples is None or metric in self._asked:
            self._asked = set()
            samples = self._samples = self._readings.read()
        self._asked.add(metric)
        return samples


def _attributes(sample: Sample) -> dict[str, str]:
    """Where no task is known there is no attribute."""
    return {name: value for name, value in zip(sample.metric.labels, sample.labels, strict=True) if value}
