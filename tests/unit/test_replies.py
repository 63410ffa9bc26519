"""Replies: what is read from a socket, in whatever pieces it comes, is what redis-py's own parser reads; or a fault."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st
from redis._parsers import Encoder, _RESP2Parser

from celery_cachetiers import replies as module
from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import FAULTS, RedisClient
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.replies import LARGEST, PATIENCE, Replies
from celery_cachetiers.testing import FakeClock

TIMEOUT = 0.5


class Socket:
    """Hands out pieces, one a read, as far as they fit; then it is closed."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = deque(piece for piece in pieces if piece)
        self.reads = 0

    def recv(self, at_most: int) -> bytes:
        self.reads += 1
        if not self.pieces:
            return b""
        piece = self.pieces.popleft()
        if len(piece) > at_most:
            self.pieces.appendleft(piece[at_most:])
        return piece[:at_most]

    def settimeout(self, seconds: float) -> None:
        """redis-py's parser wants it."""


def replies(*pieces: bytes) -> Replies:
    return Replies(Socket(pieces).recv, TIMEOUT, _RESP2Parser(65536).parse_error)


def read_by_redis_py(data: bytes, many: int) -> list[Any]:
    parser = _RESP2Parser(65536)
    encoder = Encoder("utf-8", "strict", False)
    parser.on_connect(SimpleNamespace(_sock=Socket([data]), socket_timeout=1.0, encoder=encoder))
    return [parser.read_response() for _ in range(many)]


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    at = sorted({place % (len(data) + 1) for place in places})
    return [data[start:stop] for start, stop in zip([0, *at], [*at, len(data)], strict=True)]


def comparable(reply: Any) -> Any:
    """Errors are equal if type and text are."""
    if isinstance(reply, list):
        return [comparable(each) for each in reply]
    return (type(reply), str(reply)) if isinstance(reply, Exception) else reply


# -- as redis-py reads them --------------------------------------------------------------------------------------------


def _string(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _array(parts: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(parts) + b"".join(parts)


_TEXT = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
_CODES = st.sampled_from(["ERR", "NOSCRIPT", "OOM", "READONLY", "NOPERM", "WRONGTYPE", "EXECABORT", "MISCONF", ""])
_LEAVES = (
    st.binary(max_size=300).map(_string)
    | st.sampled_from([b"", b"\r\n", b"$8\r\n", b"12345678", b"x" * 5000]).map(_string)
    | st.integers(-(2**63), 2**63 - 1).map(lambda number: b":%d\r\n" % number)
    | st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"+OK\r\n", b"+\r\n", b"*0\r\n"])
    | _TEXT.map(lambda text: b"+" + text.encode() + b"\r\n")
    | st.tuples(_CODES, _TEXT).map(lambda parts: f"-{parts[0]} {parts[1]}\r\n".encode())
)
_TREES = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=9).map(_array), max_leaves=25)


@given(st.lists(_TREES, min_size=1, max_size=3), st.lists(st.integers(0, 10_000), max_size=20))
def test_replies_in_any_pieces_are_what_redis_py_reads(trees: list[bytes], places: list[int]) -> None:
    data = b"".join(trees)

    assert comparable(replies(*cut(data, places)).read(len(trees))) == comparable(read_by_redis_py(data, len(trees)))


@given(_TREES)
def test_replies_may_come_byte_by_byte(tree: bytes) -> None:
    found = replies(*[bytes([byte]) for byte in tree]).read(1)

    assert comparable(found) == comparable(read_by_redis_py(tree, 1))


def test_a_hit_is_one_read() -> None:
    socket = Socket([_array([_string(b"x" * 1000), *[_string(b"12345678")] * 7])])
    found = Replies(socket.recv, TIMEOUT, redis.ResponseError).read(1)

    assert found == [[b"x" * 1000, *[b"12345678"] * 7]]
    assert socket.reads == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize("piece", [64, 1000, 10**7])
