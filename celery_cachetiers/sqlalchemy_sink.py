"""A sink that upserts into a table of a database, for SQLAlchemy 2.

Decides which rows a batch becomes, and when. Leaves the statements to `sqlalchemy_statements`, which errors are
nobody's fault to `sqlalchemy_outages`, and thread, time limit and forks to `sinks`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from celery_cachetiers import options as rules
from celery_cachetiers import sqlalchemy_statements as statements
from celery_cachetiers.errors import ConfigurationError, SinkRejected, SinkUnavailable
from celery_cachetiers.options import without_secrets
from celery_cachetiers.sink_writer import keep_for_ever
from celery_cachetiers.sqlalchemy_outages import is_outage
from celery_cachetiers.sqlalchemy_statements import WHERE, Shape
from celery_cachetiers.writes import Write

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Table

Row = dict[str, Any]

DELETED = "deleted"
"""The column that marks a tombstone, where a table has it."""


class SQLAlchemySink:
    """Upserts each batch into one table, in one transaction; of each row the newest write wins.

    SQLite (3.24), PostgreSQL, MariaDB and MySQL. The table needs a BIGINT column for `Write.sequence`; a write is taken
    only where the row has a lower one, so that a batch that is handed over twice changes nothing.

    Args:
        engine: A URL, or a callable that returns an engine: made in each process when the first batch comes. Or an
            engine; in a forked process its inherited connections are left alone, and new ones made.
        table: A `Table`, or the name of one to reflect (``"orders"``, ``"shop.orders"``).
        columns: ``columns(write)`` returns the values of the row's columns. By default the whole value goes to the
            column ``value`` if there is one; else the value is a mapping of columns.
        key: A name: the column that `Write.key` goes to. A list or tuple of names: the columns, among those that
            ``columns`` gives, that say which row it is. They are the table's primary key, or unique together.
        sequence: The column of `Write.sequence`.
        deleted: The Boolean column that marks a deleted row. Where the table has none, or this is ``None``, the row is
            deleted, and with it its sequence.

    Raises:
        ConfigurationError: The table lacks something of this. What is reflected is looked at when it is opened: then
            it is a `SinkUnavailable`, and writes wait until it is put right.
        ImportError: SQLAlchemy 2 is not installed.

    Costs: one transaction a batch. On SQLite it begins IMMEDIATE.
    """

    def __init__(
        self,
        engine: str | URL | Engine | Callable[[], Engine],
        table: str | Table,
        *,
        columns: Callable[[Write], Mapping[str, Any]] | None = None,
        key: str | Sequence[str] = "key",
        sequence: str = "sequence",
        deleted: str | None = DELETED,
    ) -> None:
        _require_sqlalchemy()
        rules.optional(rules.CALLABLE).check("columns", columns, WHERE)
        (rules.TEXT if isinstance(key, str) else rules.NAMES).check("key", key, WHERE)
        rules.TEXT.check("sequence", sequence, WHERE)
        rules.optional(rules.TEXT).check("deleted", deleted, WHERE)
        self._given, self._given_table = engine, table
        self._columns = columns
        self._own_key = key if isinstance(key, str) else None
        self._key = (key,) if isinstance(key, str) else tuple(key)
        self._sequence, self._deleted = sequence, deleted
        self._check()
        self._engine: Engine
        self._table: Table
        self._shape: Shape

    def __repr__(self) -> str:
        table = self._given_table if isinstance(self._given_table, str) else self._given_table.fullname
        return f"<SQLAlchemySink {table} key={self._key!r}>"

    def _check(self) -> None:
        from sqlalchemy import Engine, Table, make_url
        from sqlalchemy.engine import URL
        from sqlalchemy.exc import ArgumentError

        dialect = None
        if isinstance(self._given, Engine):
            dialect = self._given.dialect.name
            _owners.setdefault(self._given, os.getpid())
        elif isinstance(self._given, (str, URL)):
            try:
                dialect = make_url(self._given).get_backend_name()
            except ArgumentError:
                shown = without_secrets(self._given)
                raise ConfigurationError("engine", shown, "a URL as SQLAlchemy has them", WHERE) from None
        elif not callable(self._given):
            raise ConfigurationError("engine", self._given, "a URL, an Engine, or a callable that returns one", WHERE)
        if isinstance(self._given_table, Table):
            statements.refuse_unfit(self._given_table, self._shape_of(self._given_table), dialect)
        elif not isinstance(self._given_table, str) or not self._given_table:
            raise ConfigurationError("table", self._given_table, "a Table, or the name of one", WHERE)

    def _shape_of(self, table: Table) -> Shape:
        marks = self._deleted != DELETED or DELETED in table.c
        return Shape(self._key, self._sequence, self._deleted if marks else None)

    # -- its life, in the sink's thread --------------------------------------------------------------------------------

    def open(self) -> None:
        """Makes or takes the engine, and looks at the table."""
        with _down_is_unavailable():
            try:
                self._engine = self._made_engine()
                self._look_at_table()
            except (ConfigurationError, ImportError) as error:  # no write is to blame
                raise SinkUnavailable(str(error)) from error

    def _look_at_table(self) -> None:
        try:
            self._table = self._reflected()
            self._shape = self._shape_of(self._table)
            statements.refuse_unfit(self._table, self._shape, self._engine.dialect.name)
        except BaseException:
            self.close()
            raise

    def _made_engine(self) -> Engine:
        from sqlalchemy import Engine, create_engine

        if isinstance(self._given, Engine):
            _leave_the_parents_connections(self._given)
            return self._given
        if callable(self._given):
            return self._given()
        return create_engine(self._given, pool_pre_ping=True)

    def _reflected(self) -> Table:
        from sqlalchemy import MetaData, Table

        if isinstance(self._given_table, Table):
            return self._given_table
        schema, _, name = self._given_table.rpartition(".")
        return Table(name, MetaData(), schema=schema or None, autoload_with=self._engine)

    def close(self) -> None:
        """Closes the connections, of an engine that was given as one only where they are to a file."""
        if self._engine is not self._given or self._engine.dialect.name == "sqlite":
            self._engine.dispose()

    # -- batches -------------------------------------------------------------------------------------------------------

    def write(self, writes: list[Write]) -> None:
        """Upserts and deletes, all or nothing.

        Raises:
            SinkRejected: Some writes cannot be made a row; all others are taken.
            SinkUnavailable: The database cannot be reached, or refuses everybody.
        """
        newest, failures = self._newest(writes)
        with _down_is_unavailable(), self._transaction() as connection:
            for statement, rows in self._statements(newest):
                connection.execute(statement, rows)
        if failures:
            raise SinkRejected(failures)

    def _newest(self, writes: list[Write]) -> tuple[list[tuple[Write, Row]], dict[str, BaseException]]:
        newest: dict[tuple[Any, ...], tuple[Write, Row]] = {}
        failures: dict[str, BaseException] = {}
        for write in writes:
            try:
                row = self._row(write)
                which = tuple(row[name] for name in self._key)
                if which not in newest or newest[which][0].sequence < write.sequence:
                    newest[which] = write, row
            except Exception as error:
                failures[write.key] = error
        return list(newest.values()), failures

    def _row(self, write: Write) -> Row:
        """The row that a write becomes, its sequence and mark included; of a tombstone nothing else but its key."""
        given = {} if write.deleted and self._own_key else dict(self._given_columns(write))
        if self._own_key is not None:
            if not write.key:
                raise ValueError("a write of a call without a key has no row")
            self._refuse(
                given, {self._own_key}, "is Write.key's; to take it from the columns, name it in a tuple: key=(...,)"
            )
            given[self._own_key] = write.key
        missing = [name for name in self._key if name not in given]
        if missing:
            raise ValueError(f"columns(write) gives no {', '.join(missing)}, which says which row it is")
        if write.deleted:
            given = {name: given[name] for name in self._key}
        mark = {self._shape.deleted: write.deleted} if self._shape.deleted is not None else {}
        own = {self._sequence: write.sequence, **mark}
        self._refuse(given, own.keys(), "is the sink's own")
        self._refuse(given, given.keys() - set(self._table.c.keys()), f"is no column of {self._table.name}")
        return {**given, **own}

    def _given_columns(self, write: Write) -> Mapping[str, Any]:
        if self._columns is not None:
            return self._columns(write)
        if write.deleted:
            raise ValueError("a deleted write has no value to take the key from: give columns=, over its arguments")
        if "value" in self._table.c:
            return {"value": write.value}
        if isinstance(write.value, Mapping):
            return write.value
        raise TypeError(f"{self._table.name} has no column 'value', and {type(write.value).__name__} has no columns")

    @staticmethod
    def _refuse(given: Row, names: Any, why: str) -> None:
        found = sorted(name for name in given if name in names)
        if found:
            raise ValueError(f"{', '.join(map(repr, found))} {why}")

    def _statements(self, newest: list[tuple[Write, Row]]) -> Iterator[tuple[Any, list[Row]]]:
        table, shape = self._table, self._shape
        upserts: dict[tuple[str, ...], list[Row]] = {}
        deletes: list[Row] = []
        for write, row in newest:
            if write.deleted and shape.deleted is None:
                deletes.append({statements.parameter(name): value for name, value in row.items()})
            else:
                upserts.setdefault(tuple(sorted(row)), []).append(row)
        for columns, rows in upserts.items():
            yield statements.upsert(table, shape, columns, self._engine.dialect.name), rows
        if deletes:
            yield statements.delete(table, shape), deletes

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with self._engine.connect() as connection:
            if self._engine.dialect.name != "sqlite":
                with connection.begin():
                    yield connection
                return
            # Python's own BEGIN is deferred: two writers would both read, then one of them fails at its first write.
            connection.execution_options(isolation_level="AUTOCOMMIT")
            with connection.begin():
                if not getattr(connection.connection.dbapi_connection, "in_transaction", False):
                    connection.exec_driver_sql("BEGIN IMMEDIATE")
                yield connection


_owners: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""The process that an engine's connections belong to, whichever sinks share it."""

