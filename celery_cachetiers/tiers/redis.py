"""L2 in Redis: one ``MGET`` per read, validated here; one script per change. The protocol is in lua/*.lua.

Every command names all its keys, and all of them lie in the entry's bucket.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from redis.exceptions import NoScriptError, ResponseError

from celery_cachetiers.client import Argument, Build, Command, RedisClient, Script, Step, was_answered
from celery_cachetiers.entry import (
    TIMES_AT,
    RawEntry,
    Times,
    pack_times,
    result_tags,
    stamp_begins,
    stamp_matches,
    tag_block,
    unpack,
    unpack_body,
)
from celery_cachetiers.errors import TierUnavailable, UnusableEntry
from celery_cachetiers.inspected import Inspected
from celery_cachetiers.ports import (
    NO_ROOM,
    Found,
    Free,
    Held,
    Leading,
    LeaseAnswer,
    LeaseRequest,
    Leave,
    Left,
    LogPosition,
    Put,
    ResultTags,
)
from celery_cachetiers.templates import key_tag
from celery_cachetiers.tiers import inspecting
from celery_cachetiers.tiers.layout import Layout

NONCE = 8
"""Bytes of a tag's version: random, so that a version that comes back never equals an older one."""

_LEASE, _COMMIT, _RELEASE = Script("lease"), Script("commit"), Script("release")
_RENEW, _PUT, _HAND_OVER, _INVALIDATE = Script("renew"), Script("put"), Script("hand_over"), Script("invalidate")

LOG_LENGTH = 10_000
"""Tags that the invalidation log of a bucket holds at most."""
_AT_ONCE = 1000
_GUESSES = 4
"""An entry that has other tags of its result each time somebody looks is taken as a miss after so many looks."""


def announcement(sender: str, names: Sequence[str]) -> str:
    """The message that tells all processes what was invalidated; its sender has already acted on it."""
    return json.dumps([sender, list(names)], separators=(",", ":"))


