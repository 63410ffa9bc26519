"""One process' connections to one Redis server, bounded in time, and what counts as "cannot be reached".

redis-py opens the connections: URL, authentication, TLS, handshake. Its client classes and its parser are left out of
the path of a command, as most of a ``GET`` is spent in them, its retries are hidden, and a key that holds the server's
``run_id`` must be built for the very connection that sends it. A command is therefore a function of that ``run_id``.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import resources
from time import monotonic
from typing import Any, Final

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.retry import Retry

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.options import without_secrets
from celery_cachetiers.replies import PATIENCE, Replies

Argument = str | bytes | int | float
Command = Sequence[Argument]
Build = Callable[[str], Command]
"""Makes a command for a connection, from its server's ``run_id`` ("" where INFO is denied)."""

FAULTS: Final = (redis.RedisError, OSError)
_ANSWERED: Final = redis.ResponseError
_TEXT: Final = frozenset({str})


class Script:
    """One Lua script, sent by its hash and loaded where the server does not know it."""

    def __init__(self, name: str) -> None:
        source = resources.files("celery_cachetiers").joinpath("lua", f"{name}.lua")
        self.source = source.read_bytes()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest()

    def command(self, keys: Sequence[str], args: Sequence[Argument]) -> Command:
        """The command that runs it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)


@dataclass(slots=True)
class Step:
    """One script in a transaction, and what it has answered."""

    script: Script
    build: Build
    answer: Any = None


class RedisClient:
    """Sends commands, one connection per thread at a time, none shared with a parent process.

    Concurrency: the idle connections are two deques, whose ends are thread-safe: one of those whose last answer nobody
    has waited for, which are taken first. A connection belongs to one caller from the moment it leaves its deque until
    it is back, and is closed if the caller is interrupted in between.

    Args:
        url: ``redis://``, ``rediss://`` or ``unix://``.
        timeout: Seconds to connect, and for each read from the socket.
        breaker: Asked before each command but those that must be tried.
        options: More for redis-py's connection, such as ``ssl_ca_certs``.

    Attributes:
        loads: How often a script had to be loaded: a server that did not know one probably knows none.
    """

    def __init__(self, url: str, timeout: float, breaker: Breaker, **options: Any) -> None:
        self.breaker, self.timeout, self.loads = breaker, timeout, 0
        known = inspect.signature(redis.connection.AbstractConnection.__init__).parameters
        quiet = {"driver_info": None} if "driver_info" in known else {"lib_name": None, "lib_version": None}
        asked: dict[str, Any] = {**options, **parse_url(url)}  # type: ignore[no-untyped-call]
        kind = asked.pop("connection_class", Connection)
        ours = {  # what we rely on, whatever the URL says
            "socket_timeout": timeout,
            "socket_connect_timeout": timeout,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "decode_responses": False,
            "redis_connect_func": _greet,
        }
        reqs = asked.get("ssl_cert_reqs")
        if isinstance(reqs, str):  # Celery's documents say CERT_NONE, redis-py's say none
            asked["ssl_cert_reqs"] = reqs.lower().removeprefix("cert_")
        self._make: Callable[[], Any] = partial(kind, **{**asked, **ours, **quiet})
        try:
            self._make()
        except (TypeError, ValueError, redis.RedisError) as error:
            allowed = f"options that redis-py's connections know ({error})"
            raise ConfigurationError("cachetiers_url", without_secrets(url), allowed) from error
        self.reset_after_fork()

    def reset_after_fork(self) -> None:
        """Leaves the parent's sockets alone and starts without connections."""
        self._idle: deque[Any] = deque()
        self._unread: deque[Any] = deque()
        self.breaker.reset_after_fork()

    def open(self) -> Any:
        """A connected connection that is the caller's own, to `close`."""
        try:
            return self._new()
        except FAULTS as error:
            raise TierUnavailable(f"cannot connect: {error}") from error

    def call(self, build: Build, *, must_try: bool = False) -> Any:
        """Sends one command and returns its answer.

        A connection that lay idle may have been closed by the server meanwhile: then, and only then, the command is
        sent once more, on a new connection. Commands are written to bear that.

        Args:
            must_try: Does not ask the breaker first.

        Raises:
            TierUnavailable: Not reached, not in time, or refused (full, read-only, no permission).

        Costs: 1 round trip; a new connection one or two more.
        """
        return self.pipeline((build,), must_try=must_try)[0]

    def run(self, script: Script, build: Build, *, must_try: bool = False) -> Any:
        """Runs a script, whose command `build` makes; loads it first where the server does not know it."""
        try:
            return self.pipeline((build,), must_try=must_try)[0]
        except TierUnavailable as error:
            if not isinstance(error.__cause__, redis.exceptions.NoScriptError):
                raise
        return self._loaded(script, (build,), must_try)[0]

    def run_all(self, script: Script, builds: Sequence[Build], *, must_try: bool = False) -> list[Any]:
        """The same for several commands in one packet; all of them are sent again if the script had to be loaded."""
        try:
            return self.pipeline(builds, must_try=must_try)
        except TierUnavailable as error:
            if not isinstance(error.__cause__, redis.exceptions.NoScriptError):
                raise
        return self._loaded(script, builds, must_try)

    def _loaded(self, script: Script, builds: Sequence[Build], must_try: bool) -> list[Any]:
        self.loads += 1
        return self.pipeline((lambda _: ("SCRIPT", "LOAD", script.source), *builds), must_try=must_try)[1:]

    def transact(self, steps: Sequence[Step]) -> None:
        """Runs scripts in one transaction, which leaves their answers in the steps.

        A server that does not know all of the scripts is told them, and gets the transaction once more: those that it
        did know have run twice then.

        Raises:
            TierUnavailable: As `call`; or a script has failed. The others have run.

        Costs: 1 round trip.
        """
        builds: list[Build] = [lambda _: ("MULTI",), *(step.build for step in steps), lambda _: ("EXEC",)]
        answers = self.pipeline(builds, must_try=True)[-1]
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in answers):
            sources = {step.script.source for step in steps}
            loads: list[Build] = [lambda _, source=source: ("SCRIPT", "LOAD", source) for source in sources]  # type: ignore[misc]
            answers = self.pipeline([*loads, *builds], must_try=True)[-1]
        for step, answer in zip(steps, answers, strict=True):
            step.answer = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise TierUnavailable(str(answer)) from answer

    def pipeline(self, builds: Sequence[Build], *, must_try: bool = False) -> list[Any]:
        """Sends commands in one packet and returns their answers. Raises as `call`, if any of them failed."""
        if not (must_try or self.breaker.allows()):
            raise TierUnavailable("left alone after a failure")
        try:
            answers = self._send(builds)
        except FAULTS as error:
            self.breaker.failed()
            raise TierUnavailable(str(error) or type(error).__name__) from error
        self.breaker.succeeded()
        for answer in answers:
            if isinstance(answer, Exception):
                raise TierUnavailable(str(answer)) from answer
        return answers

    def look(self, builds: Sequence[Build]) -> list[Any]:
        """The same for who only looks: the breaker is neither asked nor told, and the errors of all but the first
        command are among the answers. Raises as `call`."""
        try:
            answers = self._send(builds)
        except FAULTS as error:
            raise TierUnavailable(str(error) or type(error).__name__) from error
        if isinstance(answers[0], Exception):
            raise TierUnavailable(str(answers[0])) from answers[0]
        return answers

    def send(self, build: Build, taken: Callable[[Any], None]) -> bool:
        """Sends one command without waiting for its answer: that is read with the next one on its connection.

        A wait costs a process more than all that it does for a command: it sleeps, and is slow to come back.

        Args:
            taken: Called once with the answer, or with the exception that there was in its place, in the thread that
                reads it; it must not raise. A forked child calls it never.

        Returns:
            Whether it was sent. It is not where no connection lies ready, or the last command has failed.

        Costs: no round trip.
        """
        if not self.breaker.closed:
            return False
        try:
            connection = self._idle.pop()
        except IndexError:
            return False
        connection.taken = taken
        try:
            connection.send(_packed(build(connection.run_id)))
        except FAULTS as error:
            self._close(connection, error)
        except BaseException as error:
            self._close(connection, error)
            raise
        else:
            self._unread.append(connection)
        return True

    def settle(self) -> None:
        """Reads the answers that nobody has waited for. Costs: as a rule no wait, as they are there."""
        while self._unread:
            with suppress(IndexError, *FAULTS):  # another thread was faster; or it is told that there is no answer
                self._exchange(self._unread.pop(), ())

    def _send(self, builds: Sequence[Build]) -> list[Any]:
        try:
            connection = self._unread.pop() if self._unread else self._idle.pop()
        except IndexError:
            return self._exchange(self._new(), builds)
        try:
            return self._exchange(connection, builds)
        except TimeoutError:  # the server is slow, not gone
            raise
        except (redis.ConnectionError, OSError):
            self._drop_idle()
        return self._exchange(self._new(), builds)

    def _new(self) -> Any:
        connection = self._make()
        connection.connect()
        return connection

    def _exchange(self, connection: Any, builds: Sequence[Build]) -> list[Any]:
        """Sends and reads; the connection lies idle afterwards, or is closed if anything came in between."""
        run_id, taken = connection.run_id, connection.taken
        try:
            if builds:
                packed = [_packed(build(run_id)) for build in builds]
                connection.send(packed[0] if len(packed) == 1 else b"".join(packed))
            answers: list[Any] = connection.replies.read(len(builds) + (taken is not None))
        except BaseException as error:
            self._close(connection, error)
            raise
        connection.taken = None
        self._idle.append(connection)
        if taken is not None:
            taken(answers.pop(0))
        return answers

    @staticmethod
    def _close(connection: Any, why: BaseException) -> None:
        taken, connection.taken = connection.taken, None
        connection.disconnect()
        if taken is not None:
            taken(why)

    def _drop_idle(self) -> None:
        for idle in (self._unread, self._idle):
            with suppress(IndexError):
                while True:
                    self._close(idle.pop(), ConnectionError("closed"))

    def close(self) -> None:
        """Closes the idle connections; the client can be used again."""
        self.settle()
        self._drop_idle()


