"""One claimed batch on its way to its sink: it decides what has failed, and settles every record of the batch.

A record ends in one of four ways: taken (invalidated and acknowledged), failed (given back, an attempt counted), buried
(in the dead-letter), or left (given back with no attempt counted, as what went wrong says nothing about it).

A record that fails alone has failed only where it is known that the sink takes others: else it may be the sink.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from celery_cachetiers.errors import SinkRejected, SinkTimeout, SinkUnavailable, TierUnavailable
from celery_cachetiers.events import Event, Events
from celery_cachetiers.journal_port import Invalidate, Journal, Record, Repeat, SinkPort, Unpack
from celery_cachetiers.trouble import MAX_BACK_OFF, Trouble, back_off
from celery_cachetiers.writes import Write

logger = logging.getLogger("celery_cachetiers")

CLAIM_SECONDS: Final = 10.0
"""How long a batch is nobody else's after its flusher was killed; a living one renews its claim at a third of it."""

GIVE_UP_SECONDS: Final = 86_400.0
"""How long a record may fail alone while nothing else is taken: then it is buried the next time it does."""

_REASON_LENGTH: Final = 500
_DETAILS_LENGTH: Final = 20_000


@dataclass(frozen=True, slots=True)
class Flushed:
    """What became of the records that were claimed; each counts once.

    Attributes:
        taken: The sink has taken them.
        failed: The sink has failed with them alone, and takes others; they are tried again.
        buried: Given up.
        left: The sink, or what invalidates, was not available, or everything has failed; they are tried again and none
            counts as failed.
    """

    taken: int = 0
    failed: int = 0
    buried: int = 0
    left: int = 0

    def __add__(self, other: Flushed) -> Flushed:
        return Flushed(
            self.taken + other.taken, self.failed + other.failed, self.buried + other.buried, self.left + other.left
        )

    @property
    def claimed(self) -> int:
        """All of them."""
        return self.taken + self.failed + self.buried + self.left


@dataclass(frozen=True, slots=True)
class Route:
    """Whom a sink's records meet on their way.

    Attributes:
        claim_seconds: How long a claim lasts without renewal.
        interrupts: Exceptions that are not the sink's own, such as the time limit of the task that flushes.
    """

    journal: Journal
    sink: SinkPort
    unpack: Unpack
    invalidate: Invalidate
    repeat: Repeat
    events: Events
    interrupts: tuple[type[BaseException], ...] = ()
    claim_seconds: float = CLAIM_SECONDS


@dataclass(frozen=True, slots=True)
class Parcel:
    """A record that can be read."""

    record: Record
    write: Write
    tags: tuple[str, ...]


