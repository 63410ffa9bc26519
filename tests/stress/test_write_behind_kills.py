"""No write that was acknowledged is lost, and none goes back (P5), whoever is killed: with kill -9, at any moment.

Processes write and flush, a prefork worker computes and flushes, and all of them die at random; in some rounds so does
the Redis of the journal, which restarts on its files. After each round the journal must come to be empty, and the
database is compared with what the writers have noted. Every name is written by one process, so that it is known which
write was the last. Some names are put while a slow body reads them from the database, and read again past the cache.
What each mechanism is there for is shown by taking it out.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest

from celery_cachetiers.breaker import Breaker
from celery_cachetiers.client import RedisClient
from celery_cachetiers.clock import SystemClock
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.journal.redis import RedisJournal
from celery_cachetiers.journal_port import Backlog
from tests.databases import PostgresServer
from tests.processes import ROOT, Process, remove_directory, scratch_directory, wait_until
from tests.servers import RedisServers
from tests.stress.kill_app import POSTGRES, SINK, SQLITE, VARIABLE, WRITERS
from tests.workers import Worker

Start = Callable[..., Worker]
VARIANTS = [
    ("sqlite3", "beside the entries"),
    pytest.param("sqlalchemy", "of its own", marks=pytest.mark.slow),
    ("postgresql", "of its own"),  # by SQLAlchemySink, too
]
MOST_TWICE = 0.05


@pytest.mark.parametrize(("kind", "journal"), VARIANTS)
def test_no_acknowledged_write_is_lost_or_goes_back_in_ten_rounds_of_kills(
    request: pytest.FixtureRequest, redis_factory: RedisServers, worker_factory: Start, kind: str, journal: str
) -> None:
    server = request.getfixturevalue("postgres_server") if kind == "postgresql" else None
    with Campaign(redis_factory, worker_factory, kind, own_journal=journal == "of its own", server=server) as campaign:
        for _ in range(10):
            campaign.round(0.8)

    campaign.judge()
    assert campaign.kills["redis"] >= 3
    assert campaign.kills["worker"] >= 2
    assert min(campaign.kills["process"], campaign.kills["child"]) > 5
    assert campaign.acknowledged > 200  # or nothing has been tried


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("journal", ["beside the entries", "of its own"])
@pytest.mark.parametrize("kind", ["sqlite3", "sqlalchemy", "postgresql"])
def test_nor_in_longer_ones(
    request: pytest.FixtureRequest, redis_factory: RedisServers, worker_factory: Start, kind: str, journal: str
) -> None:
    server = request.getfixturevalue("postgres_server") if kind == "postgresql" else None
    with Campaign(redis_factory, worker_factory, kind, own_journal=journal == "of its own", server=server) as campaign:
        for _ in range(10):
            campaign.round(5.0)

    campaign.judge()
    assert campaign.kills["redis"] >= 10
    assert campaign.acknowledged > 2000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mutation", "finding"),
    [
        ("acknowledge_whatever_is_there", "lost"),
        ("claims_never_expire", "left"),
        ("the_last_delivery_wins", "back"),
        ("sequences_begin_at_one", "lost"),
        ("no_persistence", "lost"),
        ("the_journal_compares_nothing", "old"),
        ("what_was_taken_is_forgotten", "old"),
        ("sequences_are_drawn_after_the_body", "old"),
    ],
)
def test_the_test_finds_what_is_lost_when_a_mechanism_is_taken_out(
    redis_factory: RedisServers, worker_factory: Start, mutation: str, finding: str
) -> None:
    own = mutation == "sequences_begin_at_one"  # else a put fails while the journal is away, as the cache is too
    with Campaign(redis_factory, worker_factory, "sqlite3", own_journal=own, mutation=mutation) as campaign:
        for _ in range(20):  # nearly always one of the first is enough
            campaign.round(1.0)
            if campaign.found[finding]:
                break

    assert campaign.found[finding]


@dataclass
class Names:
    """What a round's writers have noted of one name."""

    begun: dict[int, str] = field(default_factory=dict)
    acknowledged: int = 0


