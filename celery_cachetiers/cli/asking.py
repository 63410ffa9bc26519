"""``cachetiers why`` and ``cachetiers get``: what a call would be answered with, and why, without running it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from celery_cachetiers.asking import Asked
from celery_cachetiers.cli.calls import a_call, task_named
from celery_cachetiers.cli.common import LEFT, as_json, extension, print_json
from celery_cachetiers.cli.terminal import beside, columns, painted, say, wrapped
from celery_cachetiers.entry import MISSING
from celery_cachetiers.publishing import MODES
from celery_cachetiers.why import Why

NO_L1: Final = "this command's own process has none: ask a worker or web process, by task.cache.why()"


@click.command()
@a_call
@click.option("--mode", type=click.Choice(MODES), default="use", show_default=True, help="As in cache_mode=.")
@as_json
@click.pass_context
def why(ctx: click.Context, task: str, args: list[Any], kwargs: Mapping[str, Any], mode: str, as_json: bool) -> None:
    """Say why a call of TASK would be a hit or a miss now.

    It only looks: nothing is computed, counted or kept. Memory (L1) is that of this process, which has just begun:
    what workers have in theirs is not seen.
    """
    found = _ask(ctx, task, args, kwargs, mode).why
    if as_json:
        print_json(found.as_dict())
    else:
        _print(found)


@click.command()
@a_call
@as_json
@click.pass_context
def get(ctx: click.Context, task: str, args: list[Any], kwargs: Mapping[str, Any], as_json: bool) -> None:
    """Print the value that a call of TASK would be answered with, if there is one: it is never computed.

    A value that waits for its sink is one, too, and so is a stale one. The exit status is 1 if there is none.
    """
    asked = _ask(ctx, task, args, kwargs, "use")
    found = asked.value is not MISSING
    if as_json:
        value = asked.value if found else None
        print_json({"found": found, "value": value, "verdict": asked.why.verdict, "cause": asked.why.cause})
    elif found:
        click.echo(repr(asked.value))
    else:
        click.echo(f"{asked.why.headline()}\n{asked.why.reason}", err=True)
    if not found:
        ctx.exit(LEFT)


def _ask(ctx: click.Context, name: str, args: list[Any], kwargs: Mapping[str, Any], mode: str) -> Asked:
    with extension(ctx) as tiers:
        asked: Asked = task_named(tiers, name).cache.ask(tuple(args), kwargs, mode=mode)
        return asked


def _facts(found: Why) -> list[tuple[str, str]]:
    """What there is to know; that this process has nothing in memory is no wonder, and no fault."""
    facts = found.facts()
    if found.l1 is None or not found.l1.used or found.l1.there:
        return facts
    return [(label, NO_L1 if label == "L1" else text) for label, text in facts]


_COLOURS = {"hit": "green", "stale hit": "yellow", "held": "yellow", "miss": "red"}


def _print(found: Why) -> None:
    width, colour = columns(), _COLOURS.get(found.verdict, "magenta")
    for line in wrapped(found.headline(), width):
        click.echo(painted(line, fg=colour, bold=True))
    for sentence in found.sentences():
        say(sentence)
    for label, text in _facts(found):
        click.echo("\n".join(beside(f"  {label}", text, 11, width)))
