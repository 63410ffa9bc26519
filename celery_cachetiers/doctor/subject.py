"""What the app itself says: settings, tasks and addresses, with no command to any server."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from celery_cachetiers.address import Address, address_of
from celery_cachetiers.app import CacheTiers
from celery_cachetiers.broker_limits import TIMEOUTS, redelivery
from celery_cachetiers.errors import ConfigurationError
from celery_cachetiers.invalidating import declare_all
from celery_cachetiers.policy import Policy, Settings
from celery_cachetiers.settings import OFF_SWITCH, switched_off
from celery_cachetiers.sinks import registered
from celery_cachetiers.task import CachedTaskMixin


@dataclass(frozen=True, slots=True)
class Cached:
    """One cached task.

    Attributes:
        ignores_result: Whether nobody can read what it returns.
        time_limit: Seconds after which it is killed; ``None`` without a limit.
    """

    name: str
    policy: Policy
    serializer: str
    acks_late: bool
    rejects_on_worker_lost: bool
    ignores_result: bool
    time_limit: float | None


@dataclass(frozen=True, slots=True)
class Subject:
    """An app, as far as its cache goes.

    Attributes:
        conf: The app's configuration.
        switch: What has switched the cache off; empty if it is on.
        tasks: Those whose cache is on, or would be but for the ``switch``.
        off: Names of those whose cache is off.
        troubles: What is wrong with tasks and their declarations, in words.
        unused: Task and pattern that it invalidates, and no task depends on.
        source: What has led to L2: ``"setting"``, ``"backend"`` or ``"memory"``.
        broker: ``None`` where messages stay in this process.
        driver: Kind of the broker, as kombu names it; empty if kombu cannot use it here.
        redelivery: Seconds after which the broker delivers an unacknowledged message again.
        behind: Sinks that tasks write behind to, and what their writes wait for.
        journal: Where those wait.
    """

    settings: Settings
    conf: Any
    switch: str
    tasks: tuple[Cached, ...]
    off: tuple[str, ...]
    troubles: tuple[str, ...]
    unused: tuple[tuple[str, str], ...]
    source: str
    l2: Address | None
    broker: Address | None
    driver: str
    redelivery: float
    behind: dict[str, str | None]
    journal: Address | None

    @property
    def beside_broker(self) -> bool:
        """Whether L2 is on the broker's server, as far as names tell."""
        return self.l2 is not None and self.broker is not None and self.l2.same_server(self.broker)


def subject_of(tiers: CacheTiers) -> Subject:
    """The app of an extension; what is wrong with single tasks is among the `Subject.troubles`.

    Raises:
        ConfigurationError: The settings cannot be used.
    """
    settings, where, conf = tiers.settings, tiers.where(), tiers.app.conf
    troubles = list(_declared(tiers))
    tasks, off = _tasks(tiers, troubles)
    broker, driver, seconds = _broker(tiers, troubles)
    source = "memory" if where is None else "backend" if settings.url is None else "setting"
    l2 = None if where is None else address_of(where[0])
    behind = _behind(tasks)
    journal = tiers.where_writes_wait() if behind else None
    return Subject(
        settings, conf, _switch(settings), tasks, off, tuple(troubles), tuple(tiers.registry.unused()),
        source, l2, broker, driver, seconds, behind, None if journal is None else address_of(journal[0]),
    )  # fmt: skip


def _switch(settings: Settings) -> str:
    if settings.enabled:
        return ""
    return f"the environment variable {OFF_SWITCH}" if switched_off() else "cachetiers_enabled"


def _declared(tiers: CacheTiers) -> Iterator[str]:
    try:
        declare_all(tiers)
    except ConfigurationError as error:
        yield str(error)


def _tasks(tiers: CacheTiers, troubles: list[str]) -> tuple[tuple[Cached, ...], tuple[str, ...]]:
    found, off = [], []
    for name, task in sorted(tiers.app.tasks.items()):
        if not isinstance(task, CachedTaskMixin):
            continue
        try:
            memoized = task.memoized
        except Exception as error:
            troubles.append(str(error))
            continue
        switched_off_alone = getattr(type(task), "cache_enabled", None) is False
        if memoized.enabled or not (tiers.settings.enabled or switched_off_alone):
            found.append(_cached(task, memoized.policy))
        else:
            off.append(name)
    return tuple(found), tuple(off)


def _cached(task: Any, policy: Policy) -> Cached:
    conf = task.app.conf
    return Cached(
        task.name,
        policy,
        policy.cache_serializer or conf.result_serializer,
        bool(task.acks_late),
        bool(task.reject_on_worker_lost),
        bool(task.ignore_result),
        task.time_limit or conf.task_time_limit,
    )


def _behind(tasks: tuple[Cached, ...]) -> dict[str, str | None]:
    sinks = {task.policy.sink for task in tasks if task.policy.write == "behind"}
    return {name: sink.options.durability for name, sink in sorted(registered().items()) if name in sinks}


def _broker(tiers: CacheTiers, troubles: list[str]) -> tuple[Address | None, str, float]:
    try:
        with tiers.app.connection_for_write() as connection:
            url = "" if connection.transport_cls == "memory" else connection.as_uri().partition(";")[0]
        driver, seconds = redelivery(tiers.app)
    except Exception as error:  # its client is not installed, its URL is no URL
        troubles.append(f"the broker cannot be used: {type(error).__name__}")  # not the text, which may have the URL
        return None, "", TIMEOUTS["redis"]
    return (address_of(url) if url else None), driver, seconds
