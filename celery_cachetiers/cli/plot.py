"""Draws the history of the reports: hit ratio, seconds saved, and how long computes and waits take.

Needs matplotlib, the extra ``plot``, and no screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from celery_cachetiers.metrics.report import Report

Value = Callable[[Report], float | None]


def draw(made: Sequence[Report], path: Path) -> None:
    """Draws reports into a file, of the kind that its name ends in."""
    figure_of(made).savefig(path)


def figure_of(made: Sequence[Report]) -> Figure:
    """What is drawn: three axes over one time.

    A report without an earlier one to compare with, of everything counted before it, is left out: it has no length.
    """
    reports = [each for each in made if each.since is not None]
    zone = datetime.now().astimezone().tzinfo
    times = [datetime.fromtimestamp(each.at, zone) for each in reports]
    figure = Figure(figsize=(10, 8), layout="constrained")
    FigureCanvasAgg(figure)
    ratio, saved, latency = figure.subplots(3, sharex=True)
    _lines(ratio, times, reports, {"the cache's own": _ratio, "all of the server": _server_ratio, "target": _target})
    ratio.set(title="Hit ratio", ylabel="%", ylim=(-2, 102))
    _lines(saved, times, reports, {"seconds saved": _saved})
    saved.set(title="Computing that was saved", ylabel="seconds in a second")
    _lines(latency, times, reports, {"mean compute": _compute, "mean wait for another's compute": _wait})
    latency.set(title="Latency", ylabel="seconds")
    locator = AutoDateLocator(tz=zone)  # type: ignore[no-untyped-call]  # matplotlib says nothing of it
    latency.xaxis.set_major_locator(locator)
    latency.xaxis.set_major_formatter(ConciseDateFormatter(locator, tz=zone))  # type: ignore[no-untyped-call]
    return figure


def _lines(axes: Any, times: Sequence[datetime], reports: Sequence[Report], values: dict[str, Value]) -> None:
    """One line for each value; an interval that has none leaves a gap."""
    for label, value in values.items():
        found = [value(each) for each in reports]
        numbers = [float("nan") if number is None else number for number in found]
        style = {"linestyle": "--", "color": "grey"} if value is _target else {"marker": ".", "markersize": 4}
        axes.plot(times, numbers, label=label, **style)
    axes.grid(alpha=0.3)
    axes.legend(loc="best", fontsize="small")


def _ratio(made: Report) -> float | None:
    return None if made.ratio is None else 100 * made.ratio


def _server_ratio(made: Report) -> float | None:
    return None if made.server_ratio is None else 100 * made.server_ratio


def _target(made: Report) -> float | None:
    return 100 * made.target


def _saved(made: Report) -> float | None:
    return made.total.seconds_saved / made.seconds if made.seconds else None


def _compute(made: Report) -> float | None:
    total = made.total
    return total.compute_seconds / total.computes if total.computes else None


def _wait(made: Report) -> float | None:
    total = made.total
    return total.wait_seconds / total.waits if total.waits else None
