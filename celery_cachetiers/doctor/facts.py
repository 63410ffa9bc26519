"""What was asked of servers and workers, and what they have answered."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from celery_cachetiers.address import Address
from celery_cachetiers.journal_port import Backlog
from celery_cachetiers.server_info import ServerInfo


@dataclass(frozen=True, slots=True)
class Denial:
    """A right that the server's user does not have.

    Attributes:
        need: Code of the finding that it belongs to.
        right: As ``ACL SETUSER`` takes it: ``+command``, ``~key`` or ``&channel``.
    """

    need: str
    right: str


@dataclass(frozen=True, slots=True)
class ServerAnswers:
    """What one Redis server has answered.

    Attributes:
        address: Where it was asked.
        away: Why nothing more was asked of it; empty if it answers.
        info: What it tells of itself; ``None`` if it tells nothing.
        info_denied: Whether that is for want of a right.
        round_trips: Seconds, of some commands one after the other.
        ahead: Seconds that its clock is ahead of ours.
        user: Whom it takes us for, as far as that is known.
        denied: What that user may not do and the library does.
        rights_unknown: Why that was not found out.
    """

    address: Address
    away: str = ""
    info: ServerInfo | None = None
    info_denied: bool = False
    round_trips: tuple[float, ...] = ()
    ahead: float | None = None
    user: str = "default"
    denied: tuple[Denial, ...] = ()
    rights_unknown: str = ""


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """What a worker says of itself.

    Attributes:
        tells: What it says of its extension, as `celery_cachetiers.identity.told_by`; empty if it has none.
        tasks: Names of the tasks that it knows; ``None`` if it has not said.
    """

    tells: Mapping[str, object] = field(default_factory=dict)
    tasks: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Workers:
    """The answers of all workers, by name.

    Attributes:
        unknown: Why they were not asked; empty if they were.
        broker_away: Why the broker could not be used; empty if it could.
    """

    answers: Mapping[str, WorkerAnswer] = field(default_factory=dict)
    unknown: str = ""
    broker_away: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that was asked.

    Attributes:
        now: Epoch seconds.
        l2: ``None`` for an app that has memory only.
        journal: ``None`` where nothing is written behind; the same as ``l2`` where the journal lies there.
        backlogs: By sink, of those that are written behind.
        last_report: Epoch seconds of the last hit-ratio report; ``None`` if none is known of.
        versions: Of Python and of distributions; those that are not installed are left out.
    """

    now: float
    l2: ServerAnswers | None = None
    journal: ServerAnswers | None = None
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    last_report: float | None = None
    workers: Workers = Workers()
    versions: Mapping[str, str] = field(default_factory=dict)
