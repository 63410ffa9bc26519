"""A miss: look, lock, run a body that does nothing, store 1 KB, unlock; every call with an argument never used before.

The reference is redis-py's ``GET`` and ``SETEX`` with kombu's JSON: a cache without a lock and without tags. The others
hold a lock over all processes, as ours does. Round trips and commands per miss are counted, not timed: round trips by a
proxy in between, commands by the server (those that a script runs inside it included). "ours, caller has looked" is a
worker's share of a miss that ``.delay()`` has seen already.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import redis
from kombu.utils.json import dumps, loads

from benchmarks.callers import Caller, Threads
from benchmarks.peers import NOTES, Setup, Unavailable, build
from benchmarks.roundtrips import counting
from benchmarks.server import Server, redis_server
from benchmarks.subjects import TTL, check, connect, extension, memoized, profile, tagged
from benchmarks.table import number
from benchmarks.timing import Absent, Contender, race, show
from celery_cachetiers.attempt import Terms

COUNTED = 40
Make = Callable[[str], Caller]


def run(*, quick: bool) -> None:
    """Prints one table: times, round trips, commands."""
    makers: dict[str, Make] = {"bare": _bare, "ours, caller has looked": _looked}
    for many in (0, 2):
        for name in ("ours", "recipe", "cashews", *(() if many else ("dogpile", "aiocache"))):
            makers[f"{name}, {tagged(many)}"] = partial(_peer, name, many)
    with redis_server() as server:
        everybody = [_contender(title, make, server.url()) for title, make in makers.items()]
        present = [each for each in everybody if isinstance(each, Contender)]
        race(present, quick=quick, fresh=True)
        for each in present:
            each.close()
        counts = {each.name: _counted(makers[each.name], server) for each in present}
    columns = {
        title: {name: number(cell[at]) for name, cell in counts.items()}
        for at, title in enumerate(("round trips", "commands"))
    }
    show(everybody, present[0], columns)


def _contender(title: str, make: Make, url: str) -> Contender | Absent:
    try:
        caller = make(url)
    except Unavailable as error:
        return Absent(title, str(error))
    return Contender(title, caller.loop, NOTES.get(title.partition(",")[0], ""), caller.close)


def _peer(name: str, many: int, url: str) -> Caller:
    return build(name, Setup(url, tags=many))


def _bare(url: str) -> Caller:
    client = redis.Redis.from_url(url)

    def cached(each: int) -> Any:
        text = client.get(f"bare:{each}")
        if text is not None:
            return loads(text)
        value = profile(each)
        client.setex(f"bare:{each}", TTL, dumps(value))
        return value

    return Threads(cached, client.close)


def _looked(url: str) -> Caller:
    tiers = extension(url)
    task = memoized(tiers, "looked", l1=False)
    connect(tiers, task)
    made = task._memoized

    def cached(each: int) -> Any:
        return made.cache.fetch(made.call((each,), {}), partial(profile, each), Terms(looked=True))

    def close() -> None:
        check(task)
        tiers.reset()

    return Threads(cached, close)


def _counted(make: Make, server: Server) -> tuple[float, float]:
    """Round trips and commands per miss."""
    numbers = count(1)
    server.flush()
    with counting(server) as proxy:
        caller = make(proxy.url)
        caller.loop([next(numbers) for _ in range(10)])  # connections and scripts
        time.sleep(0.05)
        trips, commands = proxy.count, server.commands()
        caller.loop([next(numbers) for _ in range(COUNTED)])
        time.sleep(0.05)
        trips, commands = proxy.count - trips, server.commands() - commands
        caller.close()
    return trips / COUNTED, commands / COUNTED
