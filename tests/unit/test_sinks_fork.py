"""Sinks over forks and at the end of a process: each program runs in an interpreter of its own, and takes notes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")

PRELUDE = """
import json, os, sqlite3, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # os.fork() in a process with threads
from pathlib import Path
from celery_cachetiers import Write, sink, sinks
here = Path(sys.argv[1])

def a_write(number):
    return Write("proj.order", (number,), {}, f"k{number}", number, False, number, 0.0)

def note(what):
    with open(here / "notes", "a") as notes:
        notes.write(f"{'parent' if os.getpid() == parent else 'child'} {what}\\n")

class Save:
    def open(self):
        self.pid = os.getpid()
        note("open")
    def write(self, writes):
        note(f"write {[write.value for write in writes]} {'own' if self.pid == os.getpid() else 'inherited'}")
    def close(self):
        note(f"close {'own' if self.pid == os.getpid() else 'inherited'}")
    def __del__(self):
        note(f"del {'own' if self.pid == os.getpid() else 'inherited'}")

parent = os.getpid()
"""


def run(program: str, directory: Path, before: str = "") -> tuple[list[str], Any, str]:
    """Runs a program after the prelude; returns the lines of its notes, what it printed as JSON, and its log."""
    done = subprocess.run(
        [sys.executable, "-c", before + PRELUDE + program, str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    notes = directory / "notes"
    lines = notes.read_text().splitlines() if notes.exists() else []
    return lines, json.loads(done.stdout) if done.stdout.strip() else None, done.stderr


def test_the_end_of_a_process_closes_what_is_open(tmp_path: Path) -> None:
    lines, _, _ = run("sink('orders')(Save)\nsinks.find('orders').write([a_write(1)])\n", tmp_path)

    assert lines[:3] == ["parent open", "parent write [1] own", "parent close own"]


def test_a_fork_closes_what_is_open_and_the_child_opens_its_own(tmp_path: Path) -> None:
    lines, _, _ = run(
        """
sink("orders")(Save)
orders = sinks.find("orders")
orders.write([a_write(1)])
child = os.fork()
if not child:
    orders.write([a_write(2)])
    sys.exit()
os.waitpid(child, 0)
orders.write([a_write(3)])
""",
        tmp_path,
    )

    assert [line for line in lines if "del" not in line] == [
        *("parent open", "parent write [1] own", "parent close own"),
        *("child open", "child write [2] own", "child close own"),
        *("parent open", "parent write [3] own", "parent close own"),
    ]
    assert not [line for line in lines if "inherited" in line]


def test_what_a_child_inherits_of_a_busy_sink_is_neither_used_nor_closed_nor_freed(tmp_path: Path) -> None:
    lines, _, log = run(
        """
import gc, logging
logging.basicConfig()
sinks.FORK_PATIENCE = 0.0
busy, gate = threading.Event(), threading.Event()

class Busy(Save):
    def write(self, writes):
        if writes[0].value == 1:
            busy.set()
            gate.wait(30)
        super().write(writes)

sink("orders")(Busy)
orders = sinks.find("orders")
waiter = threading.Thread(target=orders.write, args=([a_write(1)],))
waiter.start()
busy.wait(30)
child = os.fork()
if not child:
    orders.write([a_write(2)])
    gc.collect()
    sys.exit()
os.waitpid(child, 0)
gate.set()
waiter.join(30)
orders.write([a_write(3)])
""",
        tmp_path,
    )

    assert "the process forks while sink orders is open and busy" in log
    assert not [line for line in lines if "inherited" in line]
    assert {"child write [2] own", "child close own", "parent write [1] own", "parent write [3] own"} <= set(lines)


def test_no_row_is_lost_over_a_fork_with_an_sqlite_wal_database(tmp_path: Path) -> None:
    _, kept, _ = run(
        """
