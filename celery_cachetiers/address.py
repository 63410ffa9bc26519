"""Where a server is, as it may be shown to anybody: a URL without its credentials and options."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

_PLAIN: Final = {"redis": 6379, "rediss": 6379, "amqp": 5672, "pyamqp": 5672, "amqps": 5671}
_TLS: Final = frozenset({"rediss", "amqps"})
_SOCKETS: Final = frozenset({"unix", "socket", "redis+socket", "redis+unix"})
_HERE: Final = frozenset({"localhost", "127.0.0.1", "::1", "0.0.0.0"})


@dataclass(frozen=True, slots=True)
class Address:
    """One server, and what of it is used.

    Attributes:
        scheme: Of the URL.
        host: A name, an address, or the path of a unix socket.
        port: 0 for a unix socket, or where the URL names none.
        database: Number of the database, or the virtual host of another kind of server.
        user: Who connects; never shown with the rest.
    """

    scheme: str
    host: str
    port: int
    database: str
    user: str = field(default="default", compare=False)

    @property
    def is_redis(self) -> bool:
        """Whether it is a Redis server."""
        return self.scheme in ("redis", "rediss") or self.scheme in _SOCKETS

    @property
    def is_here(self) -> bool:
        """Whether the connection leaves no machine."""
        return self.scheme in _SOCKETS or self.host in _HERE or self.host.startswith("127.")

    @property
    def is_encrypted(self) -> bool:
        """Whether the connection is."""
        return self.scheme in _TLS

    def same_server(self, other: Address) -> bool:
        """Whether both name one server, as far as names tell."""
        return (self._machine, self.port) == (other._machine, other.port) and self.is_redis == other.is_redis

    @property
    def _machine(self) -> str:
        return "localhost" if self.scheme not in _SOCKETS and self.is_here else self.host

    def __str__(self) -> str:
        if self.scheme in _SOCKETS:
            return f"unix://{self.host}?db={self.database}" if self.is_redis else f"{self.scheme}://{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}{f':{self.port}' if self.port else ''}/{self.database}"


def address_of(url: str) -> Address:
    """The address in a URL; what it does not say is what Redis and Celery take then.

    >>> str(address_of("redis://cache:secret@db.example.org/3?socket_timeout=5"))
    'redis://db.example.org:6379/3'
    >>> str(address_of("unix:///run/redis.sock?db=2&password=secret"))
    'unix:///run/redis.sock?db=2'
    """
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    if parts.scheme in _SOCKETS:
        found = options.get("db") or options.get("virtual_host") or ["0"]
        return Address(parts.scheme, unquote(parts.path), 0, found[0].strip("/"), _user(options.get("username")))
    try:
        port = parts.port or _PLAIN.get(parts.scheme, 0)
    except ValueError:  # no number: whoever connects will say so
        port = 0
    database = unquote(parts.path).strip("/") or (options.get("db") or [""])[0]
    if not database and parts.scheme in ("redis", "rediss"):
        database = "0"
    user = _user([unquote(parts.username)] if parts.username else options.get("username"))
    return Address(parts.scheme, parts.hostname or "localhost", port, database, user)


def _user(given: list[str] | None) -> str:
    return given[0] if given else "default"
