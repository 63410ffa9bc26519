"""One call of a memoized task, as the engine sees it: no Celery in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from celery_cachetiers.entry import Header, tag_names
from celery_cachetiers.journal_port import NEWEST, Outlet, Place
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.policy import Policy
from celery_cachetiers.ports import Codec, Failures, TagMemory
from celery_cachetiers.tag_names import key_tag
from celery_cachetiers.templates import ResultTagger


class Unshared:
    """The `Failures` of a body whose exceptions mean nothing but themselves: none is shared, none asks for a retry."""

    def retry_in(self, error: BaseException) -> float | None:
        return None

    def dump(self, error: BaseException) -> object | None:
        return None

    def load(self, dumped: object) -> BaseException:
        raise NotImplementedError


@dataclass(slots=True)
class Streak:
    """How many lookups of a task have missed since the last hit, in this process; a lost count does no harm."""

    misses: int = 0


@dataclass(frozen=True, slots=True)
class ResultTagging:
    """How a task's results give tags to their entries.

    Attributes:
        find: The names of one result, escaped; raises `TagError`.
        seen: Those that entries had, as this process saw them last.
    """

    find: ResultTagger
    seen: TagMemory


@dataclass(frozen=True, slots=True)
class Memo:
    """What all calls of one task share.

    ``tagging`` is ``None`` for a task whose results give no tags, ``outlet`` for one without a sink.
    """

    task: str
    policy: Policy
    codec: Codec
    tally: Tally
    failures: Failures = field(default_factory=Unshared)
    streak: Streak = field(default_factory=Streak)
    tagging: ResultTagging | None = None
    outlet: Outlet | None = None


@dataclass(slots=True)
class Call:
    """A task, the key of its arguments, and the tags that they give it.

    Attributes:
        memo: The task's side.
        digest: The key, 32 hex characters.
        find_tags: Renders the tags, implicit ones first; asked at most once; not for an L1 hit, but in the
            waiting room.
        place: Of what is computed for it, among the writes to its sink.
    """

    memo: Memo
    digest: str
    find_tags: Callable[[], tuple[str, ...]]
    place: Place = field(default=NEWEST, init=False)
    _tags: tuple[str, ...] | None = field(default=None, init=False)

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags, in the order of the stamp."""
        if self._tags is None:
            self._tags = self.find_tags()
        return self._tags

    @property
    def names(self) -> tuple[str, ...]:
        """Everything whose announcement ends an L1 copy of this call, as far as its arguments tell: tags and key."""
        return (*self.tags, key_tag(self.digest))

    @property
    def guess(self) -> tuple[str, ...] | None:
        """The tags that its entry has from its result, probably; ``None`` if results of the task give none."""
        return None if self.memo.tagging is None else self.memo.tagging.seen.of(self.digest)

    def tags_of(self, header: Header) -> tuple[str, ...]:
        """All tags of an entry of this call, which the next read will guess."""
        if self.memo.tagging is None:
            return self.tags
        found = tag_names(header)
        self.memo.tagging.seen.learn(self.digest, found[len(self.tags) :])
        return found