class Delivery:
    """A batch that was claimed under one token.

    Concurrency: one thread delivers it; its claim is renewed by another, which reads nothing but the open keys.
    """

    def __init__(self, route: Route, trouble: Trouble, token: str, records: Sequence[Record]) -> None:
        self._route, self._trouble, self._token = route, trouble, token
        self._journal, self._sink = route.journal, route.sink
        self._open = {record.key: record for record in records}
        self._parcels: dict[str, Parcel] = {}
        self._flushed = Flushed()
        self._doubted: dict[str, BaseException] = {}  # have failed alone while nothing was taken
        self._doubtful = False

    def run(self) -> Flushed:
        """Delivers what can be delivered.

        Raises:
            TierUnavailable: The journal is away; what was not settled is delivered again, by whoever claims it next.
            BaseException: What interrupted it; what was not settled is due at once.
        """
        delay = 0.0
        with self._route.repeat(self._renew, self._route.claim_seconds / 3):
            try:
                self._unpack()
                self._deliver()
                delay = self._trouble.delay(self._sink.backoff)
            finally:
                self._leave(delay)
        return self._flushed

    def _renew(self) -> None:
        self._journal.renew(self._sink.name, self._token, list(self._open), self._route.claim_seconds)

    def _unpack(self) -> None:
        for record in list(self._open.values()):
            try:
                write, tags = self._route.unpack(record)
            except self._route.interrupts:
                raise
            except Exception as error:
                self._bury(record, error)
            else:
                self._parcels[record.key] = Parcel(record, write, tags)

    # -- what is tried ------------------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        pieces = self._trouble.pieces(list(self._parcels))
        if all(self._hand(piece) for piece in pieces) or not self._doubtful:
            return
        # One record has failed alone, and nothing was taken. If that was the record, the others go through together; if
        # it is the sink, one call shows it.
        others = [key for key in self._parcels if key in self._open and not self._put_aside(key)]
        if others:
            self._hand(others, once=True)
        if self._flushed.taken:
            for key, error in self._doubted.items():
                self._failed(key, error)
        elif not others:
            self._down()

    def _put_aside(self, key: str) -> bool:
        return key in self._doubted or self._trouble.suspects(key)

    def _hand(self, keys: list[str], *, once: bool = False) -> bool:
        """Hands some to the sink, by halves where it fails; false if it is not to be given more now."""
        error = self._write(keys)
        match error:
            case None:
                return self._taken(keys)
            case SinkUnavailable():
                return self._down()
            case SinkTimeout():
                self._trouble.hung(keys)
                if len(keys) > 1:
                    return self._down()
            case SinkRejected() if error.failures.keys() <= set(keys):
                return self._rejected(keys, error)
        if once:
            return self._down()
        if len(keys) == 1:
            return self._blamed(keys[0], error)
        middle = len(keys) // 2
        return self._hand(keys[:middle]) and self._hand(keys[middle:])

    def _write(self, keys: Sequence[str]) -> Exception | None:
        try:
            self._sink.write([self._parcels[key].write for key in keys])
        except self._route.interrupts:
            raise
        except Exception as error:
            self._route.events.emit(
                Event.SINK_FAILED, sink=self._sink.name, records=len(keys), error=_line(error), exception=error
            )
            return error
        return None

    # -- what it means ------------------------------------------------------------------------------------------------

    def _taken(self, keys: Sequence[str]) -> bool:
        """Invalidates, then acknowledges: what was computed before from the older state of the sink must go."""
        tags = dict.fromkeys(tag for key in keys for tag in self._parcels[key].tags)
        if tags:
            try:
                self._route.invalidate(list(tags))
            except TierUnavailable as error:
                logger.warning(
                    "celery-cachetiers: sink %s has taken %d writes, and will get them again: "
                    "their tags could not be invalidated: %s", self._sink.name, len(keys), error,
                )  # fmt: skip
                return False
        self._journal.acknowledge(self._sink.name, self._token, [(key, self._open[key].sequence) for key in keys])
        self._trouble.taken(keys)
        self._settle(keys, Flushed(taken=len(keys)))
        return True

    def _rejected(self, keys: Sequence[str], rejected: SinkRejected) -> bool:
        taken = [key for key in keys if key not in rejected.failures]
        if not self._taken(taken):
            return False
        for key, error in rejected.failures.items():
            self._failed(key, error)
        return True

    def _blamed(self, key: str, error: BaseException) -> bool:
        """One has failed alone: its own fault where the sink has taken another one."""
        record = self._open[key]
        if self._flushed.taken or record.taken_since:
            self._failed(key, error)
        elif record.failing_for >= GIVE_UP_SECONDS:
            self._bury(record, error)
        else:
            self._doubted[key] = error
        self._doubtful = not self._flushed.taken
        return not self._doubtful

    def _down(self) -> bool:
        self._trouble.failed()
        return False

    # -- how a record ends --------------------------------------------------------------------------------------------

    def _failed(self, key: str, error: BaseException) -> None:
        record = replace(self._open[key], attempts=self._open[key].attempts + 1)
        if record.attempts >= self._sink.attempts:
            self._bury(record, error)
            return
        delay = back_off(self._sink.backoff, record.attempts - 1)
        self._journal.give_back(self._sink.name, self._token, [(key, record.sequence)], delay, failed=True)
        self._settle([key], Flushed(failed=1))

    def _bury(self, record: Record, error: BaseException) -> None:
        reason, details = _line(error), "".join(traceback.format_exception(error))[-_DETAILS_LENGTH:]
        if not self._journal.bury(self._sink.name, self._token, record, reason, details):
            self._settle([record.key], Flushed(failed=1))  # it was written again: that one has its own attempts
            return
        self._settle([record.key], Flushed(buried=1))
        self._trouble.settled([record.key])
        parcel = self._parcels.get(record.key)
        task = parcel.write.task if parcel else ""
        self._route.events.emit(
            Event.BURIED, task, sink=self._sink.name, key=record.key, attempts=record.attempts, reason=reason
        )

    def _leave(self, delay: float) -> None:
        left = [(record.key, record.sequence) for record in self._open.values()]
        doubted = [each for each in left if each[0] in self._doubted]
        rest = [each for each in left if each[0] not in self._doubted]
        try:
            if rest:
                self._journal.give_back(self._sink.name, self._token, rest, delay, failed=False)
            if doubted:  # after the rest, of which the sink may take some then
                later = min(2 * delay, MAX_BACK_OFF) if rest else delay
                self._journal.give_back(self._sink.name, self._token, doubted, later, failed=False, doubted=True)
        except TierUnavailable as error:
            logger.warning("celery-cachetiers: claims of sink %s run out by themselves: %s", self._sink.name, error)
        self._settle([key for key, _ in left], Flushed(left=len(left)))

    def _settle(self, keys: Sequence[str], flushed: Flushed) -> None:
        for key in keys:
            del self._open[key]
        self._flushed += flushed

    def __repr__(self) -> str:
        return f"<Delivery to {self._sink.name}: {len(self._open)} open, {self._flushed}>"


def _line(error: BaseException) -> str:
    """Class and text of an error, in one line."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(has no text)"
    return f"{type(error).__qualname__}: {text}"[:_REASON_LENGTH]
