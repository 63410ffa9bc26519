"""What `cachetiers top` draws fits into the terminal: each section has a part of the height, and says what it hides."""

from __future__ import annotations

import pytest

from celery_cachetiers.cli.fitting import Table, fitted
from celery_cachetiers.cli.intervals import Interval, Reading
from celery_cachetiers.cli.screen import Dashboard
from celery_cachetiers.journal_port import Backlog
from celery_cachetiers.metrics.tally import ProcessTally, Tally
from celery_cachetiers.metrics.totals import Totals

pytest.importorskip("rich")

KEYS = [f"{number:032x}" for number in range(20)]


def interval(sinks: int = 1) -> Interval:
    """One with much of everything."""
    tasks = {f"shop.catalogue.task_{number}": Tally(l1_hits=100 - number, misses=1) for number in range(12)}
    writes = {f"sink_{number}": Backlog(72, None, 3) for number in range(sinks)}
    reading = Reading(1000.0, Totals(tasks, ProcessTally(), {}), {}, None, writes)
    keys = {("shop.catalogue.task_0", key): 50.0 for key in KEYS}
    invalidated = {f"tag_{number}:*": 5 for number in range(9)}
    return Interval(2.0, tasks, keys, invalidated, 100, reading)


def shown(width: int, height: int, sinks: int = 1) -> list[str]:
    from rich.console import Console

    console = Console(width=width, height=height, no_color=True)
    drawn = Dashboard("namespace shop").drawn([interval(sinks)], None, width, height)
    return ["".join(part.text for part in line).rstrip() for line in console.render_lines(drawn, pad=False)]


@pytest.mark.parametrize("height", [24, 30, 40])
def test_a_terminal_shows_a_part_of_every_section_and_says_how_much_more_there_is(height: int) -> None:
    lines = shown(80, height)

    assert len(lines) == height
    for start in ("cachetiers: ", "hit ratio", "misses", "task ", "hottest keys", "invalidated", "sink_0  72"):
        assert any(line.startswith(start) for line in lines), start
    assert any(KEYS[0] in line for line in lines)
    assert lines[-1] == "Redis has refused to tell of itself."
    tasks = [line for line in lines if line.startswith("shop.catalogue") and "%" in line]
    assert f"... {12 - len(tasks)} more" in lines
    assert not any("…" in line for line in lines)


def test_many_sinks_are_counted_and_leave_the_others_their_part() -> None:
    lines = shown(80, 24, sinks=6)

    assert any(line.startswith("sink_0  72") for line in lines)
    assert "... 5 more" in lines
    assert lines[-1] == "Redis has refused to tell of itself."


def test_a_terminal_that_is_high_enough_shows_everything_with_blank_lines_between() -> None:
    lines = shown(100, 60)

    assert lines.count("") == 5
    assert any(line.startswith("hits in the journal") for line in lines)


def test_a_line_that_is_too_long_goes_on_in_the_next_one() -> None:
    lines = shown(50, 60)
    at = next(at for at, line in enumerate(lines) if line.startswith("shop.catalogue.task_0") and "%" not in line)

    assert KEYS[0] in "".join(lines[at : at + 2])
    assert all(len(line) <= 50 for line in lines)


@pytest.mark.parametrize("width", [40, 60])
def test_on_a_narrow_terminal_sparklines_are_of_the_latest_intervals_and_what_is_cut_has_a_sign(width: int) -> None:
    from rich.console import Console

    console, history = Console(width=width, height=60, no_color=True), [*[None] * 39, interval()]
    drawn = Dashboard("namespace shop, every 2 s, and a name that is long").drawn(history, None, width, 60)
    lines = ["".join(part.text for part in line).rstrip() for line in console.render_lines(drawn, pad=False)]

    assert all(len(line) <= width for line in lines)
    assert lines[0].endswith("…")
    [rates] = [line for line in lines if line.startswith("hits in L1")]
    assert rates.endswith("█")
    assert lines[lines.index(rates) + 1].startswith("hits in L2")


def test_what_is_left_goes_to_each_in_turn() -> None:
    many = Table(("many",), [(str(number),) for number in range(9)])
    few = Table(("few",), [("one",), ("two",)])

    texts = [line.text for line in fitted([many, few, "end"], 20, 9)]

    assert texts == ["many", "0", "1", "2", "... 6 more", "few", "one", "two", "end"]
