"""What `task.cache.why` returns: the facts about one call, in words, and how they are printed.

It decides the names and the shape of the answer. What is true of a call is found elsewhere.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from celery_cachetiers.amounts import counted, span

_ABSENT: Final = {"none": "the app has none", "left alone": "left alone after a failure"}
LONGEST: Final = 160
"""Characters of a value in a printed line."""


@dataclass(frozen=True, slots=True)
class WhyTag:
    """One tag of the call or of its entry.

    Attributes:
        name: As the user writes it; ``""`` for the namespace, and the task's name for the task's own.
        kind: ``namespace``, ``task``, ``arguments`` or ``result``: where the tag comes from.
        state: ``current``, ``invalidated since`` or ``no version``, compared with the entry's stamp; ``there`` where
            no entry is there to be compared, ``not in the entry`` or ``only in the entry`` where the two differ in
            their tags.
        seconds_left: How long its version is remembered, unless it is used; ``None`` without one.
    """

    name: str
    kind: str
    state: str
    seconds_left: float | None = None

    def __str__(self) -> str:
        label = {"namespace": "the namespace", "task": "the task"}.get(self.kind, self.name)
        return f"{label}: {self.state}"


@dataclass(frozen=True, slots=True)
class WhyL1:
    """What this process has in memory.

    Attributes:
        used: Whether the task keeps entries in L1.
        trusted: Whether L1 may answer now; not without a backplane that was heard of lately.
        there: Whether it has the entry.
        live: Whether it is within its time, and untouched by invalidations.
        seconds_left: Until L1 lets it go; ``None`` if it is not there.
        size: Bytes that it takes; 0 if it is not there.
        same: Whether it is what Redis has now; ``None`` where that cannot be said.
    """

    used: bool
    trusted: bool
    there: bool = False
    live: bool = False
    seconds_left: float | None = None
    size: int = 0
    same: bool | None = None

    @property
    def answers(self) -> bool:
        """Whether it is a hit without a look at Redis."""
        return self.used and self.trusted and self.live

    def __str__(self) -> str:
        trust = "trusted" if self.trusted else "not trusted now: no backplane"
        if not self.used:
            return "not used by the task (l1=False)"
        if not self.there:
            return f"not in this process ({trust})"
        state = f"for {span(self.seconds_left or 0)} more" if self.live else "invalidated, or past its time"
        other = "; Redis has another one, or none" if self.same is False else ""
        return f"in this process, {state}, {self.size} bytes ({trust}){other}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WhyEntry:
    """What lies in Redis under the key.

    Attributes:
        state: ``fresh``, ``stale``, ``expired``, or ``unusable`` for bytes that are no entry of ours.
        unusable: Why it cannot be used, as `UnusableEntry.reason` says it; ``""`` if nothing is wrong.
        size: Bytes, all in all.
        seconds_left: Until Redis removes it.
        wire_version: The layout of its bytes; ``None`` for bytes that are not ours. The rest is ``None`` with it.
        computed_at: Epoch seconds at which its compute began.
        fresh_for: Seconds until it is stale; below 0, since when it is.
        usable_for: Seconds until it is expired; below 0, since when it is.
        compute_seconds: What the compute took.
        content_type: How the value is serialized.
        compression: Of the value; ``""`` for none.
        signed: Whether it has a signature; whether that is a good one, `unusable` says.
    """

    state: str
    size: int
    seconds_left: float
    unusable: str = ""
    wire_version: int | None = None
    age: float | None = None
    computed_at: float | None = None
    fresh_for: float | None = None
    usable_for: float | None = None
    compute_seconds: float | None = None
    content_type: str | None = None
    compression: str | None = None
    signed: bool | None = None

    def __str__(self) -> str:
        left = f"{self.size} bytes, {span(self.seconds_left)} left in Redis"
        if self.age is None or self.fresh_for is None or self.usable_for is None:
            return f"{left}; not usable: {self.unusable}"
        stale = f"stale since {span(-self.fresh_for)}, usable for {span(self.usable_for)} more"
        state = {"fresh": f"fresh for {span(self.fresh_for)} more", "stale": stale}.get(
            self.state, f"expired since {span(-self.usable_for)}"
        )
        how = [str(self.content_type), self.compression, "signed" if self.signed else "not signed"]
        computed = f"computed {span(self.age)} ago in {span(self.compute_seconds or 0)}, {state}"
        text = f"{computed}; {left}; {', '.join(filter(None, how))}, wire version {self.wire_version}"
        return f"{text}; not usable: {self.unusable}" if self.unusable else text


@dataclass(frozen=True, slots=True)
class WhyLease:
    """Who computes the key now.

    Attributes:
        task_id: Of the message that computes; ``""`` for a direct call.
        token: Of its attempt.
        state: ``computing``, or ``handed over`` to a message that is to come: a retry, or a refresh.
        seconds_left: Until it ends, unless it is renewed, as it is every third of ``lease_ttl``.
        current: False if a tag was invalidated since it was taken: its value will not be stored.
        waiting: How many processes wait to be woken when it ends. Not calls: a process is one, however many of its
            calls wait; and what a worker holds for a call that its own pool runs is not among them.
    """

    task_id: str
    token: str
    state: str
    seconds_left: float
    current: bool
    waiting: int

    def __str__(self) -> str:
        who = f"task {self.task_id}" if self.task_id else "a direct call"
        age = "current" if self.current else "out of date: a tag was invalidated since it was taken"
        waiting = counted(self.waiting, "process waits", "processes wait")
        return f"{self.state}, {who}, {span(self.seconds_left)} left, {age}; {waiting} to be woken"


@dataclass(frozen=True, slots=True)
class WhyOutcome:
    """What the last compute ended in without being stored; only those that have waited for it may have it.

    Attributes:
        failed: With an exception; otherwise with a value that was not to be stored.
        task_id: Of the message that computed it; ``""`` for a direct call.
        seconds_left: Until this is forgotten.
    """

    failed: bool
    task_id: str
    seconds_left: float

    def __str__(self) -> str:
        return f"{'an exception' if self.failed else 'a value that was not stored'}, seen for {span(self.seconds_left)}"


@dataclass(frozen=True, slots=True)
class WhyWrite:
    """A write of the key that waits in the journal for the task's sink.

    Attributes:
        sink: Its name.
        sequence: Of the write.
        deleted: Whether it removes the value from the sink.
        written_at: Epoch seconds.
    """

    sink: str
    sequence: int
    deleted: bool
    written_at: float

    def __str__(self) -> str:
        return f"{'a deletion' if self.deleted else 'a value'} waits for sink {self.sink} (sequence {self.sequence})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Why:
    """Why a call would be a hit or a miss now; `str` of it is for people, `as_dict` for programs.

    Attributes:
        verdict: What becomes of the call: ``hit``, ``stale hit``, ``miss``, ``held``, ``uncached``, ``uncacheable``,
            ``wrong arguments``, ``bypassed`` or ``off``.
        cause: What decides it, in a word or two; see the reference.
        reason: The same as a sentence.
        remedy: What could be done about it; ``""`` if there is nothing to be done.
        notes: More that is worth knowing.
        task: Its name.
        version: The task's ``version=``.
        mode: The ``cache_mode`` that was asked about.
        key: 32 hex characters; ``None`` for a call that has none.
        arguments: By name, with defaults.
        ignored: Those that are no part of the key.
        made_of: What the key is made of, besides task and version: arguments by name, or ``key`` alone with ``key=``.
        tags: The namespace and the task first.
        l1: Of this process.
        redis: ``answers``, ``none`` for an app without one, ``left alone`` after a failure, or why it cannot be asked.
        entry: In Redis; ``None`` for none.
        lease: ``None`` if nobody computes.
        outcome: ``None`` if the last compute was stored, or is long ago.
        write: ``None`` if nothing waits for a sink.
    """

    verdict: str
    cause: str
    reason: str
    remedy: str = ""
    notes: tuple[str, ...] = ()
    task: str
    version: str = ""
    mode: str = "use"
    key: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    made_of: Mapping[str, object] = field(default_factory=dict)
    tags: tuple[WhyTag, ...] = ()
    l1: WhyL1 | None = None
    redis: str = "none"
    entry: WhyEntry | None = None
    lease: WhyLease | None = None
    outcome: WhyOutcome | None = None
    write: WhyWrite | None = None

    def as_dict(self) -> dict[str, Any]:
        """All of it in dicts, lists and scalars, but for the arguments, which are as they were given."""
        parts = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in parts.items()}

    def facts(self) -> list[tuple[str, str]]:
        """What there is to know besides the verdict: label and text of each line."""
        made_of = _call(self.made_of) or "no arguments"
        version = f" version={self.version!r}" if self.version else ""
        lines = [("key", f"{self.key or 'none'} of {self.task}{version}")]
        if self.key is not None:
            lines.append(("made of", made_of + (f"; ignored: {', '.join(self.ignored)}" if self.ignored else "")))
        lines += [("tags" if at == 0 else "", str(tag)) for at, tag in enumerate(self.tags)]
        if self.l1 is not None:
            lines.append(("L1", str(self.l1)))
        if self.redis == "answers":
            lines.append(("Redis", str(self.entry or "no entry")))
        elif self.key is not None:
            lines.append(("Redis", _ABSENT.get(self.redis, f"cannot be asked: {self.redis}")))
        others = (("lease", self.lease), ("outcome", self.outcome), ("journal", self.write))
        return [*lines, *((name, str(part)) for name, part in others if part is not None)]

    def headline(self) -> str:
        """The call and its verdict."""
        mode = f" with cache_mode={self.mode!r}" if self.mode != "use" else ""
        cause = f" ({self.cause})" if self.cause != self.verdict else ""
        return f"{self.task}({_call(self.arguments)}){mode}: {self.verdict}{cause}"

    def sentences(self) -> list[str]:
        """Reason, remedy and notes."""
        return [*filter(None, (self.reason, self.remedy)), *self.notes]

    def __str__(self) -> str:
        facts = [f"  {label:<8} {text}" for label, text in self.facts()]
        return "\n".join([self.headline(), *self.sentences(), *facts])


def _call(arguments: Mapping[str, object]) -> str:
    return _short(", ".join(f"{name}={value!r}" for name, value in arguments.items()))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return dict(value) if isinstance(value, Mapping) else value
