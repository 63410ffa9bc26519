"""Answers in a worker's main process, with requests that only note what is done to them."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery.exceptions import Reject

from celery_cachetiers import answering
from celery_cachetiers.answering import Answering
from celery_cachetiers.seat import Answer, seat_of
from celery_cachetiers.testing import Gate
from celery_cachetiers.worker_requests import exception_of
from tests.unit.bodies import eventually

PATIENCE = 10


class Request:
    """Notes what becomes of it."""

    type, id, _payload = "task", "id", ((), {}, {})

    def __init__(self, *, revoked: bool = False) -> None:
        self.request_dict: dict[str, Any] = {"properties": {"priority": 3}}
        self._revoked, self.ended = revoked, threading.Event()
        self.done: list[tuple[str, Any]] = []

    def revoked(self) -> bool:
        return self._revoked

    def on_accepted(self, pid: int, accepted_at: float) -> None:
        self.done.append(("accepted", pid))

    def on_success(self, traced: Any) -> None:
        self.done.append(("success", traced))
        self.ended.set()

    def on_failure(self, failure: Any) -> None:
        self.done.append(("failure", type(exception_of(failure)).__name__))
        self.ended.set()

    def terminate(self, pool: object, signal: object = None) -> None:
        raise AssertionError("the worker's main process would end")

    cancel = terminate


@pytest.fixture
def traces(monkeypatch: pytest.MonkeyPatch) -> list[Callable[..., Any]]:
    """What stands for Celery's tracer: put a function in."""
    functions: list[Callable[..., Any]] = [lambda *args: ("traced", args[1])]

    def trace(*args: Any) -> Any:
        return functions[0](*args)

    monkeypatch.setattr(answering, "fast_trace_task", trace)
    return functions


@pytest.fixture
def answers() -> Iterator[Answering]:
    made = Answering(SimpleNamespace(use_fast_trace_task=True), lambda act: act())
    yield made
    made.close(PATIENCE)


def test_a_request_is_answered_through_the_tracer(answers: Answering, traces: list[Any]) -> None:
    request, answer = Request(), Answer(copy=lambda: 1)
    answers.give(request, answer)
    assert request.ended.wait(PATIENCE)

    assert request.done == [("accepted", os.getpid()), ("success", ("traced", "id"))]
    assert request.request_dict["properties"]["priority"] == 3
    assert seat_of(SimpleNamespace(**request.request_dict)) is answer


def test_an_answer_is_told_of_before_it_is_given_and_one_that_is_not_given_never(
    answers: Answering, traces: list[Any]
) -> None:
    told: list[str] = []
    traces[0] = lambda *args: told.append("traced")
    revoked, request = Request(revoked=True), Request()
    answers.give(revoked, Answer(copy=lambda: 1), lambda: told.append("revoked"))
    answers.give(request, Answer(copy=lambda: 1), lambda: told.append("answered"))
    assert request.ended.wait(PATIENCE)

    assert told == ["answered", "traced"]


def test_a_revoked_request_is_not_answered(answers: Answering, traces: list[Any]) -> None:
    request = Request(revoked=True)
    answers.give(request, Answer(copy=lambda: 1))
    other = Request()
    answers.give(other, Answer(copy=lambda: 1))
    assert other.ended.wait(PATIENCE)

    assert request.done == []


@pytest.mark.parametrize("error", [Reject("no", requeue=True), RuntimeError(), SystemExit(1)], ids=repr)
def test_what_passes_through_the_tracer_ends_as_a_failure(
    answers: Answering, traces: list[Any], error: BaseException
) -> None:
    def rejects(*args: object) -> object:
        raise error

    traces[0] = rejects
    request, next_one = Request(), Request()
    answers.give(request, Answer(copy=lambda: 1))
    assert request.ended.wait(PATIENCE)
    traces[0] = lambda *args: "traced"
    answers.give(next_one, Answer(copy=lambda: 1))
    assert next_one.ended.wait(PATIENCE)

    assert request.done == [("accepted", os.getpid()), ("failure", type(error).__name__)]
    assert next_one.done[-1] == ("success", "traced")  # the thread goes on