class Campaign:
    """Rounds on the same servers, with the same database.

    Attributes:
        found: Findings by kind: "lost", "back", "wrong", "old", "left" and "buried"; none is right.
        kills: How often what was killed.
        acknowledged: Writes that returned to their caller.
    """

    def __init__(
        self, redis_factory: RedisServers, worker_factory: Start, kind: str, *,
        own_journal: bool = False, mutation: str = "nothing", server: PostgresServer | None = None,
    ) -> None:  # fmt: skip
        seed = int(os.environ.get("KILL_SEED", random.randrange(2**32)))
        print(f"KILL_SEED={seed}")
        self._draw = random.Random(seed)
        safe = () if mutation == "no_persistence" else ("--appendonly", "yes", "--appendfsync", "always")
        self._redis, self._others = redis_factory(*safe), redis_factory()
        self._directory = scratch_directory("kills")
        self._server = server
        given: dict[str, Any] = {
            "cache": (self._others if own_journal else self._redis).url(1), "journal": self._redis.url(1),
            "broker": self._others.url(2), "backend": self._others.url(3), "namespace": f"t{uuid.uuid4().hex[:12]}",
            "directory": str(self._directory), "database": str(self._directory / "database"), "sink": kind,
            "mutation": "nothing" if mutation == "no_persistence" else mutation, "seed": seed,
        }  # fmt: skip
        if server is not None:
            given |= {"sink": "sqlalchemy", "url": server.url()}
        self._given, self._worker_factory = given, worker_factory
        client = RedisClient(self._redis.url(1), 5.0, Breaker(0.0, SystemClock()))
        self._journal = RedisJournal(client, given["namespace"])
        self._number = 0
        self.found: dict[str, list[str]] = {kind: [] for kind in ("lost", "back", "wrong", "old", "left", "buried")}
        self.kills: Counter[str] = Counter()
        self.acknowledged = 0

    def __enter__(self) -> Campaign:
        self._tell(0)
        with self._connection() as run:
            run(POSTGRES if self._server is not None else SQLITE)
        env = {VARIABLE: json.dumps(self._given)}
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = Process(
            [sys.executable, "-m", "tests.stress.kill_app"], log=self._directory / "log", cwd=ROOT,
            env={**os.environ, **env, "PYTHONPATH": paths},
        )  # fmt: skip
        self._process.start()
        try:
            self._worker = self._worker_factory("tests.stress.kill_app", concurrency=3, env=env)
            self._wait(lambda: "ready" in self._process.log_text(), "the processes")
        except BaseException:
            self._process.kill()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._process.kill()
        self._worker.kill()
        self._journal.close()
        print(f"{self.acknowledged} writes acknowledged in {self._number} rounds; killed: {dict(self.kills)}")
        try:
            with self._connection() as run:
                self._count(run)
                if self._server is not None:
                    run("DROP TABLE rows, delivered, applied; DROP FUNCTION deliver, apply;")
        finally:
            remove_directory(self._directory)

    def judge(self) -> None:
        """Asserts that nothing was found."""
        assert self.found == {kind: [] for kind in self.found}
        assert self.twice <= MOST_TWICE * self.deliveries, f"{self.twice} of {self.deliveries} deliveries were again"

    # -- a round ------------------------------------------------------------------------------------------------------

    def round(self, seconds: float) -> None:
        """Lets everybody write and die for so long; then looks what has become of it."""
        self._number += 1
        self._tell(self._number)
        ends = time.monotonic() + seconds
        acts = self._acts(seconds)
        while time.monotonic() < ends:
            time.sleep(self._draw.uniform(0.0, 0.2))
            if acts and ends - time.monotonic() < acts[-1][0]:
                acts.pop()[1]()
            elif self._draw.random() < 0.6:
                self._kill_process()
            else:
                self._kill_child()
        for _, act in acts:
            act()
        self._tell(-self._number)
        self._wait(lambda: all(map(self._is_over, range(WRITERS))), "the end of the round")
        self._await_an_empty_journal()
        self._look()

    def _acts(self, seconds: float) -> list[tuple[float, Callable[[], None]]]:
        """What is killed how many seconds before the end; what comes first stands last."""
        acts: list[tuple[float, Callable[[], None]]] = []
        for _ in range(max(1, int(seconds / 2)) if self._number % 2 else 0):
            acts.append((self._draw.uniform(0.0, 0.7) * seconds, self._kill_redis))
        if self._number % 4 == 2:
            acts.append((self._draw.uniform(0.2, 0.9) * seconds, self._kill_worker))
        return sorted(acts, key=lambda each: each[0])

    def _kill_process(self) -> None:
        self._kill_one("process", psutil.Process(self._process.pid).children())

    def _kill_child(self) -> None:
        if self._worker.running:
            with suppress(psutil.NoSuchProcess):
                self._kill_one("child", psutil.Process(self._worker.pid).children())

    def _kill_one(self, what: str, processes: list[psutil.Process]) -> None:
        if processes:
            with suppress(psutil.NoSuchProcess):
                self._draw.choice(processes).send_signal(signal.SIGKILL)
                self.kills[what] += 1

    def _kill_redis(self) -> None:
        self._redis.kill()
        time.sleep(self._draw.uniform(0.0, 0.2))
        self._redis.start()
        self.kills["redis"] += 1

    def _kill_worker(self) -> None:
        self._worker.kill()
        self._worker.start()
        self.kills["worker"] += 1

    def _tell(self, number: int) -> None:
        path = self._directory / "next"
        path.write_text(str(number))
        path.replace(self._directory / "round")

    def _is_over(self, writer: int) -> bool:
        path = self._directory / f"writer-{self._number}-{writer}"
        return path.exists() and path.read_text().endswith("over - - 0\n")

    def _wait(self, done: Callable[[], bool], what: str) -> None:
        wait_until(done, timeout=60.0, message=what, process=self._process)

    def _await_an_empty_journal(self) -> None:
        ends = time.monotonic() + 15.0
        while (backlog := self._backlog()).pending and time.monotonic() < ends:
            time.sleep(0.01)
        assert self._process.running, self._process.log_tail()
        if backlog.pending:
            self.found["left"].append(f"{backlog.pending} after round {self._number}")
        if backlog.buried:
            self.found["buried"] += [each.reason for each in self._journal.buried(SINK, 0, 10)]

    def _backlog(self) -> Backlog:
        while True:
            with suppress(TierUnavailable):  # it has just been started, and loads its files
                return self._journal.backlog(SINK)
            time.sleep(0.01)

    # -- what has become of it ----------------------------------------------------------------------------------------

    def _look(self) -> None:
        names = self._noted()
        with self._connection() as run:
            rows = {name: each for name, *each in run("SELECT name, sequence, value, deleted FROM rows")}
            applied = run("SELECT name, sequence FROM applied ORDER BY number")
        numbers = self._handed()  # after the rows: a message that is delivered again writes at any time
        for name, noted in names.items():
            self._compare(name, noted, rows.get(name), numbers)
        last: dict[str, int] = {}
        for name, sequence in applied:
            number = numbers[name, sequence]
            if number < last.get(name, 0) and name in names:
                self.found["back"].append(f"{name}: {number} after {last[name]}")
            last[name] = number

    def _compare(self, name: str, noted: Names, row: list[Any] | None, numbers: dict[tuple[str, int], int]) -> None:
        if row is None:
            if noted.acknowledged:
                self.found["lost"].append(f"{name}: no row, {noted.acknowledged} was acknowledged")
            return
        sequence, value, deleted = row
        number = numbers[name, sequence]
        if number < noted.acknowledged:
            self.found["lost"].append(f"{name}: {number} in the row, {noted.acknowledged} was acknowledged")
        right = noted.begun.get(number) == ("delete" if deleted else "put") and (deleted or value == number)
        if not right:
            self.found["wrong"].append(f"{name}: {value}, deleted: {deleted}, for {number}: {noted.begun.get(number)}")

    def _noted(self) -> dict[str, Names]:
        names: dict[str, Names] = {}
        for path in self._directory.glob(f"writer-{self._number}-*"):
            for line in path.read_text().splitlines():
                state, what, name, number = line.split()
                if state == "begun":
                    names.setdefault(name, Names()).begun[int(number)] = what
                elif state == "done":
                    names[name].acknowledged = max(names[name].acknowledged, int(number))
                    self.acknowledged += 1
                elif state == "old":
                    self.found["old"].append(f"{name}: {what}")
        return names

    def _handed(self) -> dict[tuple[str, int], int]:
        """Name and sequence to number."""
        lines = (line.split() for line in (self._directory / "handed").read_text().splitlines())
        return {(name, int(sequence)): int(number) for name, number, sequence in lines}

    def _count(self, run: Callable[[str], list[Any]]) -> None:
        again = "SELECT coalesce(sum(times), 0), coalesce(sum(times - 1), 0) FROM "
        each = "(SELECT count(*) AS times FROM delivered GROUP BY name, sequence) AS each"
        self.deliveries, self.twice = map(int, run(again + each)[0])
        print(f"{self.twice} of {self.deliveries} deliveries were again, {100 * self.twice / self.deliveries:.1f} %")

    @contextmanager
    def _connection(self) -> Iterator[Callable[[str], list[Any]]]:
        """Runs statements."""
        if self._server is None:
            with closing(sqlite3.connect(self._given["database"], timeout=30)) as connection:
                connection.execute("PRAGMA journal_mode=WAL")
                yield lambda text: list(connection.executescript(text) if ";" in text else connection.execute(text))
            return
        import psycopg

        where = self._server.url().replace("+psycopg", "")
        with closing(psycopg.connect(where, autocommit=True)) as connection:

            def run(text: str) -> list[Any]:
                cursor = connection.execute(text)  # type: ignore[arg-type]  # statements of ours
                return cursor.fetchall() if cursor.description else []

            yield run
