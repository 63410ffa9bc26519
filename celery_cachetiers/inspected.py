"""What L2 holds under one key, as it lies there: for somebody who asks why, not for an answer to a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Version:
    """The present version of a tag.

    Attributes:
        nonce: As entries and leases have it in their stamp.
        seconds_left: Until it is forgotten, unless somebody prolongs it.
    """

    nonce: bytes
    seconds_left: float


@dataclass(frozen=True, slots=True)
class HeldLease:
    """Who computes, or for whom the lease is kept.

    Attributes:
        token: Of the attempt; the task id alone where the lease was handed over.
        handed: Whether it was handed to a task id, a retry's or a refresh message's, which has not claimed it yet.
        stamp: The tags' versions that it was taken under.
        seconds_left: Until it ends, unless it is renewed.
        inboxes: Processes that wait to be woken.
    """

    token: str
    handed: bool
    stamp: bytes
    seconds_left: float
    inboxes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the last leader ended in without storing it; readable by those who waited for it, and nobody else.

    Attributes:
        failed: With an exception, instead of a value that was not to be stored.
        token: Of the attempt.
        seconds_left: Until it is gone.
    """

    failed: bool
    token: str
    seconds_left: float


@dataclass(frozen=True, slots=True)
class Server:
    """What the server says of itself; ``None`` for what it does not tell.

    Attributes:
        uptime: Seconds since it started.
        evicted: Keys that it has evicted since then.
    """

    uptime: float | None = None
    evicted: int | None = None


@dataclass(frozen=True, slots=True)
class Inspected:
    """What there is.

    Attributes:
        entry: The bytes under the key, whatever they are; ``None`` for nothing. Empty stands for what is no string.
        entry_seconds_left: Until L2 removes them.
        lease: ``None`` where nobody computes.
        versions: Of the tags that were asked for, those that have one.
        outcome: ``None`` where nothing was left.
    """

    entry: bytes | None = None
    entry_seconds_left: float = 0.0
    lease: HeldLease | None = None
    versions: Mapping[str, Version] = field(default_factory=dict)
    outcome: Outcome | None = None
    server: Server = Server()

    def nonces(self, tags: tuple[str, ...]) -> tuple[bytes | None, ...]:
        """The tags' present versions, in their order."""
        found = (self.versions.get(tag) for tag in tags)
        return tuple(None if version is None else version.nonce for version in found)
