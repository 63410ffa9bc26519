"""The app of the write-behind test, and a process whose children write and flush: `python -m tests.stress.kill_app`.

A child that dies by SIGKILL is forked anew at once, so that killing is cheap. Each notes what it does in files that are
only appended to, so that who is killed has told all; triggers of the database count what comes to it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from celery import Celery
from celery.exceptions import TimeoutError

from celery_cachetiers import CachedTask, CacheTiers, SQLAlchemySink, TierUnavailable, Write, sink
from celery_cachetiers import write_behind as wiring
from celery_cachetiers.errors import SinkUnavailable
from celery_cachetiers.flush import Flusher
from celery_cachetiers.journal import redis as journal
from celery_cachetiers.journal_port import NEWEST
from celery_cachetiers.journaling import LocalSequences
from celery_cachetiers.outlet import TaskOutlet

VARIABLE = "CACHETIERS_KILL_TEST"
SINK, TASK, READ = "kills", "produce", "read"
WRITERS, FLUSHERS = 3, 2
HOT, COLD = 5, 100
"""Names of a writer in one round: half of its writes go to the hot ones, which the journal coalesces."""

PAUSE, LULL, PATIENCE, DAWDLE, SLOWLY = 0.002, 0.1, 1.0, 0.003, 0.15

SQLITE = """
CREATE TABLE rows (name TEXT PRIMARY KEY, value INTEGER, deleted BOOLEAN NOT NULL, sequence BIGINT NOT NULL);
CREATE TABLE delivered (name TEXT, sequence BIGINT);
CREATE TABLE applied (number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, sequence BIGINT);
CREATE TRIGGER deliver BEFORE INSERT ON rows
  BEGIN INSERT INTO delivered VALUES (NEW.name, NEW.sequence); END;
CREATE TRIGGER insert_it AFTER INSERT ON rows
  BEGIN INSERT INTO applied (name, sequence) VALUES (NEW.name, NEW.sequence); END;
CREATE TRIGGER update_it AFTER UPDATE ON rows
  BEGIN INSERT INTO applied (name, sequence) VALUES (NEW.name, NEW.sequence); END;
"""
POSTGRES = """
CREATE TABLE rows (name TEXT PRIMARY KEY, value INTEGER, deleted BOOLEAN NOT NULL, sequence BIGINT NOT NULL);
CREATE TABLE delivered (name TEXT, sequence BIGINT);
CREATE TABLE applied (number BIGSERIAL PRIMARY KEY, name TEXT, sequence BIGINT);
CREATE FUNCTION deliver() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO delivered VALUES (NEW.name, NEW.sequence); RETURN NEW; END $$;
CREATE FUNCTION apply() RETURNS trigger LANGUAGE plpgsql AS
  $$ BEGIN INSERT INTO applied (name, sequence) VALUES (NEW.name, NEW.sequence); RETURN NEW; END $$;
CREATE TRIGGER deliver BEFORE INSERT ON rows FOR EACH ROW EXECUTE FUNCTION deliver();
CREATE TRIGGER apply AFTER INSERT OR UPDATE ON rows FOR EACH ROW EXECUTE FUNCTION apply();
"""
"""The trigger before an insert sees every row that is handed over, also one that then updates, or changes nothing."""


class Notes:
    """A file that is appended to, a line or several in one step."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def add(self, *lines: Sequence[object]) -> None:
        """Writes lines of words."""
        os.write(self._file, "".join(" ".join(map(str, line)) + "\n" for line in lines).encode())

    def close(self) -> None:
        """Closes it."""
        os.close(self._file)


def dawdle() -> None:
    """As on a busy machine: long enough to be killed here, too."""
    time.sleep(random.random() * DAWDLE)


def row(write: Write) -> dict[str, Any]:
    """The columns of a write."""
    name, number = numbered(write)
    return {"name": name, "value": number}


def numbered(write: Write) -> tuple[str, int]:
    """Name and number of a write: an argument, as a tombstone has no value; of what was read, the value."""
    name, *number = write.args
    return name, number[0] if number else write.value


