"""``CLIENT TRACKING`` on the backplane's connection: Redis reports whatever befalls the versions of tags.

So L1 hears also of what nobody announces: ``FLUSHALL``, an eviction, an expiry, a ``DEL`` by hand. It decides when
reports are looked into: the first one at once, others together, `LOOK_EVERY` so many seconds, as every compute in the
whole deployment is reported. What a report means for L1 is `tiers.tracked`'s matter.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import redis

from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import Clock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.ports import Listener
from celery_cachetiers.tag_names import namespace_tag
from celery_cachetiers.tiers.layout import Layout
from celery_cachetiers.tiers.tracked import TrackedTier

logger = logging.getLogger("celery_cachetiers")

CHANNEL: Final = b"__redis__:invalidate"
"""Where a RESP2 connection that redirects its reports to itself hears them."""
LOOK_EVERY: Final = 0.02
"""Seconds between two looks."""
AT_ONCE: Final = 1000
"""Versions that one ``MGET`` asks for at most."""


class Tracking:
    """The reports of one connection after the other.

    Concurrency: called in the backplane's thread only.
    """

    def __init__(
        self, client: RedisClient, layout: Layout, tier: TrackedTier, listener: Listener, clock: Clock
    ) -> None:
        self._client, self._layout, self._tier, self._listener, self._clock = client, layout, tier, listener, clock
        self._told = False
        self._run_id, self._flushed, self._next = "", False, -math.inf
        self._pending: dict[str, str] = {}

    def begin(self, connection: Any) -> None:
        """Asks for reports; to be called before the connection subscribes to anything.

        Where that is not permitted, or not known, it is said once, and L1 hears of announced invalidations only.
        """
        self._run_id, self._flushed, self._pending = connection.run_id, False, {}
        prefixes = [word for prefix in self._layout.prefixes_of_versions for word in ("PREFIX", prefix)]
        try:
            own = _ask(connection, "CLIENT", "ID")
            _ask(connection, "CLIENT", "TRACKING", "ON", "REDIRECT", own, "BCAST", *prefixes)
            _ask(connection, "SUBSCRIBE", CHANNEL)
        except redis.ResponseError as error:
            with suppress(redis.ResponseError):
                _ask(connection, "CLIENT", "TRACKING", "OFF")
            if not self._told:
                self._told = True
                logger.warning("celery-cachetiers: cachetiers_l1_tracking has no effect here: Redis says %s", error)

    def note(self, keys: Sequence[bytes] | None) -> None:
        """Takes a report: of these keys, or, if it is ``None``, of a database that was flushed, whichever."""
        if keys is None:
            self._flushed = True
            return
        tags = {}
        for key in keys:
            name = key.decode(errors="replace")
            tag = self._layout.tag_of(name, self._run_id)
            if tag is not None:
                tags[name] = tag
        wanted = set(self._tier.reported(tags.values()))
        self._pending.update({name: tag for name, tag in tags.items() if tag in wanted})

    def due_in(self) -> float:
        """Seconds until `look` is to be called; infinite if there is nothing to look at."""
        if self._flushed:
            return 0.0
        return max(self._next - self._clock.monotonic(), 0.0) if self._pending else math.inf

    def look(self) -> bool:
        """Tells the listener which of the reported versions have gone; true if all may be lost.

        A flush of another database is reported like one of ours, and has left the namespace's version as it was.

        Costs: 1 round trip, 2 after a flush.
        """
        pending, self._pending = self._pending, {}
        flushed, self._flushed = self._flushed, False
        if flushed and not self._is_whole():
            return True
        keys = list(pending)
        nonces = [nonce for at in range(0, len(keys), AT_ONCE) for nonce in self._present(keys[at : at + AT_ONCE])]
        lost = self._tier.compare(zip(pending.values(), nonces, strict=True))
        if lost:
            self._listener.lost(lost)
        self._next = self._clock.monotonic() + LOOK_EVERY
        return False

    def _is_whole(self) -> bool:
        name = namespace_tag()
        buckets = range(self._layout.buckets)
        keys = [key for bucket in buckets for key in self._layout.versions(bucket, (name,), self._run_id)]
        return all(self._tier.is_known(name, nonce) for nonce in self._present(keys))

    def _present(self, keys: Sequence[str]) -> list[bytes | None]:
        """The versions that there are now; what cannot be looked up counts as missing, which is safe."""
        if not keys:
            return []
        try:
            return list(self._client.call(lambda _: ("MGET", *keys)))
        except TierUnavailable:
            return [None] * len(keys)


def _ask(connection: Any, *command: Any) -> Any:
    connection.send_command(*command)
    return connection.read_response()
