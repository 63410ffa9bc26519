"""`SQLAlchemySink`: what it refuses, its statements, and what it does with engines over forks; all on SQLite files."""

from __future__ import annotations

import os
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite

from celery_cachetiers import ConfigurationError, SinkUnavailable, SQLAlchemySink, Write
from celery_cachetiers.sinks import Sink, SinkPolicy
from celery_cachetiers.sqlalchemy_outages import is_outage
from celery_cachetiers.sqlalchemy_statements import Shape, delete, upsert
from tests.unit.test_sinks_fork import run


def orders(*more: Any, **options: Any) -> sa.Table:
    return sa.Table(
        "orders",
        sa.MetaData(),
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("total", sa.Integer),
        sa.Column("sequence", sa.BigInteger),
        *more,
        **options,
    )


def a_write(key: str, total: int | None, sequence: int) -> Write:
    value = None if total is None else {"total": total}
    return Write("proj.order", (), {}, key, value, total is None, sequence, 1_700_000_000.0)


@pytest.fixture
def url(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/orders.db"
    engine = sa.create_engine(url)
    orders().create(engine)
    engine.dispose()
    return url


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


def keys(url: str) -> list[tuple[str, int]]:
    with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
        found = db.execute("SELECT key, total FROM orders ORDER BY key").fetchall()
    db.close()
    return found


def write(target: SQLAlchemySink, *writes: Write) -> None:
    sink = Sink("orders", target, SinkPolicy())
    try:
        sink.write(list(writes))
    finally:
        sink.close()


# -- what is refused --------------------------------------------------------------------------------------------------


def required() -> sa.Column[int]:
    return sa.Column("customer", sa.Integer, nullable=False)


@pytest.mark.parametrize(
    ("option", "engine", "table", "options"),
    [
        ("engine", 5, "orders", {}),
        ("engine", "not a url", "orders", {}),
        ("engine", "oracle://localhost", orders(), {}),
        ("table", "sqlite://", "", {}),
        ("table", "sqlite://", 5, {}),
        ("key", "sqlite://", orders(), {"key": "id"}),
        ("key", "sqlite://", orders(), {"key": ("total",)}),
        ("key", "sqlite://", orders(), {"key": ("key", "total")}),
        ("key", "sqlite://", orders(), {"key": ()}),
        ("key", "sqlite://", orders(), {"key": 5}),
        ("key", "sqlite://", orders(), {"key": ""}),
        ("sequence", "sqlite://", orders(), {"sequence": "version"}),
        ("sequence", "sqlite://", orders(), {"sequence": None}),
        ("sequence", "postgresql+psycopg://h/d", orders(), {"sequence": "total"}),
        ("deleted", "sqlite://", orders(), {"deleted": "gone"}),
        ("deleted", "sqlite://", orders(), {"deleted": True}),
        ("deleted", "sqlite://", orders(sa.Column("deleted", sa.Boolean), required()), {}),
        ("columns", "sqlite://", orders(), {"columns": ["total"]}),
        ("key", "mysql+pymysql://h/d", orders(sa.UniqueConstraint("total")), {}),
        (
            "key",
            "sqlite://",
            orders(sa.Index("i", "total", unique=True, sqlite_where=sa.text("1"))),
            {"key": ["total"]},
        ),
    ],
)
def test_what_would_not_work_is_refused_at_once(option: str, engine: Any, table: Any, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as refused:
        SQLAlchemySink(engine, table, **options)

    assert refused.value.option == option
    assert refused.value.where == "SQLAlchemySink"


@pytest.mark.parametrize(
    ("engine", "table", "options"),
    [
        ("sqlite://", orders(), {}),
        ("sqlite://", orders(), {"sequence": "total"}),
        ("sqlite://", orders(sa.UniqueConstraint("total")), {"key": ["total"]}),
        ("sqlite://", orders(sa.Index("i", "total", unique=True)), {"key": ("total",)}),
        ("sqlite://", orders(sa.Column("deleted", sa.Boolean), required()), {"deleted": None}),
        ("sqlite://", orders(sa.Column("deleted", sa.Boolean, nullable=False)), {}),
        ("postgresql+psycopg://h/d", orders(), {}),
        ("mysql+pymysql://h/d", orders(), {}),
        (sa.URL.create("sqlite"), "orders", {}),
        (lambda: sa.create_engine("sqlite://"), "orders", {}),
    ],
)
def test_what_works_is_not_refused(engine: Any, table: Any, options: dict[str, Any]) -> None:
    assert "SQLAlchemySink orders" in repr(SQLAlchemySink(engine, table, **options))


def test_a_password_is_not_told() -> None:
    with pytest.raises(ConfigurationError) as refused:
        SQLAlchemySink("postgresql//me:secret@localhost/d", "orders")

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("installed", [None, "1.4.54"])
def test_without_sqlalchemy_2_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, installed: str | None) -> None:
    if installed is None:
        monkeypatch.setitem(sys.modules, "sqlalchemy", None)
    else:
        monkeypatch.setattr(sa, "__version__", installed)

    with pytest.raises(ImportError, match=r'pip install "celery-cachetiers\[sqlalchemy\]"'):
        SQLAlchemySink("sqlite://", "orders")


def test_a_driver_that_is_missing_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)

    with pytest.raises(SinkUnavailable, match="psycopg"):
        write(SQLAlchemySink("postgresql+psycopg://localhost/d", "orders"), a_write("a", 1, 1))


