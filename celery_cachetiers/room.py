"""Who waits for which key in a worker's main process, and what becomes of them: a table of state, without any I/O.

Every method looks at one thing that has happened and returns what is to be done; the caller does it, outside the lock.
A key has a table from the moment its first request goes to the pool until nobody waits and nobody runs. At a table

1. one request at a time is sent to the pool; it leads, or brings word of a leader elsewhere, and then it is held too;
2. the others are held, in the order in which they came;
3. when the leader has ended, or may have, the key is looked at once for all: what is found answers those who came
   before the look; where nothing is found, one of them is sent.
"""

from __future__ import annotations

import secrets
import threading
from bisect import insort
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery_cachetiers.call import Call
from celery_cachetiers.following import Shared, Watched
from celery_cachetiers.ports import Free, Held


@dataclass(slots=True, eq=False)
class Guest:
    """A request at a table.

    Attributes:
        request: The worker's; opaque here.
        task_id: Its id, under which a lease may have been handed over.
        call: Its key and tags.
        arrived: Monotonic instant at which the worker had it.
        began: Monotonic instant from which its waiting counts; starts over when another leader is waited for.
        waits_for: Token of the leader that it waits for.
        nonce: With the task id, names the attempt that it was sent for last.
        counted: Its owner has made room for it elsewhere, for the length of its stay.
        held_at: Monotonic instant at which that began.
    """

    request: Any
    task_id: str
    call: Call
    arrived: float
    began: float = field(init=False)
    waits_for: str = ""
    nonce: str = ""
    counted: bool = False
    held_at: float = 0.0

    def __post_init__(self) -> None:
        self.began = self.arrived

    @property
    def token(self) -> str:
        """Of the lease that it has, if it leads."""
        return f"{self.task_id}:{self.nonce}"


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep the request without a slot."""

    guest: Guest


@dataclass(frozen=True, slots=True)
class Send:
    """Hand the request to the pool; it may replace the leader that has been waited for long enough."""

    guest: Guest
    take_over: str = ""


@dataclass(frozen=True, slots=True)
class Give:
    """Answer the request with what another's compute gave."""

    guest: Guest
    shared: Shared


@dataclass(frozen=True, slots=True)
class PutBack:
    """Give the request back to the broker: the room is full."""

    guest: Guest


@dataclass(frozen=True, slots=True)
class Look:
    """Look at the key, after freeing the leases of attempts that are gone; then tell `Room.looked`.

    Attributes:
        at: Monotonic instant, from before the look.
    """

    call: Call
    waits_for: str
    at: float
    gone: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LookLater:
    """Tell `Room.woken` after so many seconds: the leader's lease will have ended, unless it was renewed."""

    digest: str
    seconds: float


Action = Hold | Send | Give | PutBack | Look | LookLater


@dataclass(slots=True, eq=False)
class Table:
    """What the room knows of one key.

    Attributes:
        runs: The request that was sent last and has not ended.
        leader: Token of the leader as far as it is known.
        held: Those who wait.
        dry: There is no stale value: followers must wait.
        looking: A look is under way.
        again: Something has happened since it began.
        gone: Tokens of attempts whose leases are to be freed.
        due: Monotonic instant of the next look that was asked for.
    """

    call: Call
    runs: Guest | None = None
    leader: str = ""
    held: list[Guest] = field(default_factory=list)
    dry: bool = False
    looking: bool = False
    again: bool = False
    gone: list[str] = field(default_factory=list)
    due: float = 0.0


