"""kill -9 in the middle of a flush: the worker that flushes, at a moment when it has writes in its hands."""

from __future__ import annotations

import os
import time

import redis

from examples.storefront.demo.ledger import SINKS
from examples.storefront.demo.servers import Server, Servers

PATIENCE = 10.0
"""Seconds to wait for such a moment; a flush comes every second, and takes milliseconds."""

SETTLE = 0.01
"""Seconds in which a process that is told to stop has done so, and Redis has what it had sent."""


class Killing:
    """Kills the worker that flushes, once, and starts another one.

    Attributes:
        in_hands: Writes that it had claimed, and neither had acknowledged nor ever will.
    """

    def __init__(self, servers: Servers, flusher: Server) -> None:
        self._servers, self._flusher = servers, flusher
        self.due, self.in_hands = True, 0

    def kill(self) -> None:
        """Kills it as soon as it has claims, or when patience ends."""
        self.due = False
        deadline = time.monotonic() + PATIENCE
        with redis.Redis.from_url(os.environ["STOREFRONT_CACHE"]) as client:
            while time.monotonic() < deadline:
                if _claims(client):
                    self._flusher.pause()
                    time.sleep(SETTLE)
                    if _claims(client):
                        break
                    self._flusher.resume()
            self._servers.kill(self._flusher)
            self.in_hands = _claims(client)
        self._servers.start_flusher()


def _claims(client: redis.Redis) -> int:
    """How many writes are in the hands of a flusher; see "Redis keys" in the reference."""
    return sum(client.hlen(f"cachetiers:{{wb:{sink}}}:c") for sink in SINKS)
