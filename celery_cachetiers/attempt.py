"""One call on its way to a value: the terms it is made under, what it asks L2 for, and how long it has waited."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from celery_cachetiers.call import Call
from celery_cachetiers.decisions import Waiting
from celery_cachetiers.entry import MISSING
from celery_cachetiers.flight import Flight
from celery_cachetiers.ports import Compute, LeaseRequest

ANY_HOLDER = "*"


class HeldElsewhere(Exception):
    """Raised instead of waiting, for a call that may not block.

    Attributes:
        holder: Token of the leader; "" if that is not known.
        seconds_left: Until its lease ends, unless it is renewed.
    """

    def __init__(self, holder: str, seconds_left: float) -> None:
        self.holder, self.seconds_left = holder, seconds_left
        super().__init__(holder, seconds_left)


def _raise(error: BaseException) -> NoReturn:
    raise error


class Terms(NamedTuple):
    """How one call wants to be served.

    Attributes:
        claim: The task id, to which a lease may have been handed, and to which this one will be handed on a retry.
        looked: The caller has just missed: L2 is not read again before the lease, which looks too.
        refresh: Compute whatever there is, and replace it.
        nonce: With the claim, the name of this attempt; random if it is empty.
        take_over: Token of the leader that is waited for no longer, or `ANY_HOLDER`.
        waits_for: Token of the leader that was waited for before.
        may_block: False raises `HeldElsewhere` where it would have to wait.
        waits_for_store: False answers without waiting for L2 to have taken the value, if that was computed in a moment.
        counts: False for what nobody has called for, such as the message of a refresh: no hit, no miss.
        fail: Called with an exception that the leader shared; raises it, or what the task makes of it.
    """

    claim: str = ""
    looked: bool = False
    refresh: bool = False
    nonce: str = ""
    take_over: str = ""
    waits_for: str = ""
    may_block: bool = True
    waits_for_store: bool = True
    counts: bool = True
    fail: Callable[[BaseException], object] = _raise


PLAIN = Terms()


def _never() -> object:
    raise AssertionError("an attempt that does not compute was asked to")


@dataclass(slots=True)
class Attempt:
    """The state of one call while it goes through the engine; used by one thread.

    Attributes:
        compute: Runs the body.
        arrived: Monotonic instant of the call: what it is answered with must not have been invalidated before it.
        began: Monotonic instant from which its waiting counts; starts over when another leader is waited for.
        flight: The flight that it leads in this process, if it does.
        waits_for: Token of the leader that it waits for.
        take_over: Token of the leader that it waits for no longer, or `ANY_HOLDER`.
        waited: It has waited for a leader: what it finds then was computed for it.
        rejected: Bytes of an entry that could not be used, not to be offered again.
        unsure: A request for the lease had no answer: it may have been granted.
        stale: A stale value in hand, for the case that somebody else computes.
        saved: What that took to compute.
        wait_seconds: How long it has waited for leaders, in this process or in others; ``None`` if it has not.
    """

    call: Call
    compute: Compute = _never
    arrived: float = 0.0
    terms: Terms = PLAIN
    began: float = field(init=False)
    flight: Flight | None = None
    waits_for: str = field(init=False)
    take_over: str = field(init=False)
    waited: bool = False
    rejected: bytes | None = None
    unsure: bool = False
    stale: object = MISSING
    saved: float = 0.0
    wait_seconds: float | None = None
    nonce: str = field(init=False)

    def __post_init__(self) -> None:
        self.began, self.take_over, self.waits_for = self.arrived, self.terms.take_over, self.terms.waits_for
        self.nonce = self.terms.nonce or secrets.token_hex(8)

    @property
    def token(self) -> str:
        """Names this attempt."""
        return f"{self.terms.claim}:{self.nonce}"

    def request(self, now: float) -> LeaseRequest:
        """The request for a lease; the same token every time."""
        call, policy, terms = self.call, self.call.memo.policy, self.terms
        return LeaseRequest(
            digest=call.digest,
            tags=call.tags,
            token=self.token,
            lease_ttl=policy.lease_ttl,
            keep_for=policy.hard_ttl + policy.lease_ttl,
            now=None if terms.refresh or self.take_over == ANY_HOLDER else now,
            rejected=self.rejected,
            claim=terms.claim,
            take_over=self.take_over,
            waits_for=self.waits_for,
            will_wait=terms.may_block,
            guess=call.guess,
        )

    def meet(self, holder: str, now: float) -> None:
        """Notes whom it waits for; its time starts over when that is another than before.

        Args:
            now: Monotonic.
        """
        if self.waits_for not in ("", holder):
            self.began = now
        self.waits_for = holder
        if self.flight is not None:
            self.flight.holder = holder

    def waiting(self, now: float, *, nested: bool) -> Waiting:
        """How long it has waited and may: a call inside another compute not past one lease TTL.

        Args:
            now: Monotonic.
        """
        policy = self.call.memo.policy
        return Waiting(now - self.began, policy.lease_ttl if nested else policy.wait_limit, nested)
