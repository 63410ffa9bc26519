"""``cachetiers report``: the hit-ratio reports of the last days, as a table, as JSON or as a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from celery_cachetiers.amounts import percent
from celery_cachetiers.cli.common import Failed, Refused, as_json, extension, instant, print_json, print_table
from celery_cachetiers.cli.terminal import say
from celery_cachetiers.metrics.report import Report
from celery_cachetiers.metrics.report_json import report_as_dict

TITLES: Final = ("time", "requests", "hit ratio", "coalesced", "seconds saved", "server ratio", "why")
NONE: Final = "No report was made in that time"
SECONDS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Span(click.ParamType):  # type: ignore[type-arg]  # generic in the newest click's stubs alone
    """A length of time, such as 90s, 30m, 1h or 7d."""

    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no length of time: 90s, 30m, 1h and 7d are", param, ctx)
        return float(found[1]) * SECONDS[found[2]]


@click.command()
@click.option("--since", type=Span(), default=3600.0, show_default="1h", help="How far back: 90s, 30m, 1h, 7d.")
@click.option("--plot", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Draw them, to a file.")
@as_json
@click.pass_context
def report(ctx: click.Context, since: float, plot: Path | None, as_json: bool) -> None:
    """Show the hit-ratio reports that beat has had made.

    The hit ratio is the cache's own; the server ratio is of all lookups in that Redis, broker and results included.
    """
    with extension(ctx) as tiers:
        if tiers.where() is None:
            raise Refused("the app has no Redis, and only Redis keeps reports: set cachetiers_url")
        made = tiers.history(tiers.clock.time() - since)
    if plot is not None:
        if not made:
            raise Failed(f"{NONE}; nothing is drawn")
        if all(each.since is None for each in made):
            raise Failed("The first report alone, which has no length, cannot be drawn: wait for the next one")
        _draw(made, plot)
    if as_json:
        print_json([report_as_dict(each) for each in made])
    elif made:
        print_table(TITLES, [_row(each) for each in made])
    else:
        say(f"{NONE}: beat sends them, the first one after cachetiers_report_every, and a worker makes them.")


def _row(made: Report) -> tuple[str, ...]:
    total, why = made.total, ", ".join(_why(made))
    return (
        instant(made.at), str(made.requests), percent(made.ratio), str(total.coalesced), f"{total.seconds_saved:.1f}",
        percent(made.server_ratio), why or "-",
    )  # fmt: skip


def _why(made: Report) -> list[str]:
    """The reasons; before them that the numbers are of all time, where they are."""
    names = list(dict.fromkeys(reason.name for reason in made.reasons))
    return names if made.since is not None or "no_reading" in names else ["so far", *names]


def _draw(made: Sequence[Report], path: Path) -> None:
    try:
        from celery_cachetiers.cli.plot import draw
    except ImportError as error:
        allowed = "pip install 'celery-cachetiers[plot]'"
        raise Refused(f"--plot draws with matplotlib, which is not there ({error}): {allowed}") from error
    try:
        draw(made, path)
    except (OSError, ValueError) as error:  # a directory that is not there, a kind of file that nobody draws
        raise Refused(f"--plot={path}: {error}") from error