class Room:
    """The tables of one worker.

    Concurrency: every method is one step under one lock; what it returns is done outside it.

    Args:
        monotonic: The clock.
        started: Monotonic instant at which the pool began with a request, ``None`` before.

    Attributes:
        capacity: Most requests to hold.
        held: Requests in the room.
    """

    def __init__(self, monotonic: Callable[[], float], started: Callable[[Any], float | None]) -> None:
        self._monotonic, self._started = monotonic, started
        self._lock = threading.RLock()
        self._tables: dict[str, Table] = {}
        self.capacity = 0
        self.held = 0

    def arrive(self, guest: Guest) -> list[Action]:
        """A request has come from the broker."""
        with self._lock:
            table = self._tables.get(guest.call.digest)
            if table is None:
                table = self._tables[guest.call.digest] = Table(guest.call)
                return [self._send(table, guest)]
            claims = table.leader == guest.task_id
            if claims or (guest.call.memo.policy.grace and not table.dry):
                return [self._send(table, guest, leads=claims)]
            guest.waits_for = table.leader
            held = self._hold(table, guest)
            return [held, *self._look_later(table, guest.call.memo.policy.lease_ttl)]

    def given_back(self, guest: Guest, holder: str) -> list[Action]:
        """The pool's slot is free again: another attempt computes."""
        with self._lock:
            table = self._table_of(guest)
            if table.runs is guest:
                table.runs = None
            table.dry = True
            for each in (guest, *table.held) if holder else ():
                self._meet(table, each, holder)
            return [self._hold(table, guest), *self._look(table)]

    def ended(self, guest: Guest, *, lost: bool) -> list[Action]:
        """A request that was sent has ended; ``lost``: its process could not free the lease."""
        with self._lock:
            table = self._table_of(guest) if lost else self._tables.get(guest.call.digest)
            if table is None:
                return []
            if table.runs is guest:
                table.runs = None
            if lost:
                table.gone.append(guest.token)
            return self._look(table)

    def ended_alone(self, guest: Guest) -> bool:
        """The same in short, for the usual case that nobody waits for it; false if there is more to do."""
        with self._lock:
            table = self._tables.get(guest.call.digest)
            if table is None or table.runs is not guest or table.held or table.looking or table.gone:
                return False
            del self._tables[guest.call.digest]
            return True

    def woken(self, digest: str) -> list[Action]:
        """The key's leader has come to an end, or may have."""
        with self._lock:
            table = self._tables.get(digest)
            return self._look(table) if table is not None and table.held else []

    def woken_all(self) -> list[Action]:
        """Wake-ups may have been lost."""
        return [action for digest in list(self._tables) for action in self.woken(digest)]

    def invalidated(self, names: Iterable[str]) -> list[Action]:
        """Nobody waits for a leader whose value will be refused."""
        gone = frozenset(names)
        with self._lock:
            hit = [digest for digest, table in self._tables.items() if table.held and gone & {*table.call.names}]
        return [action for digest in hit for action in self.woken(digest)]

    def looked(self, look: Look, seen: Watched | None) -> list[Action]:
        """What a look found; ``None`` if L2 could not be asked."""
        digest = look.call.digest
        with self._lock:
            table = self._tables.get(digest)
            if table is None:
                return []
            table.looking = False
            actions = self._settle(table, look, seen)
            if table.again:
                actions += self._look(table)
            self._forget_if_empty(table)
            return actions

    def overdue(self) -> list[Action]:
        """Called now and then: those who have waited for one leader past their limit; one of them replaces it."""
        actions: list[Action] = []
        with self._lock:
            for table in list(self._tables.values()):
                since = self._led_since(table)
                late = [guest for guest in table.held if since is not None and self._is_overdue(guest, since)]
                if late:
                    actions.append(self._send(table, late[0], take_over=table.leader or "*"))
        return actions

    def guests(self) -> list[Guest]:
        """Those in the room."""
        with self._lock:
            return [guest for table in self._tables.values() for guest in table.held]

    def running(self) -> list[Guest]:
        """Those that were sent and have not ended, one for each key at most."""
        with self._lock:
            return [table.runs for table in self._tables.values() if table.runs is not None]

    def leave(self, guest: Guest) -> bool:
        """A request waits no longer: it was revoked, or goes back to the broker; false if it was not in the room."""
        with self._lock:
            table = self._tables.get(guest.call.digest)
            if table is None or guest not in table.held:
                return False
            self._take_out(table, guest)
            self._forget_if_empty(table)
            return True

    def clear(self) -> list[Guest]:
        """Empties the room; returns who was in it."""
        with self._lock:
            guests = self.guests()
            for table in list(self._tables.values()):
                table.held.clear()
                table.due = 0.0  # the worker's timers may have gone with its connection
                self._forget_if_empty(table)
            self.held = 0
            return guests

    def __repr__(self) -> str:
        return f"<Room: {self.held} of at most {self.capacity} held, {len(self._tables)} keys>"

    # -- under the lock ---------------------------------------------------------------------------------------------

    def _settle(self, table: Table, look: Look, seen: Watched | None) -> list[Action]:
        """What becomes of those who wait.

        1. L2 cannot be asked: everybody runs.
        2. An answer is for those who came before the look; an exception only for those who waited for its leader.
        3. Somebody computes: they go on waiting, for that one; who was handed the lease is sent.
        4. Nobody computes, or who does has lost its lease: one is sent, unless one is on its way to the pool.
        """
        before = [guest for guest in table.held if guest.arrived <= look.at]
        match seen:
            case None:
                return [self._send(table, guest) for guest in list(table.held)]
            case Shared(error=error):
                if error is not None:
                    before = [guest for guest in before if guest.waits_for == look.waits_for]
                for guest in before:
                    self._take_out(table, guest)
                if not seen.stale:
                    self._is_over(table, look.waits_for)
                table.again = table.again or bool(table.held)
                return [Give(guest, seen) for guest in before]
            case Held(holder=holder, seconds_left=left):
                table.dry = True
                for guest in table.held:
                    self._meet(table, guest, holder)
                claimants = [guest for guest in table.held if guest.task_id == holder]
                return [*(self._send(table, guest) for guest in claimants[:1]), *self._look_later(table, left)]
            case Free() if table.held:
                if table.runs is not None and self._started(table.runs.request) is None:
                    return self._look_later(table, table.call.memo.policy.lease_ttl)
                return [self._send(table, table.held[0])]
        return []

    @staticmethod
    def _is_over(table: Table, leader: str) -> None:
        """Whoever comes from now on comes after that leader, although its own end may not have been told yet."""
        if table.runs is not None and table.runs.token == leader:
            table.runs = None
        if table.leader == leader:
            table.leader = ""
        for guest in table.held:
            if guest.waits_for == leader:
                guest.waits_for = ""

    def _look(self, table: Table) -> list[Action]:
        if not table.held and not table.gone:
            self._forget_if_empty(table)
            return []
        if table.looking:
            table.again = True
            return []
        table.looking, table.again = True, False
        gone, table.gone = tuple(table.gone), []
        return [Look(table.call, table.leader, self._monotonic(), gone)]

    def _look_later(self, table: Table, seconds: float) -> list[Action]:
        """One look that is due when the lease ends, however often the key is looked at until then."""
        now = self._monotonic()
        if not table.held or now < table.due <= now + seconds:
            return []
        table.due = now + seconds
        return [LookLater(table.call.digest, seconds)]

    def _hold(self, table: Table, guest: Guest) -> Action:
        if self.held >= self.capacity:
            self._forget_if_empty(table)
            return PutBack(guest)
        insort(table.held, guest, key=lambda other: other.arrived)  # who is given back keeps its place
        self.held += 1
        return Hold(guest)

    def _send(self, table: Table, guest: Guest, *, take_over: str = "", leads: bool = True) -> Action:
        if guest in table.held:
            self._take_out(table, guest)
        guest.nonce = secrets.token_hex(8)
        if leads:
            table.runs, table.leader, table.dry = guest, guest.token, False
            for each in table.held:
                self._meet(table, each, guest.token)
        return Send(guest, take_over)

    def _take_out(self, table: Table, guest: Guest) -> None:
        table.held.remove(guest)
        self.held -= 1

    def _meet(self, table: Table, guest: Guest, holder: str) -> None:
        table.leader = holder
        if guest.waits_for not in ("", holder):
            guest.began = self._monotonic()
        guest.waits_for = holder

    def _led_since(self, table: Table) -> float | None:
        """Since when the leader computes: for one of this worker since the pool began with it."""
        return 0.0 if table.runs is None else self._started(table.runs.request)

    def _is_overdue(self, guest: Guest, since: float) -> bool:
        return self._monotonic() - max(guest.began, since) >= guest.call.memo.policy.wait_limit

    def _table_of(self, guest: Guest) -> Table:
        return self._tables.setdefault(guest.call.digest, Table(guest.call))

    def _forget_if_empty(self, table: Table) -> None:
        if not (table.held or table.runs or table.looking or table.gone):
            self._tables.pop(table.call.digest, None)

    def __iter__(self) -> Iterator[Table]:
        return iter(list(self._tables.values()))
