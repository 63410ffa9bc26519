"""L2 in Redis: one ``MGET`` per read, validated here; one script per change. The protocol is in lua/*.lua.

Every command names all its keys, and all of them lie in the entry's bucket.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from celery_cachetiers.client import Argument, Build, Command, RedisClient, Script
from celery_cachetiers.entry import TIMES_AT, RawEntry, Times, pack_times, stamp_matches, tag_block, unpack
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.ports import NO_ROOM, Found, Free, Held, Leading, LeaseAnswer, LeaseRequest, Leave, Left
from celery_cachetiers.templates import key_tag
from celery_cachetiers.tiers.layout import Layout

NONCE = 8
"""Bytes of a tag's version: random, so that a version that comes back never equals an older one."""

_LEASE, _COMMIT, _RELEASE = Script("lease"), Script("commit"), Script("release")
_RENEW, _PUT, _HAND_OVER = Script("renew"), Script("put"), Script("hand_over")


def announcement(sender: str, names: Sequence[str]) -> str:
    """The message that tells all processes what was invalidated; its sender has already acted on it."""
    return json.dumps([sender, list(names)], separators=(",", ":"))


class RedisStore:
    """Entries, leases and tag versions on one Redis server.

    Concurrency: holds no state of its own; thread- and fork-safe as its client is.

    Args:
        inbox: Name of this process' channel; a function, as a forked child has another.
        unusable: Told the reason when bytes in Redis are no entry of ours.
    """

    def __init__(
        self,
        client: RedisClient,
        layout: Layout,
        inbox: Callable[[], str],
        unusable: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self._client, self._layout, self._inbox, self._unusable = client, layout, inbox, unusable

    def read(self, digest: str, tags: tuple[str, ...]) -> RawEntry | None:
        names = self._layout.entry_and_versions
        answer = self._client.call(lambda run_id: ("MGET", *names(digest, tags, run_id)))
        return self._valid(answer[0], tags, answer[1:])

    def versions(self, tags: tuple[str, ...]) -> bytes | None:
        nonces = self._client.call(lambda run_id: ("MGET", *self._versions("0" * 32, tags, run_id)))
        return None if None in nonces else b"".join(nonces)

    def confirms(self, digest: str, tags: tuple[str, ...], stamp: bytes, times: Times) -> bool:
        """As the port says; the times tell an entry from one that was put in its place under the same stamp."""

        def compare_tags(run_id: str) -> Command:
            return ("MGET", *self._versions(digest, tags, run_id))

        def compare_times(_: str) -> Command:
            return ("GETRANGE", self._layout.entry(digest), TIMES_AT.start, TIMES_AT.stop - 1)

        nonces, there = self._client.pipeline([compare_tags, compare_times])
        return None not in nonces and b"".join(nonces) == stamp and there == pack_times(times)

    def lease(self, request: LeaseRequest) -> LeaseAnswer:
        digest = request.digest
        args: list[Argument] = [
            request.hand_to or request.token,
            _ms(request.lease_ttl),
            _ms(request.keep_for),
            os.urandom(NONCE * len(request.tags)),
            tag_block(request.tags),
            "" if request.now is None else repr(request.now),
            hashlib.sha1(request.rejected, usedforsecurity=False).hexdigest() if request.rejected else "",
            request.claim,
            request.take_over,
            self._inbox() if request.will_wait else "",
            "w" if request.watch else "h" if request.hand_to else "c",
            request.waits_for,
        ]
        answer = self._client.run(_LEASE, self._script(_LEASE, digest, request.tags, args, left=True))
        if answer[0] == 1:
            return self._found(answer[1], request)
        if answer[0] == 4:
            return Free()
        if answer[0] == 5:
            return self._left(answer[1] == b"e", answer[2], request)
        stale = self._unpacked(answer[-1]) if answer[-1] else None
        if answer[0] == 2:
            return Leading(answer[1], stale)
        return Held(answer[1].decode(errors="replace"), max(answer[2], 0) / 1000, stale)

    def commit(self, request: LeaseRequest, body: bytes, hard_ttl: float, *, announce: bool = False) -> int:
        digest = request.digest
        args: list[Argument] = [
            request.token,
            _ms(hard_ttl),
            _ms(request.keep_for),
            body,
            self._layout.inboxes,
            digest,
            self._layout.announcements if announce else "",
            announcement(self._inbox(), [key_tag(digest)]) if announce else "",
        ]
        return int(self._client.run(_COMMIT, self._script(_COMMIT, digest, request.tags, args)))

    def release(self, digest: str, token: str, leave: Leave | None = None) -> bool:
        keys = (self._layout.lease(digest), self._layout.waiters(digest), self._layout.left(digest))
        args: list[Argument] = [token, self._layout.inboxes, digest]
        args += [""] * 3 if leave is None else ["e" if leave.failed else "v", leave.body, _ms(leave.seconds)]
        command = _RELEASE.command(keys, args)
        return bool(self._client.run(_RELEASE, lambda _: command))

    def hand_over(self, digest: str, token: str, task_id: str, seconds: float) -> bool:
        keys = (self._layout.lease(digest), self._layout.waiters(digest))
        command = _HAND_OVER.command(keys, (token, task_id, _ms(seconds)))
        return bool(self._client.run(_HAND_OVER, lambda _: command))

    def renew(self, request: LeaseRequest) -> bool:
        digest = request.digest
        args = (request.token, _ms(request.lease_ttl), _ms(request.keep_for))

        def build(run_id: str) -> Sequence[Argument]:
            versions = self._versions(digest, request.tags, run_id)
            keys = (self._layout.lease(digest), self._layout.waiters(digest), *versions)
            return _RENEW.command(keys, args)

        return bool(self._client.run(_RENEW, build))

    def put(self, request: LeaseRequest, body: bytes, hard_ttl: float) -> None:
        nonces = os.urandom(NONCE * len(request.tags))
        if self._replace(request.digest, request.tags, body, hard_ttl, request.keep_for, nonces) == NO_ROOM:
            raise TierUnavailable("the server would not store the entry")

    def fence(self, digest: str) -> None:
        self._replace(digest, (), b"", 0.0, 0.0, b"")

    def invalidate(self, tags: Sequence[str]) -> None:
        """Asks every bucket to forget the versions, then announces it; the breaker is not asked."""

        def unlink(bucket: int) -> Build:
            return lambda run_id: ("UNLINK", *self._layout.versions(bucket, tags, run_id))

        def publish(_: str) -> Command:
            return ("PUBLISH", self._layout.announcements, message)

        message = announcement(self._inbox(), tags)
        self._client.pipeline([*map(unlink, range(self._layout.buckets)), publish], must_try=True)

    def reachable(self) -> bool:
        return self._client.breaker.closed

    def close(self) -> None:
        self._client.close()

    def reset_after_fork(self) -> None:
        self._client.reset_after_fork()

    def _replace(
        self, digest: str, tags: tuple[str, ...], body: bytes, hard_ttl: float, keep_for: float, nonces: bytes
    ) -> int:
        message = announcement(self._inbox(), [key_tag(digest)])
        args: list[Argument] = [
            _ms(hard_ttl), _ms(keep_for), nonces, body, self._layout.inboxes, digest,
            self._layout.announcements, message,
        ]  # fmt: skip
        return int(self._client.run(_PUT, self._script(_PUT, digest, tags, args, left=True), must_try=True))

    def _script(
        self,
        script: Script,
        digest: str,
        tags: tuple[str, ...],
        args: Sequence[Argument],
        *,
        left: bool = False,
    ) -> Build:
        own = (*self._own(digest), self._layout.left(digest)) if left else self._own(digest)
        return lambda run_id: script.command((*own, *self._versions(digest, tags, run_id)), args)

    def _own(self, digest: str) -> tuple[str, ...]:
        return self._layout.entry(digest), self._layout.lease(digest), self._layout.waiters(digest)

    def _versions(self, digest: str, tags: tuple[str, ...], run_id: str) -> list[str]:
        return self._layout.versions(self._layout.bucket(digest), tags, run_id)

    def _valid(self, data: bytes | None, tags: tuple[str, ...], nonces: Sequence[bytes | None]) -> RawEntry | None:
        raw = self._unpacked(data) if data else None
        if raw is None or raw.header.tag_block != tag_block(tags) or not stamp_matches(raw, nonces):
            return None
        return raw

    def _found(self, data: bytes, request: LeaseRequest) -> LeaseAnswer:
        raw = self._unpacked(data)
        if raw is not None:
            return Found(raw)
        if data == request.rejected:
            raise TierUnavailable("the server offers an entry that was rejected")
        return self.lease(replace(request, rejected=data))  # the script looks less closely than we do

    def _left(self, failed: bool, body: bytes, request: LeaseRequest) -> LeaseAnswer:
        raw = self._unpacked(body + bytes(NONCE * len(request.tags)))
        return Left(raw, failed) if raw is not None else self.lease(replace(request, waits_for=""))

    def _unpacked(self, data: Any) -> RawEntry | None:
        try:
            return unpack(data)
        except Exception as error:
            self._unusable(getattr(error, "reason", "malformed"))
            return None


def _ms(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
