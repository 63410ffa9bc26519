"""No read returns what an invalidation that was complete when the read began has replaced (P4), under load.

Processes times threads read rows at random, by direct call and through a prefork worker, and write them; children of
the worker are killed, and the backplane is cut, at random. What each mechanism is there for is shown by taking it out:
then the same test must find something stale.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from tests.processes import ROOT, Process, remove_directory, scratch_directory
from tests.servers import RedisServers
from tests.stress.judge import Judge, centiles
from tests.stress.stale_app import VARIABLE, VARIANTS, Rows
from tests.workers import Worker

NEVER = 1e9
PROCESSES, ROWS, BY_KEY = 3, 6, 5
"""The last row is invalidated by key, the others by tag."""

Start = Callable[..., Worker]


@pytest.mark.parametrize("seconds", [6, pytest.param(60, marks=[pytest.mark.slow, pytest.mark.timeout(200)])])
def test_no_read_is_older_than_the_last_completed_invalidation(
    redis_factory: RedisServers, worker_factory: Start, seconds: int
) -> None:
    with Stress(redis_factory, seconds=seconds) as stress:
        judge = stress.run(worker_factory)

    assert judge.broken == []
    reads, computes = judge.count("read"), judge.count("computed")
    assert reads > 1.2 * computes > 100  # or it was no cache that was tested
    assert judge.count("complete") > 5 * seconds
    assert judge.count("lost") < reads / 100
    assert min(stress.cuts, stress.kills) > seconds / 4


@pytest.mark.parametrize(
    ("mutation", "variant", "broken", "cut_every"),
    [
        ("stamp_after_compute", "remote", "remote", 0.5),
        ("no_guard", "eventual", "known", NEVER),
        ("no_flush_on_gap", "eventual", "known", 0.2),
        ("no_log", "remote", "remote", 0.5),
    ],
)
def test_the_test_finds_what_is_stale_when_a_mechanism_is_taken_out(
    redis_factory: RedisServers, mutation: str, variant: str, broken: str, cut_every: float
) -> None:
    for _ in range(5):  # nearly always the first is enough
        with Stress(redis_factory, 2, mutation, [variant], cut_every=cut_every, write_every=0.2) as stress:
            found = {each.broke: each.task for each in stress.run().broken}
        if found:
            break

    assert set(found) == {broken}
    assert mutation != "no_log" or found == {"remote": "remote by result"}


@pytest.mark.slow
def test_the_test_finds_what_is_stale_for_longer_than_a_silence(redis_factory: RedisServers) -> None:
    with Stress(redis_factory, seconds=12, mutation="deaf", variants=["eventual"], cut_every=NEVER) as stress:
        judge = stress.run()

    assert "silence" in {each.broke for each in judge.broken}


class Stress:
    """Processes that read and write, and in this one what happens to them.

    Args:
        cut_every: Seconds on average between two cuts of everybody's backplane.
        write_every: Seconds on average between two writes of the same row.
    """

    def __init__(
        self,
        redis_factory: RedisServers,
        seconds: float,
        mutation: str = "nothing",
        variants: Sequence[str] = tuple(VARIANTS),
        cut_every: float = 1.0,
        write_every: float = 0.3,
    ) -> None:
        self._seed = int(os.environ.get("STALE_SEED", random.randrange(2**32)))
        print(f"STALE_SEED={self._seed}")
        self._server, self._others = redis_factory(), redis_factory()
        self._directory, self._seconds = scratch_directory("stale"), seconds
        self._cut_every = cut_every
        self._log = self._directory / "notes"
        self._log.mkdir()
        self._given = {
            "cache": self._server.url(1), "broker": self._others.url(1), "backend": self._others.url(2),
            "namespace": f"t{uuid.uuid4().hex[:12]}", "rows_at": str(self._directory / "rows"), "log": str(self._log),
            "processes": PROCESSES, "rows": ROWS, "by_key": BY_KEY, "variants": variants, "seconds": seconds,
            "seed": self._seed, "mutation": mutation, "worker": False, "process": 0, "write_every": write_every,
        }  # fmt: skip
        self._processes: list[Process] = []
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._killed: dict[int, float] = {}
        self.cuts = self.kills = 0
        rows = Rows(self._given["rows_at"])
        rows.create(ROWS)
        rows.close()

    def __enter__(self) -> Stress:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in self._processes:
            process.kill()
        remove_directory(self._directory)

    def run(self, worker_factory: Start | None = None) -> Judge:
        """Lets everybody loose together; returns what is to be said of it."""
        worker = self._worker(worker_factory) if worker_factory is not None else None
        self._processes = [self._process(number) for number in range(PROCESSES)]
        for process in self._processes:
            process.start()
        self._let_loose()
        acts: list[tuple[Callable[[random.Random], None], float]] = [(self._cut, 2 * self._cut_every)]
        acts += [(lambda draw: self._kill(worker, draw), 1.5)] if worker is not None else []
        threads = [threading.Thread(target=self._repeat, args=(*act, number)) for number, act in enumerate(acts)]
        for thread in threads:
            thread.start()
        try:
            self._wait()
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
        if worker is not None:
            worker.kill()  # what it still does is nobody's
        assert self._errors == []
        return self._judge()

    def _worker(self, worker_factory: Start) -> Worker:
        self._given["worker"] = True
        env = {VARIABLE: json.dumps(self._given)}
        return worker_factory("tests.stress.stale_app", concurrency=2, env=env)

    def _process(self, number: int) -> Process:
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        given = json.dumps({**self._given, "process": number})
        return Process(
            [sys.executable, "-m", "tests.stress.stale_app"],
            log=self._directory / f"log{number}",
            env={**os.environ, "PYTHONPATH": paths, VARIABLE: given},
            cwd=ROOT,
        )

    def _let_loose(self) -> None:
        with self._others.client(2, socket_timeout=None) as client:
            for _ in self._processes:
                assert client.blpop(["ready"], timeout=30), self._tails()
            client.rpush("go", *[1] * PROCESSES)

    def _wait(self) -> None:
        deadline = time.monotonic() + self._seconds + 30
        while any(process.running for process in self._processes) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert [process.returncode for process in self._processes] == [0] * PROCESSES, self._tails()

    def _tails(self) -> str:
        return "\n".join(process.log_tail() for process in self._processes)

    def _repeat(self, act: Callable[[random.Random], None], longest: float, number: int) -> None:
        draw = random.Random(f"{self._seed}:{number}")
        try:
            while not self._over.wait(draw.uniform(0.0, longest)):
                act(draw)
        except BaseException as error:
            self._errors.append(error)

    def _cut(self, draw: random.Random) -> None:
        with self._server.client() as client:
            self.cuts += client.client_kill_filter(_type="pubsub")

    def _kill(self, worker: Worker, draw: random.Random) -> None:
        children = worker.children()
        if not children:
            return
        child = draw.choice(children)
        try:
            worker.kill_child(child)
        except (ValueError, ProcessLookupError):
            return  # it has ended by itself
        self._killed[child] = time.monotonic()
        self.kills += 1

    def _judge(self) -> Judge:
        readers = {process.pid for process in self._processes}
        workers = {int(path.stem) for path in self._log.glob("*.jsonl")} - readers
        judge = Judge(self._log, workers, self._killed)
        counts = {kind: judge.count(kind) for kind in ("read", "computed", "complete", "heard", "gap", "lost")}
        through_l1 = sorted(each.age for each in judge.stale if not each.broke)
        print(f"{counts}, {self.cuts} cuts, {self.kills} kills")
        print(f"announcements heard after the invalidation had returned: {centiles(judge.lags)}")
        print(f"age of reads that were stale through an eventual L1: {centiles(through_l1)}")
        print(f"broken: {dict(Counter((each.task, each.through, each.broke) for each in judge.broken))}")
        for each in judge.broken[:5]:
            print(each)
        return judge
