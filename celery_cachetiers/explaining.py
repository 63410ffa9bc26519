"""Why a call would be a hit or a miss: a pure function of what was observed, beside `decisions`, which the calls obey.

It goes the way of a call: switched off, without a key, L1, L2, then who computes. Who looked does the I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from celery_cachetiers.amounts import span
from celery_cachetiers.inspected import Server
from celery_cachetiers.policy import Policy
from celery_cachetiers.why import WhyEntry, WhyL1, WhyLease, WhyOutcome, WhyTag, WhyWrite

HITS: Final = ("hit", "stale hit")
UNKNOWN_L1: Final = WhyL1(used=True, trusted=False)
SILENT: Final = Server()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What was observed of one call at one moment.

    Attributes:
        off: Why the task caches nothing at all; "" if it does.
        no_key: Verdict, cause, reason and remedy of a call that has no key or no tags; ``None`` if it has.
        redis: As in `Why`.
        flying: Whether this process computes the key now; asked only where Redis is not.
        due: Whether a fresh entry is past its ``refresh_ahead``.
    """

    policy: Policy
    now: float = 0.0
    mode: str = "use"
    off: str = ""
    no_key: Finding | None = None
    redis: str = "answers"
    l1: WhyL1 = UNKNOWN_L1
    tags: tuple[WhyTag, ...] = ()
    entry: WhyEntry | None = None
    lease: WhyLease | None = None
    outcome: WhyOutcome | None = None
    write: WhyWrite | None = None
    flying: bool = False
    due: bool = False
    server: Server = SILENT


@dataclass(frozen=True, slots=True)
class Finding:
    """The verdict; see `Why` for the fields."""

    verdict: str
    cause: str
    reason: str
    remedy: str = ""
    notes: tuple[str, ...] = ()


def explain(state: State) -> Finding:
    """What becomes of the call.

    1. Nothing is cached, or the mode looks at nothing: the body runs.
    2. No key: the body runs, and says so itself where the arguments do not fit; ``only`` never runs it.
    3. What the tiers have answers. For ``only`` so does what waits for its sink, and nothing else.
    4. Somebody computes: the call waits, unless the task or an outdated stamp says otherwise.
    5. A value that waits for its sink answers in place of the body.
    6. The body runs; the reason is why no tier could answer.
    """
    if state.off:
        return Finding("off", "off", state.off, "Nothing is read or stored: every call runs its body.")
    if state.mode == "bypass":
        return Finding("bypassed", "bypass", "cache_mode='bypass' neither reads nor stores: the body runs.")
    if state.no_key is not None:
        return _not_cached(state.no_key) if state.mode == "only" else state.no_key
    if state.mode == "refresh":
        return Finding("bypassed", "refresh", "cache_mode='refresh' computes whatever there is, and replaces it.")
    tiers = _tiers(state)
    if tiers.verdict in HITS:
        return tiers
    if state.mode == "only":
        return _waiting_write(state) or _not_cached(replace(tiers, verdict="miss"))
    return _computing(state, tiers)


def _not_cached(finding: Finding) -> Finding:
    raised = "cache_mode='only' never computes: the task raises NotCached."
    return replace(finding, notes=(*finding.notes, raised))


# -- what the tiers have ----------------------------------------------------------------------------------------------


def _tiers(state: State) -> Finding:
    strict = state.policy.consistency == "strict"
    if state.l1.answers and not (strict and state.redis != "none"):
        return _l1_hit(state)
    if state.redis == "none":
        return _no_redis(state)
    if state.redis != "answers":
        return _away(state)
    if state.l1.answers and state.l1.same:
        return replace(_l1_hit(state), notes=("consistency='strict': Redis is asked whether it is current.",))
    if state.entry is None:
        return _no_entry(state)
    problem = _unreadable(state.entry) or _other_tags(state) or _outdated(state, state.entry) or _expired(state.entry)
    if problem is None and state.entry.unusable:
        problem = _unusable(state.entry)
    return problem or _l2_hit(state, state.entry)


def _l1_hit(state: State) -> Finding:
    notes: tuple[str, ...] = ()
    if state.l1.same is False:
        left = span(state.l1.seconds_left or 0)
        notes = (
            f"Redis has another entry, or none: this copy answers until an announcement comes, or for {left} more. "
            "consistency='strict' asks Redis first.",
        )
    return Finding("hit", "fresh in L1", "It is fresh in this process' memory: no message to Redis.", notes=notes)


