"""The header: what of this machine decides the numbers. No names, no paths."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version

from benchmarks.server import Server
from benchmarks.table import text_table

PACKAGES = (
    *("celery", "kombu", "redis", "cachetools", "hiredis"),
    *("dogpile.cache", "cashews", "aiocache", "celery-singleton", "celery-once"),
)


def header(server: Server) -> str:
    """Facts, one a line."""
    with server.client() as client:
        info = client.info("server")
    rows = [
        ("cores", str(_cores())),
        ("load", _load()),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("server", f"{info.get('server_name', 'redis')} {info['redis_version']}, no persistence"),
        *((name, _version(name)) for name in PACKAGES),
    ]
    return text_table(("", "this machine"), rows)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _load() -> str:
    try:
        return f"{os.getloadavg()[0]:.1f} before the start (others compete for the cores where it is not near 0)"
    except OSError:
        return "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "no"
