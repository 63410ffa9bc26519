"""Answers in a worker's main process, with requests that only note what is done to them; and the seats they ride on."""

from __future__ import annotations

import os
import pickle
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from celery_cachetiers import answering
from celery_cachetiers.answering import Answering
from celery_cachetiers.seat import Answer, GivenBack, Seat, give_seat, seat_of
from celery_cachetiers.testing import Gate

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
        self.done.append(("failure", type(failure.exception).__name__))
        self.ended.set()

    def terminate(self, pool: object, signal: object = None) -> None:
        raise AssertionError("the worker's main process would end")


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


def test_a_revoked_request_is_not_answered(answers: Answering, traces: list[Any]) -> None:
    request = Request(revoked=True)
    answers.give(request, Answer(copy=lambda: 1))
    other = Request()
    answers.give(other, Answer(copy=lambda: 1))
    assert other.ended.wait(PATIENCE)

    assert request.done == []


def test_what_passes_through_the_tracer_ends_as_a_failure(answers: Answering, traces: list[Any]) -> None:
    def rejects(*args: object) -> object:
        raise RuntimeError

    traces[0] = rejects
    request = Request()
    answers.give(request, Answer(copy=lambda: 1))
    assert request.ended.wait(PATIENCE)

    assert [name for name, _ in request.done] == ["accepted", "failure"]


def test_nobody_can_end_the_process_for_a_request_that_is_being_answered(answers: Answering, traces: list[Any]) -> None:
    request = Request()
    answers.give(request, Answer(copy=lambda: 1))

    request.terminate(None, signal=9)
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


# -- seats -------------------------------------------------------------------------------------------------------------


def test_a_seat_survives_the_way_to_a_child() -> None:
    seat = Seat("nonce", take_over="a:1", waits_for="b:2", holds=False)
    given = pickle.loads(pickle.dumps(GivenBack("a:1", 4.5)))

    assert pickle.loads(pickle.dumps(seat)) == seat
    assert (given.holder, given.seconds_left) == ("a:1", 4.5)


def test_a_seat_is_found_where_it_was_given() -> None:
    request = SimpleNamespace(request_dict={"properties": None})
    give_seat(request, Seat("nonce"))

    assert seat_of(SimpleNamespace(**request.request_dict)) == Seat("nonce")
    assert seat_of(None) is None


@pytest.mark.parametrize("forged", [{"nonce": "x"}, ["x", "", "", True], ("x", "", "", True), "x", None, 1])
def test_what_a_message_brings_along_is_no_seat(forged: object) -> None:
    assert seat_of(SimpleNamespace(properties={"cachetiers_seat": forged})) is None
