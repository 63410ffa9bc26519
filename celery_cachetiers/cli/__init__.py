"""``celery -A proj cachetiers``: the group, and nothing of what its commands do; each group of commands has its file.

Celery loads this module for every command of its own, so that nothing heavy is imported here.
"""

from __future__ import annotations

import click
from celery.bin.base import handle_preload_options

import celery_cachetiers.control  # noqa: F401 - imported, its commands are known to `celery inspect` and `control`
from celery_cachetiers.cli.asking import get, why
from celery_cachetiers.cli.dead_letters import dead_letter
from celery_cachetiers.cli.doctor import doctor
from celery_cachetiers.cli.exporting import dashboard, exporter
from celery_cachetiers.cli.flushing import flush
from celery_cachetiers.cli.invalidating import clear, invalidate
from celery_cachetiers.cli.reports import report
from celery_cachetiers.cli.stats import stats
from celery_cachetiers.cli.tagging import tags
from celery_cachetiers.cli.top import top

__all__ = ["cachetiers"]


@click.group()
@click.pass_context
@handle_preload_options
def cachetiers(ctx: click.Context, **_: object) -> None:
    """Look into the cache, its reports and its journal.

    Exit status: 0 done, 1 something failed or was left, 2 the command cannot be carried out as it was given.
    """


_COMMANDS = (
    stats, top, why, get, tags, invalidate, clear, flush, dead_letter, report, doctor, exporter, dashboard,
)  # fmt: skip
for _command in _COMMANDS:
    cachetiers.add_command(_command)
