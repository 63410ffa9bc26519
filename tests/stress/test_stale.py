"""No read returns what is older than the last invalidation that was complete when the read began (P4), under load.

Processes times threads read rows at random; writers change a row, then invalidate it; the backplane is cut at random.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from celery_cachetiers import CacheTiers
from tests.processes import ROOT, Process, remove_directory, scratch_directory
from tests.servers import RedisServer, RedisServers
from tests.stress.stale_app import VARIABLE, build

PROCESSES, THREADS, ROWS, VIEWS = 3, 4, 4, 4


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(150)])])
@pytest.mark.parametrize(("variant", "invalidated"), [("remote", "by tag"), ("strict", "by tag"), ("remote", "by key")])
def test_no_read_is_older_than_the_last_completed_invalidation(
    redis_factory: RedisServers, variant: str, invalidated: str, seconds: int
) -> None:
    seed = int(os.environ.get("STALE_SEED", random.randrange(2**32)))
    print(f"STALE_SEED={seed}")
    stress = Stress(redis_factory(), variant, invalidated, seconds, seed)
    try:
        reports = stress.run()
    finally:
        stress.close()

    reads, computes = (sum(report[name] for report in reports) for name in ("reads", "computes"))
    print(f"{reads} reads, {computes} computes, {stress.writes} writes, {stress.cuts} cuts")
    stale = [line for report in reports for line in report["stale"]]
    assert stale == [], f"{len(stale)} of {reads} reads were stale, STALE_SEED={seed}"
    assert reads > 2 * computes  # or it was no cache that was tested
    assert computes > 10
    assert stress.writes > 10
    assert stress.cuts > 10


class Stress:
    """Reading processes, and in this one a writer per row and a thread that cuts the backplane."""

    def __init__(self, server: RedisServer, variant: str, invalidated: str, seconds: int, seed: int) -> None:
        self._server, self._by_key, self._seed, self._seconds = server, invalidated == "by key", seed, seconds
        self._given: dict[str, Any] = {
            "cache": server.url(1), "truth": server.url(2), "namespace": f"t{uuid.uuid4().hex[:12]}",
            "variant": variant, "threads": THREADS, "rows": ROWS, "views": VIEWS, "seconds": seconds, "seed": seed,
            "longest_compute": 0.08,
        }  # fmt: skip
        self._app = build(self._given)
        self._directory = scratch_directory("stale")
        self._readers = [self._reader(number) for number in range(PROCESSES)]
        self._over = threading.Event()
        self.writes = self.cuts = 0
        self._errors: list[BaseException] = []

    def _reader(self, number: int) -> Process:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        given = json.dumps({**self._given, "process": number})
        return Process(
            [sys.executable, "-m", "tests.stress.stale_app"],
            log=self._directory / f"log{number}",
            env={**os.environ, "PYTHONPATH": paths, VARIABLE: given},
            cwd=ROOT,
        )

    def run(self) -> list[dict[str, Any]]:
        """Lets everybody loose together; returns what the readers report."""
        truth = self._app.truth
        for reader in self._readers:
            reader.start()
        self._pop("ready")
        truth.rpush("go", *[1] * PROCESSES)
        acts = [*(partial(self._write, row) for row in range(ROWS)), self._cut]
        threads = [threading.Thread(target=self._repeat, args=(number, act)) for number, act in enumerate(acts)]
        for thread in threads:
            thread.start()
        try:
            reports = [json.loads(report) for report in self._pop("reports")]
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        assert self._errors == []
        return reports

    def _pop(self, name: str) -> list[bytes]:
        popped = [self._app.truth.blpop([name], timeout=self._seconds + 30) for _ in self._readers]
        assert None not in popped, "\n".join(reader.log_tail() for reader in self._readers)
        return [each[1] for each in popped]

    def _repeat(self, number: int, act: Callable[[], None]) -> None:
        """Acts at random moments until it is over."""
        draw = random.Random(f"{self._seed}:{number}")
        try:
            while not self._over.wait(draw.uniform(0.0, 0.15)):
                act()
        except BaseException as error:
            self._errors.append(error)

    def _write(self, row: int) -> None:
        version = self._app.truth.incr(f"row:{row}")
        if self._by_key:
            for view in range(VIEWS):
                self._app.tasks[self._given["variant"]].cache.invalidate(row, view)
        else:
            CacheTiers(self._app).invalidate_tag(f"row:{row}")
        self._app.truth.set(f"done:{row}", version)
        self.writes += 1

    def _cut(self) -> None:
        with self._server.client() as client:
            self.cuts += client.client_kill_filter(_type="pubsub")

    def close(self) -> None:
        for reader in self._readers:
            reader.kill()
        CacheTiers(self._app).reset()
        self._app.truth.close()
        self._app.close()
        remove_directory(self._directory)
