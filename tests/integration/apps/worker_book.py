"""The ledger of the worker tests: what bodies did, and the gates they wait at, in a Redis database of its own.

A body notes its compute, then waits at the gate of that compute if the test has put one up. Whoever opens a gate says
how the compute ends. Nothing here is known to the package under test.
"""

from __future__ import annotations

import os
from typing import Any

import redis

FOREVER = 60
"""Seconds after which a body or a test that is waited for counts as hanging."""


class Book:
    """Counts, rendezvous and gates, by name.

    Concurrency: any thread, any process; a forked child opens its own connections.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._clients: dict[int, redis.Redis] = {}

    @property
    def client(self) -> redis.Redis:
        pid = os.getpid()
        if pid not in self._clients:
            self._clients[pid] = redis.Redis.from_url(self._url, decode_responses=True, socket_timeout=None)
        return self._clients[pid]

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    # -- in a body ------------------------------------------------------------------------------------------------

    def compute(self, name: str) -> int:
        """Notes a compute and waits at its gate; returns its number, from 1. Raises what the gate tells it to."""
        number, outcome = self.outcome(name)
        if outcome == "fail":
            raise ValueError(f"{name}#{number}")
        return number

    def outcome(self, name: str) -> tuple[int, str]:
        """The same, where the body itself does what the gate says; returns that with the number."""
        number = int(self.client.incr(f"computes:{name}"))
        if int(self.client.incr(f"running:{name}")) > 1:
            self.client.incr(f"overlaps:{name}")
        self.client.rpush(f"started:{name}", f"{number}:{os.getpid()}")
        outcome = self._pass(name, number)
        self.client.decr(f"running:{name}")
        return number, outcome

    def _pass(self, name: str, number: int) -> str:
        if not self.client.exists(f"gated:{name}"):
            return "go"
        popped: Any = self.client.blpop([f"gate:{name}:{number}", f"gate:{name}:all"], timeout=FOREVER)
        if popped is None:
            raise TimeoutError(f"nobody opened the gate of {name}#{number}")
        self.client.lpush(*popped)  # a gate that was opened stays open
        return str(popped[1])

    # -- in a test ------------------------------------------------------------------------------------------------

    def put_up_gate(self, name: str) -> None:
        """Computes of this name wait from now on."""
        self.client.set(f"gated:{name}", 1)

    def open_gate(self, name: str, number: int | str = "all", outcome: str = "go") -> None:
        """Lets one compute (or all) end: ``go`` returns, ``fail`` raises `ValueError`."""
        self.client.rpush(f"gate:{name}:{number}", outcome)

    def started(self, name: str, timeout: float = 20.0) -> tuple[int, int]:
        """Number and process id of the next compute to start. Raises `TimeoutError`."""
        popped: Any = self.client.blpop([f"started:{name}"], timeout=timeout)
        if popped is None:
            raise TimeoutError(f"no compute of {name} started within {timeout} s")
        number, pid = popped[1].split(":")
        return int(number), int(pid)

    def computes(self, name: str) -> int:
        """Computes that have started."""
        return int(self.client.get(f"computes:{name}") or 0)

    def overlaps(self, name: str) -> int:
        """Computes that started while another one ran."""
        return int(self.client.get(f"overlaps:{name}") or 0)

    def held(self, key: str) -> None:
        """Notes that a worker's main process holds a request for a key."""
        self.client.incr(f"held:{key}")

    def rendezvous(self, name: str, parties: int) -> None:
        """Returns when so many have come."""
        if int(self.client.incr(f"met:{name}")) == parties:
            self.client.rpush(f"meet:{name}", *(["go"] * parties))
        if self.client.blpop([f"meet:{name}"], timeout=FOREVER) is None:
            raise TimeoutError(f"too few came to {name}")
