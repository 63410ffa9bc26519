"""What commands print fits the terminal that it is printed on, whole; elsewhere lines are as long as they are."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from itertools import product

import pytest
from celery import Celery
from celery.bin.base import CLIContext
from click import unstyle
from click.testing import CliRunner

from celery_cachetiers import CachedTask, CacheTiers
from celery_cachetiers.cli import cachetiers
from celery_cachetiers.doctor.findings import info, ok, warning
from tests.integration.apps.local import cached_app, closing
from tests.integration.apps.worker_setup import Deployment, new_name
from tests.processes import ROOT
from tests.servers import RedisServer

pytestmark = [
    pytest.mark.usefixtures("own_sinks", "own_tasks"),
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]

NAME = "shop.catalogue.pages.profile"
WIDTHS = (40, 60)
COMMANDS = {
    "stats": ("stats",),
    "top": ("top", "--once", "--interval", "0.5"),
    "why": ("why", NAME, "--args", '["a reader whose name is long enough to need two lines"]'),
    "why, a miss": ("why", NAME, "--args", "[3]"),
    "report": ("report",),
    "doctor": ("doctor",),
    "tags": ("tags",),
}


class Terminal(io.StringIO):
    """Standard output on a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


Shown = Callable[..., list[str]]


@pytest.fixture
def app(namespace: str, redis_server: RedisServer) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_server.url(), cachetiers_timeout=2.0)) as app:

        @app.task(base=CachedTask, name=NAME, tags=["reader:{reader}"])
        def profile(reader: object) -> object:
            return reader

        @app.task(name="shop.catalogue.pages.rename", invalidates=["reader:{reader}"])
        def rename(reader: object) -> None: ...

        profile("a reader whose name is long enough to need two lines")
        for reader in (1, 1, 2):
            profile(reader)
        CacheTiers(app).invalidate_tag("reader:1")
        assert CacheTiers(app).reporting.make() is not None
        yield app