class RedisStore:
    """Entries, leases and tag versions on one Redis server.

    Concurrency: holds no state of its own that matters; thread- and fork-safe as its client is.

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
        self._commits_since = -1  # as many loads of scripts as there had been at the last commit that was waited for

    def read(self, digest: str, tags: tuple[str, ...], guess: tuple[str, ...] | None = None) -> RawEntry | None:
        raw, nonces = self._read(digest, tags + (guess or ()))
        if guess is None or raw is None:
            return self._valid(raw, tags, nonces)
        for _ in range(_GUESSES):
            if raw is None or raw.header.tag_block == tag_block(tags + guess):
                break
            more = self._result_tags(raw.header.tag_block, tags)
            if more is None or not stamp_begins(raw, nonces[: len(tags)]):
                return None
            guess = more
            raw, nonces = self._read(digest, tags + guess)
        return self._valid(raw, tags + guess, nonces)

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
        return self._lease(request, _GUESSES)

    def _lease(self, request: LeaseRequest, guesses: int) -> LeaseAnswer:
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
        guess = request.guess
        if guess is not None:
            args[4] = tag_block(request.tags + guess)
            args += [len(request.tags), os.urandom(NONCE).hex(), tag_block(request.tags)]
        answer = self._client.run(_LEASE, self._script(_LEASE, digest, request.tags, args, left=True, more=guess))
        match answer[0]:
            case 1:
                return self._found(answer[1], request)
            case 2:
                since = LogPosition(answer[4], int(answer[5])) if guess is not None else None
                outdated = (*request.tags, *(guess or ()))[answer[3] - 1] if answer[3] else ""
                return Leading(answer[1], self._stale(answer[2]), since, outdated)
            case 4:
                return Free()
            case 5:
                return self._left(answer[1] == b"e", answer[2], request)
            case 6:
                return self._lease_again(answer[1], request, guesses)
        return Held(answer[1].decode(errors="replace"), max(answer[2], 0) / 1000, self._stale(answer[3]))

    def commit(
        self,
        request: LeaseRequest,
        body: bytes,
        hard_ttl: float,
        *,
        announce: bool = False,
        result: ResultTags | None = None,
    ) -> int:
        outcome = int(self._client.run(_COMMIT, self._committing(request, body, hard_ttl, announce, result)))
        self._commits_since = self._client.loads
        return outcome

    def _committing(
        self,
        request: LeaseRequest,
        body: bytes,
        hard_ttl: float,
        announce: bool = False,
        result: ResultTags | None = None,
    ) -> Build:
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
        names = None
        if result is not None:
            names, since = result.names, result.since
            args += [len(request.tags), since.epoch, since.count, os.urandom(NONCE * len(names)), *names]
        return self._script(_COMMIT, digest, request.tags, args, more=names)

    def commit_later(
        self, request: LeaseRequest, body: bytes, hard_ttl: float, settled: Callable[[int | None], None]
    ) -> bool:
        if self._commits_since != self._client.loads:  # the script may have to be loaded, with the lease held meanwhile
            return False
        build = self._committing(request, body, hard_ttl)
        return self._client.send(build, partial(self._committed, request, body, hard_ttl, settled))

    def _committed(
        self, request: LeaseRequest, body: bytes, hard_ttl: float, settled: Callable[[int | None], None], answer: Any
    ) -> None:
        """What a commit that nobody has waited for has come to."""
        if type(answer) is int:
            return settled(answer)
        outcome = None
        with suppress(TierUnavailable):
            if isinstance(answer, NoScriptError):
                outcome = self.commit(request, body, hard_ttl)
            elif isinstance(answer, ResponseError):
                self.release(request.digest, request.token)
        return settled(outcome)

    def settle(self) -> None:
        self._client.settle()

    def release(self, digest: str, token: str, leave: Leave | None = None) -> bool:
        keys = (self._layout.lease(digest), self._layout.waiters(digest), self._layout.left(digest))
        args: list[Argument] = [token, self._layout.inboxes, digest]
        if leave is None:
            args += [""] * 4
        else:
            since = b"" if leave.since is None else b"%b%d" % (leave.since.epoch, leave.since.count)
            args += ["e" if leave.failed else "v", leave.body, _ms(leave.seconds), since]
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
            keys = [self._layout.lease(digest), self._layout.waiters(digest), *versions]
            if request.guess is not None:
                keys.append(self._layout.log(self._layout.bucket(digest)))
            return _RENEW.command(keys, args)

        return bool(self._client.run(_RENEW, build))

    def put(self, request: LeaseRequest, body: bytes, hard_ttl: float) -> None:
        nonces = os.urandom(NONCE * len(request.tags))
        if self._replace(request.digest, request.tags, body, hard_ttl, request.keep_for, nonces) == NO_ROOM:
            raise TierUnavailable("the server would not store the entry")

    def put_all(self, puts: Sequence[Put], beside: object | None = None) -> None:
        first = [beside] if isinstance(beside, Step) else []
        steps = [self._putting(put) for put in puts]
        try:
            self._client.transact([*first, *steps])
        except TierUnavailable as error:
            if was_answered(error):  # a full server refuses the transaction as a whole: older entries are not to stay
                self.fence(*[put.request.digest for put in puts])
            raise
        if any(step.answer == NO_ROOM for step in steps):
            raise TierUnavailable("the server would not store the entry")

    def _putting(self, put: Put) -> Step:
        request = put.request
        nonces = os.urandom(NONCE * len(request.tags))
        build = self._replacing(request.digest, request.tags, put.body, put.hard_ttl, request.keep_for, nonces)
        return Step(_PUT, build)

    def fence(self, *digests: str) -> None:
        for at in range(0, len(digests), _AT_ONCE):
            builds = [self._replacing(digest, (), b"", 0.0, 0.0, b"") for digest in digests[at : at + _AT_ONCE]]
            self._client.run_all(_PUT, builds, must_try=True)

    def invalidate(self, tags: Sequence[str]) -> None:
        """Asks every bucket to forget the versions, then announces it; the breaker is not asked."""

        def forget(bucket: int, names: Sequence[str]) -> Build:
            def build(run_id: str) -> Command:
                keys = (self._layout.log(bucket), *self._layout.versions(bucket, names, run_id))
                return _INVALIDATE.command(keys, (LOG_LENGTH, *names))

            return build

        def publish(_: str) -> Command:
            return ("PUBLISH", self._layout.announcements, message)

        message = announcement(self._inbox(), tags)
        parts = [tags[at : at + _AT_ONCE] for at in range(0, len(tags), _AT_ONCE)]
        forgetting = [forget(bucket, names) for bucket in range(self._layout.buckets) for names in parts]
        self._client.run_all(_INVALIDATE, [*forgetting, publish], must_try=True)

    def inspect(self, digest: str, tags: Sequence[str]) -> Inspected:
        return inspecting.inspect(self._client, self._layout, digest, tags)

    def reachable(self) -> bool:
        return self._client.breaker.closed

    def close(self) -> None:
        self._client.close()

    def reset_after_fork(self) -> None:
        self._client.reset_after_fork()

    def _replace(
        self, digest: str, tags: tuple[str, ...], body: bytes, hard_ttl: float, keep_for: float, nonces: bytes
    ) -> int:
        build = self._replacing(digest, tags, body, hard_ttl, keep_for, nonces)
        return int(self._client.run(_PUT, build, must_try=True))

    def _replacing(
        self, digest: str, tags: tuple[str, ...], body: bytes, hard_ttl: float, keep_for: float, nonces: bytes
    ) -> Build:
        message = announcement(self._inbox(), [key_tag(digest)])
        args: list[Argument] = [
            _ms(hard_ttl), _ms(keep_for), nonces, body, self._layout.inboxes, digest,
            self._layout.announcements, message,
        ]  # fmt: skip
        return self._script(_PUT, digest, tags, args, left=True)

    def _script(
        self,
        script: Script,
        digest: str,
        tags: tuple[str, ...],
        args: Sequence[Argument],
        *,
        left: bool = False,
        more: tuple[str, ...] | None = None,
    ) -> Build:
        """The command; ``more`` adds the log, and the versions of tags that results give."""
        own: tuple[str, ...] = self._layout.own(digest)
        if not left:
            own = own[:3]
        if more is None:
            return lambda run_id: script.command((*own, *self._versions(digest, tags, run_id)), args)
        log = self._layout.log(self._layout.bucket(digest))
        versions = self._versions
        return lambda run_id: script.command(
            (*own, *versions(digest, tags, run_id), log, *versions(digest, more, run_id)), args
        )

    def _versions(self, digest: str, tags: tuple[str, ...], run_id: str) -> list[str]:
        return self._layout.versions(self._layout.bucket(digest), tags, run_id)

    def _read(self, digest: str, tags: tuple[str, ...]) -> tuple[RawEntry | None, Sequence[bytes | None]]:
        names = self._layout.entry_and_versions
        answer = self._client.call(lambda run_id: ("MGET", *names(digest, tags, run_id)))
        return self._unpacked(answer[0]) if answer[0] else None, answer[1:]

    @staticmethod
    def _valid(raw: RawEntry | None, tags: tuple[str, ...], nonces: Sequence[bytes | None]) -> RawEntry | None:
        if raw is None or raw.header.tag_block != tag_block(tags) or not stamp_matches(raw, nonces):
            return None
        return raw

    def _found(self, data: bytes, request: LeaseRequest) -> LeaseAnswer:
        raw = self._unpacked(data)
        if raw is not None:
            return Found(raw)
        if data == request.rejected:
            raise TierUnavailable("the server offers an entry that was rejected")
        return self.lease(request._replace(rejected=data))  # the script looks less closely than we do

    def _left(self, failed: bool, body: bytes, request: LeaseRequest) -> LeaseAnswer:
        raw = self._unpacked(body, unpack_body)
        return Left(raw, failed) if raw is not None else self.lease(request._replace(waits_for=""))

    def _lease_again(self, block: bytes, request: LeaseRequest, guesses: int) -> LeaseAnswer:
        """Asks again, for the tags that the entry names; does not look at entries any more once that was no use."""
        more = self._result_tags(block, request.tags) if guesses else None
        if more is None:
            return self._lease(request._replace(now=None), 0)
        return self._lease(request._replace(guess=more), guesses - 1)

    def _result_tags(self, block: bytes, own: tuple[str, ...]) -> tuple[str, ...] | None:
        try:
            return result_tags(block, own)
        except UnusableEntry as error:
            self._unusable(error.reason)
            return None

    def _stale(self, data: bytes) -> RawEntry | None:
        return self._unpacked(data) if data else None

    def _unpacked(self, data: Any, how: Callable[[bytes], RawEntry] = unpack) -> RawEntry | None:
        try:
            return how(data)
        except Exception as error:
            self._unusable(getattr(error, "reason", "malformed"))
            return None


def _ms(seconds: float) -> int:
    return max(int(seconds * 1000), 1)
