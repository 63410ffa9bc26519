"""L2 in this process' memory: the protocol of lua/*.lua in Python, with the test's clock, and nothing asynchronous.

It decides the same as Redis, which the conformance suite proves. A message reaches its listeners in the thread that
sends it, before the sending method returns.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, Generic, TypeVar

from celery_cachetiers.clock import Clock
from celery_cachetiers.entry import (
    NONCE_BYTES,
    RawEntry,
    Times,
    result_tags,
    stamp_matches,
    tag_names,
    unpack,
    unpack_body,
)
from celery_cachetiers.errors import UnusableEntry
from celery_cachetiers.inspected import HeldLease, Inspected, Outcome, Version
from celery_cachetiers.ports import (
    NOT_HELD,
    OUT_OF_DATE,
    STORED,
    Found,
    Free,
    Held,
    Leading,
    LeaseAnswer,
    LeaseRequest,
    Leave,
    Left,
    Listener,
    LogPosition,
    Put,
    ResultTags,
)
from celery_cachetiers.tag_names import key_tag

T = TypeVar("T")


class Expiring(Generic[T]):
    """A table whose rows have a TTL, as Redis' keys have."""

    def __init__(self, clock: Clock) -> None:
        self._monotonic = clock.monotonic
        self._rows: dict[str, tuple[T, float]] = {}

    def get(self, name: str) -> T | None:
        """What is there and not past its time."""
        row = self._rows.get(name)
        return row[0] if row is not None and self._monotonic() < row[1] else None

    def set(self, name: str, value: T, ttl: float) -> None:
        """Replaces value and TTL."""
        self._rows[name] = (value, self._monotonic() + ttl)

    def left(self, name: str) -> float:
        """Seconds to live; 0 if it is not there."""
        return max(self._rows[name][1] - self._monotonic(), 0.0) if name in self._rows else 0.0

    def keep(self, name: str, ttl: float, *, at_least: bool = False) -> None:
        """Sets the TTL of what is there; ``at_least`` never shortens it."""
        value = self.get(name)
        if value is not None and not (at_least and self.left(name) >= ttl):
            self.set(name, value, ttl)

    def drop(self, name: str) -> None:
        """Removes it if it is there."""
        self._rows.pop(name, None)

    def names(self) -> list[str]:
        """Of all that is not past its time."""
        return [name for name in self._rows if self.get(name) is not None]


@dataclass(frozen=True, slots=True)
class MemoryLease:
    """Who computes, under which stamp, or for which task id the lease is kept (``handed``)."""

    token: str
    stamp: bytes
    handed: bool


@dataclass(frozen=True, slots=True)
class MemoryLeft:
    """What a leader left, and the stamp that its lease was taken under."""

    token: str
    stamp: bytes
    leave: Leave


@dataclass(slots=True)
class MemoryLog:
    """Which tags were invalidated lately, and after how many invalidations."""

    epoch: bytes
    count: int = 0
    last: dict[str, int] = field(default_factory=dict)

    @property
    def position(self) -> LogPosition:
        """Where it stands."""
        return LogPosition(self.epoch, self.count)


@dataclass(slots=True)
class Shared:
    """What all processes see. Changed under the lock; `listeners` are called outside it."""

    clock: Clock
    lock: threading.RLock = field(default_factory=threading.RLock)
    entries: Expiring[bytes] = field(init=False)
    leases: Expiring[MemoryLease] = field(init=False)
    versions: Expiring[bytes] = field(init=False)
    waiters: Expiring[frozenset[str]] = field(init=False)
    left: Expiring[MemoryLeft] = field(init=False)
    log: Expiring[MemoryLog] = field(init=False)
    listeners: dict[str, Listener] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.flush()

    def flush(self) -> None:
        """Empty, as after FLUSHALL; whoever listens stays connected."""
        self.entries, self.leases = Expiring(self.clock), Expiring(self.clock)
        self.versions, self.waiters = Expiring(self.clock), Expiring(self.clock)
        self.left, self.log = Expiring(self.clock), Expiring(self.clock)


LOG: Final = "log"
Message = Callable[[], None]


