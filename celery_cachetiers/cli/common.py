"""What all commands share: the app with its tasks, errors as one line and an exit status, and two ways to print."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

import click

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.terminal import beside, colourless, columns
from celery_cachetiers.client import was_answered
from celery_cachetiers.errors import ConfigurationError, TierUnavailable
from celery_cachetiers.installed import is_fallback

LEFT: Final = 1
"""Exit status: something failed or was left."""

UNLIMITED: Final = 100_000
"""A width that every table fits in."""
NARROWEST: Final = 20
"""Characters that are left to the last column of a table, whose text may go on in the next line."""

as_json: Callable[[Any], Any] = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


class Refused(click.ClickException):
    """Ends a command that cannot be carried out as it was given."""

    exit_code = 2


class Failed(click.ClickException):
    """Ends a command that has failed."""

    exit_code = LEFT


@contextmanager
def extension(ctx: click.Context) -> Iterator[CacheTiers]:
    """The extension of the app after ``-A``, with all of the app's modules imported, as sinks are registered in them.

    What the block raises of ours ends the command with one line.
    """
    app = ctx.obj.app
    try:
        app.loader.import_default_modules()
        app.finalize()
        if is_fallback(app) and all(name.startswith("celery.") for name in app.tasks):
            raise Refused("no app is named, or it has no tasks: celery -A proj cachetiers ...")
        yield CacheTiers(app)
    except ConfigurationError as error:
        raise Refused(str(error)) from error
    except TierUnavailable as error:
        raise Failed(trouble_of(error)) from error


def trouble_of(error: TierUnavailable) -> str:
    """Whether Redis was not reached, or has answered that it will not, and what it said."""
    return f"Redis has refused: {error}" if was_answered(error) else f"Redis cannot be reached: {error}"


def print_json(value: object) -> None:
    """Prints a value; what JSON does not have, and keys of which it would not make text, as their repr."""
    click.echo(json.dumps(_with_keys(value), default=repr, indent=2))


def print_json_line(value: object) -> None:
    """The same in one line, for those who read line by line."""
    click.echo(json.dumps(_with_keys(value), default=repr))


def _with_keys(value: object) -> object:
    """A value whose mappings have keys that JSON can have: pickled values have others.

    >>> _with_keys([{1: "a", (1, 2): {None: 0}}])
    [{1: 'a', '(1, 2)': {None: 0}}]
    """
    if isinstance(value, dict):
        return {key if _is_plain(key) else repr(key): _with_keys(each) for key, each in value.items()}
    return [_with_keys(each) for each in value] if isinstance(value, (list, tuple)) else value


def _is_plain(key: object) -> bool:
    return key is None or isinstance(key, (str, int, float))


def print_table(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows: with rich on a terminal where they fit, else in plain columns, which other programs can cut.

    Nothing is ever shortened to fit: a key that is cut short is none. A terminal that has no room for the columns gets
    each cell in a line of its own.
    """
    texts = [[str(cell) for cell in row] for row in rows]
    if not _rich_table(titles, texts):
        lines, width = plain_table(titles, texts), columns()
        fits = width is None or max(map(len, lines)) <= width
        click.echo("\n".join(lines if fits else _records(titles, texts, width)))


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table.

    >>> plain_table(["sink", "taken"], [["orders", "12"]])
    ['sink    taken', 'orders  12']
    """
    lines = [list(titles), *rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(titles))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _records(titles: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Each row as a few lines, with a blank one after it."""
    indent, lines = max(map(len, titles)) + 2, list[str]()
    for row in rows:
        for title, cell in zip(titles, row, strict=True):
            lines += beside(title, cell, indent, width)
        lines.append("")
    return lines[:-1]


def _rich_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    if not sys.stdout.isatty():
        return False
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    console, table = Console(no_color=colourless() or None), Table(*titles)
    table.columns[-1].overflow = "fold"
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: values are anybody's
    excess = console.measure(table, options=console.options.update(width=UNLIMITED)).maximum - console.width
    last = max(len(cell) for cell in (titles[-1], *(row[-1] for row in rows)))
    if excess > 0 and last - excess < max(NARROWEST, len(titles[-1])):
        return False
    for column in table.columns[:-1]:
        column.no_wrap = True
    console.print(table)
    return True


def instant(seconds: float) -> str:
    """Epoch seconds for people, in their time zone."""
    return datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="seconds")


def shortened(value: object, length: int = 60) -> str:
    """A value in one line.

    >>> shortened(["x" * 100], 12)
    "['xxxxxxx..."
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= length else text[: length - 3] + "..."
