"""One call on its way to a value: what it asks L2 for, and how long it has waited."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from celery_cachetiers.call import Call
from celery_cachetiers.decisions import Waiting
from celery_cachetiers.entry import MISSING
from celery_cachetiers.flight import Flight
from celery_cachetiers.ports import Compute, LeaseRequest

ANY_HOLDER = "*"


def _never() -> object:
    raise AssertionError("an attempt that does not compute was asked to")


@dataclass(slots=True)
class Attempt:
    """The state of one call while it goes through the engine; used by one thread.

    Attributes:
        compute: Runs the body.
        arrived: Monotonic instant of the call: what it is answered with must not have been invalidated before it.
        began: Monotonic instant from which its waiting counts; starts over when another leader is waited for.
        claim: The task id, to which a lease may have been handed.
        refresh: It computes whatever there is, and replaces it.
        flight: The flight that it leads in this process, if it does.
        waits_for: Token of the leader that it waits for.
        take_over: Token of the leader that it waits for no longer, or `ANY_HOLDER`.
        waited: It has waited for a leader: what it finds then was computed for it.
        rejected: Bytes of an entry that could not be used, not to be offered again.
        unsure: A request for the lease had no answer: it may have been granted.
        stale: A stale value in hand, for the case that somebody else computes.
    """

    call: Call
    compute: Compute = _never
    arrived: float = 0.0
    began: float = field(init=False)
    claim: str = ""
    refresh: bool = False
    flight: Flight | None = None
    waits_for: str = ""
    take_over: str = ""
    waited: bool = False
    rejected: bytes | None = None
    unsure: bool = False
    stale: object = MISSING
    nonce: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        self.began = self.arrived

    @property
    def token(self) -> str:
        """Names this attempt."""
        return f"{self.claim}:{self.nonce}"

    def request(self, now: float) -> LeaseRequest:
        """The request for a lease; the same token every time."""
        call, policy = self.call, self.call.memo.policy
        return LeaseRequest(
            digest=call.digest,
            tags=call.tags,
            token=self.token,
            lease_ttl=policy.lease_ttl,
            keep_for=policy.hard_ttl + policy.lease_ttl,
            now=None if self.refresh or self.take_over == ANY_HOLDER else now,
            rejected=self.rejected,
            claim=self.claim,
            take_over=self.take_over,
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
