"""`celery -A proj cachetiers ...` in this process, of an app that a test has made."""

from __future__ import annotations

from collections.abc import Callable

from celery import Celery
from celery.bin.base import CLIContext
from click.testing import CliRunner, Result

from celery_cachetiers.cli import cachetiers

Run = Callable[..., Result]


def command_line(app: Celery, *command: str) -> Run:
    """``run(*arguments, answer=None)``: what comes of the command with these arguments; ``answer`` is what is typed."""

    def run(*arguments: str, answer: str | None = None) -> Result:
        context = CLIContext(app=app, no_color=True, workdir=None)
        return CliRunner().invoke(cachetiers, [*command, *arguments], obj=context, input=answer, catch_exceptions=False)

    return run
