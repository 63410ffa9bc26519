"""Reports in Redis: one hash with the reading that the next report starts from, one stream with the history."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

from celery_cachetiers.client import Command, RedisClient, Script
from celery_cachetiers.report_port import Last
from celery_cachetiers.tiers.layout import Layout

KEPT: Final = 7 * 86400.0
"""Seconds that a report is kept."""
REPORTS: Final = 5000
"""Reports that are kept, about: one a minute for three and a half days."""

LAST, HISTORY = "@report", "@history"
_ADD = Script("report_add")


class RedisReports:
    """A `celery_cachetiers.report_port.ReportStore` on one Redis server.

    Concurrency: holds no state of its own; thread- and fork-safe as its client is.
    """

    def __init__(self, client: RedisClient, layout: Layout) -> None:
        self._client, self._last, self._history = client, layout.stats(LAST), layout.stats(HISTORY)

    def last(self) -> Last | None:
        name, moment = self._client.call(lambda _: ("HMGET", self._last, "name", "moment"), must_try=True)
        return Last(name.decode(), moment.decode(errors="replace")) if name and moment else None

    def add(self, after: str, moment: str, report: str, at: float) -> bool:
        args = (after, os.urandom(8).hex(), moment, report, _ms(KEPT), _ms(at), REPORTS)
        command = _ADD.command((self._last, self._history), args)
        return bool(self._client.run(_ADD, lambda _: command, must_try=True) == 1)

    def history(self, since: float, most: int) -> list[str]:
        command: Command = ("XREVRANGE", self._history, "+", max(_ms(since), 0), "COUNT", most)
        found: Sequence[tuple[bytes, Sequence[bytes]]] = self._client.call(lambda _: command, must_try=True)
        return [fields[1].decode(errors="replace") for _, fields in reversed(found) if fields[:1] == [b"report"]]

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections alone."""
        self._client.reset_after_fork()

    def close(self) -> None:
        """Closes connections that lie idle."""
        self._client.close()

    def __repr__(self) -> str:
        return f"<RedisReports: {self._history}>"


def _ms(seconds: float) -> int:
    return int(1000 * seconds)
