"""What the tiers have of a call, seen without a trace: no counter, no event, no lease, nothing put into L1.

It reads; what follows from it is `explaining`'s matter. The breaker of Redis is neither asked nor told.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from celery_cachetiers.call import Call
from celery_cachetiers.decisions import Freshness, freshness, refresh_is_due
from celery_cachetiers.entry import (
    MAGIC,
    MISSING,
    NONCE_BYTES,
    RawEntry,
    result_tags,
    stamp_matches,
    tag_names,
    unpack,
)
from celery_cachetiers.errors import TierUnavailable, UnusableEntry
from celery_cachetiers.explaining import Finding, State
from celery_cachetiers.flight import Flights
from celery_cachetiers.inspected import Inspected
from celery_cachetiers.local_port import Standing
from celery_cachetiers.parts import Parts
from celery_cachetiers.tag_names import namespace_tag, task_of, user_tag
from celery_cachetiers.why import WhyEntry, WhyL1, WhyLease, WhyOutcome, WhyTag, WhyWrite
from celery_cachetiers.writes import Write


@dataclass(frozen=True, slots=True)
class Observed:
    """What was seen.

    Attributes:
        state: For the verdict.
        decoded: The value in Redis; `MISSING` where it has none that can be decoded.
        standing: What lies in L1.
        write: What waits for the sink.
    """

    state: State
    decoded: object = MISSING
    standing: Standing | None = None
    write: Write | None = None

    def value(self, finding: Finding) -> object:
        """What the call would be answered with; `MISSING` for a miss, and for what L1 cannot make again."""
        match finding.cause:
            case "fresh in L1" if self.standing is not None:
                try:
                    return self.standing.resident.copy()
                except Exception:  # pickled, but not to be unpickled
                    return MISSING
            case "fresh in L2" | "stale":
                return self.decoded
            case "waits for its sink" if self.write is not None:
                return self.write.value
        return MISSING


@dataclass(frozen=True, slots=True)
class _Seen:
    """An entry in L2, taken apart as far as that goes, with the versions of all tags that it and its call name."""

    inspected: Inspected
    raw: RawEntry | None = None
    names: tuple[str, ...] = ()
    unusable: str = ""
    decoded: object = field(default=MISSING)


class Observer:
    """Looks.

    Concurrency: keeps nothing between calls.
    """

    def __init__(self, parts: Parts, flights: Flights) -> None:
        self._l1, self._store, self._clock, self._flights = parts.l1, parts.store, parts.clock, flights

    def observe(self, call: Call) -> Observed:
        """What there is of a call; never raises for what is away.

        Costs: 1 round trip; 1 more if the entry has tags that the call does not give, and 1 more to the journal for a
            task with a sink.
        """
        redis, seen = "none", _Seen(Inspected())
        if self._store is not None:
            try:
                seen = self._seen(call)
                redis = "answers" if self._store.reachable() else "left alone"
            except TierUnavailable as error:
                redis = str(error) or "not reached"
        now, standing = self._clock.time(), self._l1.standing(call.digest)
        inspected, raw = seen.inspected, seen.raw
        policy, write = call.memo.policy, self._waiting(call)
        state = State(
            policy=policy,
            now=now,
            redis=redis,
            l1=self._in_memory(call, standing, seen if redis == "answers" else None),
            tags=_tags(call, seen) if redis in ("answers", "left alone") else (),
            entry=_entry(seen, now),
            lease=_lease(inspected, call.tags),
            outcome=_outcome(inspected),
            write=None if write is None else _write(call, write),
            flying=redis != "answers" and self._flights.under_way(call.digest),
            due=raw is not None and refresh_is_due(raw.header.times, policy, now, 1.0),
            server=inspected.server,
        )
        return Observed(state, seen.decoded, standing, write)

    def _seen(self, call: Call) -> _Seen:
        assert self._store is not None
        asked = call.tags + (call.guess or ())
        inspected = self._store.inspect(call.digest, asked)
        raw, names, unusable = _opened(inspected.entry)
        if not set(names) <= set(asked):
            inspected = self._store.inspect(call.digest, _once(call.tags, names))
            raw, names, unusable = _opened(inspected.entry)
        if raw is None:
            return _Seen(inspected, unusable=unusable)
        try:
            return _Seen(inspected, raw, names, decoded=call.memo.codec.decode(raw, call.digest))
        except UnusableEntry as error:
            return _Seen(inspected, raw, names, unusable=error.reason)

    def _in_memory(self, call: Call, standing: Standing | None, seen: _Seen | None) -> WhyL1:
        used, trusted = call.memo.policy.l1, self._l1.trusted()
        if standing is None:
            return WhyL1(used, trusted)
        same = None
        if seen is not None:
            resident, raw = standing.resident, seen.raw
            same = raw is not None and (raw.stamp, raw.header.times) == (resident.stamp, resident.times)
            same = same and raw is not None and stamp_matches(raw, seen.inspected.nonces(seen.names))
        return WhyL1(used, trusted, True, standing.live, standing.seconds_left, standing.resident.size, same)

    @staticmethod
    def _waiting(call: Call) -> Write | None:
        if call.memo.outlet is None:
            return None
        try:
            return call.memo.outlet.look(call.digest)
        except (TierUnavailable, UnusableEntry):  # then the body runs: as if nothing waited
            return None


def _once(*groups: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for group in groups for name in group))


def _opened(data: bytes | None) -> tuple[RawEntry | None, tuple[str, ...], str]:
    """The entry, the tags that it names, and what is wrong with its bytes."""
    if data is None:
        return None, (), ""
    try:
        raw = unpack(data)
        return raw, tag_names(raw.header), ""
    except UnusableEntry as error:
        return None, (), error.reason


def _entry(seen: _Seen, now: float) -> WhyEntry | None:
    data, left, raw = seen.inspected.entry, seen.inspected.entry_seconds_left, seen.raw
    if data is None:
        return None
    wire_version = data[2] if data.startswith(MAGIC) and len(data) > len(MAGIC) else None
    if raw is None:
        return WhyEntry(
            state="unusable", size=len(data), seconds_left=left, unusable=seen.unusable, wire_version=wire_version
        )
    header, times = raw.header, raw.header.times
    state: Freshness = freshness(times, now)
    return WhyEntry(
        state=state.value,
        size=len(data),
        seconds_left=left,
        unusable=seen.unusable,
        wire_version=wire_version,
        age=now - times.computed_at,
        computed_at=times.computed_at,
        fresh_for=times.fresh_until - now,
        usable_for=times.expires_at - now,
        compute_seconds=times.compute_seconds,
        content_type=header.content_type,
        compression=header.compression,
        signed=bool(header.signature),
    )


def _tags(call: Call, seen: _Seen) -> tuple[WhyTag, ...]:
    """The call's tags in the stamp's order, then those that only the entry names."""
    raw, names = seen.raw, seen.names
    stamp = () if raw is None else [raw.stamp[at : at + NONCE_BYTES] for at in range(0, len(raw.stamp), NONCE_BYTES)]
    stamped = dict(zip(names, stamp, strict=True))
    more = [name for name in names if name not in call.tags]
    fits = raw is not None and result_tags(raw.header.tag_block, call.tags) is not None
    from_result = fits and call.memo.tagging is not None
    found = [
        _tag(name, _kind(name), seen, "" if raw is None or name in stamped else "not in the entry", stamped)
        for name in call.tags
    ]
    for name in more:
        kind = "result" if from_result else _kind(name)
        found.append(_tag(name, kind, seen, "" if from_result else "only in the entry", stamped))
    return tuple(found)


def _tag(name: str, kind: str, seen: _Seen, differs: str, stamped: dict[str, bytes]) -> WhyTag:
    version = seen.inspected.versions.get(name)
    if differs:
        state = differs
    elif version is None:
        state = "no version"
    elif seen.raw is None:
        state = "there"
    else:
        state = "current" if version.nonce == stamped[name] else "invalidated since"
    shown = user_tag(name)
    label = (task_of(name) or "") if shown is None else shown
    return WhyTag(label, kind, state, None if version is None else version.seconds_left)


def _kind(name: str) -> str:
    if name == namespace_tag():
        return "namespace"
    return "arguments" if task_of(name) is None else "task"


def _lease(inspected: Inspected, tags: tuple[str, ...]) -> WhyLease | None:
    held = inspected.lease
    if held is None:
        return None
    nonces = inspected.nonces(tags)
    current = None not in nonces and b"".join(nonce or b"" for nonce in nonces) == held.stamp
    state, task_id = ("handed over", held.token) if held.handed else ("computing", _task_id(held.token))
    return WhyLease(task_id, held.token, state, held.seconds_left, current, held.inboxes)


def _outcome(inspected: Inspected) -> WhyOutcome | None:
    left = inspected.outcome
    return None if left is None else WhyOutcome(left.failed, _task_id(left.token), left.seconds_left)


def _task_id(token: str) -> str:
    return token.rpartition(":")[0]


def _write(call: Call, write: Write) -> WhyWrite:
    return WhyWrite(call.memo.policy.sink or "", write.sequence, write.deleted, write.written_at)
