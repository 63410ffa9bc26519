"""`SQLAlchemySink` on SQLite, PostgreSQL and MariaDB: the newest sequence wins, whatever comes in which order."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from celery_cachetiers import SinkRejected, SinkTimeout, SinkUnavailable, SQLAlchemySink, Write
from celery_cachetiers.sinks import Sink, SinkPolicy
from tests.databases import PostgresServer

Make = Callable[..., Sink]


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database; of a server the test has a schema of its own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/orders.db"
    server = request.getfixturevalue("postgres_server" if request.param == "postgresql" else "mariadb_server")
    return str(server.url())


@pytest.fixture
def engine(url: str) -> Iterator[sa.Engine]:
    """What the test itself looks with."""
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def table(engine: sa.Engine, namespace: str) -> Callable[..., sa.Table]:
    """`table(*columns, **options)` creates a table with a name of its own."""

    def create(*columns: Any, **options: Any) -> sa.Table:
        made = sa.Table(f"orders_{namespace}", sa.MetaData(), *columns, **options)
        made.create(engine)
        return made

    return create


@pytest.fixture
def made() -> Iterator[Make]:
    """`made(target, **options)` makes a sink that is closed in the end."""
    everything: list[Sink] = []

    def make(target: SQLAlchemySink, **options: Any) -> Sink:
        everything.append(Sink("orders", target, SinkPolicy(**options)))
        return everything[-1]

    yield make
    for each in everything:
        each.close()


def orders(*, key: str = "key") -> list[sa.Column[Any]]:
    kind: Any = sa.String(32) if key == "key" else sa.BigInteger
    return [
        sa.Column(key, kind, primary_key=True, autoincrement=False),
        sa.Column("total", sa.Integer),
        sa.Column("note", sa.String(20)),
        sa.Column("sequence", sa.BigInteger),
    ]


def a_write(key: str, value: object, sequence: int, *, deleted: bool = False, args: tuple[Any, ...] = ()) -> Write:
    return Write("proj.order", args, {}, key, value, deleted, sequence, 1_700_000_000.0)


def rows(engine: sa.Engine, table: sa.Table) -> list[tuple[Any, ...]]:
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.select(table).order_by(*table.primary_key))]


MICROSECONDS = 1_700_000_000_000_000


def test_a_batch_is_inserted_and_updated(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders())
    sink = made(SQLAlchemySink(url, kept.name))
    sink.write([a_write("a", {"total": 1, "note": "x"}, MICROSECONDS), a_write("b", {"total": 2}, MICROSECONDS + 1)])
    sink.write([a_write("a", {"total": 3}, MICROSECONDS + 2)])

    assert rows(engine, kept) == [("a", 3, "x", MICROSECONDS + 2), ("b", 2, None, MICROSECONDS + 1)]


def test_an_older_write_changes_nothing_and_the_same_one_neither(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(*orders())
    sink = made(SQLAlchemySink(url, kept))
    newest = a_write("a", {"total": 2, "note": "new"}, 20)
    sink.write([newest])
    before = rows(engine, kept)
    sink.write([a_write("a", {"total": 1, "note": "old"}, 10), a_write("b", {"total": 5}, 11)])
    sink.write([a_write("a", {"total": 9, "note": "same"}, 20)])

    assert before == [("a", 2, "new", 20)]
    assert rows(engine, kept) == [("a", 2, "new", 20), ("b", 5, None, 11)]


def test_a_row_without_a_sequence_is_older_than_every_write(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(*orders())
    with engine.begin() as connection:
        connection.execute(kept.insert(), [{"key": "a", "total": 1}, {"key": "b", "total": 1}])
    sink = made(SQLAlchemySink(url, kept))
    sink.write([a_write("a", {"total": 2}, 1), a_write("b", None, 2, deleted=True)])

    assert rows(engine, kept) == [("a", 2, None, 1)]


def test_of_one_batch_the_newest_of_a_row_wins(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders())
    made(SQLAlchemySink(url, kept)).write([a_write("a", {"total": n}, n) for n in (2, 3, 1)])

    assert rows(engine, kept) == [("a", 3, None, 3)]


def test_any_order_and_any_repetition_end_with_the_newest_of_each_key(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    chance = random.Random(7)
    kept = table(*orders(), sa.Column("deleted", sa.Boolean))
    history = [a_write(f"k{n % 10}", {"total": n}, n, deleted=n % 7 == 0) for n in range(1, 101)]
    sink = made(SQLAlchemySink(url, kept))
    for _ in range(3):
        chance.shuffle(history)
        for start in range(0, 100, 10):
            sink.write(history[start : start + 10])

    expected = {f"k{n % 10}": (n, n % 7 == 0) for n in range(1, 101)}
    assert {key: (sequence, bool(deleted)) for key, _, _, sequence, deleted in rows(engine, kept)} == expected


def test_the_key_may_come_from_the_columns(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders(key="order_id"))
    sink = made(
        SQLAlchemySink(
            url, kept, key=("order_id",), columns=lambda write: {"order_id": write.args[0], **(write.value or {})}
        )
    )
    sink.write([a_write("a", {"total": 1}, 1, args=(7,)), a_write("b", {"total": 2}, 2, args=(8,))])
    sink.write([a_write("c", None, 3, deleted=True, args=(7,))])

    assert rows(engine, kept) == [(8, 2, None, 2)]


def test_a_key_of_several_columns_which_are_unique_together(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("shop", sa.String(10)),
        sa.Column("number", sa.Integer),
        sa.Column("sequence", sa.BigInteger),
        sa.UniqueConstraint("shop", "number"),
    )
    for each in (kept, kept.name):
        sink = made(SQLAlchemySink(url, each, key=("shop", "number")))
        sink.write([a_write(f"k{n}", {"shop": "s", "number": n % 2}, n) for n in range(4)])

    assert [row[1:] for row in rows(engine, kept)] == [("s", 0, 2), ("s", 1, 3)]


def test_the_whole_value_goes_to_the_column_value_if_there_is_one(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(
        sa.Column("key", sa.String(32), primary_key=True),
        sa.Column("value", sa.JSON),
        sa.Column("sequence", sa.BigInteger),
    )
    made(SQLAlchemySink(url, kept)).write([a_write("a", {"total": [1, 2]}, 1), a_write("b", 5, 2)])

    assert rows(engine, kept) == [("a", {"total": [1, 2]}, 1), ("b", 5, 2)]


# -- tombstones -------------------------------------------------------------------------------------------------------


def test_a_tombstone_deletes_an_older_row_only(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders())
    sink = made(SQLAlchemySink(url, kept))
    sink.write([a_write("older", {"total": 1}, 5), a_write("newer", {"total": 1}, 15)])
    sink.write([a_write(key, None, 10, deleted=True) for key in ("older", "newer", "never there")])

    assert rows(engine, kept) == [("newer", 1, None, 15)]


def test_a_marked_tombstone_keeps_its_sequence_against_older_values(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(*orders(), sa.Column("deleted", sa.Boolean, nullable=False))
    sink = made(SQLAlchemySink(url, kept))
    sink.write([a_write("a", {"total": 1}, 5)])
    sink.write([a_write("a", None, 10, deleted=True), a_write("never there", None, 11, deleted=True)])
    sink.write([a_write("a", {"total": 1}, 5), a_write("never there", {"total": 1}, 6)])
    marked = rows(engine, kept)
    sink.write([a_write("a", {"total": 3}, 12)])

    assert [(row[0], row[3], bool(row[4])) for row in marked] == [("a", 10, True), ("never there", 11, True)]
    assert rows(engine, kept)[0] == ("a", 3, None, 12, False)


def test_a_column_of_another_name_marks_and_none_deletes(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders(), sa.Column("gone", sa.Boolean), sa.Column("deleted", sa.String(5)))
    made(SQLAlchemySink(url, kept, deleted="gone")).write([a_write("a", None, 1, deleted=True)])
    made(SQLAlchemySink(url, kept, deleted=None)).write([a_write("b", {"deleted": "text"}, 2)])
    before = rows(engine, kept)
    made(SQLAlchemySink(url, kept, deleted=None)).write([a_write("b", None, 3, deleted=True)])

    assert [(row[0], row[4] and bool(row[4]), row[5]) for row in before] == [("a", True, None), ("b", None, "text")]
    assert [row[0] for row in rows(engine, kept)] == ["a"]


# -- failures ---------------------------------------------------------------------------------------------------------


def test_a_batch_with_a_row_that_the_database_refuses_leaves_nothing(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(*orders(), sa.CheckConstraint("total < 100"))
    sink = made(SQLAlchemySink(url, kept))
    with pytest.raises((IntegrityError, OperationalError)) as refused:  # PyMySQL has no class for a CHECK's error
        sink.write([a_write("a", {"total": 1}, 1), a_write("b", {"total": 500}, 2), a_write("c", {"total": 1}, 3)])
    before = rows(engine, kept)
    sink.write([a_write("a", {"total": 1}, 1)])

    assert not isinstance(refused.value, SinkUnavailable)
    assert before == []
    assert rows(engine, kept) == [("a", 1, None, 1)]


def test_a_value_that_does_not_fit_is_the_writes_own_fault(url: str, table: Any, made: Make) -> None:
    if url.startswith("sqlite"):
        pytest.skip("SQLite's columns take any length")
    kept = table(*orders())

    with pytest.raises(DataError):
        made(SQLAlchemySink(url, kept)).write([a_write("a", {"note": "x" * 21}, 1)])


def test_writes_that_make_no_row_are_refused_and_all_others_taken(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(*orders())
    sink = made(SQLAlchemySink(url, kept))
    bad = {"number": 5, "unknown": {"totl": 1}, "own": {"sequence": 1}, "keyed": {"key": "k"}}
    with pytest.raises(SinkRejected) as refused:
        sink.write([*(a_write(key, value, 1) for key, value in bad.items()), a_write("good", {"total": 1}, 1)])

    failures = {key: str(error) for key, error in refused.value.failures.items()}
    assert set(failures) == set(bad)
    assert "int has no columns" in failures["number"]
    assert f"'totl' is no column of {kept.name}" in failures["unknown"]
    assert "'sequence' is the sink's own" in failures["own"]
    assert "'key' is Write.key's" in failures["keyed"]
    assert rows(engine, kept) == [("good", 1, None, 1)]


def test_what_columns_raises_is_that_writes_failure(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders())
    sink = made(SQLAlchemySink(url, kept, columns=lambda write: {"total": write.value["total"]}))
    with pytest.raises(SinkRejected) as refused:
        sink.write([a_write("bad", {}, 1), a_write("good", {"total": 1}, 2)])

    assert [type(error) for error in refused.value.failures.values()] == [KeyError]
    assert rows(engine, kept) == [("good", 1, None, 2)]


def test_a_table_that_is_not_there_yet_is_nobodys_fault(
    url: str, engine: sa.Engine, namespace: str, made: Make
) -> None:
    sink = made(SQLAlchemySink(url, f"orders_{namespace}"))
    with pytest.raises(SinkUnavailable, match="there is no table"):
        sink.write([a_write("a", {"total": 1}, 1)])
    kept = sa.Table(f"orders_{namespace}", sa.MetaData(), *orders())
    kept.create(engine)
    sink.write([a_write("a", {"total": 1}, 1)])

    assert rows(engine, kept) == [("a", 1, None, 1)]


def test_a_reflected_table_without_the_unique_key_is_nobodys_fault(url: str, table: Any, made: Make) -> None:
    kept = table(sa.Column("id", sa.Integer, primary_key=True), *(column for column in orders()[1:]))

    with pytest.raises(SinkUnavailable, match=r"key=.*'total'.* is not usable"):
        made(SQLAlchemySink(url, kept.name, key=("total",))).write([a_write("a", {"total": 1}, 1)])


def test_a_lock_held_by_others_runs_into_the_time_limit_and_nothing_is_lost(
    url: str, engine: sa.Engine, table: Any, made: Make
) -> None:
    kept = table(*orders())
    sink = made(SQLAlchemySink(url, kept), time_limit=0.5)
    sink.write([a_write("a", {"total": 1}, 1)])
    with engine.begin() as connection:
        connection.execute(kept.update().values(note="locked"))
        with pytest.raises(SinkTimeout):
            sink.write([a_write("a", {"total": 2}, 2)])
    late = list(sink._writers)
    sink.write([a_write("a", {"total": 3}, 3)])
    assert all(writer.gone.wait(30) for writer in late if writer.abandoned)

    assert rows(engine, kept) == [("a", 3, "locked", 3)]


def test_writers_side_by_side_do_not_hinder_each_other(url: str, engine: sa.Engine, table: Any, made: Make) -> None:
    kept = table(*orders())
    failed: list[BaseException] = []

    def write_all(number: int) -> None:
        sink = made(SQLAlchemySink(url, kept))
        try:
            for n in range(20):
                sink.write([a_write(f"w{number}k{n % 5}-{i}", {"total": n}, n + 1) for i in range(10)])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write_all, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failed == []
    assert len(rows(engine, kept)) == 4 * 5 * 10


def test_a_server_that_is_away_is_unavailable_and_comes_back(made: Make) -> None:
    with PostgresServer() as server:
        kept = sa.Table("orders", sa.MetaData(), *orders())
        engine = sa.create_engine(server.url(), poolclass=sa.NullPool)
        kept.create(engine)
        sink = made(SQLAlchemySink(server.url(), "orders"))
        sink.write([a_write("a", {"total": 1}, 1)])
        server.stop()
        for _ in range(2):  # the connection that breaks, and the one that is refused
            with pytest.raises(SinkUnavailable):
                sink.write([a_write("a", {"total": 2}, 2)])
        server.start()
        sink.write([a_write("a", {"total": 2}, 2)])

        assert rows(engine, kept) == [("a", 2, None, 2)]
        sink.close()
