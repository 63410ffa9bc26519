"""One thread per process that renews the leases of running computes, each at a third of its time.

It decides when to renew; a lease that is lost meanwhile is reported and forgotten, and its compute goes on.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from celery_cachetiers.clock import Clock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.ports import LeaseRequest, Store
from celery_cachetiers.threads import started

logger = logging.getLogger("celery_cachetiers")


IDLE = 60.0
"""Seconds between two looks before there was a first lease; then a third of the shortest lease TTL, so that a lease
that is kept for a moment wakes nobody."""


class _Kept:
    """A lease, and the block during which it is kept alive."""

    __slots__ = ("_keeper", "due", "request")

    def __init__(self, keeper: Keeper, request: LeaseRequest, due: float) -> None:
        self._keeper, self.request, self.due = keeper, request, due

    def __enter__(self) -> None:
        keeper, request = self._keeper, self.request
        with keeper._lock:
            keeper._interval = min(keeper._interval, request.lease_ttl / 3)
            keeper._kept[request.token] = self
            if keeper._thread is None and not keeper._closed:
                keeper._thread = started("cachetiers-keeper", keeper._run)
            if self.due < keeper._looks_at:
                keeper._changed.notify()

    def __exit__(self, *exc_info: object) -> None:
        keeper = self._keeper
        with keeper._lock:
            keeper._kept.pop(self.request.token, None)


class Keeper:
    """Renews leases while they are in its hands.

    Concurrency: one condition guards the table; Redis is asked outside it. The thread starts with the first lease. To
    keep a lease costs no wake-up of the thread while it looks around at least every third of the lease TTL.

    Args:
        on_lost: Called with the lease that turned out to be another's, in the keeper's thread.
    """

    def __init__(self, store: Store, clock: Clock, on_lost: Callable[[LeaseRequest], None]) -> None:
        self._store, self._monotonic, self._on_lost = store, clock.monotonic, on_lost
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Without leases and without a thread."""
        self._lock = threading.Lock()  # taken by itself where nobody waits: half the time of a condition's block
        self._changed = threading.Condition(self._lock)
        self._kept: dict[str, _Kept] = {}
        self._thread: threading.Thread | None = None
        self._looks_at = float("inf")
        self._interval = IDLE
        self._closed = False

    def keeping(self, request: LeaseRequest) -> _Kept:
        """Keeps a lease alive until the block ends."""
        return _Kept(self, request, self._monotonic() + request.lease_ttl / 3)

    def close(self) -> None:
        """Ends the thread; leases in its hands run out by themselves."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __repr__(self) -> str:
        return f"<Keeper: {len(self._kept)} leases>"

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._closed:
                    return
                now = self._monotonic()
                soonest = min((kept.due for kept in self._kept.values()), default=now + self._interval)
                self._looks_at = soonest
                if soonest > now:
                    self._changed.wait(soonest - now)
                    now = self._monotonic()
                due = [kept for kept in self._kept.values() if kept.due <= now]
            for kept in due:
                self._renew(kept)

    def _renew(self, kept: _Kept) -> None:
        kept.due = self._monotonic() + kept.request.lease_ttl / 3
        try:
            if self._store.renew(kept.request):
                return
        except TierUnavailable:
            return  # tried again when it is due next; if it runs out meanwhile, the commit is refused
        except Exception:
            logger.exception("celery-cachetiers: renewing a lease failed")
            return
        with self._changed:
            lost = self._kept.pop(kept.request.token, None)
        if lost is not None:
            self._on_lost(kept.request)
