"""`celery -A proj cachetiers`: what the commands print, for people and for programs, and how they end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from datetime import datetime
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from click import Group, unstyle

from celery_cachetiers import CachedTask, CacheTiers, ConfigurationError, SinkRejected, Write, sink
from celery_cachetiers.cli import cachetiers, common
from celery_cachetiers.journal_port import Exhumed
from tests.integration.apps.behind_tasks import BehindDeployment
from tests.integration.apps.command_line import Run, command_line
from tests.integration.apps.local import cached_app, closing, published
from tests.processes import ROOT
from tests.proxy import RedisProxy
from tests.servers import RedisServer

pytestmark = pytest.mark.usefixtures("own_sinks")


class Table:
    """A sink that refuses the writes it is told to."""

    def __init__(self) -> None:
        self.got: list[Write] = []
        self.refused: set[Any] = set()

    def __call__(self, writes: list[Write]) -> None:
        failures: dict[str, BaseException] = {}
        for write in writes:
            try:
                self.take(write)
            except ValueError as error:
                failures[write.key] = error
        if failures:
            raise SinkRejected(failures)

    def take(self, write: Write) -> None:
        if write.args[0] in self.refused:
            raise ValueError(f"no room for {write.args[0]}")
        self.got.append(write)


@pytest.fixture
def table() -> Table:
    table = Table()
    sink("rows", attempts=1)(table)
    return table


@pytest.fixture
def app(namespace: str, redis_proxy: RedisProxy) -> Iterator[Celery]:
    with closing(cached_app(namespace, redis_proxy.url())) as app:
        yield app


@pytest.fixture
def order(app: Celery, table: Table) -> Any:
    @app.task(base=CachedTask, name="order", sink="rows", write="behind")
    def order(row: str, kind: str = "a") -> str:
        return f"order of {row}"

    return order


@pytest.fixture
def run(app: Celery) -> Run:
    return command_line(app)


def bury(app: Celery, order: Any, table: Table, *rows: str) -> list[str]:
    """Has writes given up; returns their keys, the oldest first."""
    table.refused = set(rows)
    for row in rows:
        order.cache.put((row,), f"order of {row}", {"kind": "b"})
        CacheTiers(app).writes.flush("rows")
    table.refused = set()
    return [order.cache.key(row, kind="b") for row in rows]


# ---- the command -----------------------------------------------------------------------------------------------------


def test_pyproject_names_the_group_as_a_command_of_celery() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["celery.commands"]["cachetiers"].partition(":")

    assert getattr(import_module(module), name) is cachetiers


def test_where_no_app_is_named_it_says_how_to_name_one(tmp_path: Path) -> None:
    if "cachetiers" not in entry_points(group="celery.commands").names:
        pytest.skip("the package was installed before it had the command")
    env = {name: value for name, value in os.environ.items() if name != "CELERY_APP"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "celery", "cachetiers", "stats"],
        cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (2, "")
    assert "celery -A proj cachetiers" in done.stderr


def test_the_celery_command_has_it(redis_server: RedisServer) -> None:
    if "cachetiers" not in entry_points(group="celery.commands").names:
        pytest.skip("the package was installed before it had the command")
    with BehindDeployment(redis_server) as deployment:
        deployment.task("order").cache.put(("a",), 1)
        done = subprocess.run(
            [sys.executable, "-m", "celery", "-A", deployment.module, "cachetiers", "flush", "--json"],
            env={**os.environ, **deployment.environment(), "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )

        assert json.loads(done.stdout)[deployment.sink]["taken"] == 1, done.stderr
        assert done.returncode == 0
        assert deployment.values("a") == [1]


def _commands(group: Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield from _commands(command, (*path, name)) if isinstance(command, Group) else [(*path, name)]


@pytest.mark.parametrize("path", sorted(_commands(cachetiers)), ids=" ".join)
def test_each_command_explains_itself_and_speaks_json(run: Run, path: tuple[str, ...]) -> None:
    done = run(*path, "--help")

    assert done.exit_code == 0
    assert ("--json" in done.output) is (path not in {("exporter",), ("dashboard",)})  # they print for programs alone


def test_the_apps_modules_are_imported_as_sinks_are_registered_in_them(app: Celery, run: Run) -> None:
    imported: list[str] = []
    app.loader.import_default_modules = lambda: imported.append("all")  # type: ignore[method-assign]
    run("flush")

    assert imported == ["all"]


# ---- flush -----------------------------------------------------------------------------------------------------------


def test_flush_says_what_became_of_each_sinks_writes(order: Any, table: Table, run: Run) -> None:
    order("1")
    order("2")
    done = run("flush")

    assert done.exit_code == 0
    assert done.output.splitlines() == [
        "sink  taken  failed  buried  left  pending",
        "rows  2      0       0       0     0",
    ]
    assert len(table.got) == 2


def test_flush_of_one_sink_leaves_the_others(order: Any, table: Table, run: Run) -> None:
    sink("other")(lambda writes: None)
    done = run("flush", "rows", "--json")

    assert json.loads(done.output) == {"rows": {"taken": 0, "failed": 0, "buried": 0, "left": 0, "pending": 0}}


def test_flush_ends_with_1_if_something_was_given_up(order: Any, table: Table, run: Run) -> None:
    order("1")
    table.refused = {"1"}
    done = run("flush", "--json")

    assert done.exit_code == 1
    assert json.loads(done.output)["rows"]["buried"] == 1


def test_flush_ends_with_1_if_something_waits_for_its_next_attempt(app: Celery, table: Table, run: Run) -> None:
    sink("slow", attempts=5, backoff=60.0)(table)

    @app.task(base=CachedTask, name="slow", sink="slow", write="behind")
    def slow(row: str) -> str:
        return row

    slow("1")
    table.refused = {"1"}
    assert run("flush", "slow").exit_code == 1
    done = run("flush", "slow", "--json")

    assert done.exit_code == 1
    assert json.loads(done.output)["slow"] == {"taken": 0, "failed": 0, "buried": 0, "left": 0, "pending": 1}


def test_flush_takes_no_longer_than_it_may(
    app: Celery, run: Run, monkeypatch: pytest.MonkeyPatch, table: Table
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(CacheTiers(app).writes, "flush", lambda *arguments: given.append(arguments) or {})
    run("flush", "--seconds", "2.5")

    assert given == [(None, 2.5)]
    assert run("flush", "--seconds", "-1").exit_code == 2


def test_flush_without_a_sink_says_so(app: Celery, run: Run) -> None:
    done = run("flush")

    assert (done.exit_code, done.output) == (0, "The app has no sinks.\n")


# ---- dead-letter -----------------------------------------------------------------------------------------------------


def test_list_shows_what_was_given_up_the_oldest_first(app: Celery, order: Any, table: Table, run: Run) -> None:
    keys = bury(app, order, table, "1", "2", "3")
    lines = run("dead-letter", "list").output.splitlines()

    assert lines[0].split() == ["sink", "key", "given", "up", "attempts", "task", "arguments", "error"]
    assert [line.split()[1] for line in lines[1:]] == keys
    assert lines[1].endswith("1         order  '1', kind='b'  ValueError: no room for 1")


def test_list_is_limited_and_says_how_many_there_are(app: Celery, order: Any, table: Table, run: Run) -> None:
    keys = bury(app, order, table, "1", "2", "3")
    done = run("dead-letter", "list", "rows", "--limit", "2")
    assert done.output.splitlines()[-1] == "2 of 3 writes shown."

    found = json.loads(run("dead-letter", "list", "--limit", "1", "--json").output)
    assert found["counts"] == {"rows": 3}
    [write] = found["writes"]
    assert write.pop("buried_at") == pytest.approx(datetime.now().timestamp(), abs=600)
    assert write.pop("written_at")
    assert write.pop("sequence")
    assert write == {
        "sink": "rows",
        "key": keys[0],
        "attempts": 1,
        "error": "ValueError: no room for 1",
        "task": "order",
        "args": ["1"],
        "kwargs": {"kind": "b"},
        "deleted": False,
    }


def test_list_of_an_empty_dead_letter(order: Any, run: Run) -> None:
    assert run("dead-letter", "list").output == "Nothing was given up.\n"
    assert json.loads(run("dead-letter", "list", "--json").output) == {"counts": {"rows": 0}, "writes": []}


def test_show_has_the_value_and_the_traceback(app: Celery, order: Any, table: Table, run: Run) -> None:
    [key] = bury(app, order, table, "1")
    shown = run("dead-letter", "show", "rows", key)

    assert shown.exit_code == 0
    for line in ("sink:       rows", f"key:        {key}", "task:       order", "args:       ['1']",
                 "kwargs:     {'kind': 'b'}", "value:      'order of 1'", "attempts:   1",
                 "error:      ValueError: no room for 1"):  # fmt: skip
        assert line in shown.output.splitlines()
    assert "Traceback (most recent call last)" in shown.output
    found = json.loads(run("dead-letter", "show", "rows", key, "--json").output)
    assert (found["value"], found["deleted"]) == ("order of 1", False)
    assert found["traceback"].endswith("ValueError: no room for 1\n")


def test_show_of_a_deletion_and_of_a_key_that_is_not_there(app: Celery, order: Any, table: Table, run: Run) -> None:
    table.refused = {"1"}
    order.cache.delete("1")
    CacheTiers(app).writes.flush("rows")

    assert "value:      (deleted)" in run("dead-letter", "show", "rows", order.cache.key("1")).output
    done = run("dead-letter", "show", "rows", "f" * 32)
    assert (done.exit_code, done.output) == (1, f"Error: sink rows has given up no write of key {'f' * 32}\n")


def test_what_cannot_be_read_here_is_shown_as_far_as_it_goes(app: Celery, order: Any, table: Table, run: Run) -> None:
    [key] = bury(app, order, table, "1")
    app.conf.cachetiers_signing_key = "a secret of some length"
    CacheTiers(app).reset()

    assert " ?     ?          ValueError: no room for 1 (the record cannot be read here: unsigned)" in (
        run("dead-letter", "list").output
    )
    found = json.loads(run("dead-letter", "show", "rows", key, "--json").output)
    assert (found["task"], found["value"], found["attempts"]) == (None, None, 1)


def test_retry_puts_writes_back_and_asks_for_a_flush(app: Celery, order: Any, table: Table, run: Run) -> None:
    keys = bury(app, order, table, "1", "2", "3")
    published(app)
    done = run("dead-letter", "retry", "rows", keys[0], keys[2])

    assert (done.exit_code, done.output) == (0, "2 writes retried.\n")
    assert [message.headers["task"] for message in published(app)] == ["celery_cachetiers.flush"]
    CacheTiers(app).writes.flush("rows")
    assert [write.args[0] for write in table.got] == ["1", "3"]
    assert CacheTiers(app).writes.dead_letter("rows").count() == 1


def test_retry_all_takes_all_pages(app: Celery, order: Any, table: Table, run: Run, monkeypatch: Any) -> None:
    monkeypatch.setattr("celery_cachetiers.dead_letter._PAGE", 2)
    bury(app, order, table, "1", "2", "3")
    done = run("dead-letter", "retry", "rows", "--all", "--json")

    assert json.loads(done.output) == {"retried": 3, "overtaken": 0, "unknown": 0}
    CacheTiers(app).writes.flush("rows")
    assert sorted(write.args[0] for write in table.got) == ["1", "2", "3"]


def test_retry_says_how_many_were_overtaken_by_what_the_sink_has_taken_since(
    app: Celery, order: Any, table: Table, run: Run
) -> None:
    keys = bury(app, order, table, "1", "2", "3", "4")
    for row in "123":
        order.cache.put((row,), "newer", {"kind": "b"})
    CacheTiers(app).writes.flush("rows")
    order.cache.invalidate("1", kind="b")
    done = run("dead-letter", "retry", "rows", *keys[:1])

    assert done.output == "0 writes retried.\n1 write dropped: overtaken by newer ones of the same keys.\n"
    assert done.exit_code == 0
    done = run("dead-letter", "retry", "rows", "--all", "--json")
    assert json.loads(done.output) == {"retried": 1, "overtaken": 2, "unknown": 0}
    assert order("1", kind="b") == "order of 1"  # the body
    CacheTiers(app).writes.flush("rows")
    assert sorted((write.args[0], write.value) for write in table.got) == [
        ("1", "newer"), ("1", "order of 1"), ("2", "newer"), ("3", "newer"), ("4", "order of 4"),
    ]  # fmt: skip


def test_a_key_that_is_not_there_ends_with_1(app: Celery, order: Any, table: Table, run: Run) -> None:
    [key] = bury(app, order, table, "1")
    done = run("dead-letter", "retry", "rows", key, "f" * 32)

    assert done.exit_code == 1
    assert done.output == "1 write retried.\n1 of the keys are not in the dead-letter.\n"
    assert json.loads(run("dead-letter", "drop", "rows", key, "--yes", "--json").output) == {"dropped": 0, "unknown": 1}


def test_drop_asks_and_removes_for_good(app: Celery, order: Any, table: Table, run: Run) -> None:
    keys = bury(app, order, table, "1", "2", "3")
    refused = run("dead-letter", "drop", "rows", "--all", answer="n\n")
    assert refused.exit_code == 1
    assert "Remove 3 writes of sink rows for good? [y/N]" in refused.output
    assert CacheTiers(app).writes.dead_letter("rows").count() == 3

    assert run("dead-letter", "drop", "rows", keys[1], answer="y\n").output.endswith("1 write dropped.\n")
    assert run("dead-letter", "drop", "rows", "--all", "--yes").output == "2 writes dropped.\n"
    CacheTiers(app).writes.flush("rows")
    assert table.got == []


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("retry", "rows"), "give the keys of the writes, or --all"),
        (("retry", "rows", "f" * 32, "--all"), "give the keys of the writes, or --all"),
        (("drop", "rows"), "give the keys of the writes, or --all"),
        (("drop", "rows", "--all", "--json"), "--json asks no questions: give --yes as well"),
        (("show", "rows"), "Missing argument 'KEY'"),
        (("list", "--limit", "0"), "0 is not in the range"),
    ],
)
def test_what_does_not_go_together_ends_with_2(
    order: Any, run: Run, arguments: tuple[str, ...], complaint: str
) -> None:
    done = run("dead-letter", *arguments)

    assert done.exit_code == 2
    assert complaint in done.output


# ---- what is wrong with the app, or its Redis ------------------------------------------------------------------------

COMMANDS = [
    ("flush", "nowhere"),
    ("dead-letter", "list", "nowhere"),
    ("dead-letter", "show", "nowhere", "f" * 32),
    ("dead-letter", "retry", "nowhere", "--all"),
    ("dead-letter", "drop", "nowhere", "--all", "--yes"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_sink_that_there_is_not_ends_with_2(order: Any, run: Run, command: tuple[str, ...]) -> None:
    done = run(*command)

    assert done.exit_code == 2
    assert done.output == (
        "Error: sink='nowhere' is not usable: the name of a sink that this process has imported (rows)\n"
    )


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_redis_away_ends_with_1_and_one_line(
    order: Any, run: Run, redis_proxy: RedisProxy, command: tuple[str, ...]
) -> None:
    redis_proxy.refuse()
    done = run(*(word.replace("nowhere", "rows") for word in command))

    assert done.exit_code == 1
    [line] = done.output.splitlines()
    assert line.startswith("Error: Redis cannot be reached: ")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_an_app_without_redis_has_no_journal(namespace: str, table: Table, command: tuple[str, ...]) -> None:
    with closing(cached_app(namespace)) as app:
        done = command_line(app)(*(word.replace("nowhere", "rows") for word in command))

    assert done.exit_code == 2
    assert "there is none to keep a journal in" in done.output


def test_programs_have_the_same(app: Celery, order: Any, table: Table) -> None:
    keys = bury(app, order, table, "1", "2")
    letter = CacheTiers(app).writes.dead_letter("rows")

    assert letter.count() == 2
    assert [each.key for each in letter.writes()] == keys
    assert [each.key for each in letter.writes(limit=1, offset=1)] == keys[1:]
    found = letter.find(keys[0])
    assert found is not None
    assert found.write is not None
    assert (found.write.args, found.write.value, found.error) == (("1",), "order of 1", "ValueError: no room for 1")
    assert letter.find("f" * 32) is None
    assert (letter.retry(), letter.drop()) == (Exhumed(0), 0)
    assert letter.drop(keys[0]) == 1
    assert letter.retry_all() == Exhumed(1)
    assert CacheTiers(app).writes.backlog("rows").pending == 1
    with pytest.raises(ConfigurationError, match="nowhere"):
        CacheTiers(app).writes.dead_letter("nowhere")


# ---- how it looks ----------------------------------------------------------------------------------------------------


def test_a_terminal_gets_a_table_of_rich_and_no_markup_of_a_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    common.print_table(("sink", "error"), [("rows", "[bold]no room[/bold]")])

    shown = capsys.readouterr().out
    assert "[bold]no room[/bold]" in shown
    assert "━━━━" in shown


STATS = ("task", "L1", "L2", "stale", "journal", "coalesced", "misses", "ratio", "computes", "mean", "saved", "waits")
KEY = "0d78575f6a3b4c0e9d2f1a8b7c6d5e4f"


@pytest.mark.parametrize("columns", [80, 100, 110, 160])
@pytest.mark.parametrize(
    ("titles", "row", "boxed_from"),
    [
        (STATS, ("proj.catalogue.profile_page", *["123,456"] * 11), 160),
        (("sink", "key", "task", "error"), ("rows", KEY, "proj.order", "E" * 90), 80),
        (("sink", "key", "given up"), ("rows", KEY, "2026-11-24 12:00:00+01:00"), 80),
    ],
    ids=["stats", "dead-letter", "narrow"],
)
def test_nothing_is_cut_short_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    columns: int,
    titles: tuple[str, ...],
    row: tuple[str, ...],
    boxed_from: int,
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    common.print_table(titles, [row])
    shown = unstyle(capsys.readouterr().out)

    assert "…" not in shown
    for cell in (*titles, *row[:-1]):
        assert cell in shown
    assert shown.count("E") >= row[-1].count("E")
    boxed = [line for line in shown.splitlines() if line.startswith(("┃", "│", "┏"))]
    assert all(len(line) <= columns for line in boxed)
    assert bool(boxed) == (columns >= boxed_from)


def test_without_rich_it_is_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    common.print_table(("sink", "taken"), [("rows", 12)])

    assert capsys.readouterr().out == "sink  taken\nrows  12\n"
