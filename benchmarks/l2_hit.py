"""A hit in L2 by a direct call, ``task(7)`` with ``l1=False``, with 0, 1 and 5 tags, over TCP and over a unix socket.

The reference is redis-py's ``GET`` with its defaults and kombu's JSON decoder on the payload that our entry holds: what
any cache in Redis costs that checks nothing. Target: at most 1.3 times that. Ours validates its tags (two implicit ones
on top of those named) in the same round trip. Below, where our time goes, step by step; each has a median of its own,
so the parts only roughly add up to the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import redis
from kombu.utils.json import loads

from benchmarks.peers import NOTES, Setup, contender
from benchmarks.server import Server, redis_server
from benchmarks.subjects import check, connect, extension, memoized, tagged, tags
from benchmarks.table import number, target, text_table
from benchmarks.timing import HIT, Contender, race, show, timed
from celery_cachetiers.client import RedisClient
from celery_cachetiers.entry import RawEntry, stamp_matches, unpack

LIMIT = 1.3


def run(*, quick: bool) -> None:
    """Prints a table for each transport, the target for each, and the breakdown."""
    with redis_server() as server:
        for title, url in (("TCP", server.url()), ("unix socket", server.unix_url())):
            server.flush()
            print(f"{title}:\n")
            _compare(url, quick)
        _break_down(server, quick)


def _compare(url: str, quick: bool) -> None:
    tiers = extension(url)
    tasks = {many: memoized(tiers, f"tags{many}", tags=tags(many), l1=False) for many in (0, 1, 5)}
    connect(tiers, tasks[0])
    tasks[0](HIT)
    ours = [Contender(f"ours, {tagged(many)}", timed(task), _note(many)) for many, task in tasks.items()]
    bare = _bare(url, _read(tasks[0]).payload)
    others = [contender(name, Setup(url, lock=False), note) for name, note in NOTES.items()]
    present = [each for each in (bare, *ours, *others) if isinstance(each, Contender)]
    race(present, quick=quick)
    show([bare, *ours, *others], bare)
    worst = max(ours, key=lambda each: each.median)
    print(target(f"{worst.name}", worst.median / bare.median, LIMIT, "x bare") + "\n")
    check(*tasks.values())
    tiers.reset()
    for each in present:
        each.close()


def _note(many: int) -> str:
    return f"MGET of {3 + many} keys, validated"


def _bare(url: str, payload: bytes) -> Contender:
    client = redis.Redis.from_url(url)
    client.set("bare", payload)

    def get(_: int) -> Any:
        return loads(client.get("bare"))

    return Contender("bare", timed(get), "redis-py GET, kombu JSON", client.close)


def _read(task: Any) -> RawEntry:
    """The entry that a task's hit reads."""
    memoized = task._memoized
    call = memoized.call((HIT,), {})
    raw = memoized.cache.parts.store.read(call.digest, call.tags)
    if raw is None:
        raise RuntimeError("no entry where a hit is to be measured")
    return raw  # type: ignore[no-any-return]


# -- the breakdown --------------------------------------------------------------------------------------------------


def _break_down(server: Server, quick: bool) -> None:
    tiers = extension(server.url())
    task = memoized(tiers, "steps", tags=tags(1), l1=False)
    connect(tiers, task)
    task(HIT)
    steps = [Contender(name, timed(step)) for name, step in _steps(task).items()]
    race(steps, quick=quick)
    print("Our path over TCP with 1 tag, step by step (what is indented is part of the line above):\n")
    rows = [(step.name, number(step.median * 1e6), number(step.least * 1e6)) for step in steps]
    print(text_table(("step", "median µs", "min µs"), rows))
    tiers.reset()


def _steps(task: Any) -> dict[str, Callable[[int], object]]:
    memoized = task._memoized
    store, codec = memoized.cache.parts.store, memoized.memo.codec
    call, raw = memoized.call((HIT,), {}), _read(task)
    digest, names = call.digest, call.tags
    data = _bytes_of(store, digest)
    client: RedisClient = store._client
    command = ("MGET", *_keys_of(store, digest, names))
    connection = client.open()
    stamp = [raw.stamp[at : at + 8] for at in range(0, len(raw.stamp), 8)]

    def exchange(_: int) -> object:
        connection.send_command(*command)
        return connection.read_response()

    return {
        "the whole call": task,
        "bind, key and Call": lambda _: memoized.call((HIT,), {}),
        "   bind and key alone": lambda _: memoized.keys.digest((HIT,), {}),
        "tags rendered": lambda _: memoized.call((HIT,), {}).find_tags(),
        "store.read": lambda _: store.read(digest, names),
        "   key names": lambda _: store._layout.entry_and_versions(digest, names, ""),
        "   client.call of the MGET": lambda _: client.call(lambda _: command),
        "      (beside it: by redis-py's connection)": exchange,
        "   unpack": lambda _: unpack(data),
        "   stamp compared": lambda _: stamp_matches(raw, stamp),
        "decode (JSON)": lambda _: codec.decode(raw, digest),
        "   kombu's decoder alone": lambda _: loads(raw.payload),
    }


def _keys_of(store: Any, digest: str, names: tuple[str, ...]) -> list[str]:
    run_id: str = store._client.open().run_id
    return store._layout.entry_and_versions(digest, names, run_id)  # type: ignore[no-any-return]


def _bytes_of(store: Any, digest: str) -> bytes:
    return store._client.call(lambda _: ("GET", store._layout.entry(digest)))  # type: ignore[no-any-return]
