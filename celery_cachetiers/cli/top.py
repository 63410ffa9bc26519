"""``cachetiers top``: what the cache does now, again and again.

Before each reading all processes are asked to merge what they have counted, which they otherwise do every ten seconds:
an interval is from one such question to the next.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from time import monotonic
from typing import Any, Final, cast

import click

from celery_cachetiers.app import CacheTiers
from celery_cachetiers.cli.common import UNLIMITED, Refused, as_json, extension, print_json_line, trouble_of
from celery_cachetiers.cli.intervals import Interval, Reading, between, read
from celery_cachetiers.cli.screen import Dashboard
from celery_cachetiers.cli.stats import MEMORY_ONLY
from celery_cachetiers.cli.terminal import colourless, columns
from celery_cachetiers.errors import TierUnavailable
from celery_cachetiers.tiers.redis_server import RedisServerInfo

HISTORY: Final = 40
"""Intervals that the sparklines show."""

Show = Callable[["deque[Interval | None]", str | None], None]
wait = time.sleep


@click.command()
@click.option("--interval", type=click.FloatRange(min=0.5), default=2.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Print one interval and end; so it does where the output is no terminal.")
@as_json
@click.pass_context
def top(ctx: click.Context, interval: float, once: bool, as_json: bool) -> None:
    """Watch what the cache does: rates by tier, the hit ratio, the hottest keys, pending writes, Redis.

    With --json it prints one object per interval, each in a line, until it is stopped.
    """
    once = once or not (as_json or sys.stdout.isatty())
    with extension(ctx) as tiers, ExitStack() as stack:
        server = tiers.server()
        if server is None:
            raise Refused(MEMORY_ONLY)
        stack.callback(server.close)
        try:
            show = print_interval if as_json else _screen(tiers, interval, stack, live=not once)
            _watch(tiers, server, interval, once, show)
        except KeyboardInterrupt:
            pass


def _watch(tiers: CacheTiers, server: RedisServerInfo, interval: float, once: bool, show: Show) -> None:
    """Shows each interval, or why there is none."""
    history: deque[Interval | None] = deque(maxlen=HISTORY)
    before: Reading | None = None
    for after in _readings(tiers, server, interval):
        if isinstance(after, Reading):
            if before is not None:
                history.append(between(before, after))
                show(history, None)
            before = after
        else:
            if once:
                raise after
            history.append(None)
            show(history, trouble_of(after))
        if once and history:
            return


def _readings(
    tiers: CacheTiers, server: RedisServerInfo, interval: float
) -> Iterator[Reading | TierUnavailable]:  # fmt: skip
    while True:
        try:
            at = monotonic()
            tiers.roll_call.merged(server)
            reading: Reading | TierUnavailable = read(tiers, server, at)
        except TierUnavailable as error:
            reading = error
        yield reading
        wait(max(at + interval - monotonic(), 0.0))


def print_interval(history: deque[Interval | None], trouble: str | None) -> None:
    """One line of JSON: the last interval, or the trouble."""
    last = history[-1]
    found: dict[str, Any] = {"error": trouble} if last is None else last.as_dict()
    print_json_line({"at": time.time(), **found})


def _screen(tiers: CacheTiers, interval: float, stack: ExitStack, *, live: bool) -> Show:
    """Draws on the terminal in place, as far as rich is there; else prints one after the other."""
    dashboard = Dashboard(f"namespace {tiers.settings.namespace}, every {interval:g} s")
    screen = _rich_screen(stack) if live else None

    def show(history: deque[Interval | None], trouble: str | None) -> None:
        if screen is None:
            click.echo("\n".join(dashboard.lines(history, trouble, columns() or UNLIMITED)))
        else:
            screen.update(dashboard.drawn(history, trouble, *screen.console.size), refresh=True)

    return show


def _rich_screen(stack: ExitStack) -> Any:
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        return None
    console = Console(no_color=colourless() or None)
    return cast("Any", stack.enter_context(Live(console=console, auto_refresh=False, screen=True)))
