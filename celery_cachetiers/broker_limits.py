"""What a broker allows a worker to hold: how many messages, and for how long."""

from __future__ import annotations

from typing import Any, Final

from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.task import CachedTaskMixin

MOST_HELD: Final = 10_000
"""Requests held at most; RabbitMQ has no prefetch count above 65,535."""
TIMEOUTS: Final = {"redis": 3600.0, "amqp": 1800.0}
"""Seconds after which a broker delivers an unacknowledged message again, by its defaults."""
TIMEOUT_NAMES: Final = {
    "redis": "broker_transport_options['visibility_timeout']",
    "amqp": "RabbitMQ's consumer_timeout, and name it, in seconds, as broker_transport_options['consumer_timeout']",
}


def capacity(consumer: Any) -> tuple[int, bool]:
    """How many requests may be held, and whether the prefetch count grows by them.

    Where it cannot grow by as many, half of what the worker takes in advance may be held. It must not grow past its
    limit: kombu caps what is added, and not what is taken away again.
    """
    prefetched = consumer.initial_prefetch_count
    limit = getattr(consumer.qos, "max_prefetch", None)  # kombu 5.6 has it first
    if not prefetched:  # no limit at all
        return MOST_HELD, False
    spare = max(prefetched - consumer.pool.num_processes, 0) // 2
    if consumer.connection.transport.driver_type == "amqp" and not consumer.qos_global:  # quorum queues
        return spare, False
    most = MOST_HELD if limit is None else min((limit - prefetched) // 2, MOST_HELD)
    return (most, True) if most > spare else (spare, False)


def redelivery(app: Any) -> tuple[str, float]:
    """Which kind of broker it is, and after how many seconds it delivers an unacknowledged message again."""
    with app.connection_for_read() as connection:
        driver: str = connection.transport.driver_type
    name = "consumer_timeout" if driver == "amqp" else "visibility_timeout"
    return driver, float(app.conf.broker_transport_options.get(name, TIMEOUTS.get(driver, TIMEOUTS["redis"])))


def turnover(app: Any) -> float:
    """Seconds after which a held request goes back to the broker, lest the broker delivers it a second time."""
    driver, limit = redelivery(app)
    for task in app.tasks.values():
        if isinstance(task, CachedTaskMixin) and task.memoized.enabled:
            _check_wait_limit(task.memoized, limit / 2, TIMEOUT_NAMES.get(driver, "that time"))
    return limit / 2


def _check_wait_limit(memoized: Memoized, most: float, name: str) -> None:
    waits = memoized.policy.wait_limit
    if memoized.policy.coalesce is not False and waits >= most:
        allowed = f"below {most:g}, half of the time after which the broker delivers an unacknowledged message again"
        raise ConfigurationError("wait_limit", waits, f"{allowed}: lower it, or raise {name}", f"task {memoized.name}")
