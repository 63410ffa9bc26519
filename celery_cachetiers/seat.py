"""What a worker's main process and the place where a task's body runs tell each other about one request.

It rides among the message's properties in the request that is handed to the pool, as a retry sends a request's headers
again, and not those. A message from outside cannot bring it along: a property's name is text there, and `_SEAT` is not.
A seat goes to the child as a plain tuple: to look its class up there costs more than the rest of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from celery.exceptions import Ignore

_SEAT: Final = 0
"""Its name among the properties. Brokers carry names as text, so none that came with a message equals it."""


class Seat(NamedTuple):
    """A request that goes to the pool.

    Attributes:
        nonce: Names its attempt, so that the main process can free its lease when the child is gone.
        take_over: Token of the leader that has been waited for long enough.
        waits_for: Token of the leader that it has waited for.
        holds: The main process holds it if it would have to wait: it need not block.
        digest, tags: Key and tags of the call, as the main process has derived them; empty where nobody has.
    """

    nonce: str
    take_over: str = ""
    waits_for: str = ""
    holds: bool = True
    digest: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A request that needs no body: the value or the exception is there. Never leaves the main process."""

    copy: Callable[[], object] | None = None
    error: Callable[[], BaseException] | None = None


def seat_of(request: Any) -> Seat | Answer | None:
    """What the main process has given to a task's request (a `celery.app.task.Context`, or ``None``)."""
    seat = (getattr(request, "properties", None) or {}).get(_SEAT)
    if type(seat) is tuple:
        return Seat(*seat)
    return seat if isinstance(seat, Answer) else None


def give_seat(request: Any, seat: Seat | Answer) -> None:
    """Puts it into a worker's request."""
    given = tuple(seat) if isinstance(seat, Seat) else seat
    request.request_dict["properties"] = {**(request.request_dict.get("properties") or {}), _SEAT: given}


class GivenBack(Ignore):
    """Raised in the pool's slot, to free it, when another attempt computes; the main process holds the request.

    Attributes:
        holder: Token of the leader; "" if that is not known.
        seconds_left: Until its lease ends, unless it is renewed.
    """

    def __init__(self, holder: str, seconds_left: float) -> None:
        self.holder, self.seconds_left = holder, seconds_left
        super().__init__(holder, seconds_left)