def _l2_hit(state: State, entry: WhyEntry) -> Finding:
    if entry.state == "stale":
        return _stale_hit(state, entry)
    notes: tuple[str, ...] = ()
    if state.due:
        notes = (f"refresh_ahead={state.policy.refresh_ahead}: the next delay() answers and sends a refresh too.",)
    reason = f"It is fresh in Redis for {span(entry.fresh_for or 0)} more."
    return Finding("hit", "fresh in L2", reason, notes=notes)


def _stale_hit(state: State, entry: WhyEntry) -> Finding:
    since, left = span(-(entry.fresh_for or 0)), span(entry.usable_for or 0)
    reason = f"It is stale since {since}, and grace={state.policy.grace:g} lets it answer for {left} more."
    if state.lease is not None and state.lease.current:
        return Finding("stale hit", "stale", reason, notes=("Somebody computes it already.",))
    note = "delay() answers with it and sends one refresh; where the call runs itself, it computes."
    return Finding("stale hit", "stale", reason, notes=(note,))


def _no_redis(state: State) -> Finding:
    if state.l1.there and not state.l1.live:
        gone = "What this process has in memory is past its time, or was invalidated."
        return Finding("miss", "gone from L1", gone)
    nothing = "The app has no Redis, and this process has nothing in memory; other processes have their own."
    return Finding("miss", "no entry", nothing, "Set cachetiers_url to share entries between processes.")


def _away(state: State) -> Finding:
    if state.redis == "left alone":
        reason = "Redis has failed this process a moment ago, and is left alone: calls run uncached meanwhile."
        remedy = "It answers now, and is asked again when cachetiers_breaker_window has passed."
        return Finding("uncached", "Redis left alone", reason, remedy)
    reason = f"Redis cannot be asked ({state.redis}): each call runs its body, uncached."
    return Finding("uncached", "Redis away", reason, "See that the server of cachetiers_url can be reached from here.")


def _no_entry(state: State) -> Finding:
    if state.outcome is not None:
        what = "an exception" if state.outcome.failed else "a value that is not stored (cache_if, ttl_from, max_bytes)"
        return Finding("miss", "not stored", f"The last compute ended in {what}.")
    evicted = "" if state.server.evicted == 0 else ", or Redis has evicted it"
    none = [tag.name for tag in state.tags if tag.state == "no version" and tag.kind == "arguments"]
    if none:
        within = span(state.policy.hard_ttl + state.policy.lease_ttl)
        reason = (
            f"Redis has no entry, and {_tag_list(none)} no version: nothing under it was computed within the last "
            f"{within}, or it was invalidated since{evicted}."
        )
    else:
        reason = (
            "Redis has no entry: it was never computed, has expired, or was removed by its key"
            f"{evicted}. These cannot be told apart."
        )
    notes = ["Redis has evicted nothing since it started."] if state.server.evicted == 0 else []
    if state.policy.version:
        notes.append(f"What was computed under another version= than {state.policy.version!r} has another key.")
    return Finding("miss", "no entry", reason, notes=tuple(notes))


def _unreadable(entry: WhyEntry) -> Finding | None:
    return _unusable(entry) if entry.wire_version is None or entry.computed_at is None else None


_UNUSABLE: Final = {
    "foreign": ("What lies under its key is no entry of this library.", "See who else writes into the namespace."),
    "newer": (
        "It was written by a later version of this library, which this one cannot read.",
        "It ends when all processes have the same version.",
    ),
    "unsigned": (
        "It is not signed, and cachetiers_signing_key asks for that.",
        "See that every process that stores has the key.",
    ),
    "forged": (
        "No key in cachetiers_signing_key has signed it for this call.",
        "Where the key was changed, keep the old one second in the list until its entries are gone.",
    ),
    "refused": (
        "Its content type is not accepted here.",
        "Give all processes the same cachetiers_serializer, and name it in accept_content.",
    ),
    "oversize": ("It is larger than max_bytes.", "Give all processes the same max_bytes."),
    "bomb": ("It is larger than max_bytes once it is decompressed.", "Give all processes the same max_bytes."),
}


def _unusable(entry: WhyEntry) -> Finding:
    broken = ("Its bytes cannot be decoded.", "The next compute replaces it.")
    reason, remedy = _UNUSABLE.get(entry.unusable, broken)
    return Finding("miss", entry.unusable, reason, remedy)