# -- statements -------------------------------------------------------------------------------------------------------

SHAPE = Shape(("key",), "sequence", None)


def compiled(statement: Any, dialect: Any) -> str:
    return " ".join(str(statement.compile(dialect=dialect.dialect())).split()).replace('"', "")


@pytest.mark.parametrize("name", ["mysql", "mariadb"])
def test_mysql_compares_in_each_column_and_the_sequence_comes_last(name: str) -> None:
    columns = ["key", "sequence", "total"]
    text = compiled(upsert(orders(), SHAPE, columns, name), mysql)

    newer = "(orders.sequence IS NULL OR VALUES(sequence) > orders.sequence)"
    total = f"total = CASE WHEN {newer} THEN VALUES(total) ELSE orders.total END"
    sequence = f"sequence = CASE WHEN {newer} THEN VALUES(sequence) ELSE orders.sequence END"
    assert text.endswith(f"ON DUPLICATE KEY UPDATE {total}, {sequence}")


@pytest.mark.parametrize(("name", "dialect"), [("postgresql", postgresql), ("sqlite", sqlite)])
def test_the_others_compare_once(name: str, dialect: Any) -> None:
    text = compiled(upsert(orders(), SHAPE, ["key", "sequence", "total"], name), dialect)

    assert text.endswith(
        "ON CONFLICT (key) DO UPDATE SET total = excluded.total, sequence = excluded.sequence "
        "WHERE orders.sequence IS NULL OR excluded.sequence > orders.sequence"
    )


def test_only_an_older_row_is_deleted() -> None:
    text = compiled(delete(orders(), SHAPE), sqlite)

    assert text.endswith("WHERE orders.key = ? AND (orders.sequence IS NULL OR orders.sequence < ?)")


# -- whose fault an error is ------------------------------------------------------------------------------------------


class _Postgres(Exception):
    def __init__(self, sqlstate: str | None) -> None:
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "outage"),
    [
        (sqlite3.OperationalError("database is locked"), True),
        (_Postgres(None), True),
        (_Postgres("40P01"), True),
        (_Postgres("57P01"), True),
        (_Postgres("54000"), False),
        (Exception(1213, "Deadlock found"), True),
        (Exception(2006, "MySQL server has gone away"), True),
        (Exception(4025, "CONSTRAINT failed"), False),
        (Exception(3819, "Check constraint is violated"), False),
        (Exception(1644, "a trigger's own"), False),
    ],
)
def test_an_outage_is_told_from_a_rows_fault(error: Exception, outage: bool) -> None:
    assert is_outage(error) is outage


# -- engines ----------------------------------------------------------------------------------------------------------


def test_an_engine_given_as_url_or_callable_is_made_and_disposed_of_in_the_sinks_thread(url: str) -> None:
    made: list[sa.Engine] = []

    def make() -> sa.Engine:
        made.append(sa.create_engine(url))
        return made[-1]

    target = SQLAlchemySink(make, orders())
    before = list(made)
    write(target, a_write("a", 1, 1))
    write(target, a_write("b", 2, 2))

    assert before == []
    assert [engine.pool.status() for engine in made] == [sa.create_engine(url).pool.status()] * 2
    assert keys(url) == [("a", 1), ("b", 2)]


