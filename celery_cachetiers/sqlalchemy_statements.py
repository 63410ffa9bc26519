"""SQL that keeps the row of the highest sequence, and what a table must have for it.

Decides the statements of each database. Leaves to `sqlalchemy_sink` which rows they are run with, and when.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from celery_cachetiers.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy import Delete, Insert, Table
    from sqlalchemy.sql.elements import ColumnElement

DIALECTS: Final = ("mariadb", "mysql", "postgresql", "sqlite")
WHERE: Final = "SQLAlchemySink"


@dataclass(frozen=True, slots=True)
class Shape:
    """What the columns of a table are for.

    Attributes:
        key: Columns that say which row it is.
        sequence: Column of `Write.sequence`.
        deleted: Column that marks a tombstone's row; ``None``: the row is deleted.
    """

    key: tuple[str, ...]
    sequence: str
    deleted: str | None


def upsert(table: Table, shape: Shape, columns: Sequence[str], dialect: str) -> Insert:
    """Inserts a row, or updates the one of the same key if that has a lower sequence or none.

    Args:
        columns: Of the row, all that it gives.
        dialect: SQLAlchemy's name of the database.
    """
    rest = [name for name in columns if name not in shape.key and name != shape.sequence]
    if dialect in ("mysql", "mariadb"):
        return _mysql_upsert(table, shape, rest)
    from sqlalchemy import or_

    if dialect == "postgresql":
        from sqlalchemy.dialects.postgresql import insert
    else:
        from sqlalchemy.dialects.sqlite import insert  # type: ignore[assignment]  # the same by another name

    statement = insert(table)
    kept = table.c[shape.sequence]
    return statement.on_conflict_do_update(
        index_elements=[table.c[name] for name in shape.key],
        set_={table.c[name]: statement.excluded[name] for name in [*rest, shape.sequence]},
        where=or_(kept.is_(None), statement.excluded[shape.sequence] > kept),
    )


def _mysql_upsert(table: Table, shape: Shape, rest: Sequence[str]) -> Insert:
    from sqlalchemy import case, or_
    from sqlalchemy.dialects.mysql import insert

    statement = insert(table)
    kept, given = table.c[shape.sequence], statement.inserted
    newer = or_(kept.is_(None), given[shape.sequence] > kept)
    # Assignments are made in their order, and each sees those before it: the sequence comes last.
    changes = [
        (table.c[name].name, case((newer, given[name]), else_=table.c[name])) for name in [*rest, shape.sequence]
    ]
    return statement.on_duplicate_key_update(changes)


def delete(table: Table, shape: Shape) -> Delete:
    """Deletes the row of a key if that has a lower sequence or none; its parameters are named by `parameter`."""
    from sqlalchemy import bindparam, or_
    from sqlalchemy import delete as delete_from

    def given(name: str) -> ColumnElement[Any]:
        return bindparam(parameter(name), type_=table.c[name].type)

    kept = table.c[shape.sequence]
    same = [table.c[name] == given(name) for name in shape.key]
    return delete_from(table).where(*same, or_(kept.is_(None), kept < given(shape.sequence)))


def parameter(name: str) -> str:
    """What `delete` calls the value of a column."""
    return f"given_{name}"


def refuse_unfit(table: Table, shape: Shape, dialect: str | None) -> None:
    """Checks that the statements do on a table what they say.

    Args:
        dialect: ``None``: not known yet.

    Raises:
        ConfigurationError: Naming what the table lacks.
    """
    if dialect not in (None, *DIALECTS):
        raise ConfigurationError("engine", dialect, f"a database that it can upsert to: {', '.join(DIALECTS)}", WHERE)
    for option, name in _named(shape):
        if name not in table.c:
            raise ConfigurationError(option, name, f"a column of {table.name} ({', '.join(table.c.keys())})", WHERE)
    uniques = set(_uniques(table)) - {frozenset()}
    if frozenset(shape.key) not in uniques:
        raise ConfigurationError(
            "key", shape.key, f"the primary key of {table.name}, or columns unique together", WHERE
        )
    _refuse_narrow(table, shape, dialect)
    if dialect in ("mysql", "mariadb"):
        _refuse_other_keys(table, shape, uniques)
    if shape.deleted is not None:
        _refuse_required(table, shape)


def _named(shape: Shape) -> Iterator[tuple[str, str]]:
    yield from (("key", name) for name in shape.key)
    yield "sequence", shape.sequence
    if shape.deleted is not None:
        yield "deleted", shape.deleted


def _uniques(table: Table) -> Iterator[frozenset[str]]:
    from sqlalchemy import UniqueConstraint

    yield frozenset(table.primary_key.columns.keys())
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield frozenset(constraint.columns.keys())
    for index in table.indexes:
        partial = any(index.dialect_options[name].get("where") is not None for name in ("postgresql", "sqlite"))
        if index.unique and not partial:
            yield frozenset(column.key for column in index.columns)


def _refuse_narrow(table: Table, shape: Shape, dialect: str | None) -> None:
    """A sequence has 51 bits; SQLite's INTEGER is wide enough."""
    from sqlalchemy import BigInteger, Integer

    kind = table.c[shape.sequence].type
    if dialect not in (None, "sqlite") and isinstance(kind, Integer) and not isinstance(kind, BigInteger):
        raise ConfigurationError("sequence", shape.sequence, "a BIGINT column: a sequence has more than 32 bits", WHERE)


def _refuse_other_keys(table: Table, shape: Shape, uniques: set[frozenset[str]]) -> None:
    """Here any unique key makes an insert an update: of another row, if it is not ours."""
    own = table.autoincrement_column
    others = uniques - {frozenset(shape.key)} - ({frozenset({own.key})} if own is not None else set())
    if others:
        names = "; ".join(", ".join(sorted(other)) for other in others)
        raise ConfigurationError("key", shape.key, f"the only unique key of {table.name} on MySQL, not {names}", WHERE)


def _refuse_required(table: Table, shape: Shape) -> None:
    """A tombstone's row has nothing for the other columns."""
    filled = {*shape.key, shape.sequence, shape.deleted}
    for column in table.c:
        given = column.server_default is not None or column.default is not None or column is table.autoincrement_column
        if column.key not in filled and not column.nullable and not given and column.identity is None:
            allowed = (
                f"None (rows are deleted), or {table.name}.{column.name} may be NULL or has a default: a tombstone"
            )
            raise ConfigurationError("deleted", shape.deleted, f"{allowed} has no value for it", WHERE)
