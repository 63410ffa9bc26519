"""Reports in memory."""

from __future__ import annotations

import threading
from itertools import count

from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.report_port import Last


class MemoryReports:
    """A `celery_cachetiers.report_port.ReportStore`.

    Attributes:
        away: Nothing can be asked for.
    """

    def __init__(self) -> None:
        self._lock, self._names = threading.Lock(), count(1)
        self.away = False
        self._last: Last | None = None
        self._kept: list[tuple[float, str]] = []

    def last(self) -> Last | None:
        with self._lock:
            self._check()
            return self._last

    def add(self, after: str, moment: str, report: str, at: float) -> bool:
        with self._lock:
            self._check()
            if after != (self._last.name if self._last is not None else ""):
                return False
            self._last = Last(str(next(self._names)), moment)
            self._kept.append((at, report))
            return True

    def history(self, since: float, most: int) -> list[str]:
        with self._lock:
            self._check()
            return [report for at, report in self._kept if at >= since][-most:]

    def _check(self) -> None:
        if self.away:
            raise TierUnavailable("away")

    def reset_after_fork(self) -> None:
        """What is kept is shared."""
        self._lock = threading.Lock()

    def close(self) -> None:
        """There are no connections."""

    def __repr__(self) -> str:
        return f"<MemoryReports: {len(self._kept)}>"