class MemoryStore:
    """A `celery_cachetiers.ports.Store` without a server: one process' side of it.

    Concurrency: every method is one atomic step, as a Lua script is.

    Args:
        clock: Whose time the TTLs follow.
        beside: Another process' store; both see the same entries, leases and versions.

    Attributes:
        shared: What the processes share, for tests that look or break something.
        inbox: This process' name.
    """

    def __init__(self, clock: Clock, *, beside: MemoryStore | None = None) -> None:
        self.shared: Shared = Shared(clock) if beside is None else beside.shared
        self.inbox = os.urandom(8).hex()
        self._unread: deque[Callable[[], None]] = deque()

    def attach(self, listener: Listener) -> None:
        """Announcements of the others and this process' wake-ups go to the listener from now on."""
        with self.shared.lock:
            self.shared.listeners[self.inbox] = listener

    def detach(self) -> None:
        """Nobody in this process listens any more."""
        with self.shared.lock:
            self.shared.listeners.pop(self.inbox, None)

    def read(self, digest: str, tags: tuple[str, ...], guess: tuple[str, ...] | None = None) -> RawEntry | None:
        """The entry under a key if its stamp is current, else ``None``."""
        self.settle()
        with self.shared.lock:
            data = self.shared.entries.get(digest)
            return self._valid(data, tags, more=guess is not None) if data is not None else None

    def versions(self, tags: tuple[str, ...]) -> bytes | None:
        """The current stamp of some tags, ``None`` if one has no version."""
        with self.shared.lock:
            nonces = [self.shared.versions.get(tag) for tag in tags]
        return b"".join(nonce for nonce in nonces if nonce) if all(nonces) else None

    def confirms(self, digest: str, tags: tuple[str, ...], stamp: bytes, times: Times) -> bool:
        """Whether the entry read before is still the one."""
        with self.shared.lock:
            raw = self.read(digest, tags)
        return raw is not None and raw.stamp == stamp and raw.header.times == times

    def lease(self, request: LeaseRequest) -> LeaseAnswer:
        """Looks again, then leads or registers to wait."""
        self.settle()
        with self.shared.lock:
            lease, stamp = self.shared.leases.get(request.digest), self.versions(request.tags)
            handed = lease is not None and lease.handed and request.claim == lease.token
            entry = None if handed else self._entry_for(request)
            if entry is not None and request.now is not None and request.now < entry.header.times.fresh_until:
                return Found(entry)
            left = None if handed else self.shared.left.get(request.digest)
            waited = left is not None and request.waits_for and _is_by(left.token, request.waits_for)
            if left is not None and waited and left.stamp == stamp and left.leave.since == self._log_stands(request):
                return Left(unpack_body(left.leave.body), left.leave.failed)
            if lease is not None and lease.stamp == stamp and not self._may_have(request, lease, handed):
                return self._held(request, lease, entry)
            return Free() if request.watch else self._take(request, entry)

    def commit(
        self,
        request: LeaseRequest,
        body: bytes,
        hard_ttl: float,
        *,
        announce: bool = False,
        result: ResultTags | None = None,
    ) -> int:
        """Stores under the lease, frees it and wakes the waiters."""
        digest, shared = request.digest, self.shared
        with shared.lock:
            lease = shared.leases.get(digest)
            if lease is None or lease.token != request.token:
                return NOT_HELD
            current = self.versions(request.tags) == lease.stamp and self._untouched(result)
            if current:
                more = result.names if result is not None else ()
                stamp = self._stamp(request._replace(tags=request.tags + more))
                shared.entries.set(digest, body + stamp, hard_ttl)
            messages = self._free(digest)
        if current and announce:
            messages += self._announcement([key_tag(digest)])
        _deliver(messages)
        return STORED if current else OUT_OF_DATE

    def commit_later(
        self, request: LeaseRequest, body: bytes, hard_ttl: float, settled: Callable[[int | None], None]
    ) -> bool:
        """The same; its answer is told by `settle`, by the next read, and by the next lease that is asked for."""
        self._unread.append(partial(settled, self.commit(request, body, hard_ttl)))
        return True

    def settle(self) -> None:
        """Tells the answers that nobody has waited for."""
        while self._unread:
            self._unread.popleft()()

    def release(self, digest: str, token: str, leave: Leave | None = None) -> bool:
        """Frees the lease if the token holds it, and wakes the waiters."""
        with self.shared.lock:
            lease = self.shared.leases.get(digest)
            if lease is None or lease.token != token:
                return False
            if leave is not None:
                self.shared.left.set(digest, MemoryLeft(token, lease.stamp, leave), leave.seconds)
            messages = self._free(digest)
        _deliver(messages)
        return True

    def hand_over(self, digest: str, token: str, task_id: str, seconds: float) -> bool:
        """Keeps the lease for a task id; false if the token does not hold it."""
        with self.shared.lock:
            lease = self.shared.leases.get(digest)
            if lease is None or lease.token != token:
                return False
            self.shared.leases.set(digest, MemoryLease(task_id, lease.stamp, handed=True), seconds)
            self.shared.waiters.keep(digest, 2 * seconds)
            return True

    def renew(self, request: LeaseRequest) -> bool:
        """Prolongs the lease and the versions under it; false if it is no longer held."""
        with self.shared.lock:
            lease = self.shared.leases.get(request.digest)
            if lease is None or lease.token != request.token:
                return False
            self.shared.leases.keep(request.digest, request.lease_ttl)
            self.shared.waiters.keep(request.digest, 2 * request.lease_ttl)
            self._keep_versions(request)
            return True

    def put(self, request: LeaseRequest, body: bytes, hard_ttl: float) -> None:
        """Replaces entry and lease, so that a running leader is refused."""
        with self.shared.lock:
            stamp = self._stamp(request)
            self.shared.entries.set(request.digest, body + stamp, hard_ttl)
            self.shared.left.drop(request.digest)
            messages = self._free(request.digest)
        _deliver(messages + self._announcement([key_tag(request.digest)]))

    def put_all(self, puts: Sequence[Put], beside: object | None = None) -> None:
        """Puts several in one step."""
        for put in puts:
            self.put(put.request, put.body, put.hard_ttl)

    def fence(self, *digests: str) -> None:
        """Removes entry and lease, so that a running leader is refused; of several keys each by itself."""
        for digest in digests:
            with self.shared.lock:
                self.shared.entries.drop(digest)
                self.shared.left.drop(digest)
                messages = self._free(digest)
            _deliver(messages + self._announcement([key_tag(digest)]))

    def invalidate(self, tags: Sequence[str]) -> None:
        """Makes everything under the tags a miss, and announces it."""
        with self.shared.lock:
            log = self.shared.log.get(LOG)
            if log is not None:
                log.count += 1
            for tag in tags:
                self.shared.versions.drop(tag)
                if log is not None:
                    log.last[tag] = log.count
        _deliver(self._announcement(tags))

    def inspect(self, digest: str, tags: Sequence[str]) -> Inspected:
        """What there is under a key, whatever its stamp."""
        shared = self.shared
        with shared.lock:
            lease, left = shared.leases.get(digest), shared.left.get(digest)
            held = None
            if lease is not None:
                inboxes = len(shared.waiters.get(digest) or ())
                held = HeldLease(lease.token, lease.handed, lease.stamp, shared.leases.left(digest), inboxes)
            present = ((tag, shared.versions.get(tag), shared.versions.left(tag)) for tag in tags)
            return Inspected(
                entry=shared.entries.get(digest),
                entry_seconds_left=shared.entries.left(digest),
                lease=held,
                versions={tag: Version(nonce, seconds) for tag, nonce, seconds in present if nonce is not None},
                outcome=None if left is None else Outcome(left.leave.failed, left.token, shared.left.left(digest)),
            )

    def reachable(self) -> bool:
        """Always."""
        return True

    def close(self) -> None:
        """There are no connections."""

    def reset_after_fork(self) -> None:
        """Under a new name; the child's copy of the memory is its own from now on."""
        self.inbox = os.urandom(8).hex()

    def __repr__(self) -> str:
        shared = self.shared
        return f"<MemoryStore: {len(shared.entries.names())} entries, {len(shared.leases.names())} leases>"

    # -- under the lock ---------------------------------------------------------------------------------------------

    def _valid(self, data: bytes, tags: tuple[str, ...], *, more: bool) -> RawEntry | None:
        """The entry, if its stamp is current; ``more``: it may name more tags than these."""
        try:
            raw = unpack(data)
            found = result_tags(raw.header.tag_block, tags)
            nonces = [self.shared.versions.get(tag) for tag in tag_names(raw.header)]
        except UnusableEntry:
            return None
        return raw if found is not None and (more or not found) and stamp_matches(raw, nonces) else None

    def _entry_for(self, request: LeaseRequest) -> RawEntry | None:
        """The entry that may answer the request, fresh or stale."""
        data = self.shared.entries.get(request.digest)
        if data is None or request.now is None or data == request.rejected:
            return None
        raw = self._valid(data, request.tags, more=request.guess is not None)
        return raw if raw is not None and request.now < raw.header.times.expires_at else None

    @staticmethod
    def _may_have(request: LeaseRequest, lease: MemoryLease, handed: bool) -> bool:
        return handed or lease.token == request.token or request.take_over in ("*", lease.token)

    def _held(self, request: LeaseRequest, lease: MemoryLease, stale: RawEntry | None) -> Held:
        left = self.shared.leases.left(request.digest)
        if request.will_wait:
            inboxes = self.shared.waiters.get(request.digest) or frozenset()
            self.shared.waiters.set(request.digest, inboxes | {self.inbox}, 2 * max(left, request.lease_ttl))
        return Held(lease.token, left, stale)

    def _take(self, request: LeaseRequest, stale: RawEntry | None) -> Leading:
        outdated = self._outdated(request)
        stamp = self._stamp(request)
        lease = MemoryLease(request.hand_to or request.token, stamp, bool(request.hand_to))
        left = self.shared.left.get(request.digest)
        if left is not None and _is_by(left.token, lease.token):
            self.shared.left.drop(request.digest)
        self.shared.leases.set(request.digest, lease, request.lease_ttl)
        if request.guess is not None and self.shared.log.get(LOG) is None:
            self.shared.log.set(LOG, MemoryLog(os.urandom(NONCE_BYTES)), request.keep_for)
        self._keep_versions(request)
        return Leading(stamp, stale, self._log_stands(request), outdated)

    def _outdated(self, request: LeaseRequest) -> str:
        """The first tag whose invalidation has ended the entry that is there, or ""."""
        data = self.shared.entries.get(request.digest)
        if data is None or request.now is None:
            return ""
        try:
            raw = unpack(data)
            names = tag_names(raw.header)
        except UnusableEntry:
            return ""
        if raw.header.times.expires_at <= request.now or result_tags(raw.header.tag_block, request.tags) is None:
            return ""
        there = zip(names, range(0, len(raw.stamp), NONCE_BYTES), strict=True)
        ended = (name for name, at in there if self.shared.versions.get(name) != raw.stamp[at : at + NONCE_BYTES])
        return next(ended, "")

    def _log_stands(self, request: LeaseRequest) -> LogPosition | None:
        log = self.shared.log.get(LOG)
        return log.position if log is not None and request.guess is not None else None

    def _untouched(self, result: ResultTags | None) -> bool:
        """Whether no tag of a result was invalidated since its compute began."""
        if result is None:
            return True
        log = self.shared.log.get(LOG)
        if log is None or log.epoch != result.since.epoch:
            return False
        return all(log.last.get(name, 0) <= result.since.count for name in result.names)

    def _stamp(self, request: LeaseRequest) -> bytes:
        """The tags' versions, new ones for those that have none."""
        nonces = []
        for tag in request.tags:
            nonce = self.shared.versions.get(tag)
            if nonce is None:
                nonce = os.urandom(NONCE_BYTES)
                self.shared.versions.set(tag, nonce, request.keep_for)
            nonces.append(nonce)
        self._keep_versions(request)
        return b"".join(nonces)

    def _keep_versions(self, request: LeaseRequest) -> None:
        for tag in request.tags:
            self.shared.versions.keep(tag, request.keep_for, at_least=True)
        if request.guess is not None:
            self.shared.log.keep(LOG, request.keep_for, at_least=True)

    def _free(self, digest: str) -> list[Message]:
        """Frees the lease; returns the wake-ups, to be delivered outside the lock."""
        self.shared.leases.drop(digest)
        inboxes = self.shared.waiters.get(digest) or frozenset()
        self.shared.waiters.drop(digest)
        listeners = [self.shared.listeners[inbox] for inbox in inboxes if inbox in self.shared.listeners]
        return [_message(listener.woken, digest) for listener in listeners]

    def _announcement(self, names: Iterable[str]) -> list[Message]:
        with self.shared.lock:
            others = [each for inbox, each in self.shared.listeners.items() if inbox != self.inbox]
        return [_message(listener.invalidated, list(names)) for listener in others]