def was_answered(error: TierUnavailable) -> bool:
    """Whether the server was reached and has refused, as one that is full."""
    return isinstance(error.__cause__, _ANSWERED)


def _packed(command: Sequence[Any]) -> bytes:
    """A command as it is sent; reads are nothing but ASCII text, which is encoded in one go."""
    if _TEXT.issuperset(map(type, command)):
        packed = "".join([f"*{len(command)}\r\n", *[f"${len(text)}\r\n{text}\r\n" for text in command]])
        if packed.isascii():
            return packed.encode()
    datas = [each if type(each) is bytes else str(each).encode() for each in command]
    lengths_and_datas: list[Any] = [None] * (2 * len(datas))
    lengths_and_datas[::2], lengths_and_datas[1::2] = map(len, datas), datas
    return _frame(len(datas)) % tuple(lengths_and_datas)


@lru_cache(maxsize=64)
def _frame(arguments: int) -> bytes:
    """What a command of so many arguments looks like, for their lengths and themselves in turn."""
    return b"*%d\r\n" % arguments + b"$%d\r\n%b\r\n" * arguments


class BoundedSocket:
    """A connected socket whose answers end: the timeout of a socket is for each read, and a server that sends a byte
    now and then is never late.

    Stands between redis-py's parser and the socket, for the handshake; everything but reading goes straight through.
    """

    __slots__ = ("_deadline", "_reads", "_socket")

    def __init__(self, connected: Any) -> None:
        self._socket, self._deadline, self._reads = connected, 0.0, 0

    def begin(self, timeout: float) -> None:
        """An answer is awaited: all of it within `PATIENCE` times the timeout."""
        self._deadline, self._reads = monotonic() + PATIENCE * timeout, 0

    def end(self) -> None:
        """No answer is awaited: a subscriber reads for as long as it lives."""
        self._deadline = 0.0

    def recv(self, *args: Any) -> Any:
        self._check()
        return self._socket.recv(*args)

    def recv_into(self, *args: Any) -> Any:
        self._check()
        return self._socket.recv_into(*args)

    def _check(self) -> None:
        self._reads += 1  # the first read has the socket's own timeout: nothing to check, and no clock to ask
        if self._reads > 1 and self._deadline and monotonic() > self._deadline:
            raise TimeoutError("the answer drips")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)


def _answer(connection: Any) -> Any:
    """An answer, or the error that the server answered with: the connection is in step either way."""
    try:
        return connection.read_response()
    except redis.ConnectionError:
        raise
    except _ANSWERED as error:
        return error


def _greet(connection: Any) -> None:
    """Runs on each new connection: redis-py's handshake, then the server's identity.

    A server that restarts from an old snapshot, or a lagging replica that is promoted, has another ``run_id``.
    """
    connected, timeout = connection._sock, connection.socket_timeout
    connection.send = connected.sendall
    connection.replies = Replies(connected.recv, timeout, connection._parser.parse_error)
    connection._sock = BoundedSocket(connected)  # before the handshake, which gives it to the parser
    connection._sock.begin(timeout)
    connection.on_connect()
    connection.run_id, connection.taken = "", None
    connection.send_command("INFO", "server")
    answer = _answer(connection)
    if isinstance(answer, bytes):
        for line in answer.splitlines():
            if line.startswith(b"run_id:"):
                connection.run_id = line[7:].strip().decode("ascii")
    connection._sock.end()
