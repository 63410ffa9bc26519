"""A hit in L1 by a direct call, ``task(7)``, of a 1 KB dict: binding, key, lookup and, by default, a copy of the value.

The reference is `cachetools.cached(TTLCache, lock=Lock())`, which neither binds arguments nor copies nor can be
invalidated from elsewhere: it is what a dictionary and a lock cost on this machine. The targets are 4 µs shared and
12 µs copied where the reference costs 1.2 µs, and are scaled by what it costs here. "shared" (``l1_copy=False``) hands
every caller the same dict, as the peers do; "copied" gives each caller its own. "by the proxy" is what a module holds
after ``@app.task``; "bound" is the task itself, ``app.tasks[name]``. The recipe has no L1: its hit is a GET.
"""

from __future__ import annotations

from threading import Lock

from cachetools import TTLCache, cached

from benchmarks.peers import Setup, contender
from benchmarks.server import redis_server
from benchmarks.subjects import TTL, connect, extension, memoized, profile, tags
from benchmarks.table import target
from benchmarks.timing import Absent, Contender, race, show, timed

PEERS = {"dogpile": "shared", "cashews": "asyncio; shared", "aiocache": "asyncio; shared"}
REFERENCE_US, SHARED_US, COPIED_US = 1.2, 4.0, 12.0


def run(*, quick: bool) -> None:
    """Prints the table and the two targets."""
    with redis_server() as server:
        bare = Contender("cachetools", timed(cached(TTLCache(10_000, TTL), lock=Lock())(profile)), "TTLCache and Lock")
        ours = _ours(server.url())
        others = [contender(name, Setup(None, lock=False), note) for name, note in PEERS.items()]
        everybody: list[Contender | Absent] = [
            bare,
            *ours,
            *others,
            contender("recipe", Setup(server.url()), "GET, JSON"),
        ]
        present = [each for each in everybody if isinstance(each, Contender)]
        race(present, quick=quick)
        show(everybody, bare)
        for each in present:
            each.close()
    scale = bare.median * 1e6 / REFERENCE_US
    print(target("shared, by the proxy", ours[0].median * 1e6, SHARED_US * scale, "µs"))
    print(target("copied, by the proxy", ours[1].median * 1e6, COPIED_US * scale, "µs"))


def _ours(url: str) -> list[Contender]:
    tiers = extension(url)
    shared = memoized(tiers, "shared", tags=tags(1), l1_copy=False)
    copied = memoized(tiers, "copied", tags=tags(1))
    strict = memoized(tiers, "strict", tags=tags(1), l1_copy=False, consistency="strict")
    connect(tiers, shared)
    bound = tiers.app.tasks["shared"]
    return [
        Contender("ours, shared", timed(shared), "by the proxy", tiers.reset),
        Contender("ours, copied", timed(copied), "by the proxy"),
        Contender("ours, shared, bound", timed(bound), "app.tasks[name]"),
        Contender("ours, strict", timed(strict), "shared; 1 round trip validates the tags"),
    ]
