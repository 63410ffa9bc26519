"""Reports and readings as JSON: what the history keeps, what the next report starts from, what programs get.

Each has a ``version``. What a later version of this library adds is ignored, and what it has changed beyond that is not
read: then there is no such report.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final, TypeVar

from celery_cachetiers.metrics.interval import Moment
from celery_cachetiers.metrics.reasons import Reason
from celery_cachetiers.metrics.report import Report
from celery_cachetiers.metrics.tally import Tally
from celery_cachetiers.metrics.totals import added, as_dict
from celery_cachetiers.server_info import ServerInfo, Traffic
from celery_cachetiers.stats_port import Sums

VERSION: Final = 1
BUSIEST: Final = 10
"""Tasks that the history keeps apart, by calls; all others are added up."""

T = TypeVar("T")


# -- reports ----------------------------------------------------------------------------------------------------------


def report_as_dict(made: Report) -> dict[str, Any]:
    """All of a report, and what follows from it, ready for JSON."""
    return {
        "version": VERSION, "at": made.at, "since": made.since, "seconds": made.seconds, "target": made.target,
        "ratio": made.ratio, "requests": made.requests, "below": made.below, "complete": made.complete,
        "total": as_dict(made.total), "tasks": {name: as_dict(tally) for name, tally in made.tasks.items()},
        "server_ratio": made.server_ratio, "traffic": asdict(made.traffic) if made.traffic is not None else None,
        "servers": [each.as_dict() for each in made.servers], "untold": made.untold,
        "reasons": [asdict(reason) for reason in made.reasons],
    }  # fmt: skip


def packed_report(made: Report) -> str:
    """A report for the history, as short as it can be."""
    names = sorted(made.tasks, key=lambda name: (-_calls(made.tasks[name]), name))
    others = added((*(made.tasks[name] for name in names[BUSIEST:]), made.others))
    kept = {
        "version": VERSION, "at": made.at, "since": made.since, "target": made.target, "complete": made.complete,
        "tasks": {name: _short(made.tasks[name]) for name in names[:BUSIEST]}, "others": _short(others),
        "traffic": asdict(made.traffic) if made.traffic is not None else None,
        "servers": [each.as_dict() for each in made.servers], "untold": made.untold,
        "reasons": [asdict(reason) for reason in made.reasons],
    }  # fmt: skip
    return json.dumps(kept, separators=(",", ":"))


def unpacked_report(text: str) -> Report | None:
    """A report of the history; ``None`` for what is none, or none of this version."""
    try:
        kept = _versioned(text)
        traffic = kept.get("traffic")
        return Report(
            float(kept["at"]), kept["since"], float(kept["target"]),
            {str(name): _made(Tally, numbers) for name, numbers in kept["tasks"].items()},
            complete=bool(kept["complete"]), traffic=_made(Traffic, traffic) if traffic is not None else None,
            servers=tuple(_made(ServerInfo, each) for each in kept["servers"]), untold=str(kept["untold"]),
            reasons=tuple(_reason(each) for each in kept["reasons"]), others=_made(Tally, kept["others"]),
        )  # fmt: skip
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _calls(tally: Tally) -> int:
    return tally.hits + tally.misses + tally.coalesced


def _short(tally: Tally) -> dict[str, int | float]:
    counted = {each.name: getattr(tally, each.name) for each in fields(Tally)}
    return {name: round(value, 6) for name, value in counted.items() if value}


def _reason(kept: Mapping[str, Any]) -> Reason:
    return _made(Reason, {**kept, "tasks": tuple(kept["tasks"])})


# -- readings ---------------------------------------------------------------------------------------------------------


def packed_moment(moment: Moment) -> str:
    """A reading for the next report."""
    sums = {each.name: getattr(moment.sums, each.name) for each in fields(Sums)}
    servers = [each.as_dict() for each in moment.servers]
    kept = {"version": VERSION, "at": moment.at, "sums": sums, "servers": servers}
    return json.dumps(kept, separators=(",", ":"))


def unpacked_moment(text: str) -> Moment | None:
    """A reading; ``None`` for what is none."""
    try:
        kept = _versioned(text)
        sums = _made(Sums, kept["sums"])
        numbers = [*sums.tasks.values(), sums.process, sums.invalidated, sums.outdated, sums.unusable]
        if not all(isinstance(number, (int, float)) for each in numbers for number in each.values()):
            return None
        return Moment(float(kept["at"]), sums, tuple(_made(ServerInfo, each) for each in kept["servers"]))
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _versioned(text: str) -> dict[str, Any]:
    kept = json.loads(text)
    if kept["version"] != VERSION:
        raise ValueError(kept["version"])
    return dict(kept)


def _made(kind: type[T], kept: Mapping[str, Any]) -> T:
    known = {each.name for each in fields(kind)}  # type: ignore[arg-type]  # a dataclass, of whichever kind
    return kind(**{name: value for name, value in kept.items() if name in known})
