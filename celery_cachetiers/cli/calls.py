"""A call as it is typed in a shell: the name of a task, its arguments as JSON."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from typing import Any

import click

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import Refused
from celery_cachetiers.task import CachedTaskMixin


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
    task = tiers.app.tasks.get(name)
    if isinstance(task, CachedTaskMixin):
        return task
    if task is not None:
        raise Refused(f"{name} is not a cached task: it has no base=CachedTask")
    known = [each for each, task in tiers.app.tasks.items() if isinstance(task, CachedTaskMixin)]
    raise Refused(f"there is no task {name!r}{_meant(name, known)}")


def _meant(name: str, known: Iterable[str]) -> str:
    """The names that are close, also by their last part alone."""
    known = sorted(known)
    tails = [each for each in known if each.rpartition(".")[2] == name.rpartition(".")[2]]
    close = list(dict.fromkeys([*tails, *difflib.get_close_matches(name, known)]))[:3]
    return f"; did you mean {' or '.join(close)}?" if close else ""
