"""No wake-up is lost, however many wait, also while the connections that carry them are cut at random."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import uuid
from typing import Any

import pytest
import redis

from tests.processes import ROOT, Process, remove_directory, scratch_directory
from tests.servers import RedisServer, RedisServers
from tests.stress.wake_app import VARIABLE

PROCESSES, THREADS = 5, 2
LEASE_TTL = 60.0
LOST = 10.0
"""Seconds after which a call has lost its wake-up: far less than the lease, far more than a busy machine needs."""


@pytest.mark.parametrize("waits", [2_000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("cutting", [False, True], ids=["", "connections cut"])
def test_no_wake_up_is_lost(redis_factory: RedisServers, waits: int, cutting: bool) -> None:
    server, directory = redis_factory(), scratch_directory("wake")
    keys = waits * 2 // (PROCESSES * THREADS - 1)
    given = {
        "cache": server.url(1), "book": server.url(2), "namespace": f"t{uuid.uuid4().hex[:12]}",
        "keys": keys, "threads": THREADS, "lease_ttl": LEASE_TTL, "compute": 0.003,
    }  # fmt: skip
    processes = [_process(directory / f"log{number}", given) for number in range(PROCESSES)]
    try:
        reports, cuts = _run(server, processes, cutting)
    finally:
        for process in processes:
            process.kill()
        remove_directory(directory)

    waited, computes = (sum(report[name] for report in reports) for name in ("waits", "computes"))
    longest = max(report["longest"] for report in reports)
    print(f"{waited} waits, {computes} computes of {keys} keys, {cuts} cuts, the longest call {longest * 1e3:.0f} ms")
    assert longest < LOST
    assert computes == keys
    assert waited >= waits
    assert cuts > 10 or not cutting


def _process(log: Any, given: dict[str, Any]) -> Process:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return Process(
        [sys.executable, "-m", "tests.stress.wake_app"],
        log=log,
        env={**os.environ, "PYTHONPATH": paths, VARIABLE: json.dumps(given)},
        cwd=ROOT,
    )


def _run(server: RedisServer, processes: list[Process], cutting: bool) -> tuple[list[dict[str, Any]], int]:
    over, cuts = threading.Event(), list[int]()

    def cut() -> None:
        with server.client() as client:
            while not over.wait(random.uniform(0.0, 0.1)):
                cuts.append(client.client_kill_filter(_type="pubsub"))

    cutter = threading.Thread(target=cut)
    with redis.Redis.from_url(server.url(2), socket_timeout=None) as book:
        for process in processes:
            process.start()
        for process in processes:
            assert book.blpop(["ready"], timeout=30) is not None, process.log_tail()
        book.rpush("go", *[1] * len(processes))
        if cutting:
            cutter.start()
        try:
            popped: list[Any] = [book.blpop(["reports"], timeout=240) for _ in processes]
        finally:
            over.set()
            if cutting:
                cutter.join()
    assert None not in popped, "\n".join(process.log_tail() for process in processes)
    return [json.loads(each[1]) for each in popped], sum(cuts)
