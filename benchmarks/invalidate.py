"""Invalidating one tag with 10, 10,000 and 1,000,000 entries under it (``--quick`` leaves out the million).

Beside the tag → key-set scheme of most caches, in the two forms one meets: "key set" reads all members and deletes them
in one command each, "cashews" pops 100 members at a time. Reported: the time until the call returns, the commands that
Redis ran for it, and the longest that another client, in a process of its own, waited for a GET meanwhile; "nothing"
is that wait while nothing is invalidated, for half a second. Entries are 100 bytes of JSON and are filled
anew before every turn; that none of them is served afterwards is checked, in all three.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Protocol

import redis

from benchmarks.fleet import Fleet, shared_counter
from benchmarks.peers import not_installed
from benchmarks.server import Server, redis_server
from benchmarks.subjects import TTL, connect, extension, memoized
from benchmarks.table import number, text_table
from celery_cachetiers import MISSING

TAG, VALUE = "list", {"id": 7, "text": "x" * 80}
SAMPLES = 20
NOTES = {
    "ours": "a script that UNLINKs one version, PUBLISH; the entries stay until their TTL",
    "key set": "SMEMBERS, DEL",
    "cashews": "SPOP 100, UNLINK, SREM, again and again",
    "nothing": "the machine's own longest wait",
}


class Scheme(Protocol):
    """A cache with entries under one tag."""

    def fill(self, many: int) -> None:
        """So many valid entries, with keys 0 to ``many``."""

    def invalidate(self) -> None:
        """All of them."""

    def served(self, key: int) -> bool:
        """Whether a read of the key is a hit."""

    def close(self) -> None:
        """Ends its connections."""


@dataclass(frozen=True)
class Outcome:
    """One turn: seconds, commands, seconds."""

    took: float
    commands: int
    stall: float


@dataclass(eq=False)
class Entrant:
    """A scheme, its server with a bystander, and its outcomes so far."""

    name: str
    scheme: Scheme | None
    server: Server
    bystander: Fleet
    stop: Any
    outcomes: list[Outcome] = field(default_factory=list)


def run(*, quick: bool) -> None:
    """Prints a table for each number of entries."""
    sizes = {10: 5, 10_000: 3} if quick else {10: 11, 10_000: 5, 1_000_000: 1}
    missing = not_installed("cashews")
    with ExitStack() as stack:
        entrants = [_entrant(name, stack) for name in SCHEMES if not (missing and name == "cashews")]
        for size, rounds in sizes.items():
            for _ in range(rounds):
                for entrant in entrants:
                    entrant.outcomes.append(_turn(entrant, size))
            _show(size, entrants, missing)
            for entrant in entrants:
                entrant.outcomes.clear()


def _entrant(name: str, stack: ExitStack) -> Entrant:
    server, stop = stack.enter_context(redis_server()), shared_counter()
    other = stack.enter_context(Fleet(1, bystander, server.url(3), stop))
    make = SCHEMES[name]
    scheme = make(server) if make is not None else None
    if scheme is not None:
        stack.callback(scheme.close)
    return Entrant(name, scheme, server, other, stop)


def _turn(entrant: Entrant, size: int) -> Outcome:
    scheme = entrant.scheme
    if scheme is None:
        return _watched(entrant, lambda: time.sleep(0.5))
    entrant.server.flush()
    scheme.fill(size)
    sample = range(0, size, max(size // SAMPLES, 1))
    if not all(map(scheme.served, sample)):
        raise RuntimeError(f"{entrant.name}: filled entries are not served: the fill is wrong")
    outcome = _watched(entrant, scheme.invalidate)
    if any(map(scheme.served, sample)):
        raise RuntimeError(f"{entrant.name}: an entry was served after its invalidation")
    entrant.server.flush()
    return outcome


def _watched(entrant: Entrant, act: Callable[[], object]) -> Outcome:
    """What the act costs, and what the bystander sees of it."""
    entrant.stop.value = 0
    entrant.bystander.order("watch")
    time.sleep(0.02)
    commands, began = _commands(entrant), time.perf_counter()
    act()
    took = time.perf_counter() - began
    commands = _commands(entrant) - commands
    entrant.stop.value = 1
    return Outcome(took, commands, entrant.bystander.replies()[0])


def _commands(entrant: Entrant) -> int:
    return entrant.server.commands(without=("get",))


def bystander(url: str, stop: Any) -> Callable[[str], float]:
    """In its process: asks about once a ms until told to stop; the longest that an answer took."""
    client = redis.Redis.from_url(url)
    client.get("bystander")

    def watch(_: str) -> float:
        longest = 0.0
        while not stop.value:
            began = time.perf_counter()
            client.get("bystander")  # left out of the count of commands: no scheme uses it to invalidate
            longest = max(longest, time.perf_counter() - began)
            time.sleep(0.0005)
        return longest

    return watch


def _show(size: int, entrants: list[Entrant], missing: str) -> None:
    rows = [_row(entrant) for entrant in entrants]
    rows += [("cashews", "-", "-", "-", "-", missing)] if missing else []
    print(f"{size:,} entries:\n")
    print(
        text_table(("contender", "median ms", "min ms", "commands", "longest wait ms", "note"), rows) + "\n", flush=True
    )


def _row(entrant: Entrant) -> tuple[str, ...]:
    outcomes = entrant.outcomes
    took, stall = [each.took * 1e3 for each in outcomes], max(each.stall for each in outcomes)
    commands = statistics.median(each.commands for each in outcomes)
    times = (
        ("-", "-", "-")
        if entrant.name == "nothing"
        else (number(statistics.median(took)), number(min(took)), f"{commands:,.0f}")
    )
    return entrant.name, *times, number(stall * 1e3), NOTES.get(entrant.name, "")


# -- the schemes ----------------------------------------------------------------------------------------------------


class _Ours:
    def __init__(self, server: Server) -> None:
        self._client = server.client()
        self._tiers = extension(server.url())
        self._task = memoized(self._tiers, "ours", lambda number: VALUE, tags=[TAG], l1=False)
        connect(self._tiers, self._task)

    def fill(self, many: int) -> None:
        cache = self._task.cache
        cache.put((0,), VALUE)
        digest = cache.key(0)
        name = next(self._client.scan_iter(f"*{digest}")).decode()
        entry = self._client.get(name)
        _set(self._client, (name.replace(digest, cache.key(key)) for key in range(many)), entry)

    def invalidate(self) -> None:
        self._tiers.invalidate_tag(TAG)

    def served(self, key: int) -> bool:
        return self._task.cache.get(key) is not MISSING

    def close(self) -> None:
        self._tiers.reset()


class _KeySet:
    def __init__(self, server: Server) -> None:
        self._client = server.client()

    def fill(self, many: int) -> None:
        _set(self._client, (f"recipe:{key}" for key in range(many)), json.dumps(VALUE).encode(), "recipe:" + TAG)

    def invalidate(self) -> None:
        self._client.delete(*self._client.smembers("recipe:" + TAG), "recipe:" + TAG)

    def served(self, key: int) -> bool:
        return self._client.get(f"recipe:{key}") is not None

    def close(self) -> None:
        self._client.close()


class _Cashews:
    def __init__(self, server: Server) -> None:
        from cashews import Cache

        self._client, self._cache, self._runner = server.client(), Cache(), asyncio.Runner()
        self._cache.setup("redis://", address=server.url())
        self._cached = self._cache(ttl=TTL, key="cashews:{number}", tags=(TAG,))(self._compute)

    async def _compute(self, number: int) -> Any:
        return VALUE

    def fill(self, many: int) -> None:
        self._runner.run(self._cached(0))
        _set(self._client, (f"cashews:{key}" for key in range(many)), self._client.get("cashews:0"), "_tag:" + TAG)

    def invalidate(self) -> None:
        self._runner.run(self._cache.delete_tags(TAG))

    def served(self, key: int) -> bool:
        return self._runner.run(self._cache.get(f"cashews:{key}")) is not None

    def close(self) -> None:
        self._runner.run(self._cache.close())
        self._runner.close()


SCHEMES: dict[str, Callable[[Server], Scheme] | None] = {
    "ours": _Ours,
    "key set": _KeySet,
    "cashews": _Cashews,
    "nothing": None,
}


def _set(client: redis.Redis, names: Iterable[str], data: Any, members_of: str = "") -> None:
    """Stores the same bytes under all names, and the names in a set."""
    rest = iter(names)
    while batch := list(islice(rest, 5000)):
        with client.pipeline(transaction=False) as pipeline:
            for name in batch:
                pipeline.set(name, data, ex=TTL)
            if members_of:
                pipeline.sadd(members_of, *batch)
            pipeline.execute()
