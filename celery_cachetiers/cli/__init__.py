"""``celery -A proj cachetiers``: the group, and nothing of what its commands do; each group of commands has its file.

Celery loads this module for every command of its own, so that nothing heavy is imported here.
"""

from __future__ import annotations

import click
from celery.bin.base import handle_preload_options

from celery_cachetiers.cli.dead_letters import dead_letter
from celery_cachetiers.cli.doctor import doctor
from celery_cachetiers.cli.exporting import dashboard, exporter
from celery_cachetiers.cli.flushing import flush

__all__ = ["cachetiers"]


@click.group()
@click.pass_context
@handle_preload_options
def cachetiers(ctx: click.Context, **_: object) -> None:
    """Look into the cache and its journal.

    Exit status: 0 done, 1 something failed or was left, 2 the command cannot be carried out as it was given.
    """


cachetiers.add_command(flush)
cachetiers.add_command(dead_letter)
cachetiers.add_command(doctor)
cachetiers.add_command(exporter)
cachetiers.add_command(dashboard)