class Rows:
    def open(self):
        self.db = sqlite3.connect(here / "orders.db", isolation_level=None)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("CREATE TABLE IF NOT EXISTS orders (number INTEGER PRIMARY KEY)")
    def write(self, writes):
        self.db.executemany("INSERT INTO orders VALUES (?)", [(write.value,) for write in writes])
    def close(self):
        self.db.close()

sink("orders")(Rows)
orders = sinks.find("orders")
orders.write([a_write(0)])
there, here_, on, go = *os.pipe(), *os.pipe()
child = os.fork()
if not child:
    orders.write([a_write(1)])
    os.write(here_, b"x")
    os.read(on, 1)
    for number in range(2, 101):
        orders.write([a_write(number)])
    orders.close()
    os._exit(0)
os.read(there, 1)
orders.close()  # what the parent has open must not take the child's log with it
os.write(go, b"x")
os.waitpid(child, 0)
print(json.dumps(sqlite3.connect(here / "orders.db").execute("SELECT count(*) FROM orders").fetchone()[0]))
""",
        tmp_path,
    )

    assert kept == 101


def test_what_is_kept_for_ever_is_not_even_freed_as_the_interpreter_ends(tmp_path: Path) -> None:
    _, freed, _ = run(
        """
from celery_cachetiers.sink_writer import keep_for_ever

class Noisy:
    def __init__(self, name):
        self.name = name
    def __del__(self, tell=os.write):  # by then the modules are empty
        tell(1, self.name)

keep_for_ever(Noisy(b"1"))
sys.noisy = [Noisy(b"2")]
""",
        tmp_path,
    )

    assert freed == 2


def test_a_fork_inside_the_sink_itself_does_not_wait_for_it(tmp_path: Path) -> None:
    lines, _, _ = run(
        """
class Forks(Save):
    def write(self, writes):
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        super().write(writes)

sink("orders", time_limit=30)(Forks)
sinks.FORK_PATIENCE = 3600.0
sinks.find("orders").write([a_write(1)])
""",
        tmp_path,
    )

    assert lines[:3] == ["parent open", "parent write [1] own", "parent close own"]


def test_children_forked_while_other_threads_write_do_not_hang(tmp_path: Path) -> None:
    _, ended, _ = run(
        """
sink("orders")(lambda writes: None)
orders = sinks.find("orders")
over = threading.Event()
def keep_writing():
    while not over.is_set():
        orders.write([a_write(1)])
        orders.close()
writers = [threading.Thread(target=keep_writing) for _ in range(2)]
for writer in writers:
    writer.start()
children = []
for _ in range(40):
    child = os.fork()
    if not child:
        orders.write([a_write(2)])
        os._exit(0)
    children.append(child)
codes = [os.waitpid(child, 0)[1] for child in children]
over.set()
for writer in writers:
    writer.join()
print(json.dumps(codes))
""",
        tmp_path,
    )

    assert ended == [0] * 40


def test_it_works_under_gevent(tmp_path: Path) -> None:
    lines, (seen, ticks), _ = run(
        """
import gevent
gate = threading.Event()
class Hangs(Save):
    def write(self, writes):
        if writes[0].value == 1:
            gate.wait(30)
        super().write(writes)

sink("orders", time_limit=0.1)(Hangs)
orders = sinks.find("orders")
seen = []
try:
    orders.write([a_write(1)])
except Exception as error:
    seen.append(type(error).__name__)
orders.write([a_write(2)])
ticks = []
ticker = gevent.spawn(lambda: ticks.append(1))
orders.write([a_write(3)])
gate.set()
gevent.sleep(0)
child = os.fork()
if not child:
    orders.write([a_write(4)])
    sys.exit()
os.waitpid(child, 0)
print(json.dumps([seen, len(ticks)]))
""",
        tmp_path,
        before="from gevent import monkey; monkey.patch_all()\n",
    )

    assert (seen, ticks) == (["SinkTimeout"], 1)
    assert {"parent write [2] own", "parent write [3] own", "parent write [1] own", "child write [4] own"} <= set(lines)
    assert not [line for line in lines if "inherited" in line]