@pytest.mark.parametrize("fails", [False, True])
def test_an_end_is_told_where_requests_may_be_touched_and_not_in_the_thread(traces: list[Any], fails: bool) -> None:
    soon: queue.Queue[Callable[[], None]] = queue.Queue()
    answers = Answering(SimpleNamespace(use_fast_trace_task=True), soon.put)
    if fails:
        traces[0] = lambda *args: [].pop()
    request = Request()
    answers.give(request, Answer(copy=lambda: 1))
    tell = soon.get(timeout=PATIENCE)
    answers.close(PATIENCE)

    assert [name for name, _ in request.done] == ["accepted"]
    tell()
    assert [name for name, _ in request.done] == ["accepted", "failure" if fails else "success"]


def test_where_celery_does_not_use_its_fast_tracer_the_other_one_is_given_the_app(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = SimpleNamespace(use_fast_trace_task=False)
    monkeypatch.setattr(answering, "trace_task_ret", lambda *args, app: (args[0], args[1], app))
    answers = Answering(app, lambda act: act())
    request = Request()
    answers.give(request, Answer(copy=lambda: 1))
    assert request.ended.wait(PATIENCE)
    answers.close(PATIENCE)

    assert request.done[-1] == ("success", ("task", "id", app))


def test_the_end_of_a_request_that_is_answered_is_told_to_celery_alone(answers: Answering, traces: list[Any]) -> None:
    """What told the room of its ends is taken off, as it refers to the request."""
    request = Request()
    told: list[str] = []
    for name in ("on_success", "on_failure", "on_timeout"):
        setattr(request, name, lambda *args, name=name: told.append(name))
    answers.give(request, Answer(copy=lambda: 1))
    assert request.ended.wait(PATIENCE)

    assert told == []
    assert "on_timeout" not in vars(request)


def test_a_request_that_was_answered_is_kept_no_longer(answers: Answering, traces: list[Any]) -> None:
    for request in (Request(), Request()):
        answers.give(request, Answer(copy=lambda: 1))
        assert request.ended.wait(PATIENCE)

    eventually(lambda: not answers._asked)


def test_nobody_can_end_the_process_for_a_request_that_is_being_answered(answers: Answering, traces: list[Any]) -> None:
    request = Request()
    answers.give(request, Answer(copy=lambda: 1))

    request.terminate(None, signal=9)
    request.cancel(None)
    assert request.ended.wait(PATIENCE)


def test_closing_waits_for_the_answer_under_way_and_returns_those_that_were_not_begun(
    answers: Answering, traces: list[Any]
) -> None:
    gate = Gate()
    traces[0] = lambda *args: gate.pass_through()
    requests = [Request() for _ in range(3)]
    for request in requests:
        answers.give(request, Answer(copy=lambda: 1))
    gate.wait_reached()
    threading.Timer(0.05, gate.open).start()

    assert answers.close(PATIENCE) == requests[1:]
    assert [name for name, _ in requests[0].done] == ["accepted", "success"]


def test_closing_waits_no_longer_than_it_is_told_for_an_answer_that_hangs(
    answers: Answering, traces: list[Any]
) -> None:
    gate = Gate()
    traces[0] = lambda *args: gate.pass_through()
    hanging, waiting = Request(), Request()
    for request in (hanging, waiting):
        answers.give(request, Answer(copy=lambda: 1))
    gate.wait_reached()

    assert answers.close(0.0) == [waiting]
    assert [name for name, _ in hanging.done] == ["accepted"]
    gate.open()
    assert hanging.ended.wait(PATIENCE)
    assert [name for name, _ in waiting.done] == ["accepted"]


def test_a_fork_waits_until_no_answer_is_under_way(answers: Answering, traces: list[Any]) -> None:
    gate, forked = Gate(), threading.Event()
    traces[0] = lambda *args: gate.pass_through()
    request = Request()
    answers.give(request, Answer(copy=lambda: 1))
    gate.wait_reached()

    def fork() -> None:
        answering._quiet.before_fork()
        forked.set()
        answering._quiet.after_in_parent()

    thread = threading.Thread(target=fork)
    thread.start()
    assert not forked.is_set()
    gate.open()
    thread.join(PATIENCE)

    assert request.ended.wait(PATIENCE)
    assert forked.is_set()
