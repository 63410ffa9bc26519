"""A loopback TCP proxy before a real Redis: it counts what passes, and breaks what it is told to break.

Decides what counts as one round trip, and which faults there are. The server behind it is real: nothing is answered
here. Faults of the server itself (dead, stopped, out of memory) belong to `servers.RedisServer`.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Self

from tests.processes import ReservedPort

CHUNK = 65536

# redis-py sends a batch of up to 6,000 bytes in one piece and a longer one in several, between which the server may
# already answer. From this size on an answer waits until the client has been quiet for so long (a few switch intervals
# of the interpreter, in which client and proxy run), so that the batch stays one round trip.
_LONG_BATCH = 4096
_QUIET = 0.02
_QUIET_LIMIT = 1.0

#: Commands that redis-py sends by itself when it opens a connection.
HANDSHAKE = frozenset({"HELLO", "AUTH", "SELECT", "CLIENT"})

Command = tuple[bytes, ...]


class CommandParser:
    """Finds the commands in what a client sends, however the bytes are cut into pieces."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Command]:
        """The commands that `data` completes."""
        self._buffer += data
        found = []
        while (parsed := self._parse()) is not None:
            command, used = parsed
            self._buffer = self._buffer[used:]
            found.append(command)
        return found

    def _parse(self) -> tuple[Command, int] | None:
        """The command at the start of the buffer and its length, or None while it is not complete."""
        head = self._line(0)
        if head is None:
            return None
        text, position = head
        if not text.startswith(b"*"):
            raise ValueError(f"not a RESP command: {text[:40]!r}")
        words = []
        for _ in range(int(text[1:])):
            size = self._line(position)
            if size is None:
                return None
            text, position = size
            end = position + int(text[1:])
            if len(self._buffer) < end + 2:
                return None
            words.append(self._buffer[position:end])
            position = end + 2
        return tuple(words), position

    def _line(self, start: int) -> tuple[bytes, int] | None:
        end = self._buffer.find(b"\r\n", start)
        return None if end < 0 else (self._buffer[start:end], end + 2)


class _Link:
    """One client's connection and the server's side of it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        # Below: the two pumping threads, under the proxy's lock.
        self.batch: list[str] = []
        self.batch_bytes = 0
        self.pumps = 2

    def finish(self) -> None:
        """End both sides in an orderly way, and wake whoever reads from them."""
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End both sides at once: client and server see "connection reset"."""
        for sock in (self.client, self.server):
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sock.shutdown(socket.SHUT_RD)  # wakes a thread in recv, which would hold the socket open; sends nothing
            sock.close()

    def close(self) -> None:
        self.client.close()
        self.server.close()