class NotingSink:
    """Notes which number has which sequence, then hands on; upserts into SQLite by itself, the newest sequence wins."""

    newest = " WHERE rows.sequence < excluded.sequence"

    def __init__(self, handed: Path, path: str) -> None:
        self._handed, self._path = handed, path

    def open(self) -> None:
        """Connects."""
        self._notes = Notes(self._handed)
        self._connection = sqlite3.connect(self._path, timeout=30, isolation_level=None)
        self._connection.execute("PRAGMA synchronous=OFF")  # no power fails here

    def write(self, writes: list[Write]) -> None:
        """One transaction."""
        self._notes.add(*((*numbered(write), write.sequence) for write in writes))
        dawdle()
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT INTO rows VALUES (:name, :value, :deleted, :sequence) ON CONFLICT (name) DO UPDATE SET "
            f"value = excluded.value, deleted = excluded.deleted, sequence = excluded.sequence{self.newest}",
            [{**row(write), "deleted": write.deleted, "sequence": write.sequence} for write in writes],
        )
        self._connection.execute("COMMIT")
        dawdle()

    def close(self) -> None:
        """Disconnects."""
        self._connection.close()
        self._notes.close()


class NotingSQLAlchemySink(SQLAlchemySink):
    """The same in front of the project's own sink."""

    def __init__(self, handed: Path, url: str) -> None:
        super().__init__(url, "rows", columns=row, key=("name",))
        self._handed = handed

    def write(self, writes: list[Write]) -> None:
        notes = Notes(self._handed)
        notes.add(*((*numbered(write), write.sequence) for write in writes))
        notes.close()
        dawdle()
        super().write(writes)
        dawdle()


class Claims:
    """How long a claim lasts: a round must not wait for it."""

    seconds = 0.4


# -- what is taken out to see that the test notices -------------------------------------------------------------------


def _source(script: journal.Script, old: str, new: str) -> None:
    assert old in script.source.decode()
    script.source = script.source.decode().replace(old, new).encode()
    script.sha = hashlib.sha1(script.source, usedforsecurity=False).hexdigest()


def nothing() -> None:
    """As it is."""


def acknowledge_whatever_is_there() -> None:
    """What was written again meanwhile is removed with what the sink has taken."""
    _source(journal._ACKNOWLEDGE, "if value and string.sub(value, 1, 8) == ARGV[i + 1] then", "if value then")


def claims_never_expire() -> None:
    """A killed flusher's batch is nobody's."""
    Claims.seconds = 1e6


def the_last_delivery_wins() -> None:
    """The sink compares no sequences, and claims run out while a batch is on its way."""
    Claims.seconds = 0.003
    wiring.repeating = lambda *_: nullcontext()  # type: ignore[assignment]
    NotingSink.newest = ""
    write = NotingSink.write

    def slowly(self: NotingSink, writes: list[Write]) -> None:
        time.sleep(random.random() * 0.05)
        write(self, writes)

    NotingSink.write = slowly  # type: ignore[method-assign]


def the_journal_compares_nothing() -> None:
    """What was computed displaces what was put while the body ran."""
    _source(journal._WRITE, "if overtaken then", "if false then")


def what_was_taken_is_forgotten() -> None:
    """What was computed comes after what was put and flushed while the body ran."""
    _source(journal._WRITE, "redis.call('ZSCORE', KEYS[6], key)", "nil")


def sequences_are_drawn_after_the_body() -> None:
    """What was computed counts as newer than what was put while the body ran."""
    begin = TaskOutlet.begin
    TaskOutlet.begin = lambda self, key: (begin(self, key)[0], NEWEST)  # type: ignore[method-assign]


def sequences_begin_at_one() -> None:
    """What goes past a journal that is away has lower sequences than what waits in it."""

    def draw(self: LocalSequences) -> int:
        self._last += 1
        return self._last

    LocalSequences.draw = draw  # type: ignore[method-assign]


MUTATIONS: Mapping[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        nothing,
        acknowledge_whatever_is_there,
        claims_never_expire,
        the_last_delivery_wins,
        sequences_begin_at_one,
        the_journal_compares_nothing,
        what_was_taken_is_forgotten,
        sequences_are_drawn_after_the_body,
    )
}


# -- the app ----------------------------------------------------------------------------------------------------------


