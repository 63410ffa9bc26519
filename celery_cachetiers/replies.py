"""What a Redis server answers (RESP2), read from the socket of a connection that redis-py has opened.

It decides what a whole reply is, when one is late, and what is no reply at all. What an error reply is called is
redis-py's matter, and what follows from it the client's.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any, Final

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ResponseError

PATIENCE: Final = 4
"""A whole answer may take so many times the timeout of one read: large values come in many reads."""

LARGEST: Final = 512 * 1024 * 1024
"""Bytes of a string: what Redis takes as one."""

_CHUNK: Final = 64 * 1024
_LARGE_CHUNK: Final = 1024 * 1024
_LONGEST_LINE: Final = 64 * 1024
_DEEPEST: Final = 32
_END: Final = b"\r\n"
_SHORT: Final = {b"$%d" % size: size for size in range(256)}
"""Lines before short strings: to look one up is cheaper than to parse it."""


class Replies:
    """The replies on one connection.

    Between two calls of `read` it holds nothing: bytes that nobody asked for are an error, not somebody's next answer.

    Concurrency: belongs to one caller at a time, as its connection does.

    Args:
        receive: The socket's ``recv``, which the socket's own timeout bounds.
        timeout: That timeout, seconds; all that `read` returns is there within `PATIENCE` times as long.
        error_of: Makes the exception that an error reply stands for, from its text.
    """

    __slots__ = ("_at", "_buffer", "_deadline", "_error_of", "_receive", "_timeout")

    def __init__(self, receive: Callable[[int], bytes], timeout: float, error_of: Callable[[str], Exception]) -> None:
        self._receive, self._timeout, self._error_of = receive, timeout, error_of
        self._buffer, self._at, self._deadline = b"", 0, 0.0

    def read(self, many: int) -> list[Any]:
        """The replies to so many commands: bytes, int, ``None``, list; an error reply is an exception among them.

        After an exception was raised the connection is out of step, and to be closed.

        Raises:
            OSError: The connection is closed or broken, or the server is late (`TimeoutError`).
            redis.ConnectionError: The server refuses to serve the connection.
            redis.InvalidResponse: What came is no reply, or is more than was asked for.

        Costs: 1 read from the socket for up to 64 KiB, O(bytes) for any number of reads.
        """
        # The first read has the socket's own timeout: nothing else to bound, and no clock to ask.
        self._buffer, self._at, self._deadline = self._receive(_CHUNK), 0, 0.0
        if not self._buffer:
            raise ConnectionError("closed by the server")
        replies = [self._reply(0) for _ in range(many)]
        if self._at != len(self._buffer):
            raise InvalidResponse(f"{len(self._buffer) - self._at} bytes more than were asked for")
        self._buffer = b""
        return replies

    def _reply(self, depth: int) -> Any:
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            size = _number(line)
            return None if size == -1 else self._string(size, line)
        if kind == b"*":
            count = _number(line)
            return None if count == -1 else self._array(count, depth, line)
        if kind == b":":
            return _number(line)
        if kind == b"+":
            return rest
        if kind == b"-":
            return self._error(rest.decode(errors="replace"))
        raise _no_reply(line)

    def _array(self, count: int, depth: int, line: bytes) -> list[Any]:
        if count < 0 or depth == _DEEPEST:
            raise _no_reply(line)
        replies: list[Any] = []
        buffer, at = self._buffer, self._at
        for _ in range(count):
            # The usual element, a number or a short string that is here already, without a call of its own: a hit in L2
            # has one for each tag.
            end = buffer.find(_END, at)
            line = buffer[at:end] if end > at else b""
            size = _SHORT.get(line)
            if size is not None:
                stop = end + 2 + size
                if buffer[stop : stop + 2] == _END:
                    replies.append(buffer[end + 2 : stop])
                    at = stop + 2
                    continue
            elif line[:1] == b":":
                replies.append(_number(line))
                at = end + 2
                continue
            self._at = at
            replies.append(self._reply(depth + 1))
            buffer, at = self._buffer, self._at
        self._at = at
        return replies

    def _string(self, size: int, line: bytes) -> bytes:
        if not 0 <= size <= LARGEST:
            raise _no_reply(line)
        self._need(size + 2)
        stop = self._at + size
        value = self._buffer[self._at : stop]
        if not self._buffer.startswith(_END, stop):
            raise _no_reply(self._buffer[stop : stop + 2])
        self._at = stop + 2
        return value

    def _error(self, text: str) -> Exception:
        try:
            error = self._error_of(text)
        except Exception:  # a MOVED that does not say where to
            return ResponseError(text)
        if isinstance(error, RedisConnectionError):
            raise error
        return error

    # -- bytes ------------------------------------------------------------------------------------------------------

    def _line(self) -> bytes:
        """Everything up to the next line end, without it."""
        end = self._buffer.find(_END, self._at)
        while end < 0:
            if len(self._buffer) - self._at > _LONGEST_LINE:
                raise _no_reply(self._buffer[self._at :])
            self._buffer, self._at = self._buffer[self._at :] + self._more(_CHUNK), 0
            end = self._buffer.find(_END)
        line = self._buffer[self._at : end]
        self._at = end + 2
        return line

    def _need(self, size: int) -> None:
        """So many bytes from here on are in the buffer."""
        missing = self._at + size - len(self._buffer)
        if missing <= 0:
            return
        pieces = [self._buffer[self._at :]]
        while missing > 0:
            pieces.append(self._more(min(max(missing, _CHUNK), _LARGE_CHUNK)))
            missing -= len(pieces[-1])
        self._buffer, self._at = b"".join(pieces), 0

    def _more(self, at_most: int) -> bytes:
        now = monotonic()
        if not self._deadline:
            self._deadline = now + (PATIENCE - 1) * self._timeout  # the first read has had its time
        elif now > self._deadline:
            raise TimeoutError("the answer drips")
        data = self._receive(at_most)
        if not data:
            raise ConnectionError("closed by the server in the middle of an answer")
        return data


def _number(line: bytes) -> int:
    try:
        return int(line[1:])
    except ValueError:
        raise _no_reply(line) from None


def _no_reply(found: bytes) -> InvalidResponse:
    return InvalidResponse(f"not a reply of Redis: {found[:64]!r}")