_lock = threading.Lock()


def _leave_the_parents_connections(engine: Engine) -> None:
    """Gives an engine a pool of this process' own, once."""
    with _lock:
        if _owners.get(engine) != os.getpid():
            keep_for_ever(engine.pool)
            engine.dispose(close=False)
            _owners[engine] = os.getpid()


def _new_lock() -> None:
    global _lock  # noqa: PLW0603 - another thread may have held it at the fork
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch - not on Windows, which does not fork
    os.register_at_fork(after_in_child=_new_lock)


@contextmanager
def _down_is_unavailable() -> Iterator[None]:
    from sqlalchemy import exc

    try:
        yield
    except exc.DBAPIError as error:
        if error.connection_invalidated or (isinstance(error, exc.OperationalError) and is_outage(error.orig)):
            raise SinkUnavailable(str(error.orig)) from error
        raise
    except exc.NoSuchTableError as error:
        raise SinkUnavailable(f"there is no table {error}") from error
    except (exc.DisconnectionError, exc.TimeoutError) as error:
        raise SinkUnavailable(str(error)) from error


def _require_sqlalchemy() -> None:
    try:
        from sqlalchemy import __version__ as version
    except ImportError:
        version = "none"
    if not version.split(".")[0].isdigit() or int(version.split(".")[0]) < 2:
        raise ImportError(
            f'SQLAlchemySink needs SQLAlchemy 2 (installed: {version}): pip install "celery-cachetiers[sqlalchemy]"'
        )
