"""Counts round trips: a TCP proxy that sees when the client speaks after the server has spoken."""

from __future__ import annotations

import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from benchmarks.server import Server


class Counter:
    """Round trips over all connections through the proxy since the start.

    Commands that a client sends in one packet are one; so is a command with no answer before the next one's.
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"
        self.count = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accepts no more."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            upstream = socket.create_connection(("127.0.0.1", self._server.port))
            threading.Thread(target=self._carry, args=(client, upstream), daemon=True).start()

    def _carry(self, client: socket.socket, upstream: socket.socket) -> None:
        spoke: object = upstream
        with client, upstream, selectors.DefaultSelector() as waiting:
            waiting.register(client, selectors.EVENT_READ, upstream)
            waiting.register(upstream, selectors.EVENT_READ, client)
            while True:
                for key, _ in waiting.select():
                    source, sink = key.fileobj, key.data
                    if not self._pass_on(source, sink):
                        return
                    if source is client and spoke is upstream:
                        with self._lock:
                            self.count += 1
                    spoke = source

    @staticmethod
    def _pass_on(source: Any, sink: socket.socket) -> bool:
        try:
            data = source.recv(65536)
            if data:
                sink.sendall(data)
            return bool(data)
        except OSError:
            return False


@contextmanager
def counting(server: Server) -> Iterator[Counter]:
    """A proxy in front of the server, for the length of the block."""
    counter = Counter(server)
    try:
        yield counter
    finally:
        counter.close()
