"""The sums of all processes' counters in Redis: one hash for each task, and what is kept beside them.

Whether a key that has missed is a new one is told by a Bloom filter of two bits a key, which holds those of the last
one to two days: new ones are taken for old ones now and then, by 3 % at its fullest. Behind its bits stands how often
half of the keys were left out of a merge, at most: who came later and outlasts less may have missed unseen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, Final

from celery_cachetiers.client import Argument, Command, RedisClient, Script
from celery_cachetiers.stats_port import HALF, OTHERS, HotKey, Merge, Numbers, Sums, rank
from celery_cachetiers.tag_names import escape_tag
from celery_cachetiers.tiers.layout import Layout

KEPT: Final = 7 * 86400.0
"""Seconds that counters outlive the last merge of their task."""
REMEMBERED: Final = 3600.0
"""Seconds that a process has to repeat a merge whose answer was lost."""
AT_ONCE: Final = 500
"""Tasks that one round trip reads."""
FIELDS: Final = 1000
"""Counters that a hash has at most; all others are `OTHERS`."""
COOLED: Final = 10 * HALF
"""Seconds that hot keys outlive the last merge."""
HOTTEST: Final = 200
"""Keys that are kept as the hottest."""

SEEN_BITS: Final = 2**22
"""Bits of a filter: half a megabyte, and there are two; the byte behind them is the most halvings."""
SEEN_KEYS: Final = 400_000
"""New keys that a filter takes before the next one begins, a day old or not."""
SEEN_FOR: Final = 86400.0

_TASKS, _PROCESS, _TAGS, _OUTDATED, _UNUSABLE, _HOT = (
    "@tasks", "@process", "@tags", "@outdated", "@unusable", "@hot",
)  # fmt: skip
_SEEN = ("@seen", "@seen:before", "@seen:count")
_MERGE = Script("stats_merge")


class RedisStats:
    """A `celery_cachetiers.stats_port.StatsStore` on one Redis server.

    Concurrency: holds no state of its own; thread- and fork-safe as its client is.
    """

    def __init__(self, client: RedisClient, layout: Layout) -> None:
        self._client, self._layout = client, layout

    def add(self, merge: Merge) -> bool:
        hashes, missed = list(_hashes(merge)), _missed_by_task(merge.missed)
        names = (f"@merge:{merge.source}", _TASKS, _HOT, *_SEEN, *(name for name, _, _ in hashes))
        keys = [self._key(name) for name in names]
        args: list[Argument] = [merge.number, _ms(REMEMBERED), _ms(KEPT), FIELDS, OTHERS]
        args += [_ms(COOLED), _ms(HALF), HOTTEST, _ms(SEEN_FOR), SEEN_KEYS, SEEN_BITS, merge.halvings, len(merge.hot)]
        for (task, digest), calls in merge.hot.items():
            args += [f"{digest}:{task}", calls]
        for _, task, numbers in hashes:
            args += [task, len(numbers), *(part for name, value in numbers.items() for part in (name, repr(value)))]
            keys_of_task = missed.get(task, ())
            args += [len(keys_of_task) // 4, *keys_of_task]
        command = _MERGE.command(keys, args)
        return bool(self._client.run(_MERGE, lambda _: command, must_try=True) == 1)

    def read(self, task: str | None = None) -> Sums:
        first = [("HGETALL", self._key(name)) for name in (_PROCESS, _TAGS, _OUTDATED, _UNUSABLE)]
        if task is not None:
            *others, found = self._ask([*first, self._of(task)])
            return Sums({task: _numbers(found)} if found else {}, *map(_numbers, others))
        *others, names = self._ask([*first, ("ZRANGE", self._key(_TASKS), 0, -1)])
        tasks = dict(self._read_all([name.decode() for name in names]))
        return Sums(tasks, *map(_numbers, others))

    def hot(self, count: int) -> dict[HotKey, float]:
        key = self._key(_HOT)
        left, found = self._ask([("PTTL", key), ("ZREVRANGE", key, 0, count - 1, "WITHSCORES")])
        worth = 2 ** ((left / 1000 - COOLED) / HALF) if left > 0 else 0.0  # since the last merge
        return {_hot_key(name): float(score) * worth for name, score in zip(found[::2], found[1::2], strict=True)}

    def _read_all(self, names: Sequence[str]) -> Iterator[tuple[str, Numbers]]:
        for at in range(0, len(names), AT_ONCE):
            some = names[at : at + AT_ONCE]
            for name, found in zip(some, self._ask([self._of(name) for name in some]), strict=True):
                if found:
                    yield name, _numbers(found)

    def _ask(self, commands: Sequence[Command]) -> list[Any]:
        return self._client.pipeline([partial(_same, command) for command in commands], must_try=True)

    def _of(self, task: str) -> Command:
        return ("HGETALL", self._key(escape_tag(task)))

    def _key(self, name: str) -> str:
        return self._layout.stats(name)

    def reset_after_fork(self) -> None:
        """Leaves the parent's connections alone."""
        self._client.reset_after_fork()

    def close(self) -> None:
        """Closes connections that lie idle."""
        self._client.close()

    def __repr__(self) -> str:
        return f"<RedisStats: {self._key('*')}>"


def _hashes(merge: Merge) -> Iterator[tuple[str, str, Numbers]]:
    """Name of each hash in a merge, the task that it belongs to, and what is added to it."""
    for task, numbers in merge.tasks.items():
        yield escape_tag(task), task, numbers
    others = {_PROCESS: merge.process, _TAGS: merge.invalidated, _OUTDATED: merge.outdated, _UNUSABLE: merge.unusable}
    for name, numbers in others.items():
        if numbers:
            yield name, "", numbers


def _hot_key(member: bytes) -> HotKey:
    digest, _, task = member.decode().partition(":")
    return task, digest


def _missed_by_task(missed: Mapping[HotKey, int]) -> dict[str, list[int]]:
    """Four numbers for each key, one after the other: its two bits of the filter, its rank, how often it has missed."""
    found: dict[str, list[int]] = {}
    for (task, key), count in missed.items():
        hashed = int.from_bytes(blake2b(key.encode(), digest_size=8).digest())
        found.setdefault(task, []).extend((hashed % SEEN_BITS, (hashed >> 32) % SEEN_BITS, rank(key), count))
    return found


def _same(command: Command, run_id: str) -> Command:
    return command


def _numbers(flat: Sequence[bytes]) -> Numbers:
    """Counters as ``HGETALL`` lists them; what is no number is left out."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(): number for name, text in pairs if (number := _number(text)) is not None}


def _number(text: bytes) -> int | float | None:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        return None


def _ms(seconds: float) -> int:
    return int(1000 * seconds)
