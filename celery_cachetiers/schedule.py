"""What beat and a worker do without being told: flush and report by the clock, check at the start, drain at the end.

Entries are added when beat starts, as an app may assign its own ``beat_schedule`` at any time before; an entry of the
same name in that schedule stays as the app has it.
"""

from __future__ import annotations

import logging
from math import ceil
from typing import Any

from celery import bootsteps
from celery.signals import beat_init, worker_shutdown

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.reporting import REPORT
from celery_cachetiers.sinks import registered
from celery_cachetiers.tasks import PERIODIC_HEADER
from celery_cachetiers.write_behind import FLUSH, on_its_way

logger = logging.getLogger("celery_cachetiers")

DRAIN_SECONDS = 10.0
"""Seconds after which a worker that ends begins no more batches; the one under way has `DRAIN_PATIENCE` more."""


def entries(tiers: CacheTiers) -> dict[str, dict[str, Any]]:
    """The periodic tasks of an app, as ``beat_schedule`` has them.

    Raises:
        ConfigurationError: The settings cannot be used.
    """
    return {**_flush(tiers), **_report(tiers)}


def _report(tiers: CacheTiers) -> dict[str, dict[str, Any]]:
    """None where there is no Redis to add up in, or nothing is cached."""
    settings = tiers.settings
    every = settings.report_every
    if every is None or not settings.enabled or tiers.where() is None:
        return {}
    return {REPORT: _entry(REPORT, every, settings.report_queue, expires=every)}


def _flush(tiers: CacheTiers) -> dict[str, dict[str, Any]]:
    """None if nothing is ever written behind; a beat's process may have imported the tasks and not their sinks."""
    settings, sinks = tiers.settings, registered().values()
    if not sinks and not any(getattr(type(task), "write", None) == "behind" for task in tiers.app.tasks.values()):
        return {}
    delays = [sink.options.max_delay for sink in sinks if sink.options.max_delay is not None]
    every = min([settings.flush_every, *delays])
    # One is in the queue at a time, see `tasks.Flush`.
    entry = _entry(FLUSH, every, settings.flush_queue, expires=on_its_way(every), headers={PERIODIC_HEADER: True})
    return {FLUSH: entry}


def _entry(task: str, every: float, queue: str | None, *, expires: float, **options: Any) -> dict[str, Any]:
    """Those that no worker has taken when they expire do not pile up."""
    options["expires"] = expires
    if queue is not None:
        options["queue"] = queue
    return {"task": task, "schedule": every, "options": options}


def add_entries(sender: Any = None, **_: object) -> None:
    """Adds them to the schedule of the beat that starts."""
    tiers = getattr(sender.app, "_cachetiers", None)
    if not isinstance(tiers, CacheTiers):
        return
    own = sender.app.conf.beat_schedule or {}
    new = {name: entry for name, entry in entries(tiers).items() if name not in own}
    if new:
        if _is_djangos(sender.scheduler):
            new = {name: _as_django_has_it(entry) for name, entry in new.items()}
        sender.scheduler.update_from_dict(new)
        logger.info("celery-cachetiers: beat sends %s", ", ".join(sorted(new)))


def _is_djangos(scheduler: Any) -> bool:
    return any(cls.__module__.partition(".")[0] == "django_celery_beat" for cls in type(scheduler).__mro__)


def _as_django_has_it(entry: dict[str, Any]) -> dict[str, Any]:
    """django-celery-beat keeps whole seconds, of which 0 would be all the time, and an expiry under its own name."""
    options = {name: value for name, value in entry["options"].items() if name != "expires"}
    options["expire_seconds"] = ceil(entry["options"]["expires"])
    return {**entry, "schedule": ceil(entry["schedule"]), "options": options}


class WriteBehindCheck(bootsteps.StartStopStep):
    """Refuses to start a worker whose journal would lose what is written into it, or whose tasks name no known sink."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self._app = parent.app

    def start(self, parent: Any) -> None:
        """Looks. Raises `ConfigurationError`."""
        CacheTiers(self._app).writes.check()


def drain(sender: Any = None, **_: object) -> None:
    """Empties the journal as far as it goes, when the worker's pool has ended."""
    tiers = getattr(getattr(sender, "app", None), "_cachetiers", None)
    if isinstance(tiers, CacheTiers) and registered():
        tiers.writes.drain(DRAIN_SECONDS)


def listen() -> None:
    """Hears from now on when a beat starts and when a worker ends; once is enough for all apps."""
    beat_init.connect(add_entries, dispatch_uid="celery_cachetiers.schedule")
    worker_shutdown.connect(drain, dispatch_uid="celery_cachetiers.drain")
