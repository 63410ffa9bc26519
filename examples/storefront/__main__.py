"""`python -m examples.storefront`: a Redis, two workers and beat of its own, visitors for some seconds, and tables.

Decides the order of things and the exit status: 0, 1 for a stale page, a wrong count or a failure, 128 + the signal if
interrupted.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import NoReturn

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
except ImportError:
    sys.exit('The demo draws with rich, which is not installed: pip install "celery-cachetiers[demo]"')

from celery_cachetiers import CacheTiers
from examples.storefront import shop
from examples.storefront.app import app
from examples.storefront.demo import ledger, report
from examples.storefront.demo.killing import Killing
from examples.storefront.demo.ledger import Ledger
from examples.storefront.demo.names import Names
from examples.storefront.demo.servers import CONCURRENCY, ENDING, DemoFailed, Servers
from examples.storefront.demo.visitors import VISITORS, Visitors

WHAT_NEXT = """
Read next:
  examples/storefront/README.md   the same by hand, in three terminals
  docs/tutorial.md                a first cached task, step by step
"""


def main() -> int:
    """Runs the demo and returns the exit status."""
    options = _options()
    console = Console(highlight=False)
    started = time.monotonic()
    try:
        with _interruptible(), Servers() as servers:
            ended = _run(console, servers, options.seconds)
    except DemoFailed as failure:
        print(failure, file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print("Interrupted; everything that was started has ended.", file=sys.stderr)
        return 128 + interrupted.signal
    report.show(console, ended.table, ended.names, ended.beat_asked)
    report.show_written(console, ended.written)
    report.show_commands(console, ended.commands)
    console.print(f"{WHAT_NEXT}\nThe demo took {time.monotonic() - started:.0f} s and has left nothing behind.")
    return 1 if ended.names.stale or not ended.written.right else 0


@dataclass(frozen=True, slots=True)
class Ended:
    """What is to be told when everything has ended.

    Attributes:
        beat_asked: How often beat has asked for the list.
        commands: What an operator could have asked from outside, and was told.
    """

    names: Names
    table: list[report.Line]
    written: report.Written
    beat_asked: int
    commands: list[tuple[str, str]]


def _run(console: Console, servers: Servers, seconds: float) -> Ended:
    console.print(servers.start_redis())
    worker, flusher = servers.start_worker(), servers.start_flusher()  # need longer than the shop to be seeded
    console.print(f"A shop on SQLite: {shop.seed()}")
    for each in (worker, flusher):
        each.wait_until(partial(each.said, " ready."), 30)
    beat = servers.start_beat()
    console.print(f"A worker with {CONCURRENCY} processes, another one that flushes, and beat")
    names, book = Names(shop.names()), Ledger()
    killing = Killing(servers, flusher)
    try:
        with Visitors(names, book, seconds) as visitors:
            _watch(console, servers, visitors, killing, seconds)
        table = report.lines(visitors)
        written = _written(book, killing)
        CacheTiers(app).counting.end()  # the visitors' part of what is counted, for those who ask from outside
        commands = [(shlex.join(command), servers.celery(*command)) for command in report.COMMANDS]
    except DemoFailed:
        raise
    except Exception as error:
        raise DemoFailed(f"A visitor got no page: {error!r}\n{servers.tails()}") from error
    finally:
        CacheTiers(app).reset()  # its connections, and Celery's, before the Redis that they lead to
        gc.collect()  # results too: before Celery 5.7 one that is collected later looks 20 s for a Redis that has gone
        app.close()
    beat.check()
    return Ended(names, table, written, beat.log_text().count("Sending due task warm-top-users"), commands)


def _written(book: Ledger, killing: Killing) -> report.Written:
    """Waits for the last flush, and compares."""
    waited = ledger.waiting()
    seconds = ledger.drained()
    stale = sum(1 for _ in book.stale_stocks())
    return report.Written(book.compare(), book.orders, killing.in_hands, (waited, seconds), ledger.waiting(), stale)


def _watch(console: Console, servers: Servers, visitors: Visitors, killing: Killing, seconds: float) -> None:
    """Shows what happens until the time is over: a bar in a terminal, a few lines elsewhere. Raises what went wrong."""
    console.print(f"{VISITORS} visitors for {seconds:g} s (Zipf); meanwhile customers are renamed\n")
    columns = (BarColumn(bar_width=30), TimeRemainingColumn(), TextColumn("{task.description}"))
    began = time.monotonic()
    told_at = began
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=seconds)
        while (now := time.monotonic()) < began + seconds:
            servers.check()
            visitors.check()
            if now >= began + seconds / 2 and killing.due:
                killing.kill()
                console.print(f"{now - began:5.1f} s  kill -9 of the worker that flushes, and a new one")
            progress.update(bar, completed=now - began, description=_state(visitors))
            if not console.is_terminal and now >= told_at + seconds / 4:
                told_at = now
                console.print(f"{now - began:5.1f} s  {_state(visitors)}")
            time.sleep(0.1)
        progress.update(bar, completed=seconds, description=_state(visitors))


def _state(visitors: Visitors) -> str:
    asked = visitors.asked
    return f"{asked:,} pages, {visitors.hits / asked if asked else 0:.0%} hits, {visitors.names.renames} renames"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.storefront", description="The demo of celery-cachetiers.")
    parser.add_argument("--seconds", type=_duration, default=20.0, help="how long visitors come (default: 20)")
    return parser.parse_args()


def _duration(text: str) -> float:
    seconds = float(text)
    if not 1 <= seconds <= 600:
        raise argparse.ArgumentTypeError("a number from 1 to 600")
    return seconds


class Interrupted(BaseException):
    """Raised in the main thread by a signal that asks the demo to end."""

    def __init__(self, signal: int) -> None:
        super().__init__(signal)
        self.signal = signal


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turns the first of these signals into `Interrupted` for the length of a block."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)  # the way out is bounded; a second Ctrl-C must not cut it short
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
