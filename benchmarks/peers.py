"""The other caches, each as its own documentation shows it and with its own serializer, around the same body.

A peer that is not installed, or has no such mode, is an `Absent` that says so. Ours is here too, under the same
signature, for the benchmarks that start processes and build their contender in each.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any
from urllib.parse import urlsplit

import redis

from benchmarks.callers import Caller, Coroutines, Threads
from benchmarks.subjects import TTL, check, connect, extension, memoized, profile, tags
from benchmarks.timing import Absent, Contender

POLL = 0.1
"""Seconds between two looks of the recipe's followers."""

LEASE = 10
"""Seconds that locks live where a peer lets one choose; celery-cachetiers' own default."""


@dataclass(frozen=True)
class Setup:
    """What a contender is built from.

    Attributes:
        url: Its Redis; ``None`` keeps values in memory.
        tags: How many tags each entry has.
        lock: At most one compute of a key at a time, over all processes.
        pause: Seconds that the body takes.
    """

    url: str | None
    tags: int = 0
    lock: bool = True
    pause: float = 0.0
    body: Callable[[int], Any] = profile

    def run(self, number: int) -> Any:
        """The body of the blocking contenders."""
        if self.pause:
            time.sleep(self.pause)
        return self.body(number)

    async def run_async(self, number: int) -> Any:
        """The body of the others."""
        if self.pause:
            await asyncio.sleep(self.pause)
        return self.body(number)


class Unavailable(Exception):
    """Raised when a peer cannot take part; its text says why."""


def build(name: str, setup: Setup) -> Caller:
    """The contender of that name. Raises `Unavailable`."""
    if missing := not_installed(name):
        raise Unavailable(missing)
    return BUILDERS[name](setup)


def not_installed(name: str) -> str:
    """What to do about a peer that is not installed; empty if it is."""
    module, wanted = PACKAGES.get(name, ("", ""))
    try:
        if module:
            import_module(module)
    except ImportError:
        return f"not installed: pip install {wanted!r}"
    return ""


def contender(name: str, setup: Setup, note: str = "") -> Contender | Absent:
    """The same for a table."""
    try:
        caller = build(name, setup)
    except Unavailable as error:
        return Absent(name, str(error))
    return Contender(name, caller.loop, note, caller.close)


def _ours(setup: Setup) -> Caller:
    tiers = extension(setup.url)
    task = memoized(tiers, "ours", setup.run, tags=tags(setup.tags), l1=setup.url is None, lease_ttl=LEASE)
    connect(tiers, task)

    def close() -> None:
        check(task)
        tiers.reset()

    return Threads(task, close)


def _recipe(setup: Setup) -> Caller:
    """What one finds in most projects: GET, SET NX as a lock, poll, SETEX, and a set of keys per tag."""
    if setup.url is None:
        raise Unavailable("has no memory tier")
    client = redis.Redis.from_url(setup.url)

    def cached(number: int) -> Any:
        key, token = f"recipe:{number}", secrets.token_hex(8)
        while (text := client.get(key)) is None:
            if not setup.lock or client.set(f"lock:{key}", token, nx=True, ex=LEASE):
                return compute(number, key)
            time.sleep(POLL)
        return json.loads(text)

    def compute(number: int, key: str) -> Any:
        try:
            value = setup.run(number)
            client.setex(key, TTL, json.dumps(value))
            for at in range(setup.tags):
                client.sadd(f"recipe:tag{at}:{number}", key)
            return value
        finally:
            if setup.lock:
                client.delete(f"lock:{key}")

    return Threads(cached, client.close)


def _dogpile(setup: Setup) -> Caller:
    from dogpile.cache import make_region

    if setup.tags:
        raise Unavailable("has no tags")
    arguments = {"url": setup.url, "redis_expiration_time": 2 * TTL, "distributed_lock": setup.lock}
    arguments |= {"thread_local_lock": False, "lock_timeout": LEASE}
    backend = "dogpile.cache.memory" if setup.url is None else "dogpile.cache.redis"
    region = make_region()
    region.configure(backend, expiration_time=TTL, arguments={} if setup.url is None else arguments)

    @region.cache_on_arguments()
    def cached(number: int) -> Any:
        return setup.run(number)

    return Threads(cached)


def _cashews(setup: Setup) -> Caller:
    from cashews import Cache

    cache = Cache()
    if setup.url is None:
        cache.setup("mem://", size=10_000)
    else:
        cache.setup("redis://", address=setup.url)
    names = tuple(tags(setup.tags))
    cached = cache(ttl=TTL, key="cashews:{number}", lock=setup.lock, tags=names)(setup.run_async)
    return Coroutines(cached, cache.close)


def _aiocache(setup: Setup) -> Caller:
    from aiocache import Cache, cached, cached_stampede

    if setup.tags:
        raise Unavailable("has no tags")
    where: dict[str, Any] = {"cache": Cache.MEMORY}
    if setup.url is not None:
        parts = urlsplit(setup.url)
        if parts.scheme != "redis":
            raise Unavailable("takes host and port only")
        where = {"cache": Cache.REDIS, "endpoint": parts.hostname, "port": parts.port}
        where["db"] = int(parts.path.strip("/") or 0)
    decorator = cached_stampede(lease=LEASE, ttl=TTL, **where) if setup.lock else cached(ttl=TTL, **where)
    function = decorator(setup.run_async)
    return Coroutines(function, function.cache.close)


BUILDERS: dict[str, Callable[[Setup], Caller]] = {
    "ours": _ours,
    "recipe": _recipe,
    "dogpile": _dogpile,
    "cashews": _cashews,
    "aiocache": _aiocache,
}
PACKAGES = {
    "dogpile": ("dogpile.cache", "dogpile.cache"),
    "cashews": ("cashews", "cashews[redis]"),
    "aiocache": ("aiocache", "aiocache[redis]"),
    "celery-singleton": ("celery_singleton", "celery-singleton"),
    "celery-once": ("celery_once", "celery-once"),
}
NOTES = {
    "recipe": "GET, JSON; no tag check",
    "dogpile": "pickle; no tags",
    "cashews": "asyncio; pickle",
    "aiocache": "asyncio; JSON; no tags",
}
