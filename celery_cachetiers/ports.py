"""What the engine needs from the outside, as protocols; adapters say how, the edge says which.

An L2 answer is one of three small classes, so that the pure decisions can match on them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from celery_cachetiers.entry import RawEntry, Times
from celery_cachetiers.inspected import Inspected


@dataclass(frozen=True, slots=True)
class LogPosition:
    """Where the invalidation log stood: its random epoch, and how many invalidations it had noted."""

    epoch: bytes
    count: int


@dataclass(frozen=True, slots=True)
class ResultTags:
    """The tags that a result gave to its entry, and where the log stood before the compute that gave it."""

    names: tuple[str, ...]
    since: LogPosition


class LeaseRequest(NamedTuple):
    """One attempt to lead a key.

    Attributes:
        digest: The key.
        tags: Escaped tag names, the implicit ones first; their order is the stamp's order.
        token: Names this attempt: the same token may ask again after a timeout.
        lease_ttl: Seconds the lease lives without renewal.
        keep_for: Seconds the tags' versions must live at least (hard TTL + lease TTL).
        now: Epoch seconds to judge freshness by; ``None`` takes the lease without looking for an entry.
        rejected: Bytes of an entry that the caller has found unusable, not to be answered again.
        claim: The task id to which a lease may have been handed.
        take_over: Token of the holder that is waited for no longer; ``"*"`` replaces any holder.
        waits_for: Token of the leader that the caller has waited for, or the task id to which its lease was handed: it
            may have what that leader left, or a later attempt of the same task id, see `Left`.
        will_wait: Registers this process' inbox when the lease is held elsewhere.
        watch: Takes no lease: the answer is `Free` where the caller would lead.
        hand_to: Takes the lease for this task id, which will claim it when it runs.
        guess: The tags that an entry under this key probably has from its result, beyond ``tags``; ``None`` for a task
            whose results give none.
    """

    digest: str
    tags: tuple[str, ...]
    token: str
    lease_ttl: float
    keep_for: float
    now: float | None
    rejected: bytes | None = None
    claim: str = ""
    take_over: str = ""
    waits_for: str = ""
    will_wait: bool = True
    watch: bool = False
    hand_to: str = ""
    guess: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A fresh entry has appeared."""

    raw: RawEntry


class Leading(NamedTuple):
    """The caller holds the lease, under this stamp; ``since`` is there for a task whose results give tags.

    ``outdated`` is the first tag whose invalidation has ended the entry that is still there, or "".
    """

    stamp: bytes
    stale: RawEntry | None = None
    since: LogPosition | None = None
    outdated: str = ""


@dataclass(frozen=True, slots=True)
class Held:
    """Another attempt holds the lease for so many seconds more, unless it is renewed."""

    holder: str
    seconds_left: float
    stale: RawEntry | None = None


@dataclass(frozen=True, slots=True)
class Left:
    """What the leader that was waited for ended in without storing it, for those who waited for it alone."""

    raw: RawEntry
    failed: bool


@dataclass(frozen=True, slots=True)
class Free:
    """Nobody computes, and nothing answers."""


LeaseAnswer = Found | Leading | Held | Left | Free

STORED, NOT_HELD, OUT_OF_DATE, NO_ROOM = 1, 0, -1, -2
"""What a commit answers: stored; the lease is another's or gone; a tag was invalidated meanwhile; the server
would not take the bytes."""


@dataclass(frozen=True, slots=True)
class Leave:
    """What a leader leaves to those who waited for it.

    Attributes:
        body: As of an entry; of a value, or of what `Failures.dump` made of an exception.
        failed: Which of the two.
        seconds: How long it stays.
        since: For a task whose results give tags: nobody may have it once the log has moved on, as nobody knows which
            tags it would have.
    """

    body: bytes
    failed: bool
    seconds: float
    since: LogPosition | None = None


@dataclass(frozen=True, slots=True)
class Put:
    """An entry that replaces another from outside."""

    request: LeaseRequest
    body: bytes
    hard_ttl: float


