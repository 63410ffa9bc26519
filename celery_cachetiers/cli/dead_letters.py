"""``cachetiers dead-letter``: look at the writes that were given up, try them again, or throw them away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from celery_cachetiers.amounts import counted
from celery_cachetiers.cli.common import (
    LEFT,
    Failed,
    as_json,
    extension,
    instant,
    print_json,
    print_table,
    shortened,
)
from celery_cachetiers.dead_letter import DeadLetter, DeadWrite
from celery_cachetiers.sinks import registered

all_of_them: Callable[[Any], Any] = click.option("--all", "everything", is_flag=True, help="All that are there now.")
keys_of_it: Callable[[Any], Any] = click.argument("keys", nargs=-1, metavar="[KEY]...")


@click.group("dead-letter")
def dead_letter() -> None:
    """Writes that a sink has never been able to take."""


@dead_letter.command("list")
@click.argument("sink", required=False)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="Of each sink, at most.")
@as_json
@click.pass_context
def list_them(ctx: click.Context, sink: str | None, limit: int, as_json: bool) -> None:
    """List them, the oldest first, of all sinks or of SINK alone."""
    with extension(ctx) as tiers:
        letters = [tiers.writes.dead_letter(name) for name in ([sink] if sink is not None else sorted(registered()))]
        counts = {letter.sink: letter.count() for letter in letters}
        found = [each for letter in letters for each in letter.writes(limit)]
    if as_json:
        print_json({"counts": counts, "writes": [_brief(each) for each in found]})
        return
    if found:
        print_table(("sink", "key", "given up", "attempts", "task", "arguments", "error"), list(map(_row, found)))
    there = sum(counts.values())
    if not counts:
        click.echo("The app has no sinks.")
    elif not found:
        click.echo("Nothing was given up.")
    elif there > len(found):
        click.echo(f"{len(found)} of {counted(there, 'write')} shown.")


@dead_letter.command()
@click.argument("sink")
@click.argument("key")
@as_json
@click.pass_context
def show(ctx: click.Context, sink: str, key: str, as_json: bool) -> None:
    """Show the write of KEY with its value, its error and the traceback."""
    with extension(ctx) as tiers:
        found = tiers.writes.dead_letter(sink).find(key)
    if found is None:
        raise Failed(f"sink {sink} has given up no write of key {key}")
    if as_json:
        print_json(_full(found))
        return
    for name, value in _lines(found):
        click.echo(f"{name + ':':<11} {value}")
    click.echo(f"\n{found.traceback.rstrip()}")


@dead_letter.command()
@click.argument("sink")
@keys_of_it
@all_of_them
@as_json
@click.pass_context
def retry(ctx: click.Context, sink: str, keys: tuple[str, ...], everything: bool, as_json: bool) -> None:
    """Put writes back into the journal, from which the next flush takes them.

    A write whose key was written again meanwhile is dropped, whether that write waits or was taken: it was overtaken.
    """
    _check_choice(keys, everything)
    with extension(ctx) as tiers:
        letter = tiers.writes.dead_letter(sink)
        done = letter.retry_all() if everything else letter.retry(*keys)
    _report(ctx, "retried", done.moved, keys, as_json, done.overtaken)


@dead_letter.command()
@click.argument("sink")
@keys_of_it
@all_of_them
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@click.pass_context
def drop(ctx: click.Context, sink: str, keys: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Remove writes for good: the sink never gets them."""
    _check_choice(keys, everything)
    if as_json and not yes:
        raise click.UsageError("--json asks no questions: give --yes as well")
    with extension(ctx) as tiers:
        letter = tiers.writes.dead_letter(sink)
        if not yes:
            _ask(letter, keys)
        done = letter.drop_all() if everything else letter.drop(*keys)
    _report(ctx, "dropped", done, keys, as_json)


def _check_choice(keys: tuple[str, ...], everything: bool) -> None:
    if bool(keys) == everything:
        raise click.UsageError("give the keys of the writes, or --all")


def _ask(letter: DeadLetter, keys: tuple[str, ...]) -> None:
    number = len(keys) or letter.count()
    click.confirm(f"Remove {counted(number, 'write')} of sink {letter.sink} for good?", abort=True)


def _report(
    ctx: click.Context, what: str, done: int, keys: tuple[str, ...], as_json: bool, overtaken: int | None = None
) -> None:
    unknown = max(len(set(keys)) - done - (overtaken or 0), 0)
    if as_json:
        more = {} if overtaken is None else {"overtaken": overtaken}
        print_json({what: done, **more, "unknown": unknown})
    else:
        click.echo(f"{counted(done, 'write')} {what}.")
        if overtaken:
            click.echo(f"{counted(overtaken, 'write')} dropped: overtaken by newer ones of the same keys.")
        if unknown:
            click.echo(f"{unknown} of the keys are not in the dead-letter.", err=True)
    if unknown:
        ctx.exit(LEFT)


# -- a write as it is shown -------------------------------------------------------------------------------------------


def _row(dead: DeadWrite) -> tuple[object, ...]:
    task, arguments = (dead.write.task, _arguments(dead)) if dead.write is not None else ("?", "?")
    return (dead.sink, dead.key, instant(dead.buried_at), dead.attempts, task, arguments, dead.error)


def _arguments(dead: DeadWrite) -> str:
    assert dead.write is not None
    named = [f"{name}={value!r}" for name, value in dead.write.kwargs.items()]
    text = ", ".join([*map(repr, dead.write.args), *named])
    return text if len(text) <= 60 else text[:57] + "..."


def _brief(dead: DeadWrite) -> dict[str, object]:
    full = _full(dead)
    return {name: value for name, value in full.items() if name not in ("traceback", "value")}


def _full(dead: DeadWrite) -> dict[str, object]:
    given = asdict(dead)
    write = given.pop("write") or {}
    parts = ("task", "args", "kwargs", "value", "deleted", "written_at")
    return {**given, **{name: write.get(name) for name in parts}}


def _lines(dead: DeadWrite) -> list[tuple[str, object]]:
    lines: list[tuple[str, object]] = [("sink", dead.sink), ("key", dead.key), ("sequence", dead.sequence)]
    if dead.write is not None:
        value = "(deleted)" if dead.write.deleted else shortened(dead.write.value, 2000)
        lines += [("task", dead.write.task), ("args", shortened(list(dead.write.args), 2000))]
        lines += [("kwargs", shortened(dict(dead.write.kwargs), 2000)), ("value", value)]
        lines.append(("written", instant(dead.write.written_at)))
    return [*lines, ("given up", instant(dead.buried_at)), ("attempts", dead.attempts), ("error", dead.error)]