def build(given: Mapping[str, Any]) -> Celery:
    """The app: one task, whose value is its number and whose key is its name, and one sink."""
    app = Celery("kill", broker=given["broker"], backend=given["backend"], set_as_current=False)
    app.conf.update(
        cachetiers_url=given["cache"], cachetiers_journal_url=given["journal"], cachetiers_timeout=2.0,
        cachetiers_namespace=given["namespace"], cachetiers_lease_ttl=0.5, task_default_queue=given["namespace"],
        task_reject_on_worker_lost=True, broker_connection_retry_on_startup=True, worker_prefetch_multiplier=1,
    )  # fmt: skip
    make: Any = NotingSQLAlchemySink if given["sink"] == "sqlalchemy" else NotingSink
    where = f"sqlite:///{given['database']}" if given["sink"] == "sqlalchemy" else given["database"]
    sink(SINK, batch_size=10, backoff=0.05)(make(Path(given["directory"]) / "handed", given.get("url") or where))

    def produce(name: str, number: int) -> int:
        return number

    def read(name: str) -> int:
        """What the database has, after a while."""
        with closing(sqlite3.connect(given["database"], timeout=30)) as connection:
            found = connection.execute("SELECT value FROM rows WHERE name = ?", (name,)).fetchone()
        time.sleep(random.random() * SLOWLY)
        return int(found[0]) if found is not None else 0

    options: dict[str, Any] = {"shared": False, "base": CachedTask, "sink": SINK, "write": "behind", "l1": False}
    app.task(produce, name=TASK, ignore=("number",), **options)
    app.task(read, name=READ, **options)
    return app


class Writer:
    """Writes to names that are its own alone, numbers that only grow; notes each before the call and after it."""

    def __init__(self, app: Celery, number: int, directory: Path) -> None:
        self._app, self._number, self._directory = app, number, directory
        self._cache, self._read = app.tasks[TASK].cache, app.tasks[READ]
        self._newest: dict[str, int] = {}

    def run(self) -> None:
        """Writes while a round lasts, notes that it is over, waits for the next one."""
        over = 0
        while os.getppid() == _supervisor:
            current = self._round()
            if current > 0:
                self._write_until_it_is_over(current)
            elif current < over:
                over = current
                with closing(Notes(self._path(-over))) as notes:
                    notes.add(("over", "-", "-", 0))
            time.sleep(0.005)

    def _round(self) -> int:
        """Its number; negative when it is over."""
        return int((self._directory / "round").read_text())

    def _path(self, current: int) -> Path:
        return self._directory / f"writer-{current}-{self._number}"

    def _write_until_it_is_over(self, current: int) -> None:
        path = self._path(current)
        lines = path.read_text().splitlines() if path.exists() else []
        self._last = max((int(line.split()[3]) for line in lines), default=0)
        self._draw = random.Random(f"{_given['seed']}:{self._number}:{current}:{self._last}")
        with closing(Notes(path)) as self._notes:
            mixes = self._number == 1 and current % 2 == 0 and "url" not in _given
            if mixes:
                self._reach_the_journal()
            while self._round() == current:
                self._act(f"{current}-{self._number}-")
                if mixes:
                    self._put_while_it_is_read(f"{current}-{self._number}-read-{self._draw.randrange(3)}")
                time.sleep(self._draw.random() * PAUSE)

    def _act(self, prefix: str) -> None:
        draw = self._draw.random()
        if self._number == 0:
            self._compute(prefix)
        elif draw < 0.1:
            number = self._next()
            self._call("delete", [self._name(prefix)], number, lambda names: self._cache.delete(names[0], number))
        elif draw < 0.3:
            number = self._next()
            items = list({self._name(prefix): None for _ in range(8)})
            self._call("put", items, number, lambda names: self._cache.put_many([((n, number), number) for n in names]))
        elif draw < 0.32:
            self._app.tasks[wiring.FLUSH].apply_async((SINK,), ignore_result=True, expires=1.0)
        else:
            number = self._next()
            name = self._name(prefix)
            self._call("put", [name], number, lambda names: self._cache.put((names[0], number), number))

    def _name(self, prefix: str) -> str:
        return prefix + str(self._draw.randrange(HOT if self._draw.random() < 0.5 else COLD))

    def _next(self) -> int:
        self._last += 1
        return self._last

    def _call(self, what: str, names: list[str], number: int, act: Callable[[list[str]], None]) -> None:
        self._notes.add(*(("begun", what, name, number) for name in names))
        with suppress(TierUnavailable, SinkUnavailable):
            act(names)
            self._notes.add(*(("done", what, name, number) for name in names))

    def _reach_the_journal(self) -> None:
        """Its Redis was killed in the round before: a process leaves it alone for a while, unless it must try."""
        while True:
            with suppress(TierUnavailable):
                CacheTiers(self._app).writes.backlog(SINK)
                return

    def _put_while_it_is_read(self, name: str) -> None:
        """Puts under a name that a body is reading; then nobody may see what was there before.

        Only while the journal's Redis lives: a body that cannot look into the journal may bring an older value.
        """
        if name not in self._newest:
            self._newest[name] = 0
            self._notes.add(("begun", "put", name, 0))  # what a body gives where there is no row
        self._look(name)
        reader = threading.Thread(target=self._look, args=(name,))
        reader.start()
        time.sleep(self._draw.random() * SLOWLY)
        number = self._next()
        before = self._newest[name]
        self._call("put", [name], number, lambda names: self._acknowledged(names[0], number))
        reader.join()
        assert self._newest[name] in (before, number)
        self._look(name)

    def _acknowledged(self, name: str, number: int) -> None:
        self._read.cache.put((name,), number)
        self._newest[name] = number

    def _look(self, name: str) -> None:
        """Reads past what is cached; notes it if that is older than what was acknowledged before."""
        newest = self._newest[name]
        with suppress(TierUnavailable, SinkUnavailable):
            self._read.cache.invalidate(name)
            found = self._read(name)
            if found < newest:
                self._notes.add(("old", f"{found}<{newest}", name, newest))

    def _compute(self, prefix: str) -> None:
        """Through a worker; each name once, as a message that is delivered again runs the task again."""
        numbers = [self._next() for _ in range(5)]
        self._notes.add(*(("begun", "put", f"{prefix}{number}", number) for number in numbers))
        results = [self._app.tasks[TASK].delay(f"{prefix}{number}", number) for number in numbers]
        ends = time.monotonic() + PATIENCE
        for number, result in zip(numbers, results, strict=True):
            with suppress(TimeoutError):
                result.get(timeout=max(ends - time.monotonic(), 0.01))
                self._notes.add(("done", "put", f"{prefix}{number}", number))


