"""``cachetiers invalidate`` and ``clear``: entries become a miss, in every process, before the command ends.

What waits in the journal of write-behind is no entry: it stays, and goes on answering its keys until its sink has it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from celery_cachetiers.amounts import counted
from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import Refused, as_json, extension, print_json
from celery_cachetiers.cli.names import check_task
from celery_cachetiers.errors import TagError, TierUnavailable
from celery_cachetiers.keys import checked_key
from celery_cachetiers.sinks import registered
from celery_cachetiers.tag_names import checked_tag


@click.command()
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="Everything under a tag.")
@click.option("--key", "keys", multiple=True, metavar="KEY", help="One entry, by what task.cache.key(...) returns.")
@click.option("--task", "tasks", multiple=True, metavar="TASK", help="Every entry of a task.")
@as_json
@click.pass_context
def invalidate(
    ctx: click.Context, tags: tuple[str, ...], keys: tuple[str, ...], tasks: tuple[str, ...], as_json: bool
) -> None:
    """Make entries a miss, in every process; each option may be given more than once.

    All options are checked before anything is done. To repeat it does no harm.
    """
    if not (tags or keys or tasks):
        raise click.UsageError("give at least one --tag, --key or --task")
    with extension(ctx) as tiers:
        _check(tiers, tags, keys, tasks)
        if tags:
            tiers.invalidate_tags(tags, on_commit=False)
        for key in keys:
            tiers.invalidate_key(key, on_commit=False)
        for task in tasks:
            tiers.clear(task, on_commit=False)
    done = {"tags": list(tags), "keys": list(keys), "tasks": list(tasks)}
    if as_json:
        print_json(done)
    else:
        click.echo(
            f"Invalidated: {', '.join(counted(len(names), kind[:-1]) for kind, names in done.items() if names)}."
        )


@click.command()
@click.option("--task", metavar="TASK", help="Only the entries of this task; asks no question.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@as_json
@click.pass_context
def clear(ctx: click.Context, task: str | None, yes: bool, as_json: bool) -> None:
    """Make every entry of the namespace a miss, or those of one task.

    Writes that wait for their sinks are not touched, and answer their keys until the sinks have them.
    """
    with extension(ctx) as tiers:
        _check(tiers, (), (), () if task is None else (task,))
        namespace = tiers.settings.namespace
        if task is None and not yes:
            _ask(namespace, as_json)
        tiers.clear(task, on_commit=False)
        waiting = _pending(tiers, task)
    if as_json:
        print_json({"namespace": namespace, "task": task, "pending": waiting})
        return
    click.echo(f"Every entry of {f'task {task}' if task is not None else f'namespace {namespace}'} is a miss now.")
    if waiting is None:
        click.echo("How many writes wait for their sinks is not known; they are not touched.")
    elif left := sum(waiting.values()):
        writes = counted(left, "write waits for its sink", "writes wait for their sinks")
        click.echo(f"{writes}: not touched, and a key with such a write is answered with it until then.")


def _pending(tiers: CacheTiers, task: str | None) -> dict[str, int] | None:
    """How many writes wait, by sink: of the task's own, or of all; ``None`` if the journal cannot be reached."""
    own = None if task is None else getattr(tiers.app.tasks.get(task), "sink", None)
    names = sorted(registered()) if task is None else [own] if own is not None else []
    with suppress(TierUnavailable):
        return {name: tiers.writes.backlog(name).pending for name in names}
    return None


def _check(tiers: CacheTiers, tags: Sequence[str], keys: Sequence[str], tasks: Sequence[str]) -> None:
    """Passes what can be carried out."""
    if tiers.where() is None:
        raise Refused("the app has no Redis: no other process would hear of it")
    try:
        for tag in tags:
            checked_tag(tag)
        for key in keys:
            checked_key(key)
    except (TagError, ValueError) as error:
        raise Refused(str(error)) from error
    counted: Any = tiers.counting.totals().tasks if tasks else ()
    for task in tasks:
        check_task(tiers, task, counted)


def _ask(namespace: str, as_json: bool) -> None:
    if as_json:
        raise click.UsageError("--json asks no questions: give --yes as well")
    if not _can_ask():
        raise click.UsageError("there is no terminal to ask on: give --yes")
    click.confirm(f"Make every entry of namespace {namespace} a miss?", abort=True)


def _can_ask() -> bool:
    return sys.stdin.isatty()
