"""What to do with what was found: pure functions of entry, lease, policy and time. The caller does the I/O."""

from __future__ import annotations

import math
from enum import Enum
from typing import NamedTuple

from celery_cachetiers.entry import Times
from celery_cachetiers.policy import Policy
from celery_cachetiers.ports import Found, Free, Held, Leading, LeaseAnswer, Left


class Freshness(Enum):
    """Where an entry stands in its life."""

    FRESH = "fresh"
    STALE = "stale"
    EXPIRED = "expired"


def freshness(times: Times, now: float) -> Freshness:
    """Fresh before the soft TTL, stale up to the hard one, expired after it."""
    if now < times.fresh_until:
        return Freshness.FRESH
    return Freshness.STALE if now < times.expires_at else Freshness.EXPIRED


def refresh_is_due(times: Times, policy: Policy, now: float, draw: float) -> bool:
    """Whether a fresh entry should be computed again before its time.

    Args:
        draw: A random number in (0, 1]; 1 never advances the moment.

    Source: ``refresh_ahead`` is FusionCache's eager refresh; ``beta`` is XFetch, Vattani, Chierichetti and
    Lowenstein, "Optimal Probabilistic Cache Stampede Prevention", VLDB 2015.
    """
    if policy.refresh_ahead is not None and now >= refresh_ahead_at(times, policy.refresh_ahead):
        return True
    if policy.beta is None:
        return False
    return now - times.compute_seconds * policy.beta * math.log(draw) >= times.fresh_until


def refresh_ahead_at(times: Times, share: float) -> float:
    """The instant at which a share of the time that the value is fresh has passed."""
    return times.computed_at + share * (times.fresh_until - times.computed_at)


def times_of(policy: Policy, ttl: float, now: float, compute_seconds: float, draw: float) -> Times:
    """The times of a value whose compute started at ``now``; ``draw`` in [0, 1) spreads them by the jitter.

    A value with a short ``ttl`` of its own loses half of it at most.
    """
    fresh_until = now + ttl - min(policy.jitter, ttl / 2 if ttl < policy.ttl else policy.jitter) * draw
    return Times(now, fresh_until, fresh_until + policy.grace, compute_seconds)


class Action(Enum):
    """What the caller of a lease does next."""

    ANSWER = "answer with what was found"
    COMPUTE = "compute under the lease"
    ANSWER_STALE = "answer with the stale value"
    WAIT = "wait for the leader"
    TAKE_OVER = "stop waiting, replace the leader"
    RUN_ALONE = "stop waiting, compute without a lease"


class Waiting(NamedTuple):
    """How long a call has waited, and may: seconds. A nested call is made inside another compute."""

    waited: float
    limit: float
    nested: bool


def after_lease(answer: LeaseAnswer, waiting: Waiting) -> tuple[Action, float]:
    """The next action, and for `Action.WAIT` its bound in seconds.

    1. A fresh entry answers, and so does what the leader left that was waited for; a lease computes.
    2. Held elsewhere: a stale value answers at once.
    3. Otherwise wait, never past the lease's end (its holder may be dead by then) nor past the limit.
    4. Past the limit one follower replaces the leader it waited for; a nested call runs without a lease, as two
       bodies may be waiting for each other.
    """
    match answer:
        case Found() | Left():
            return Action.ANSWER, 0.0
        case Leading() | Free():
            return Action.COMPUTE, 0.0
        case Held(stale=stale) if stale is not None:
            return Action.ANSWER_STALE, 0.0
        case Held(seconds_left=left):
            remaining = waiting.limit - waiting.waited
            if remaining > 0:
                return Action.WAIT, max(min(left, remaining), 0.0)
            return (Action.RUN_ALONE if waiting.nested else Action.TAKE_OVER), 0.0
