"""``cachetiers flush``: hands what waits in the journal to the sinks, in this process."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from celery_cachetiers.cli.common import LEFT, as_json, extension, print_json, print_table

COLUMNS = ("taken", "failed", "buried", "left", "pending")


@click.command()
@click.argument("sink", required=False)
@click.option("--seconds", type=click.FloatRange(min=0.0), default=30.0, show_default=True, help="No longer than this.")
@as_json
@click.pass_context
def flush(ctx: click.Context, sink: str | None, seconds: float, as_json: bool) -> None:
    """Hand what waits in the journal to the sinks.

    To all of them, or to SINK alone. It runs here, not in a worker, and takes until nothing is due or time is up. What
    a sink has just failed with is due only after its back-off, and counts as pending.
    """
    with extension(ctx) as tiers:
        flushed = tiers.writes.flush(sink, seconds)
        rows: dict[str, dict[str, Any]] = {
            name: {**asdict(done), "pending": tiers.writes.backlog(name).pending} for name, done in flushed.items()
        }
    if as_json:
        print_json(rows)
    elif rows:
        print_table(("sink", *COLUMNS), [(name, *(row[column] for column in COLUMNS)) for name, row in rows.items()])
    else:
        click.echo("The app has no sinks.")
    if any(row[column] for row in rows.values() for column in COLUMNS[1:]):
        ctx.exit(LEFT)
