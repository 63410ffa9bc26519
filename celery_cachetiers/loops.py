"""Where what touches a worker's requests, its prefetch count and its pool may be done: its event loop, or a thread.

Both do what they are asked for one after the other, in the order they were asked, and survive what it raises.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

logger = logging.getLogger("celery_cachetiers")


class Loop:
    """The worker's event loop: acts run in it, one after the other, in the order they were given.

    A socket brings it around at once. ``Hub.call_soon`` does not, for up to a second, before kombu 5.7, and in all
    versions not from a callback that the loop itself has just taken up.
    """

    def __init__(self, consumer: Any) -> None:
        self._hub = consumer.hub
        self._acts: deque[Callable[[], None]] = deque()
        self._poke: tuple[socket.socket, socket.socket] | None = None

    def start(self) -> None:
        self._poke = socket.socketpair()
        for end in self._poke:
            end.setblocking(False)
        self._hub.add_reader(self._poke[0], self._poked)
        self.soon(nothing)  # what was asked for while there was no connection

    def stop(self) -> None:
        poke, self._poke = self._poke, None
        if poke is not None:
            self._hub.remove(poke[0])
            for end in poke:
                end.close()

    def soon(self, act: Callable[[], None]) -> None:
        self._acts.append(act)
        poke = self._poke
        if poke is not None:
            with suppress(OSError):  # full: it will be read; closed: the connection is made anew
                poke[1].send(b"x")

    def _poked(self) -> None:
        if self._poke is not None:
            with suppress(OSError):
                self._poke[0].recv(4096)
        self.settle()

    def settle(self) -> None:
        """Does what it was asked for: in the loop, and once more when that has ended."""
        while self._acts:
            _safely(self._acts.popleft())


class Clerk:
    """A thread for workers without an event loop: it may wait for a free slot, which Celery's own threads must not."""

    def __init__(self) -> None:
        self._acts: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="cachetiers-waiting-room", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._acts.put(None)

    def soon(self, act: Callable[[], None]) -> None:
        self._acts.put(act)

    def settle(self) -> None:
        """Its thread outlives the connection: nothing is left behind."""

    def _run(self) -> None:
        while (act := self._acts.get()) is not None:
            _safely(act)


def nothing() -> None:
    pass


def _safely(act: Callable[[], None]) -> None:
    try:
        act()
    except Exception:
        logger.exception("celery-cachetiers: the waiting room failed")