def test_sqlite_takes_the_write_lock_at_once(url: str, engine: sa.Engine) -> None:
    begun: list[str] = []

    @sa.event.listens_for(engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        begun.append(statement.partition("(")[0].strip())

    write(SQLAlchemySink(engine, orders()), a_write("a", 1, 1))

    assert begun[0] == "BEGIN IMMEDIATE"
    assert keys(url) == [("a", 1)]


def test_an_engine_that_begins_by_itself_is_let(url: str, engine: sa.Engine) -> None:
    """SQLAlchemy's own recipe for SQLite."""

    @sa.event.listens_for(engine, "connect")
    def no_begin(connection: Any, _record: Any) -> None:
        connection.isolation_level = None

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    write(SQLAlchemySink(engine, orders()), a_write("a", 1, 1))

    assert keys(url) == [("a", 1)]


def test_a_locked_database_is_nobodys_fault(tmp_path: Path, url: str) -> None:
    target = SQLAlchemySink(f"{url}?timeout=0", orders())
    other = sqlite3.connect(tmp_path / "orders.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(SinkUnavailable, match="database is locked"):
        write(target, a_write("a", 1, 1))
    other.close()
    write(target, a_write("a", 1, 1))

    assert keys(url) == [("a", 1)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
@pytest.mark.parametrize("given", ["engine", "url"])
def test_no_row_is_lost_over_a_fork(tmp_path: Path, given: str) -> None:
    _, found, _ = run(
        f"""
import sqlalchemy as sa
from celery_cachetiers import SQLAlchemySink
url = f"sqlite:///{{here}}/orders.db"
given = url if {given!r} == "url" else sa.create_engine(url)
with sqlite3.connect(here / "orders.db") as db:
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("CREATE TABLE orders (key TEXT PRIMARY KEY, value INTEGER, sequence INTEGER)")
db.close()
sink("orders")(SQLAlchemySink(given, "orders"))
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
    sys.exit()
os.read(there, 1)
orders.write([a_write(101)])
orders.close()
if given is not url:
    given.dispose()  # what the sink has left open would take the child's log with it
os.write(go, b"x")
os.waitpid(child, 0)
print(json.dumps(sqlite3.connect(here / "orders.db").execute("SELECT count(*) FROM orders").fetchone()[0]))
""",
        tmp_path,
    )

    assert found == 102


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_child_leaves_the_inherited_connections_of_an_engine_alone(tmp_path: Path) -> None:
    _, told, log = run(
        """
import sqlalchemy as sa
from celery_cachetiers import SQLAlchemySink

class Noisy(sqlite3.Connection):
    pid = 0
    def close(self):
        if self.pid not in (0, os.getpid()):
            os.write(2, b"an inherited connection was closed")
        super().close()
    def __del__(self, getpid=os.getpid, tell=os.write):
        if self.pid not in (0, getpid()):
            tell(2, b"an inherited connection was freed")

engine = sa.create_engine(f"sqlite:///{here}/orders.db", connect_args={"factory": Noisy})
with engine.begin() as connection:
    connection.exec_driver_sql("CREATE TABLE orders (key TEXT PRIMARY KEY, value INTEGER, sequence INTEGER)")
    connection.connection.dbapi_connection.pid = os.getpid()
sink("orders")(SQLAlchemySink(engine, "orders"))
inherited = id(engine.pool)
child = os.fork()
if not child:
    sinks.find("orders").write([a_write(1)])
    fresh = id(engine.pool) != inherited
    sinks.find("orders").write([a_write(2)])
    del engine
    sys.exit(0 if fresh else 5)
print(json.dumps(os.waitpid(child, 0)[1]))
engine.dispose()
""",
        tmp_path,
    )

    assert told == 0
    assert "inherited" not in log


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_a_child_whose_sinks_share_an_engine_has_one_pool_for_them(tmp_path: Path) -> None:
    _, connections, _ = run(
        """
import sqlalchemy as sa
from celery_cachetiers import SQLAlchemySink

engine = sa.create_engine(f"sqlite:///{here}/orders.db")
with engine.begin() as connection:
    connection.exec_driver_sql("CREATE TABLE orders (key TEXT PRIMARY KEY, value INTEGER, sequence INTEGER)")
for name in ("one", "two"):
    sink(name)(SQLAlchemySink(engine, "orders"))
there, here_ = os.pipe()
child = os.fork()
if not child:
    connections = []
    sa.event.listen(engine, "connect", lambda *_: connections.append(1))
    for number in range(2):
        for name in ("one", "two"):
            sinks.find(name).write([a_write(number)])
    os.write(here_, bytes([len(connections)]))
    sys.exit()
print(json.dumps(os.read(there, 1)[0]))
os.waitpid(child, 0)
engine.dispose()
""",
        tmp_path,
    )

    assert connections == 1