def test_a_large_value_takes_linear_time_in_whatever_pieces(piece: int) -> None:
    value = bytes(range(256)) * (4 * 1024**2 // 256)
    data = _array([_string(value), _string(b"after")]) + b":5\r\n"
    pieces = [data[at : at + piece] for at in range(0, len(data), piece)]

    assert replies(*pieces).read(2) == [[value, b"after"], 5]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NOSCRIPT No matching script. Please use EVAL.", redis.exceptions.NoScriptError),
        ("READONLY You can't write against a read only replica.", redis.exceptions.ReadOnlyError),
        ("OOM command not allowed when used memory > 'maxmemory'.", redis.exceptions.OutOfMemoryError),
        ("NOPERM this user has no permissions", redis.exceptions.NoPermissionError),
        ("ERR unknown command", redis.ResponseError),
        ("MOVED", redis.ResponseError),
        ("MOVED nowhere", redis.ResponseError),
    ],
)
def test_an_error_reply_is_an_exception_of_redis_py_among_the_replies(text: str, kind: type[Exception]) -> None:
    error, after = replies(f"-{text}\r\n:1\r\n".encode()).read(2)

    assert type(error) is kind
    assert after == 1


@pytest.mark.parametrize("text", ["LOADING Redis is loading", "NOAUTH Authentication required.", "MASTERDOWN"])
def test_an_error_that_ends_a_connection_of_redis_py_ends_ours(text: str) -> None:
    made = _RESP2Parser.parse_error(text)
    refused = isinstance(made, redis.ConnectionError)
    data = f"-{text}\r\n".encode()

    if refused:
        with pytest.raises(type(made)):
            replies(data).read(1)
    else:
        assert type(replies(data).read(1)[0]) is type(made)


# -- no replies --------------------------------------------------------------------------------------------------------


@given(_TREES, st.integers(0, 10_000))
def test_a_reply_that_is_cut_off_is_a_closed_connection(tree: bytes, place: int) -> None:
    with pytest.raises(ConnectionError):
        replies(tree[: place % len(tree)]).read(1)


@given(_TREES, st.binary(min_size=1, max_size=30))
def test_what_nobody_asked_for_is_an_error_and_not_the_next_answer(tree: bytes, more: bytes) -> None:
    with pytest.raises(redis.InvalidResponse):
        replies(tree + more).read(1)


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\r\n",
        b"?\r\n",
        b"$\r\n",
        b"$x\r\n",
        b"$-2\r\n",
        b"$3\r\nabcd\r\n",
        b"$300\r\n" + b"x" * 302 + b"\r\n",
        b"$%d\r\n" % (LARGEST + 1),
        b"$" + b"9" * 5000 + b"\r\n",
        b":one\r\n",
        b":" + b"9" * 5000 + b"\r\n",
        b"*-2\r\n",
        b"*x\r\n",
        b"*2\r\n$3\r\nabcd\r\n:1\r\n",
        b"*1\r\n" * 100_000 + b":1\r\n",
        b"+" + b"x" * 200_000,
    ],
)
def test_rubbish_is_an_invalid_response(data: bytes) -> None:
    with pytest.raises(redis.InvalidResponse):
        replies(*[data[at : at + 65536] for at in range(0, len(data), 65536)]).read(1)


@given(st.lists(st.binary(max_size=20) | st.sampled_from([b"$8\r\n", b"*3\r\n", b"*1\r\n", b"\r\n", b"$", b"-MOVED "])))
def test_whatever_comes_is_replies_or_a_fault(pieces: list[bytes]) -> None:
    with suppress(*FAULTS):
        replies(*pieces).read(2)


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    clock = FakeClock()
    monkeypatch.setattr(module, "monotonic", clock.monotonic)
    return clock