class RedisProxy:
    """A TCP proxy on a free loopback port, in threads of this process: counter and fault injector.

    A *round trip* is one change of direction: the client sends one or more commands, then the server answers. All the
    commands of a pipeline are one round trip; a pushed message is none.

    The faults act on all connections, present and future, until `heal`.

    Args:
        upstream_port: Loopback port of the server.

    Concurrency: every method may be called from any thread.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream = ("127.0.0.1", upstream_port)
        self._reserved = ReservedPort()
        self._lock = threading.Lock()
        # Below: read and written under the lock by the pumping threads and the test's.
        self._links: set[_Link] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._commands: Counter[str] = Counter()
        self._trips: list[tuple[str, ...]] = []
        self._connections = 0
        # An event that is set lets bytes pass; cleared, it holds them where they are.
        self._requests_pass = threading.Event()
        self._answers_pass = threading.Event()
        self._delay = 0.0
        self._drip: tuple[int, float] | None = None
        #: Called with every complete command before it goes on to the server, in the connection's own thread: block in
        #: it to hold the command, call `cut` in it to lose it. None passes everything.
        self.on_command: Callable[[Command], None] | None = None

    def __repr__(self) -> str:
        state = "listening" if self._listener else "refusing"
        if not self._requests_pass.is_set():
            state = "hanging"
        elif not self._answers_pass.is_set():
            state = "mute"
        return f"<RedisProxy {self.port} -> {self._upstream[1]} {state}, {len(self._links)} connections>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- where it is ----------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self._reserved.number

    def url(self, db: int = 0) -> str:
        """`redis://` URL of a database behind the proxy."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def start(self) -> None:
        """Listen and pass everything on."""
        self.heal()

    def close(self) -> None:
        """Stop listening, end all connections and threads. A second call does nothing."""
        self.refuse()
        self._requests_pass.set()
        self._answers_pass.set()
        for thread in self._threads:
            thread.join(5)
        self._reserved.release()

    # -- counting -------------------------------------------------------------------------------------------------

    @property
    def commands(self) -> Counter[str]:
        """Commands that have come from clients since `reset`, by upper-case name."""
        with self._lock:
            return self._commands.copy()

    @property
    def round_trips(self) -> int:
        """Round trips that the server has answered since `reset`."""
        return len(self.trips)

    @property
    def trips(self) -> list[tuple[str, ...]]:
        """The round trips since `reset` with the names of their commands: `[("MGET",), ("EVALSHA", "PUBLISH")]`."""
        with self._lock:
            return self._trips.copy()

    @property
    def connections(self) -> int:
        """Connections that have been accepted since `reset`."""
        with self._lock:
            return self._connections

    def reset(self) -> None:
        """Count from zero. Let clients connect first, or their handshake (`HANDSHAKE`) is counted too."""
        with self._lock:
            self._commands.clear()
            self._trips.clear()
            self._connections = 0
            for link in self._links:
                link.batch = []

    # -- faults ---------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """End every fault. What a hanging connection has held goes on its way."""
        self._delay, self._drip = 0.0, None
        self._requests_pass.set()
        self._answers_pass.set()
        with self._lock:
            if self._listener is None:
                self._listener = self._listen()
                self._spawn(self._accept, self._listener)

    def refuse(self) -> None:
        """Refuse new connections and cut the present ones: a server that is not there."""
        with self._lock:
            listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
            listener.close()
        self.cut()

    def hang(self) -> None:
        """Accept connections and commands, pass nothing on: a server that is stuck. Commands arrive after `heal`."""
        self._requests_pass.clear()
        self._answers_pass.clear()

    def mute(self) -> None:
        """Pass commands on and hold the answers: the server acts, and its client never learns of it."""
        self._answers_pass.clear()

    def cut(self) -> None:
        """Reset all present connections, also half way through an answer; new ones are accepted."""
        with self._lock:
            links, self._links = self._links, set()
        for link in links:
            link.reset()

    def delay(self, seconds: float) -> None:
        """Hold every answer back for so long: a slow network."""
        self._delay = seconds

    def drip(self, size: int = 1, interval: float = 0.01) -> None:
        """Deliver answers `size` bytes at a time, `interval` seconds apart: no single read ever times out."""
        self._drip = (size, interval)

    # -- passing on -----------------------------------------------------------------------------------------------

    def _listen(self) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        listener.listen(128)
        return listener

    def _spawn(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args, name=f"redis-proxy-{self.port}", daemon=True)
        self._threads = [*(t for t in self._threads if t.is_alive()), thread]
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # closed by refuse
                return
            try:
                server = socket.create_connection(self._upstream, timeout=5)
            except OSError:  # no server: a connection that ends at once is the nearest thing to a refusal
                client.close()
                continue
            self._connect(listener, client, server)

    def _connect(self, listener: socket.socket, client: socket.socket, server: socket.socket) -> None:
        server.settimeout(None)
        for sock in (client, server):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        link = _Link(client, server)
        with self._lock:
            if self._listener is not listener:  # refuse came in between
                link.reset()
                return
            self._links.add(link)
            self._connections += 1
            self._spawn(self._pump_requests, link)
            self._spawn(self._pump_answers, link)

    def _pump_requests(self, link: _Link) -> None:
        parser = CommandParser()
        for data in _chunks(link.client):
            commands = parser.feed(data)
            self._note_request(link, commands, len(data))
            if (hook := self.on_command) is not None:
                for command in commands:
                    hook(command)
            self._requests_pass.wait()
            if not _send(link.server, data):
                break
        self._end_pump(link)

    def _pump_answers(self, link: _Link) -> None:
        for data in _chunks(link.server):
            self._answers_pass.wait()
            if self._delay:
                time.sleep(self._delay)
            if link.batch_bytes >= _LONG_BATCH:
                _wait_for_the_rest(link)
            # Before the client can see the answer, hence before it can send what follows from it.
            self._note_answer(link)
            if not self._deliver(link, data):
                break
        self._end_pump(link)

    def _deliver(self, link: _Link, data: bytes) -> bool:
        if self._drip is None:
            return _send(link.client, data)
        size, interval = self._drip
        for start in range(0, len(data), size):
            if not _send(link.client, data[start : start + size]):
                return False
            time.sleep(interval)
        return True

    def _note_request(self, link: _Link, commands: list[Command], size: int) -> None:
        names = [command[0].decode().upper() for command in commands if command]
        with self._lock:
            self._commands.update(names)
            link.batch.extend(names)
            link.batch_bytes += size

    def _note_answer(self, link: _Link) -> None:
        with self._lock:
            if link.batch:
                self._trips.append(tuple(link.batch))
            link.batch, link.batch_bytes = [], 0

    def _end_pump(self, link: _Link) -> None:
        link.finish()
        with self._lock:
            self._links.discard(link)
            link.pumps -= 1
            last = link.pumps == 0
        if last:
            link.close()


def _wait_for_the_rest(link: _Link) -> None:
    """Return when the client has been quiet for a while: nothing new has been read from it, and nothing is unread."""
    deadline = time.monotonic() + _QUIET_LIMIT
    seen = -1
    while seen != link.batch_bytes and time.monotonic() < deadline:
        seen = link.batch_bytes
        try:
            unread, _, _ = select.select([link.client], [], [], _QUIET)
        except (OSError, ValueError):  # closed in the meantime
            return
        if unread:
            seen = -1
            time.sleep(0.001)


def _chunks(sock: socket.socket) -> Iterator[bytes]:
    """What arrives, until either side ends the connection."""
    while True:
        try:
            data = sock.recv(CHUNK)
        except OSError:
            return
        if not data:
            return
        yield data


def _send(sock: socket.socket, data: bytes) -> bool:
    """Whether the data could be handed to the connection."""
    try:
        sock.sendall(data)
    except OSError:
        return False
    return True
