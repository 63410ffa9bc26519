"""What duplicates cost those beside them: 500 calls of one 2 s task among 200 other tasks, on a real worker, ``-c 4``.

The queue is filled first, evenly mixed and always in the same order; the clock starts when the worker consumes it, and
stops at 90 s. The others are stock tasks of 50 ms each. "x alone": their time over that of the same tasks without any
call of the slow task, on a fresh worker of the same kind; "x with one": over their time beside a single call of it. The
one compute that is needed takes a slot of four for 2 s, so the best possible of the first is about 1.2 (2.5 s become
3 s; more in quick mode), and of the second 1. "right", "wrong" and "none" say what the caller of each duplicate got:
its value, another one, or an exception or nothing. "slot s" is the time that duplicates occupied pool slots beyond the
body of one compute, "% blocking" the same in percent of followers that wait in their slots, "ids" how many task ids the
duplicates have. Stock Celery gets fewer duplicates, as it computes them all.

The second table asks what becomes of a workflow, for at most 15 s each: a chord of two duplicates, a chain whose middle
is a duplicate, a body that calls ``self.retry()`` once. The number is how often bodies ran: for stock Celery 2 each,
with coalescing 1, 1 and 2.

Targets: one compute; the others at most 1.2 x their time without the duplicates, which is "with one"; at most 2 % of
the slot-seconds of blocking followers.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from celery import Celery, chain, chord, exceptions
from celery.result import AsyncResult

from benchmarks.peers import not_installed
from benchmarks.server import redis_server
from benchmarks.table import number, target, text_table
from benchmarks.waiting_app import BLOCKING, ONCE, OURS, SECONDS_VARIABLE, SINGLETON, STOCK, Counts, make_app, value_of
from benchmarks.worker import prefork_worker

TITLES = {
    OURS: "ours",
    BLOCKING: "ours, blocking",
    STOCK: "Celery alone",
    SINGLETON: "celery-singleton",
    ONCE: "celery-once",
}
NOTES = {STOCK: "fewer duplicates, as it computes each", SINGLETON: "duplicates get the first one's id"}
HEAD = (
    *("contender", "duplicates", "computes", "right", "wrong", "none", "ids"),
    *("others s", "x alone", "x with one", "all s", "slot s", "% blocking", "note"),
)
CONCURRENCY, LIMIT, WORKFLOW_LIMIT = 4, 90.0, 15.0


@dataclass(frozen=True, slots=True)
class Load:
    """So many calls of the slow task, evenly mixed with so many others."""

    duplicates: int
    others: int
    seconds: float

    def names(self) -> Iterator[str]:
        """The tasks to publish, in this order."""
        slow = [((at + 0.5) / self.duplicates, "slow") for at in range(self.duplicates)]
        others = [((at + 0.5) / self.others, "other") for at in range(self.others)]
        return (name for _, name in sorted(slow + others, key=lambda each: each[0]))


@dataclass(eq=False)
class Outcome:
    """What became of a load.

    Attributes:
        slow: The task ids that the publisher of the duplicates got.
        times: Seconds until the result of an id was there; without those that were not at the end.
        refused: The names of the exceptions that publishing a duplicate raised.
    """

    load: Load
    slow: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)
    times: dict[str, float] = field(default_factory=dict)
    right: int = 0
    wrong: int = 0
    bodies: int = 0
    slot_seconds: float = 0.0

    def seconds(self, ids: list[str]) -> float:
        """Until the last of them had its result; infinite where one has none."""
        return max((self.times.get(each, float("inf")) for each in ids), default=0.0)

    def note(self) -> str:
        """What a reader must know to compare it."""
        refused = [f"{count} calls raised {name}" for name, count in self.refused.items()]
        missing = sum(each not in self.times for each in [*self.slow, *self.others])
        return "; ".join([*refused, *([f"{missing} never finished"] if missing else [])])


@dataclass(eq=False)
class Contender:
    """What became of the others alone, of the others beside one call, of everything, and of the workflows."""

    name: str
    alone: Outcome
    with_one: Outcome
    crowd: Outcome
    workflows: list[str]


def run(*, quick: bool) -> None:
    """Prints both tables and the targets."""
    load, stock = (Load(100, 60, 1.0), 20) if quick else (Load(500, 200, 2.0), 40)
    absent = {name: why for name in TITLES if (why := not_installed(name))}
    contenders = {}
    for name in TITLES:
        if name not in absent:
            contenders[name] = _contender(name, Load(stock, load.others, load.seconds) if name == STOCK else load)
    blocking = contenders[BLOCKING].crowd.slot_seconds
    rows = [_row(each, blocking) for each in contenders.values()]
    missing = [(TITLES[name], *["-"] * (len(HEAD) - 2), why) for name, why in absent.items()]
    print(text_table(HEAD, rows + missing), end="\n\n")
    print(text_table(("contender", *WORKFLOWS), [(TITLES[each.name], *each.workflows) for each in contenders.values()]))
    ours = contenders[OURS]
    print(target("ours", ours.crowd.bodies, 1, "computes"))
    print(target("ours, the others", _ratio(ours.crowd, ours.with_one), 1.2, "x with one"))
    print(target("ours, slot-seconds", 100 * ours.crowd.slot_seconds / blocking, 2, "% of blocking"))


def _contender(name: str, load: Load) -> Contender:
    with redis_server() as server:
        url = server.url().removesuffix("/0")
        app, counts = make_app(name, url), Counts(url)
        loads = (Load(0, load.others, load.seconds), Load(1, load.others, load.seconds), load)
        alone, with_one, crowd = (_play(app, counts, each, at) for at, each in enumerate(loads))
        workflows = _workflows(app, counts, load.seconds)
        app.backend.result_consumer.subscribed_to.clear()  # else results without an end miss the server that has gone
        return Contender(name, alone, with_one, crowd, workflows)


def _play(app: Celery, counts: Counts, load: Load, argument: int) -> Outcome:
    """One load on a fresh worker; the argument tells its duplicates from those of other loads."""
    outcome = Outcome(load)
    with _worker(app, load.seconds) as worker:
        worker.consume(False)
        _publish(app, outcome, argument)
        worker.consume(True)
        _await(app, outcome)
        time.sleep(0.5)  # a slot is free, and counted, a little after the result is there
    for each in outcome.slow:
        if each in outcome.times:
            result = AsyncResult(each, app=app)
            right = result.successful() and result.result == value_of(argument)
            outcome.right, outcome.wrong = outcome.right + right, outcome.wrong + (not right)
    done = counts.of(argument)
    if load.duplicates:
        outcome.bodies = round(done["bodies"])
        outcome.slot_seconds = done["slot_seconds"] - done["body_seconds"] / done["bodies"]
    return outcome


def _worker(app: Celery, seconds: float) -> Any:
    return prefork_worker(app, "benchmarks.waiting_app", CONCURRENCY, **{SECONDS_VARIABLE: str(seconds)})


def _publish(app: Celery, outcome: Outcome, argument: int) -> None:
    for at, name in enumerate(outcome.load.names()):
        if name == "other":
            outcome.others.append(app.tasks[name].delay(at).id)
            continue
        try:
            outcome.slow.append(app.tasks[name].delay(argument).id)
        except Exception as error:  # as a rival refuses a duplicate
            outcome.refused[type(error).__name__] += 1


def _await(app: Celery, outcome: Outcome) -> None:
    began, elapsed = time.monotonic(), 0.0
    pending = list({*outcome.slow, *outcome.others})
    while pending and elapsed < LIMIT:
        time.sleep(0.02)
        found = app.backend.mget([app.backend.get_key_for_task(each) for each in pending])
        elapsed = time.monotonic() - began
        outcome.times |= {each: elapsed for each, meta in zip(pending, found, strict=True) if meta is not None}
        pending = [each for each in pending if each not in outcome.times]


def _workflows(app: Celery, counts: Counts, seconds: float) -> list[str]:
    """Whether each completes, and how many bodies ran."""
    arguments = range(1000, 1000 + len(WORKFLOWS))
    with _worker(app, seconds):
        verdicts = [_verdict(partial(start, app, at)) for start, at in zip(WORKFLOWS.values(), arguments, strict=True)]
    bodies = [counts.of(at)["bodies"] for at in arguments]  # now that the worker has finished what it had begun
    return [f"{verdict} ({count:.0f})" for verdict, count in zip(verdicts, bodies, strict=True)]


def _verdict(start: Callable[[], tuple[AsyncResult, int]]) -> str:
    try:
        result, expected = start()
        try:
            return "yes" if result.get(timeout=WORKFLOW_LIMIT) == expected else "wrong value"
        except exceptions.TimeoutError:
            return f"no, stays {result.state}"
    except Exception as error:  # whatever a rival raises is its answer
        return f"no, {type(error).__name__}"


def _chord(app: Celery, argument: int) -> tuple[AsyncResult, int]:
    slow, total = app.tasks["slow"], app.tasks["total"]
    return chord([slow.s(argument), slow.s(argument)])(total.s()), 2 * value_of(argument)


def _chain(app: Celery, argument: int) -> tuple[AsyncResult, int]:
    slow, other = app.tasks["slow"], app.tasks["other"]
    slow.delay(argument)
    return chain(other.s(argument), slow.s(), other.s())(), value_of(argument)


def _retry(app: Celery, argument: int) -> tuple[AsyncResult, int]:
    return app.tasks["retried"].delay(argument), value_of(argument)


WORKFLOWS: dict[str, Callable[[Celery, int], tuple[AsyncResult, int]]] = {
    "chord of two duplicates": _chord,
    "chain over a duplicate": _chain,
    "self.retry()": _retry,
}


def _row(contender: Contender, blocking: float) -> tuple[str, ...]:
    crowd = contender.crowd
    answered = (crowd.right, crowd.wrong, crowd.load.duplicates - crowd.right - crowd.wrong)
    return (
        TITLES[contender.name],
        *(str(each) for each in (crowd.load.duplicates, crowd.bodies, *answered, len(set(crowd.slow)))),
        number(crowd.seconds(crowd.others)),
        f"{_ratio(crowd, contender.alone):.2f}",
        f"{_ratio(crowd, contender.with_one):.2f}",
        number(crowd.seconds([*crowd.slow, *crowd.others])),
        number(crowd.slot_seconds),
        f"{100 * crowd.slot_seconds / blocking:.1f}",
        "; ".join(filter(None, (NOTES.get(contender.name), crowd.note()))),
    )


def _ratio(crowd: Outcome, reference: Outcome) -> float:
    return crowd.seconds(crowd.others) / reference.seconds(reference.others)