def slowly(clock: FakeClock, seconds: float, pieces: Iterable[bytes]) -> Callable[[int], bytes]:
    socket = Socket(pieces)

    def receive(at_most: int) -> bytes:
        clock.advance(seconds)
        return socket.recv(at_most)

    return receive


def test_an_answer_that_drips_is_late_although_no_read_is(clock: FakeClock) -> None:
    began = clock.monotonic()
    drip = [bytes([byte]) for byte in _string(b"x" * 1000)]

    with pytest.raises(TimeoutError):
        Replies(slowly(clock, TIMEOUT / 2, drip), TIMEOUT, redis.ResponseError).read(1)
    assert clock.monotonic() - began <= (PATIENCE + 1) * TIMEOUT


def test_many_reads_within_the_time_are_not_late(clock: FakeClock) -> None:
    drip = [bytes([byte]) for byte in _string(b"x" * 1000)]
    found = Replies(slowly(clock, TIMEOUT / 1000, drip), TIMEOUT, redis.ResponseError)

    assert found.read(1) == [b"x" * 1000]


def test_each_answer_has_the_time_for_itself(clock: FakeClock) -> None:
    twice = [b":", b"1\r\n"] * 20
    found = Replies(slowly(clock, TIMEOUT * 0.9, twice), TIMEOUT, redis.ResponseError)

    assert [found.read(1) for _ in range(20)] == [[1]] * 20


# -- the client --------------------------------------------------------------------------------------------------------


class Connection:
    """One that a server of ours answers on."""

    run_id = "r"
    taken: Any = None

    def __init__(self, *pieces: bytes) -> None:
        self.replies = replies(*pieces)
        self.sent: list[bytes] = []
        self.closed = False

    def connect(self) -> None:
        """It is."""

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def disconnect(self) -> None:
        self.closed = True


def client_of(monkeypatch: pytest.MonkeyPatch, *connections: Connection) -> RedisClient:
    client = RedisClient("redis://127.0.0.1:1", TIMEOUT, Breaker(5.0, FakeClock()))
    waiting = list(connections)
    monkeypatch.setattr(client, "_make", lambda: waiting.pop(0))
    return client


@pytest.mark.parametrize("answer", [b"?\r\n", b"$5\r\nhel", b"", b":1\r\n:2\r\n", b"-LOADING wait\r\n"])
def test_a_fault_in_an_answer_closes_the_connection_and_opens_the_breaker(
    monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    broken = Connection(answer)
    client = client_of(monkeypatch, broken)
    with pytest.raises(TierUnavailable):
        client.call(lambda _: ("PING",))

    assert broken.closed
    assert not client.breaker.allows()
    assert not client._idle


def test_an_error_reply_leaves_the_connection_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = Connection(b"-ERR no\r\n", b"+PONG\r\n")
    client = client_of(monkeypatch, connection)
    with pytest.raises(TierUnavailable, match="no"):
        client.call(lambda _: ("PING",))

    assert client.call(lambda _: ("PING",)) == b"PONG"
    assert not connection.closed


def test_a_connection_that_breaks_while_idle_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Connection(b"+PONG\r\n"), Connection(b"+PONG\r\n")
    client = client_of(monkeypatch, first, second)
    client.call(lambda _: ("PING",))

    assert client.call(lambda _: ("PING",)) == b"PONG"
    assert (first.closed, second.closed) == (True, False)


@given(st.lists(st.text() | st.binary() | st.integers() | st.floats(), min_size=1))
def test_a_command_is_sent_as_redis_py_would(command: list[Any]) -> None:
    sent = Connection(b"+OK\r\n")
    client = RedisClient("redis://127.0.0.1:1", TIMEOUT, Breaker(0.0, FakeClock()))
    client._make = lambda: sent
    try:
        expected = b"".join(redis.Connection().pack_command("X", *command))
    except UnicodeEncodeError:
        return
    client.call(lambda _: ("X", *command))

    assert b"".join(sent.sent) == expected