class Store(Protocol):
    """L2: entries, leases and tag versions. Every method may raise `TierUnavailable`."""

    def read(self, digest: str, tags: tuple[str, ...], guess: tuple[str, ...] | None = None) -> RawEntry | None:
        """The entry under a key if its stamp is current, else ``None``.

        Args:
            guess: As in `LeaseRequest`.

        Costs: 1 round trip; 2 if the entry has other tags from its result than were guessed.
        """

    def versions(self, tags: tuple[str, ...]) -> bytes | None:
        """The current stamp of some tags, ``None`` if one has no version: to look at. Costs: 1 round trip."""

    def confirms(self, digest: str, tags: tuple[str, ...], stamp: bytes, times: Times) -> bool:
        """Whether the entry read before, under this stamp and with these times, is still the one. Costs: 1 round trip.

        Its payload does not travel.
        """

    def lease(self, request: LeaseRequest) -> LeaseAnswer:
        """Looks again, then leads or registers to wait, in one atomic step. Costs: 1 round trip."""

    def commit(
        self, request: LeaseRequest, body: bytes, hard_ttl: float, *, announce: bool = False,
        result: ResultTags | None = None,
    ) -> int:  # fmt: skip
        """Stores under the lease, frees it and wakes the waiters. Costs: 1 round trip.

        Args:
            announce: All processes are told to drop older copies.
            result: Tags that the body names after those of the request. The commit is out of date if one of them was
                invalidated since, or if the log does not tell.
        """

    def commit_later(
        self, request: LeaseRequest, body: bytes, hard_ttl: float, settled: Callable[[int | None], None]
    ) -> bool:
        """The same without waiting for the answer; false if that cannot be done now, and nothing was sent.

        Args:
            settled: Called once with the answer, ``None`` if that is not known, by the next method of the store that
                reads from the same connection, in its thread. The lease may be held for its TTL where it is ``None``.

        Costs: no round trip.
        """

    def settle(self) -> None:
        """Reads the answers that nobody has waited for. Costs: no round trip."""

    def release(self, digest: str, token: str, leave: Leave | None = None) -> bool:
        """Frees the lease if the token holds it, and wakes the waiters. Costs: 1 round trip.

        Args:
            leave: What those who waited for this token may have.
        """

    def hand_over(self, digest: str, token: str, task_id: str, seconds: float) -> bool:
        """Keeps the lease for a task id, which will claim it, for so many seconds; false if the token does not hold it.

        Waiters go on waiting. Costs: 1 round trip.
        """

    def renew(self, request: LeaseRequest) -> bool:
        """Prolongs the lease and the versions under it; false if it is no longer held. Costs: 1 round trip."""

    def put(self, request: LeaseRequest, body: bytes, hard_ttl: float) -> None:
        """Replaces entry and lease, so that a running leader is refused. Costs: 1 round trip."""

    def put_all(self, puts: Sequence[Put], beside: object | None = None) -> None:
        """Puts several in one step. Costs: 1 round trip.

        Args:
            beside: What is to happen in the same step: a write into a journal on the same server, as that gave it.
        """

    def fence(self, *digests: str) -> None:
        """Removes entry and lease, so that a running leader is refused; of several keys each by itself.

        Costs: 1 round trip for every 1,000 keys.
        """

    def invalidate(self, tags: Sequence[str]) -> None:
        """Makes everything under the tags a miss, notes that in the log for those that compute, and announces it.

        Costs: 1 round trip, O(number of tags).
        """

    def inspect(self, digest: str, tags: Sequence[str]) -> Inspected:
        """What there is under a key, whatever its stamp; changes nothing, not even `reachable`. Costs: 1 round trip."""

    def reachable(self) -> bool:
        """Whether the last attempts have succeeded. Costs: nothing."""

    def close(self) -> None:
        """Closes connections that lie idle."""

    def reset_after_fork(self) -> None:
        """Forgets connections that belong to the parent process."""


class TagMemory(Protocol):
    """Which tags the results of entries gave them, as this process saw them last: a guess for the next read."""

    def of(self, digest: str) -> tuple[str, ...]:
        """The names seen last; none for a key that was never seen."""

    def learn(self, digest: str, names: tuple[str, ...]) -> None:
        """Remembers what an entry names."""


class Renewer(Protocol):
    """Keeps leases alive."""

    def keeping(self, request: LeaseRequest) -> AbstractContextManager[None]:
        """Keeps one alive until the block ends."""

    def close(self) -> None:
        """Ends the thread."""

    def reset_after_fork(self) -> None:
        """Without leases and without a thread."""


class Waiting(Protocol):
    """One thread that may have to wait."""

    def clear(self) -> None:
        """Forgets wake-ups so far: to be called before L2 is asked."""

    def wait(self, timeout: float) -> bool:
        """Waits to be woken, up to so many seconds; false if it was not."""


class WakeUps(Protocol):
    """Where wake-ups reach the threads that wait."""

    told: Callable[[str | None], None]
    """Called with each key that is woken, and with ``None`` when all are."""

    def registered(self, digest: str) -> AbstractContextManager[Waiting]:
        """A waiter that the key's next wake-up wakes."""

    def reset_after_fork(self) -> None:
        """Nobody waits."""


class Listener(Protocol):
    """Who is told what comes over the backplane, in the backplane's thread."""

    def invalidated(self, names: Sequence[str]) -> None:
        """Other processes have invalidated these tags and keys."""

    def lost(self, names: Sequence[str]) -> None:
        """Redis has lost, or had replaced, the versions of these tags; only a backplane that tracks tells of it."""

    def woken(self, digest: str) -> None:
        """The leader of a key has come to an end."""

    def asked(self, question: Mapping[str, Any]) -> None:
        """Another process asks something, of all or of some."""

    def heard(self, trusted_until: float) -> None:
        """The connection is alive: L1 may be trusted until that monotonic instant."""

    def gap(self) -> None:
        """Messages may have been lost, or may be from now on."""


class Backplane(Protocol):
    """The one subscriber connection of a process."""

    def start(self) -> None:
        """Starts listening in this process unless it listens already; returns at once."""

    def connected(self) -> bool:
        """Whether wake-ups arrive now."""

    def wait_connected(self, timeout: float) -> bool:
        """Waits up to so many seconds until it listens."""

    def close(self) -> None:
        """Ends the listening."""

    def reset_after_fork(self) -> None:
        """Forgets the thread and the connection of the parent process."""


class Codec(Protocol):
    """Values to bytes and back; raises `UnusableEntry` only."""

    def encode(self, value: object, times: Times, tags: Sequence[str], key: str) -> bytes:
        """The body of an entry, to which the store adds the stamp."""

    def decode(self, raw: RawEntry, key: str) -> object:
        """A new value that the caller may change."""

    def gives_back(self, value: object) -> bool:
        """Whether decoding what `encode` made of the value is sure to give that very value."""


class Failures(Protocol):
    """What the exceptions of a task's body mean, which only the edge knows."""

    def retry_in(self, error: BaseException) -> float | None:
        """Seconds until the body's attempt is repeated under the same task id; ``None`` if that is not what it says."""

    def dump(self, error: BaseException) -> object | None:
        """What `load` makes the exception of again, or ``None`` if it is not to be shared with followers."""

    def load(self, dumped: object) -> BaseException:
        """A new exception, as the body raised it."""


Compute = Callable[[], object]
"""The task's body with its arguments."""
