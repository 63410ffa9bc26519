"""How Redis is asked what it holds under one key: commands that read, in one packet, and no script.

One ``MGET`` has the entry, the lease and the versions as they are at one moment. What is asked beside it, times to live
and the like, may be a moment younger. A right that is missing, or a key of another type, leaves out what it would tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from celery_cachetiers.client import Build, Command, RedisClient
from celery_cachetiers.inspected import HeldLease, Inspected, Outcome, Server, Version
from celery_cachetiers.tiers.layout import Layout

_LENGTH_AT: Final = slice(1, 3)
_TOKEN_AT: Final = 3
_HEAD_BYTES: Final = 1024
"""Of what a leader left: enough for its kind and its token, and never the value, which may be large."""
_ABSENT: Final = -2


def inspect(client: RedisClient, layout: Layout, digest: str, tags: Sequence[str]) -> Inspected:
    """What there is under a key. Raises `TierUnavailable`. Costs: 1 round trip."""
    entry, lease, waiters, left = (
        layout.entry(digest), layout.lease(digest), layout.waiters(digest), layout.left(digest),
    )  # fmt: skip

    def versions(run_id: str) -> list[str]:
        return layout.versions(layout.bucket(digest), tags, run_id)

    def pttl_of_version(at: int) -> Build:
        return lambda run_id: ("PTTL", versions(run_id)[at])

    def all_at_once(run_id: str) -> Command:
        return ("MGET", entry, lease, *versions(run_id))

    answers = client.look(
        [
            all_at_once,
            lambda _: ("PTTL", entry),
            lambda _: ("PTTL", lease),
            lambda _: ("PTTL", left),
            lambda _: ("GETRANGE", left, 0, _HEAD_BYTES - 1),
            lambda _: ("SMEMBERS", waiters),
            lambda _: ("INFO", "server"),
            lambda _: ("INFO", "stats"),
            *(pttl_of_version(at) for at in range(len(tags))),
        ]
    )
    values, entry_left, lease_left, left_left, head, inboxes, server, stats, *versions_left = answers
    found, held, *nonces = values
    return Inspected(
        entry=b"" if found is None and _is_there(entry_left) else found,
        entry_seconds_left=_seconds(entry_left),
        lease=_lease(held, _seconds(lease_left), len(inboxes) if isinstance(inboxes, list) else 0),
        versions={
            tag: Version(nonce, _seconds(left))
            for tag, nonce, left in zip(tags, nonces, versions_left, strict=True)
            if nonce is not None
        },
        outcome=_outcome(head, _seconds(left_left)),
        server=_server({**_fields(server), **_fields(stats)}),
    )


def _lease(held: bytes | None, seconds_left: float, inboxes: int) -> HeldLease | None:
    if held is None:
        return None
    token, stamp = _head(held)
    return HeldLease(token, held[:1] == b"h", stamp, seconds_left, inboxes)


def _outcome(head: Any, seconds_left: float) -> Outcome | None:
    if not isinstance(head, bytes) or not head:
        return None
    return Outcome(head[:1] == b"e", _head(head)[0], seconds_left)


def _head(data: bytes) -> tuple[str, bytes]:
    """The token in what a lease, or an outcome, begins with, and what comes after it."""
    end = _TOKEN_AT + int.from_bytes(data[_LENGTH_AT], "little")
    return data[_TOKEN_AT:end].decode(errors="replace"), data[end:]


def _fields(answer: Any) -> Mapping[str, str]:
    if not isinstance(answer, bytes):
        return {}
    lines = (line.partition(":") for line in answer.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _server(told: Mapping[str, str]) -> Server:
    uptime, evicted = told.get("uptime_in_seconds", ""), told.get("evicted_keys", "")
    return Server(
        uptime=float(uptime) if uptime.isdecimal() else None, evicted=int(evicted) if evicted.isdecimal() else None
    )


def _is_there(pttl: Any) -> bool:
    return isinstance(pttl, int) and pttl != _ABSENT


def _seconds(pttl: Any) -> float:
    return max(pttl, 0) / 1000 if isinstance(pttl, int) else 0.0
