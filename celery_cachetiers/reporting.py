"""The hit-ratio report of an app: made by the worker that beat's message reaches, told by log, signal and Celery event.

What a report starts from is in Redis, not in a process: workers and beats may come and go, and of several reports of
one interval one counts. The time is the server's, which all workers share.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from celery import bootsteps

from celery_cachetiers.client import RedisClient
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.events import Event
from celery_cachetiers.metrics.interval import Moment
from celery_cachetiers.metrics.report import Report, line, report
from celery_cachetiers.metrics.report_json import packed_moment, packed_report, unpacked_moment, unpacked_report
from celery_cachetiers.server_info import ServerInfo
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.redis_reports import REPORTS, RedisReports
from celery_cachetiers.tiers.redis_server import RedisServerInfo

if TYPE_CHECKING:
    from celery_cachetiers.app import CacheTiers

logger = logging.getLogger("celery_cachetiers")

REPORT: Final = "celery_cachetiers.report"
"""The built-in task, and the entry in beat's schedule that sends it."""
EVENT: Final = "cache-hit-ratio"
"""Type of the Celery event."""
_LOOKS: Final = 3


class Reporting:
    """Makes reports and reads them back.

    Concurrency: keeps nothing between reports; the connection of each is its own, and is closed after it.

    Attributes:
        sends_events: Whether the worker of this process was started with task events on.
    """

    def __init__(self, tiers: CacheTiers) -> None:
        self._tiers = tiers
        self.sends_events = False

    def make(self) -> Report | None:
        """Reports what has happened since the last report, to the log, the history and the signal's receivers.

        Returns:
            ``None`` if the last one is not half an interval old, another one comes first, or the app has memory only:
            then nothing is told.

        Raises:
            TierUnavailable: Redis was not reached. What was counted is in the next report.

        Costs: about 10 round trips; never on the path of a call.
        """
        with self._connected() as client:
            made = self._made(client) if client is not None else None
        if made is not None:
            logger.log(
                logging.WARNING if made.below or made.reasons else logging.INFO, "celery-cachetiers: %s", line(made)
            )
            self._tiers.events.emit(Event.REPORTED, report=made)
        return made

    def history(self, since: float = 0.0, most: int = REPORTS) -> list[Report]:
        """The reports of the last days, the oldest first; see `CacheTiers.history`."""
        with self._connected() as client:
            kept = self._store(client).history(since, most) if client is not None else []
        return [made for made in map(unpacked_report, kept) if made is not None]

    def _made(self, client: RedisClient) -> Report | None:
        settings, store, server = self._tiers.settings, self._store(client), RedisServerInfo(client)
        last = store.last()  # first: what it has counted is not more than what is read below
        before = unpacked_moment(last.moment) if last is not None else None
        at, round_trip = self._time(server)
        if before is not None and abs(at - before.at) < (settings.report_every or 0.0) / 2:
            return None
        self._tiers.roll_call.merged(server)  # what one has counted in this interval is not to be found in the next
        sums = self._tiers.counting.sums()
        servers, untold = self._servers(server)
        now = Moment(at, sums, servers, untold)
        made = report(before, now, settings.hit_ratio_target, round_trip)
        if not store.add(last.name if last is not None else "", packed_moment(now), packed_report(made), at):
            return None
        return made

    def _time(self, server: RedisServerInfo) -> tuple[float, float]:
        """What time it is on the server, and how many seconds a round trip takes, at best."""
        monotonic, took = self._tiers.clock.monotonic, list[float]()
        for _ in range(_LOOKS):
            began = monotonic()
            seconds, micros = server.ask("TIME")
            took.append(monotonic() - began)
        return int(seconds) + int(micros) / 1e6, min(took)

    @staticmethod
    def _servers(server: RedisServerInfo) -> tuple[tuple[ServerInfo, ...], str]:
        """What the server tells of itself, or why it does not."""
        try:
            return (server.read(),), ""
        except TierUnavailable as error:
            return (), f"INFO: {error}"

    def _store(self, client: RedisClient) -> RedisReports:
        return RedisReports(client, Layout(self._tiers.settings.namespace))

    @contextmanager
    def _connected(self) -> Iterator[RedisClient | None]:
        client = self._tiers.client()
        try:
            yield client
        finally:
            if client is not None:
                client.close()

    def __repr__(self) -> str:
        return f"<Reporting of {self._tiers.app!r}>"


def run(tiers: CacheTiers, task: Any) -> float | None:
    """The body of the built-in task: a report that cannot be made is one line in the log, and the next comes by itself.

    Returns:
        The cache's hit ratio; ``None`` without requests, or without a report.
    """
    try:
        made = tiers.reporting.make()
    except TierUnavailable as error:
        logger.warning("celery-cachetiers: no hit ratio this time, as Redis cannot be reached: %s", error)
        return None
    if made is None:
        return None
    if tiers.reporting.sends_events:
        send_event(task, made)
    return made.ratio


def send_event(task: Any, made: Report) -> None:
    """Sends the report as a Celery event; a broker that does not take it is one line in the log."""
    total = made.total
    try:
        task.send_event(
            EVENT, ratio=made.ratio, requests=made.requests, target=made.target, below=made.below,
            since=made.since, until=made.at,
            hits=total.hits, misses=total.misses, coalesced=total.coalesced, computes=total.computes,
            seconds_saved=total.seconds_saved, server_ratio=made.server_ratio,
            reasons=[reason.name for reason in made.reasons],
        )  # fmt: skip
    except Exception as error:
        logger.warning("celery-cachetiers: the event %s was not sent: %s", EVENT, error)


class EventSwitch(bootsteps.StartStopStep):
    """Notes, before the pool forks, whether the worker sends task events."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        reporting: Reporting = parent.app._cachetiers.reporting
        reporting.sends_events = bool(parent.task_events)
