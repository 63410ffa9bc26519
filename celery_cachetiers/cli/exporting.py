"""``cachetiers exporter`` serves the sums of all processes to Prometheus; ``dashboard`` prints what shows them."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

import click

from celery_cachetiers.cli.common import Failed, Refused, extension


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=9808, show_default=True, help="0 takes any that is free."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at; 0.0.0.0 is all of them.")
@click.pass_context
def exporter(ctx: click.Context, port: int, host: str) -> None:
    """Serve /metrics to Prometheus, for all processes of the app, until it is interrupted.

    One of them is enough for a deployment. It needs the extra: pip install 'celery-cachetiers[prometheus]'.
    """
    try:
        from celery_cachetiers.prometheus import serving
    except ImportError as error:
        raise Refused(str(error)) from error
    with extension(ctx) as tiers:
        if tiers.where() is None:
            raise Refused("the app has no Redis, and only Redis knows of all processes: set cachetiers_url")
        try:
            with _interrupted() as over, serving(tiers.app, host, port) as url:
                click.echo(url)
                over.wait()
        except OSError as error:
            raise Failed(f"cannot listen at {host}:{port}: {error.strerror or error}") from error


@contextmanager
def _interrupted() -> Iterator[threading.Event]:
    """An event that SIGINT or SIGTERM sets, while the block runs."""
    over = threading.Event()

    def end(*_: Any) -> None:
        over.set()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield over
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.command()
def dashboard() -> None:
    """Print a Grafana dashboard for these metrics, to be imported there."""
    click.echo(resources.files("celery_cachetiers").joinpath("dashboards", "grafana.json").read_text(), nl=False)
