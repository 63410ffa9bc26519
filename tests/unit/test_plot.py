"""What `cachetiers report --plot` draws: the axes, their lines, and the numbers on them."""

from __future__ import annotations

from datetime import datetime
from math import isnan
from pathlib import Path
from typing import Any

import pytest

from celery_cachetiers.metrics.report import Report
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.server_info import Traffic

pytest.importorskip("matplotlib", reason="install the extra [plot]")

BEGAN = 1_800_000_000.0
BUSY = Tally(
    l1_hits=60, l2_hits=20, misses=20, computes=20, compute_seconds=5.0, waits=4, wait_seconds=2.0,
    other_seconds_saved=30.0,
)  # fmt: skip
REPORTS = (
    Report(BEGAN, None, 0.9, {"a": Tally(misses=1000)}),
    Report(BEGAN + 60, BEGAN, 0.9, {"a": BUSY}, traffic=Traffic(keyspace_hits=3, keyspace_misses=1)),
    Report(BEGAN + 120, BEGAN + 60, 0.9, {}),
    Report(BEGAN + 150, BEGAN + 120, 0.8, {"a": Tally(l1_hits=1, l1_seconds_saved=3.0)}),
)
"""The first one, one with everything, an idle one, and a shorter one."""


@pytest.fixture(scope="module")
def axes() -> list[Any]:
    from celery_cachetiers.cli.plot import figure_of

    return list(figure_of(REPORTS).axes)


def drawn(axes: Any) -> dict[str, list[float | None]]:
    """The numbers of each line, by its label; ``None`` for a gap."""
    return {
        line.get_label(): [None if isnan(number) else round(float(number), 6) for number in line.get_ydata()]
        for line in axes.lines
    }


def test_three_axes_say_what_they_show_and_in_which_unit(axes: list[Any]) -> None:
    assert [(each.get_title(), each.get_ylabel()) for each in axes] == [
        ("Hit ratio", "%"), ("Computing that was saved", "seconds in a second"), ("Latency", "seconds"),
    ]  # fmt: skip
    for each in axes:
        assert [text.get_text() for text in each.get_legend().get_texts()] == list(drawn(each))


def test_the_ratios_are_percents_and_an_idle_interval_is_a_gap(axes: list[Any]) -> None:
    assert drawn(axes[0]) == {
        "the cache's own": [80.0, None, 100.0], "all of the server": [75.0, None, None], "target": [90.0, 90.0, 80.0],
    }  # fmt: skip
    low, high = axes[0].get_ylim()
    assert (low < 0, high > 100) == (True, True)


def test_what_was_saved_is_by_the_length_of_the_interval_and_latencies_are_means(axes: list[Any]) -> None:
    assert drawn(axes[1]) == {"seconds saved": [0.5, 0.0, 0.1]}
    assert drawn(axes[2]) == {
        "mean compute": [0.25, None, None], "mean wait for another's compute": [0.5, None, None],
    }  # fmt: skip


def test_each_stands_where_its_interval_ended_and_the_first_report_is_left_out(axes: list[Any]) -> None:
    for each in axes:
        for line in each.lines:
            times = [moment.timestamp() for moment in line.get_xdata()]
            assert times == [made.at for made in REPORTS[1:]]
    shown = axes[2].xaxis.get_major_formatter().format_ticks(axes[2].get_xticks())
    local = datetime.fromtimestamp(BEGAN + 60).astimezone()
    assert any(f"{local:%H}:" in tick for tick in shown)


@pytest.mark.parametrize(("name", "start"), [("out.png", b"\x89PNG"), ("out.svg", b"<?xml"), ("out.pdf", b"%PDF")])
def test_a_file_is_of_the_kind_that_its_name_ends_in(tmp_path: Path, name: str, start: bytes) -> None:
    from celery_cachetiers.cli.plot import draw

    draw(REPORTS, tmp_path / name)

    assert (tmp_path / name).read_bytes().startswith(start)
