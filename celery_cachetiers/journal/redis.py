"""The journal in Redis: a dirty set per sink, all of its keys in one slot, none with a TTL.

Every change is one script (lua/journal_*.lua), so that a process which dies leaves nothing half done. It decides names
and formats; what is claimed when, and what becomes of a failure, is the flusher's matter.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import redis

from celery_cachetiers.client import Argument, Build, Command, RedisClient, Script, Step, was_answered
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal_port import REMEMBERED, REMEMBERED_SECONDS, Backlog, Buried, Exhumed, Record

_BEGIN, _WRITE, _CLAIM = Script("journal_begin"), Script("journal_write"), Script("journal_claim")
_RENEW, _ACKNOWLEDGE, _GIVE_BACK = Script("journal_renew"), Script("journal_acknowledge"), Script("journal_give_back")
_STANDS, _NOTE = Script("journal_stands"), Script("journal_note")
_BURY, _EXHUME, _DROP = Script("journal_bury"), Script("journal_exhume"), Script("journal_drop")

_SEQUENCE_BYTES: Final = 8
_HEAD_LENGTH: Final = struct.Struct(">I")
_AT_ONCE: Final = 500
_DURABLE: Final = {"replica": ("WAIT", 1), "disk": ("WAITAOF", 1, 0)}


class RedisJournal:
    """A `celery_cachetiers.journal_port.Journal` on one Redis server.

    What a caller does asks the breaker, as there is another way for it: a write that is not tried goes to the sink.
    What a flusher or an operator does is always tried.

    Concurrency: holds no state of its own; thread- and fork-safe as its client is.

    Args:
        beside_entries: L2 is on the same server, and in the same database.
        remembered: Keys of which it is remembered what a sink has taken last.
    """

    def __init__(
        self, client: RedisClient, namespace: str, *, beside_entries: bool = False, remembered: int = REMEMBERED
    ) -> None:
        self._client, self._namespace, self._beside_entries = client, namespace, beside_entries
        self._on_its_way = f"{namespace}:{{wb}}:q"
        self._memory = (int(REMEMBERED_SECONDS * 1000), remembered)

    def write(
        self,
        sink: str,
        writes: Sequence[tuple[str, bytes]],
        max_pending: int,
        *,
        sequences: Sequence[int] = (),
        yields: bool = False,
        durability: str | None = None,
    ) -> list[int]:
        given: Sequence[Any] = sequences or [""] * len(writes)
        rows = [(key, body, sequence) for (key, body), sequence in zip(writes, given, strict=True)]
        taken: list[int] = []
        for at in range(0, len(rows), _AT_ONCE):
            command = self._writing(sink, rows[at : at + _AT_ONCE], max_pending, yields)
            taken += self._write(command, durability)
        return taken

    def _writing(
        self, sink: str, rows: Sequence[tuple[str, bytes, Any]], max_pending: int, yields: bool = False
    ) -> Command:
        args = (max_pending, "1" if yields else "", *(each for row in rows for each in row))
        return _WRITE.command(self._names(sink, "v", "d", "b", "s", "a", "t"), args)

    def _write(self, command: Command, durability: str | None) -> Any:
        builds: list[Build] = [lambda _: command]
        if durability is not None:
            wait = (*_DURABLE[durability], int(self._client.timeout * 800))
            builds.append(lambda _: wait)
        taken, *durable = self._client.run_all(_WRITE, builds)
        if durable and not (durable[0][0] if durability == "disk" else durable[0]):
            raise TierUnavailable(f"no {durability} has confirmed the write in time")
        return taken

    def beside(self, sink: str, writes: Sequence[tuple[str, bytes]], max_pending: int) -> Step | None:
        if not self._beside_entries or len(writes) > _AT_ONCE:
            return None
        command = self._writing(sink, [(key, body, "") for key, body in writes], max_pending)
        return Step(_WRITE, lambda _: command)

    def begin(self, sink: str, key: str) -> tuple[Record | None, int]:
        names = self._names(sink, "v", "s")
        try:
            value, sequence = self._ask(_BEGIN, names, key)
        except TierUnavailable as error:
            if error.__cause__ is None or was_answered(error):  # not tried, or no use
                raise
            # Tried once more: a compute that could not look may be older than what waits.
            value, sequence = self._run(_BEGIN, names, key)
        return (_record(key, value) if value else None), sequence

    def sequence(self, sink: str) -> int:
        return int(self._ask(_BEGIN, self._names(sink, "v", "s"), "")[1])  # no record is under this key

    def look(self, sink: str, key: str) -> Record | None:
        [name] = self._names(sink, "v")
        value = self._client.call(lambda _: ("HGET", name, key))
        return None if value is None else _record(key, value)

    def stands(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        names = self._names(sink, "v")
        found: list[int] = []
        for at in range(0, len(written), _AT_ONCE):
            found += self._ask(_STANDS, names, *_pairs(written[at : at + _AT_ONCE]))
        return list(map(bool, found))

    def claim(self, sink: str, token: str, limit: int, seconds: float, key: str = "") -> list[Record]:
        run = self._ask if key else self._run  # a caller asks for one key, a flusher for what is due
        found = run(_CLAIM, self._names(sink, "v", "d", "c", "a", "t"), token, limit, _us(seconds), key)
        return [_claimed(*found[at : at + 5]) for at in range(0, len(found), 5)]

    def renew(self, sink: str, token: str, keys: Sequence[str], seconds: float) -> int:
        return int(self._run(_RENEW, self._names(sink, "d", "c"), token, _us(seconds), *keys))

    def acknowledge(self, sink: str, token: str, taken: Sequence[tuple[str, int]]) -> int:
        names = self._names(sink, "v", "d", "b", "c", "a", "t", "x", "o")
        return int(self._run(_ACKNOWLEDGE, names, token, *self._memory, *_pairs(taken)))

    def note(self, sink: str, taken: Sequence[tuple[str, int]], *, must_try: bool = False) -> None:
        names = self._names(sink, "v", "d", "b", "c", "a", "t", "x", "o", "s")
        for at in range(0, len(taken), _AT_ONCE):
            part = _pairs(taken[at : at + _AT_ONCE])
            self._run(_NOTE, names, *self._memory, *part, must_try=must_try)

    def overtaken(self, sink: str, written: Sequence[tuple[str, int]]) -> list[bool]:
        [name] = self._names(sink, "t")
        keys = [key for key, _ in written]
        scores = self._client.call(lambda _: ("ZMSCORE", name, *keys)) if keys else []
        return [_number(score) >= sequence for score, (_, sequence) in zip(scores, written, strict=True)]

    def give_back(
        self, sink: str, token: str, untaken: Sequence[tuple[str, int]], delay: float, *,
        failed: bool, doubted: bool = False,
    ) -> None:  # fmt: skip
        names, what = self._names(sink, "v", "d", "c", "a"), "1" if failed else "2" if doubted else ""
        self._run(_GIVE_BACK, names, token, _us(delay), what, *_pairs(untaken))

    def bury(self, sink: str, token: str, record: Record, reason: str, details: str) -> bool:
        head = json.dumps([record.attempts, reason, details, time.time()]).encode()
        names = self._names(sink, "v", "d", "b", "c", "a", "x", "y")
        return bool(self._run(_BURY, names, token, record.key, _packed(record.sequence), head))

    def backlog(self, sink: str) -> Backlog:
        birth, graves = self._names(sink, "b", "y")
        pending, oldest, buried = self._client.pipeline(
            [
                lambda _: ("ZCARD", birth),
                lambda _: ("ZRANGE", birth, 0, 0, "WITHSCORES"),
                lambda _: ("ZCARD", graves),
            ],
            must_try=True,
        )
        return Backlog(pending, float(oldest[1]) / 1e6 if oldest else None, buried)

    def buried(self, sink: str, offset: int, limit: int) -> list[Buried]:
        dead, graves = self._names(sink, "x", "y")
        last = offset + limit - 1
        keys = self._client.call(lambda _: ("ZRANGE", graves, offset, last), must_try=True) if limit > 0 else []
        if not keys:
            return []
        values = self._client.call(lambda _: ("HMGET", dead, *keys), must_try=True)
        return [_buried(key.decode(), value) for key, value in zip(keys, values, strict=True) if value is not None]

    def exhume(self, sink: str, keys: Sequence[str]) -> Exhumed:
        names = self._names(sink, "v", "d", "b", "a", "x", "y", "o", "t")
        found = [self._run(_EXHUME, names, *part) for part in _parts(keys)]
        return Exhumed(sum(moved for moved, _ in found), sum(overtaken for _, overtaken in found))

    def drop(self, sink: str, keys: Sequence[str]) -> int:
        names = self._names(sink, "x", "y", "o")
        return sum(int(self._run(_DROP, names, *part)) for part in _parts(keys))

    def announce(self, seconds: float) -> bool:
        name, ms = self._on_its_way, max(int(seconds * 1000), 1)
        return self._client.call(lambda _: ("SET", name, "1", "NX", "PX", ms)) is not None

    def arrived(self) -> None:
        name = self._on_its_way
        self._client.call(lambda _: ("DEL", name), must_try=True)

    def unsafe(self) -> str | None:
        try:
            answer = self._client.call(lambda _: ("INFO", "memory"))
        except TierUnavailable as error:
            if isinstance(error.__cause__, redis.ResponseError):  # it does not tell us
                return None
            raise
        lines = dict(line.split(":", 1) for line in answer.decode(errors="replace").splitlines() if ":" in line)
        policy = lines.get("maxmemory_policy", "").strip()
        if policy.startswith("allkeys-"):
            return (
                f"its maxmemory-policy is {policy}: a server that is full would evict writes that wait for their sink"
            )
        return None

    def close(self) -> None:
        self._client.close()

    def reset_after_fork(self) -> None:
        self._client.reset_after_fork()

    def __repr__(self) -> str:
        return f"<RedisJournal: {self._namespace}>"

    def _names(self, sink: str, *kinds: str) -> list[str]:
        return [f"{self._namespace}:{{wb:{sink}}}:{kind}" for kind in kinds]

    def _run(self, script: Script, keys: Sequence[str], *args: Argument, must_try: bool = True) -> Any:
        command = script.command(keys, args)
        return self._client.run(script, lambda _: command, must_try=must_try)

    def _ask(self, script: Script, keys: Sequence[str], *args: Argument) -> Any:
        """The same, unless the breaker has the server left alone."""
        return self._run(script, keys, *args, must_try=False)


def _record(key: str, value: bytes) -> Record:
    return Record(key, int.from_bytes(value[:_SEQUENCE_BYTES], "big"), value[_SEQUENCE_BYTES:])


def _claimed(key: bytes, value: bytes, attempts: int, failing_us: int, taken_since: int) -> Record:
    record = _record(key.decode(), value)
    return replace(record, attempts=attempts, failing_for=failing_us / 1e6, taken_since=bool(taken_since))


def _buried(key: str, value: bytes) -> Buried:
    head_at = _SEQUENCE_BYTES + _HEAD_LENGTH.size
    [length] = _HEAD_LENGTH.unpack_from(value, _SEQUENCE_BYTES)
    attempts, reason, details, buried_at = json.loads(value[head_at : head_at + length])
    sequence = int.from_bytes(value[:_SEQUENCE_BYTES], "big")
    return Buried(Record(key, sequence, value[head_at + length :], attempts), reason, details, buried_at)


def _number(score: object) -> int:
    return int(float(score)) if isinstance(score, (bytes, str, float)) else 0


def _packed(sequence: int) -> bytes:
    return sequence.to_bytes(_SEQUENCE_BYTES, "big")


def _pairs(records: Sequence[tuple[str, int]]) -> list[Argument]:
    return [each for key, sequence in records for each in (key, _packed(sequence))]


def _parts(keys: Sequence[str]) -> list[Sequence[str]]:
    return [keys[at : at + _AT_ONCE] for at in range(0, len(keys), _AT_ONCE)]


def _us(seconds: float) -> int:
    return max(int(seconds * 1_000_000), 0)
