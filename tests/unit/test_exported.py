"""What monitoring is told: names as Prometheus wants them, and counters that never go back by themselves."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from celery_cachetiers.metrics.exported import (
    DEAD,
    HITS,
    INVALIDATED,
    METRICS,
    OF_PROCESS,
    OF_SERVER,
    OF_TASK,
    OTHER,
    UNUSABLE,
    Metric,
    Sample,
    Steady,
)
from celery_cachetiers.metrics.tally import ProcessTally, Tally
from celery_cachetiers.metrics.totals import Totals
from celery_cachetiers.server_info import ServerInfo

ROOT = Path(__file__).parents[2]
NOT_BASE = ("milliseconds", "_ms", "minutes", "hours", "kilobytes", "megabytes", "percent", "ratio")


def totals(*, process: ProcessTally | None = None, invalidated: dict[str, int] | None = None, **tasks: Tally) -> Totals:
    return Totals(tasks, process or ProcessTally(), invalidated or {})


def values(samples: Iterable[Sample], metric: Metric) -> dict[tuple[str, ...], float]:
    return {sample.labels: sample.value for sample in samples if sample.metric is metric}


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_is_as_prometheus_wants_it(metric: Metric) -> None:
    name = metric.full_name

    assert re.fullmatch(r"cachetiers(_[a-z0-9]+)+", name)
    assert name.endswith("_total") is (metric.kind == "counter")
    assert not any(word in name for word in NOT_BASE)
    assert not name.removesuffix("_total").endswith(("_count", "_sum", "_bucket", "_info", "_counter", "_gauge"))
    for unit in ("seconds", "bytes"):  # a unit comes last
        assert unit not in name or name.removesuffix("_total").endswith(unit)
    assert not set(metric.labels) & {"le", "quantile", "job", "instance"}
    assert metric.meaning
    assert metric.kind in ("counter", "gauge")


def test_every_name_is_there_once() -> None:
    names = [metric.name for metric in METRICS]

    assert len(set(names)) == len(names)


def test_every_counter_is_exported() -> None:
    of_tasks = {*OF_TASK, "l1_hits", "l2_hits", "journal_hits", "l1_seconds_saved", "other_seconds_saved"}
    of_processes = {*OF_PROCESS, "invalidated"}  # the sum of what is told by pattern

    assert {each.name for each in fields(Tally)} | {"seconds_saved"} == of_tasks
    assert {each.name for each in fields(ProcessTally)} == of_processes
    assert set(OF_SERVER) <= {each.name for each in fields(ServerInfo)}


def test_the_reference_has_every_metric_and_no_other() -> None:
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(cachetiers_\w+)`(?:\{([\w, ]*)\})? \|", page, re.MULTILINE)

    told = {name: {label.strip() for label in labels.split(",") if label.strip()} for name, labels in rows}
    assert told == {metric.full_name: set(metric.labels) for metric in METRICS}


# ---- the dashboard ---------------------------------------------------------------------------------------------------

_BY = re.compile(r"by \(([^)]*)\) ?\((?:\w+\()?(cachetiers_\w+)")


def dashboard() -> dict[str, object]:
    text = resources.files("celery_cachetiers").joinpath("dashboards", "grafana.json").read_text()
    found: dict[str, object] = json.loads(text)
    return found


def test_the_dashboard_asks_for_nothing_that_does_not_exist() -> None:
    asked = set(re.findall(r"\bcachetiers_\w+", json.dumps(dashboard())))
    there = {metric.full_name for metric in METRICS}

    assert asked - there == set()
    assert there - asked == set(), "and shows all there is"


def test_the_dashboard_selects_by_labels_that_the_metrics_have() -> None:
    labels = {metric.full_name: {*metric.labels, "job", "instance"} for metric in METRICS}
    selected = re.findall(r"\b(cachetiers_\w+)\{([^}]*)\}", json.dumps(dashboard()).replace('\\"', "'"))

    assert {name for name, _ in selected} == set(labels)
    for name, selector in selected:
        assert set(re.findall(r"(\w+)\s*[=!][=~]?'", selector)) <= labels[name], (name, selector)


def test_the_dashboard_tells_apart_by_labels_that_the_metrics_have() -> None:
    labels = {metric.full_name: {*metric.labels, "job", "instance"} for metric in METRICS}
    panels: Any = dashboard()["panels"]
    asked = [target["expr"] for panel in panels for target in panel.get("targets", ())]

    apart = [(set(re.findall(r"\w+", by)), name) for each in asked for by, name in _BY.findall(each)]
    assert apart
    for by, name in apart:
        assert by <= labels[name], (by, name)


def test_the_panels_of_the_dashboard_have_ids_and_places_of_their_own() -> None:
    panels = dashboard()["panels"]
    assert isinstance(panels, list)
    places = [
        (panel["gridPos"]["x"] + dx, panel["gridPos"]["y"] + dy)
        for panel in panels
        for dx in range(panel["gridPos"]["w"])
        for dy in range(panel["gridPos"]["h"])
    ]

    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len(set(places)) == len(places)
    assert max(x for x, _ in places) < 24


# ---- what goes on and on ---------------------------------------------------------------------------------------------


def test_samples_are_the_totals() -> None:
    tally = Tally(l1_hits=3, l2_hits=2, journal_hits=1, misses=4, l1_seconds_saved=1.5, other_seconds_saved=2.0)

    told = Steady().samples(totals(a=tally, process=ProcessTally(failed_open=7), invalidated={"user:*": 5}))

    assert values(told, HITS) == {("a", "l1"): 3, ("a", "l2"): 2, ("a", "journal"): 1}
    assert values(told, OF_TASK["misses"]) == {("a",): 4}
    assert values(told, OF_TASK["seconds_saved"]) == {("a",): 3.5}
    assert values(told, OF_TASK["failed_open"]) == {("a",): 0, ("",): 7}
    assert values(told, INVALIDATED) == {("user:*",): 5}
    assert values(told, DEAD) == {}


def test_what_was_wrong_with_entries_is_told_by_reason() -> None:
    told = Steady().samples(Totals({}, ProcessTally(), {}, {}, {"forged": 2, "oversize": 1}))

    assert values(told, UNUSABLE) == {("forged",): 2, ("oversize",): 1}


def test_tasks_past_the_limit_are_one_and_who_was_first_stays() -> None:
    steady = Steady(tasks=2)
    steady.samples(totals(m=Tally(misses=1), n=Tally(misses=2)))

    told = steady.samples(totals(a=Tally(misses=5), b=Tally(misses=6), m=Tally(misses=1), n=Tally(misses=2)))

    assert values(told, OF_TASK["misses"]) == {("m",): 1, ("n",): 2, (OTHER,): 11}


def test_the_others_do_not_go_back_when_one_of_them_expires_or_starts_over() -> None:
    steady = Steady(tasks=1)
    seen = []
    for tasks in (
        {"b": Tally(misses=5), "c": Tally(misses=6)},
        {"c": Tally(misses=7)},
        {"b": Tally(misses=2), "c": Tally(misses=7)},
        {"b": Tally(misses=2), "c": Tally(misses=1)},
    ):
        seen.append(values(steady.samples(totals(a=Tally(), **tasks)), OF_TASK["misses"])[(OTHER,)])

    assert seen == [11, 12, 14, 15]


def test_patterns_past_the_limit_are_one() -> None:
    steady = Steady(patterns=1)
    seen = []
    for invalidated in ({"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 4}, {"a": 1, "b": 1, "c": 4}):
        seen.append(values(steady.samples(totals(invalidated=invalidated)), INVALIDATED))

    assert seen == [{("a",): 1, (OTHER,): each} for each in (5, 6, 7)]


def test_a_call_that_is_not_coalesced_after_all_takes_nothing_back() -> None:
    steady = Steady()
    seen = []
    for coalesced, misses in ((1000, 5), (999, 6), (1001, 6)):
        told = steady.samples(totals(a=Tally(coalesced=coalesced, misses=misses)))
        seen.append(values(told, OF_TASK["coalesced"])[("a",)])

    assert seen == [1000, 1000, 1001]


def test_what_has_begun_anew_is_told_as_it_is() -> None:
    steady = Steady()
    steady.samples(totals(a=Tally(coalesced=1000, misses=5)))

    told = steady.samples(totals(a=Tally(coalesced=999, misses=1)))

    assert values(told, OF_TASK["coalesced"]) == {("a",): 999}
    assert values(told, OF_TASK["misses"]) == {("a",): 1}


def test_two_readings_do_not_mix() -> None:
    together = threading.Barrier(2)
    met: list[bool] = []

    class Slow(dict[str, Tally]):
        def items(self) -> Any:
            try:
                together.wait(0.3)
                met.append(True)
            except threading.BrokenBarrierError:
                met.append(False)
            return super().items()

    steady = Steady()
    threads = [
        threading.Thread(target=steady.samples, args=(Totals(Slow(a=Tally()), ProcessTally(), {}),)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert met == [False, False]