def flush(app: Celery) -> None:
    """Flushes for as long as it lives; between two flushes, something waits in the journal."""
    while os.getppid() == _supervisor:
        with suppress(TierUnavailable):
            CacheTiers(app).writes.flush(SINK, 0.02)
        time.sleep(random.random() * LULL)


def act(app: Celery, role: int, directory: Path) -> None:
    """What a child does."""
    if role < WRITERS:
        Writer(app, role, directory).run()
    else:
        flush(app)


def supervise(app: Celery, directory: Path) -> None:
    """Keeps one child in each role; ends if one ends in another way than by SIGKILL."""
    roles = {_forked(app, role, directory): role for role in range(WRITERS + FLUSHERS)}
    print("ready", flush=True)
    while True:
        pid, status = os.wait()
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signal.SIGKILL:
            sys.exit(f"a child in role {roles[pid]} has ended with {status}")
        role = roles.pop(pid)
        roles[_forked(app, role, directory)] = role


def _forked(app: Celery, role: int, directory: Path) -> int:
    if pid := os.fork():
        return pid
    try:
        act(app, role, directory)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


if VARIABLE in os.environ:  # in a process of the test, and in its worker; not in the test itself
    _given = json.loads(os.environ[VARIABLE])
    _supervisor = os.getpid()
    MUTATIONS[_given["mutation"]]()
    wiring.Flusher = lambda *args, **kwargs: Flusher(*args, **kwargs, claim_seconds=Claims.seconds)  # type: ignore[assignment,misc]
    app = build(_given)

if __name__ == "__main__":
    supervise(app, Path(_given["directory"]))
