"""From a task and its arguments to `Why`: the call is bound as its body would bind it, and the engine looks.

It says what switches a task off and why a call has no key; what the tiers have, and what follows, is for the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from celery_cachetiers.entry import MISSING
from celery_cachetiers.errors import UncacheableArgument
from celery_cachetiers.explaining import HITS, Finding, State, explain
from celery_cachetiers.memoized import Memoized
from celery_cachetiers.observing import Observed
from celery_cachetiers.why import Why


@dataclass(frozen=True, slots=True)
class Asked:
    """The answer, and the value that the call would get without a compute; `MISSING` if there is none."""

    why: Why
    value: object = MISSING


def ask(memoized: Memoized, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: str = "use") -> Asked:
    """Why a call would be a hit or a miss, asked with the arguments as the worker would see them; leaves no trace."""
    off = _off(memoized)
    try:
        values = memoized.binder(args, kwargs)
    except TypeError as error:
        finding = Finding("wrong arguments", "wrong arguments", f"The body would raise TypeError: {error}")
        given = {**{f"args[{at}]": value for at, value in enumerate(args)}, **kwargs}
        return _without_key(memoized, finding, off, mode, arguments=given)
    known = _known(memoized, values)
    try:
        key = memoized.keys.digest_of(values)
    except UncacheableArgument as error:
        remedy = "Pass something that has a canonical form, leave it out with ignore=, or give the task a key=."
        return _without_key(memoized, _uncacheable(memoized, "argument", error, remedy), off, mode, **known)
    known |= {"key": key, "made_of": memoized.keys.content(values)}
    call = memoized.call(args, kwargs)
    try:
        call.tags  # noqa: B018 - rendered here, where a fault of theirs is an answer
    except Exception as error:
        return _without_key(memoized, _uncacheable(memoized, "tags", error), off, mode, **known)
    observed = memoized.cache.observe(call)
    state = replace(observed.state, off=off, mode=mode)
    finding = explain(state)
    return Asked(_why(memoized, finding, state, known), _value(observed, finding))


def _value(observed: Observed, finding: Finding) -> object:
    return observed.value(finding) if finding.verdict in HITS else MISSING


def _without_key(memoized: Memoized, finding: Finding, off: str, mode: str, **known: Any) -> Asked:
    finding = explain(State(policy=memoized.policy, off=off, mode=mode, no_key=finding))
    return Asked(_why(memoized, finding, None, known, mode))


def _why(memoized: Memoized, finding: Finding, state: State | None, known: Mapping[str, Any], mode: str = "use") -> Why:
    parts: dict[str, Any] = {"mode": mode}
    if state is not None:
        names = ("mode", "tags", "l1", "redis", "entry", "lease", "outcome", "write")
        parts = {name: getattr(state, name) for name in names}
    return Why(
        verdict=finding.verdict,
        cause=finding.cause,
        reason=finding.reason,
        remedy=finding.remedy,
        notes=(*finding.notes, *_at_publish(memoized, finding)),
        task=memoized.name,
        version=memoized.policy.version,
        **parts,
        **known,
    )


def _known(memoized: Memoized, values: tuple[Any, ...]) -> dict[str, Any]:
    arguments = memoized.binder.arguments(values)
    return {"arguments": arguments, "ignored": tuple(name for name in arguments if name in memoized.policy.ignore)}


def _uncacheable(memoized: Memoized, cause: str, error: Exception, remedy: str = "") -> Finding:
    strict = memoized.extension.settings.strict_keys
    notes = ("cachetiers_strict_keys raises that.",) if strict else ()
    return Finding("uncacheable", cause, f"{_sentence(error)}: nothing is cached of the call.", remedy, notes)


def _sentence(error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text[:1].upper() + text[1:]


def _off(memoized: Memoized) -> str:
    """Why nothing of the task is cached; "" if it is."""
    if memoized.extension.suspended:
        return "The cache is suspended in this process, as tests do it."
    if not memoized.extension.settings.enabled:
        return "cachetiers_enabled is False, or the environment has CACHETIERS_ENABLED=0."
    if not memoized.policy.cache_enabled:
        return "The task has cache_enabled=False."
    if not memoized.enabled:
        return "The task has the base of its app, and no option of its own: such a task is not cached."
    return ""


def _at_publish(memoized: Memoized, finding: Finding) -> list[str]:
    """Why a hit does not spare the message."""
    if finding.verdict not in HITS or memoized.answers_at_publish:
        return []
    if not memoized.policy.publish_hits:
        because = "publish_hits=False"
    elif memoized.policy.invalidates:
        because = "the task declares invalidates="
    else:
        because = "the task overrides before_start, on_success or after_return"
    return [f"delay() sends a message all the same ({because}); the worker answers it."]