def _other_tags(state: State) -> Finding | None:
    new = [tag.name for tag in state.tags if tag.state == "not in the entry"]
    old = [tag.name for tag in state.tags if tag.state == "only in the entry"]
    whose = [f"only {who} has {_tag_list(names)}" for who, names in (("the call", new), ("the entry", old)) if names]
    if not whose:
        return None
    reason = f"It was stored under other tags than the call has now: {', '.join(whose)}."
    return Finding("miss", "other tags", reason, "Give all processes the same tags=, or change version= with them.")


def _outdated(state: State, entry: WhyEntry) -> Finding | None:
    bad = [tag for tag in state.tags if tag.state in ("invalidated since", "no version")]
    if not bad:
        return None
    first = bad[0]
    evicted = ", or Redis has evicted its version" if first.state == "no version" and state.server.evicted != 0 else ""
    if first.kind == "namespace":
        return _namespace_gone(state, entry, evicted)
    if first.kind == "task":
        cleared = f"clear(task={first.name!r}) has emptied the task since it was computed{evicted}."
        return Finding("miss", "cleared", cleared)
    names = [tag.name for tag in bad]
    where = "its result" if first.kind == "result" else "the arguments"
    if any(tag.state == "invalidated since" for tag in bad) or state.server.evicted == 0:
        which = _capital(_tag_list(names))
        return Finding("miss", "invalidated", f"{which}, from {where}, was invalidated after its compute began.")
    reason = f"{_capital(_tag_list(names))} has no version any more: it was invalidated, or Redis has evicted it."
    return Finding("miss", "no version", reason, "If Redis evicts, give it more memory: evicted tags cost hits.")


def _namespace_gone(state: State, entry: WhyEntry, evicted: str) -> Finding:
    uptime, computed_at = state.server.uptime, entry.computed_at
    # The server counts whole seconds.
    if uptime is not None and computed_at is not None and computed_at < state.now - uptime - 1:
        reason = (
            f"It is older than the Redis server, which started {span(uptime)} ago: what a server brings back from its "
            "disk may have been invalidated meanwhile, and counts as cleared."
        )
        return Finding("miss", "restarted", reason)
    reason = (
        f"clear() has emptied the namespace since it was computed{evicted}, or another Redis server has taken over."
    )
    return Finding("miss", "cleared", reason)


def _expired(entry: WhyEntry) -> Finding | None:
    if entry.state != "expired":
        return None
    since = span(-(entry.usable_for or 0))
    return Finding("miss", "expired", f"It has expired since {since}, by the clock of this machine.")


def _tag_list(names: list[str]) -> str:
    return ("the tag " if len(names) == 1 else "one of the tags ") + ", ".join(map(repr, names))


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# -- who computes -----------------------------------------------------------------------------------------------------


def _computing(state: State, tiers: Finding) -> Finding:
    lease = state.lease if state.redis == "answers" else None  # a Redis that is left alone is not asked for it
    if lease is not None and not lease.current:
        reason = (
            f"{_who(lease)} computes it since before one of its tags was invalidated: what comes of it is not stored."
        )
        takes_over = "The next call does not wait: it takes the lease over."
        return _waiting_write(state) or Finding("miss", "doomed leader", reason, takes_over, tiers.notes)
    if state.policy.coalesce is False and (lease is not None or state.flying):
        who = _who(lease) if lease is not None else "This process"
        reason = f"{who} computes it, and coalesce=False: the call does not wait, and computes as well."
        return _waiting_write(state) or Finding("miss", "not coalesced", reason, notes=(tiers.reason,))
    if lease is not None:
        return _held(state, lease, tiers)
    if state.flying:
        return Finding("held", "computing", "This process computes it now: the call waits for that.")
    return _waiting_write(state) or tiers


def _held(state: State, lease: WhyLease, tiers: Finding) -> Finding:
    left, limit = span(lease.seconds_left), f"{state.policy.wait_limit:g} s"
    if lease.state == "handed over":
        who = f"task {lease.task_id}" if lease.task_id else "a message"
        reason = f"The lease is kept for {who}, a retry or a refresh that is to come, for {left} at most."
        return Finding("held", "handed over", f"{reason} A call waits for it.", notes=(tiers.reason,))
    reason = f"{_who(lease)} computes it now; the lease has {left} left, unless it is renewed."
    return Finding("held", "computing", f"{reason} A call waits for it, {limit} at most.", notes=(tiers.reason,))


def _who(lease: WhyLease) -> str:
    return f"Task {lease.task_id}" if lease.task_id else "A direct call"


def _waiting_write(state: State) -> Finding | None:
    if state.write is None or state.write.deleted:
        return None
    reason = f"The value waits in the journal for sink {state.write.sink}, and answers in place of the body."
    return Finding("hit", "waits for its sink", reason)
