"""The backplane over Redis pub/sub: one subscriber connection and one thread per process.

It decides what is a gap: any error, any silence past `SILENCE`, any subscription that was not asked for. A gap is told
before the connection counts as lost and again after it is back, as messages may be missing on either side of it. The
heartbeat is a PUBLISH over the data connection to the process' own inbox, as an answer to PING does not prove that
messages are delivered. Where Redis reports to the same connection what befalls the tags' versions, `tracking` decides.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from contextlib import suppress
from typing import Any, Final

from celery_cachetiers.backplane.tracking import CHANNEL, Tracking
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import Clock, chance
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.ports import Listener
from celery_cachetiers.threads import started
from celery_cachetiers.tiers.layout import Layout

logger = logging.getLogger("celery_cachetiers")

HEARTBEAT: Final = 2.0
SILENCE: Final = 5.0
RECONNECT_FROM: Final = 0.02
RECONNECT_TO: Final = 2.0


class RedisBackplane:
    """Hears invalidations and wake-ups, and knows when it may have missed some.

    Args:
        tracking: Hears what Redis reports of the tags' versions.

    Concurrency: the listener is called in the backplane's thread only, one message at a time.
    """

    def __init__(
        self, client: RedisClient, layout: Layout, listener: Listener, clock: Clock, tracking: Tracking | None = None
    ) -> None:
        self._client, self._layout, self._listener, self._clock = client, layout, listener, clock
        self._tracking = tracking
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Without a thread, under a new inbox."""
        self.inbox = os.urandom(8).hex()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._connected = threading.Event()
        self._closed = threading.Event()

    def start(self) -> None:
        if self._thread is not None:
            return
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = started("cachetiers-backplane", self._run)

    def connected(self) -> bool:
        return self._connected.is_set()

    def wait_connected(self, timeout: float) -> bool:
        return self._connected.wait(timeout)

    def close(self) -> None:
        self._closed.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(2.0)

    def __repr__(self) -> str:
        return f"<RedisBackplane: {'connected' if self.connected() else 'not connected'}, inbox {self.inbox}>"

    def _run(self) -> None:
        delay = RECONNECT_FROM
        while not self._closed.is_set():
            try:
                self._listen()
            except TierUnavailable:
                pass  # the server is away: the reason is the data path's to report
            except Exception as error:
                # A socket that is closed under redis-py's parser raises TypeError and ValueError too.
                logger.debug("celery-cachetiers: the backplane broke: %r", error)
            if self._connected.is_set():
                delay = RECONNECT_FROM
                self._connected.clear()
                self._listener.gap()
            self._closed.wait(delay * chance.uniform(0.5, 1.0))
            delay = min(2 * delay, RECONNECT_TO)

    def _listen(self) -> None:
        connection: Any = self._client.open()
        try:
            channels = (self._layout.inboxes + self.inbox, self._layout.announcements)
            if self._tracking is not None:
                self._tracking.begin(connection)
            connection.send_command("SUBSCRIBE", *channels)
            for _ in channels:
                while connection.read_response()[0] != b"subscribe":
                    pass  # a report, of before L1 is trusted
            self._begin_anew()
            self._connected.set()
            self._hear(connection)
        finally:
            connection.disconnect()

    def _begin_anew(self) -> None:
        """What was heard so far counts no longer, what is heard from now on does."""
        self._listener.gap()
        self._listener.heard(self._clock.monotonic() + SILENCE)

    def _hear(self, connection: Any) -> None:
        """Reads messages until something breaks or the backplane is closed."""
        heard = beat = self._clock.monotonic()
        while not self._closed.is_set():
            due_in = HEARTBEAT / 4 if self._tracking is None else self._tracking.due_in()
            if connection.can_read(timeout=min(HEARTBEAT / 4, due_in)):
                message = connection.read_response()
                if message[0] != b"message":
                    raise ConnectionError(f"unexpected {message[0]!r}: subscribed anew, messages may be missing")
                heard = self._clock.monotonic()
                self._listener.heard(heard + SILENCE)
                if message[1] == CHANNEL and self._tracking is not None:
                    self._tracking.note(message[2])
                else:
                    self._dispatch(message[1].decode(), message[2].decode())
            if self._tracking is not None and self._tracking.due_in() <= 0 and self._tracking.look():
                self._begin_anew()
            now = self._clock.monotonic()
            if now - heard > SILENCE:
                raise ConnectionError("silence: messages do not arrive")
            if now - max(heard, beat) > HEARTBEAT:
                beat = now
                self._beat()

    def _beat(self) -> None:
        with suppress(TierUnavailable):  # not sent, so not heard: the silence will tell
            self._client.call(lambda _: ("PUBLISH", self._layout.inboxes + self.inbox, ""))

    def _dispatch(self, channel: str, data: str) -> None:
        if channel != self._layout.announcements:
            if data:
                self._listener.woken(data)
            return
        message = json.loads(data)
        if isinstance(message, dict):
            self._listener.asked(message)
            return
        sender, names = message
        if sender != self.inbox:
            self._listener.invalidated(names)
