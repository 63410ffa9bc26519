"""What a Redis server tells of itself in ``INFO``, as numbers, and what has happened between two readings.

``INFO`` counts everything on that server, whoever asked for it: broker, results and other programs included. Its
counters begin anew with each start of the server, and whenever somebody resets them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

COUNTED: Final = ("keyspace_hits", "keyspace_misses", "evicted_keys", "expired_keys")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """One reading.

    Attributes:
        run_id: Names one run of the server; another one after a restart.
        redis_version: As ``7.0.15``; a fork of Redis may tell the version that it is compatible with.
        uptime_in_seconds: Seconds since its start.
        role: ``master`` or ``slave``.
        keyspace_hits: Lookups of keys that were there, since the start or a reset.
        keyspace_misses: Lookups of keys that were not.
        evicted_keys: Keys that had to go as the server was full.
        expired_keys: Keys whose time was over.
        used_memory: Bytes.
        maxmemory: Bytes; 0 without a limit.
        maxmemory_policy: What is evicted when the limit is reached.
        connected_clients: Connections, this one included.
        rdb_changes_since_last_save: Writes that a snapshot does not have yet.
        aof_enabled: 1 with an append-only file.
        total_commands_processed: Since the start or a reset.
        loading: 1 while the server reads its data after a start, and answers nothing else.
        connected_slaves: Replicas that follow it.
        rdb_last_bgsave_status: ``ok``, or how the last snapshot has ended.
        aof_last_write_status: The same for the append-only file.
    """

    run_id: str = ""
    redis_version: str = ""
    uptime_in_seconds: int = 0
    role: str = ""
    keyspace_hits: int = 0
    keyspace_misses: int = 0
    evicted_keys: int = 0
    expired_keys: int = 0
    used_memory: int = 0
    maxmemory: int = 0
    maxmemory_policy: str = ""
    connected_clients: int = 0
    rdb_changes_since_last_save: int = 0
    aof_enabled: int = 0
    total_commands_processed: int = 0
    loading: int = 0
    connected_slaves: int = 0
    rdb_last_bgsave_status: str = ""
    aof_last_write_status: str = ""

    def as_dict(self) -> dict[str, str | int]:
        """All of it by ``INFO``'s own names."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a server has counted between two readings; the attributes are those of `ServerInfo`.

    ``complete`` is false if the server has started or was reset meanwhile: then it is what was counted since.
    """

    keyspace_hits: int = 0
    keyspace_misses: int = 0
    evicted_keys: int = 0
    expired_keys: int = 0
    complete: bool = True

    @property
    def hit_ratio(self) -> float | None:
        """Of lookups of keys, everybody's; ``None`` without any."""
        lookups = self.keyspace_hits + self.keyspace_misses
        return self.keyspace_hits / lookups if lookups else None


def server_info(text: str) -> ServerInfo:
    """Reads ``INFO``'s answer; what it does not tell, or not as it should, keeps its default.

    >>> server_info("# Memory\\r\\nused_memory:1024\\r\\nmaxmemory_policy:noeviction\\r\\n").used_memory
    1024
    """
    lines = dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return ServerInfo(**dict(_known(lines)))


def _known(lines: Mapping[str, str]) -> Any:
    for each in fields(ServerInfo):
        text = lines.get(each.name, "").strip()
        if isinstance(each.default, str):
            yield each.name, text
        elif text.isdecimal():
            yield each.name, int(text)


def traffic(before: ServerInfo, after: ServerInfo) -> Traffic:
    """What the server has counted between two readings.

    >>> traffic(ServerInfo("a", keyspace_hits=5), ServerInfo("a", keyspace_hits=8)).keyspace_hits
    3
    >>> traffic(ServerInfo("a", keyspace_hits=5), ServerInfo("b", keyspace_hits=8))
    Traffic(keyspace_hits=8, keyspace_misses=0, evicted_keys=0, expired_keys=0, complete=False)
    """
    went_on = before.run_id == after.run_id and all(getattr(before, name) <= getattr(after, name) for name in COUNTED)
    since = before if went_on else ServerInfo()
    counted = {name: getattr(after, name) - getattr(since, name) for name in COUNTED}
    return Traffic(**counted, complete=went_on)
