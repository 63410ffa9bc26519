"""A call as it is typed in a shell: the name of a task, its arguments as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import click

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.names import check_task


def _json_of(kind: type, example: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    def parse(ctx: click.Context, parameter: click.Parameter, text: str | None) -> Any:
        try:
            value = kind() if text is None else json.loads(text)
        except ValueError as error:
            raise click.BadParameter(f"{text!r} is not JSON: {error}") from error
        if not isinstance(value, kind):
            raise click.BadParameter(f"{text!r} is not JSON such as {example}")
        return value

    return parse


def a_call(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``TASK``, ``--args`` and ``--kwargs`` to a command, which gets them as ``task``, ``args``, ``kwargs``."""
    for add in (
        click.option("--kwargs", callback=_json_of(dict, '{"verbose": true}'), help="Keyword arguments, JSON."),
        click.option("--args", callback=_json_of(list, '[1, "a"]'), help="Positional arguments, JSON."),
        click.argument("task"),
    ):
        command = add(command)
    return command


def task_named(tiers: CacheTiers, name: str) -> Any:
    """The cached task of a name. Raises `Refused`, with those that it was probably meant to be."""
    check_task(tiers, name)
    return tiers.app.tasks[name]