@pytest.fixture
def shown(app: Celery, monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Runs a command on a terminal of some width, and returns its lines."""

    def run(width: int, *arguments: str, rich: bool = True, no_color: bool = False) -> list[str]:
        output, context = Terminal(), CLIContext(app=app, no_color=no_color, workdir=None)
        with monkeypatch.context() as patch:
            patch.setenv("COLUMNS", str(width))
            patch.setenv("TERM", "xterm")
            if not rich:
                for name in ("rich.console", "rich.live"):
                    patch.setitem(sys.modules, name, None)
            patch.setattr("sys.stdout", output)
            cachetiers.main(list(arguments), obj=context, standalone_mode=False)
        return output.getvalue().splitlines()

    return run


def squeezed(*texts: str) -> str:
    """What is there, wherever a line ends."""
    return "".join("".join(texts).split())


# ---- on a terminal ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_no_line_is_longer_than_the_terminal(shown: Shown, command: str) -> None:
    for width, rich in product(WIDTHS, (True, False)):
        lines = [unstyle(line) for line in shown(width, *COMMANDS[command], rich=rich)]

        assert len(lines) > 3
        assert [line for line in lines if len(line) > width] == []
        assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", WIDTHS)
def test_stats_has_every_column_and_its_remarks(shown: Shown, width: int) -> None:
    lines = shown(width, "stats")
    text = squeezed(*lines)

    for title in ("task", "L1", "L2", "stale", "journal", "coalesced", "misses", "ratio", "mean wait", "invalidated"):
        assert any(unstyle(line).strip("┃ ").startswith(title) for line in lines), title
    for part in (NAME, "reader:*", "25.0 %", "broker and results included. The cache's own hit ratio is 25.0 %."):
        assert squeezed(part) in text


@pytest.mark.parametrize("width", WIDTHS)
def test_a_report_has_every_column(shown: Shown, width: int) -> None:
    text = squeezed(*shown(width, "report"))

    for title in (
        "time",
        "requests 4",
        "hit ratio 25.0 %",
        "coalesced 0",
        "seconds saved 0.0",
        "server ratio -",
        "why so far",
    ):
        assert squeezed(title) in text


@pytest.mark.parametrize("width", WIDTHS)
def test_why_has_the_whole_key_in_one_line_and_every_fact(app: Celery, shown: Shown, width: int) -> None:
    why = CacheTiers(app).app.tasks[NAME].cache.why(2)
    lines = shown(width, "why", NAME, "--args", "[2]")
    text = squeezed(*map(unstyle, lines))

    assert why.key is not None
    assert any(why.key in line for line in lines)
    assert squeezed(why.headline()) in text
    for part in ("the namespace: current", "reader:2: current", "not signed, wire version 1"):
        assert squeezed(part) in text


@pytest.mark.parametrize("width", WIDTHS)
def test_top_has_every_section(shown: Shown, width: int) -> None:
    text = squeezed(*shown(width, *COMMANDS["top"]))

    for part in ("per second", "hit ratio", "hits in the journal", "seconds saved", "everybody's use of it", "used"):
        assert squeezed(part) in text


@pytest.mark.parametrize("width", WIDTHS)
def test_doctor_has_each_finding_with_its_remedy(shown: Shown, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    address = "redis://cache.internal.example.com:6379/2"
    findings = [
        ok("url", f"L2 is {address}, from cachetiers_url"),
        warning("maxmemory", "the server has no memory limit, and uses 2.7 MiB: it grows", "CONFIG SET maxmemory 2gb"),
        info("worker-settings-differ", "short", ""),
    ]
    monkeypatch.setattr(sys.modules["celery_cachetiers.cli.doctor"], "examine", lambda tiers: findings)
    lines = [unstyle(line) for line in shown(width, "doctor")]

    assert all(len(line) <= width for line in lines)
    for each in findings:
        assert squeezed(each.level, each.code, each.found, "->" if each.remedy else "", each.remedy) in squeezed(*lines)
    assert lines[-1] == "1 warning, 1 info, 1 ok"


# ---- colours ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["why", "doctor"])
def test_without_colours_there_are_none(shown: Shown, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, asked = shown(200, *COMMANDS[command]), shown(200, *COMMANDS[command], no_color=True)
    monkeypatch.setenv("NO_COLOR", "1")
    set_so = shown(200, *COMMANDS[command])

    assert any("\x1b[3" in line for line in coloured)
    assert not any("\x1b" in line for line in (*asked, *set_so))


# ---- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_terminal_gets_long_lines_and_no_colour(
    app: Celery, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    context = CLIContext(app=app, no_color=False, workdir=None)
    output = CliRunner().invoke(cachetiers, COMMANDS[command], obj=context, catch_exceptions=False).output

    assert "\x1b" not in output
    assert max(map(len, output.splitlines())) > 40


def test_a_real_terminal_is_asked_how_wide_it_is(redis_server: RedisServer) -> None:
    if "cachetiers" not in entry_points(group="celery.commands").names:
        pytest.skip("the package was installed before it had the command")
    with Deployment(redis_server) as deployment:
        name = new_name()
        deployment.task("work.plain")(name)
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", deployment.module, "cachetiers", "why", "work.plain", "--args",
             json.dumps([name])],
            env={**env, **deployment.environment(), "PYTHONPATH": str(ROOT), "TERM": "xterm"}, stdin=theirs,
            stdout=theirs, stderr=theirs,
        )  # fmt: skip
        os.close(theirs)
        lines = unstyle(read_all(ours)).splitlines()

        assert process.wait(30) == 0
        assert any(line.startswith("work.plain") for line in lines)
        assert [line for line in lines if len(line) > 40] == []


def read_all(terminal: int) -> str:
    """What is written to a terminal until its last writer has closed it."""
    found = bytearray()
    try:
        while more := os.read(terminal, 65536):
            found += more
    except OSError:  # how Linux says that it is closed
        pass
    os.close(terminal)
    return found.decode()