def _is_by(author: str, token: str) -> bool:
    """Whether a leaving's author is the attempt that a token names, or one of the same task id."""
    task = author.rpartition(":")[0]
    return author == token or (task != "" and task in (token, token.rpartition(":")[0]))


def _message(send: Callable[[T], None], content: T) -> Message:
    return lambda: send(content)


def _deliver(messages: Iterable[Message]) -> None:
    for message in messages:
        message()


class MemoryBackplane:
    """A `celery_cachetiers.ports.Backplane` between the stores that lie beside each other.

    A test takes the place of the network: `lose` cuts the connection, `regain` brings it back.
    """

    def __init__(self, store: MemoryStore, listener: Listener) -> None:
        self._store, self._listener = store, listener
        self._connected = self._closed = False

    def start(self) -> None:
        """Listens from now on, unless it was closed or lost."""
        if not (self._connected or self._closed):
            self._store.attach(self._listener)
            self._listener.gap()
            self._listener.heard(float("inf"))
            self._connected = True

    def lose(self) -> None:
        """The connection breaks; until `regain` nothing arrives."""
        self.close()
        self._listener.gap()

    def regain(self) -> None:
        """The connection is back."""
        self._closed = False
        self.start()

    def connected(self) -> bool:
        """Whether wake-ups arrive now."""
        return self._connected

    def wait_connected(self, timeout: float) -> bool:
        """Whether it listens; nothing is worth waiting for."""
        return self._connected

    def close(self) -> None:
        """Ends the listening."""
        self._store.detach()
        self._connected, self._closed = False, True

    def reset_after_fork(self) -> None:
        """Not connected yet."""
        self._connected = self._closed = False
